//! `recordings ls`.

use std::time::SystemTime;

use anyhow::Result;
use clap::{Args, ValueEnum};
use mezite_client::{Client, Retry};
use mezite_proto::v1;

use super::RecordingView;
use crate::{
    args::{key_value, label_map, rfc3339},
    cmd::{call, list},
    context::Context,
};

/// Arguments of `recordings ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only this user's
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    user: String,
    /// Only this login's
    #[arg(long, default_value = "", hide_default_value = true)]
    login: String,
    /// Only of this node
    #[arg(long, default_value = "", hide_default_value = true, value_name = "HOSTNAME")]
    node: String,
    /// Only in this state: interrupted is sealed after its agent fell silent, truncated at the size limit
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only with all of these labels
    #[arg(long, value_delimiter = ',', value_parser = key_value, value_name = "KEY=VALUE,…")]
    labels: Vec<(String, String)>,
    /// Only sessions that went on at or after this time
    #[arg(long, value_parser = rfc3339, value_name = "TIME")]
    from: Option<SystemTime>,
    /// Only sessions that began before this time
    #[arg(long, value_parser = rfc3339, value_name = "TIME")]
    to: Option<SystemTime>,
    /// Stop after so many [default: all]
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
}

/// State of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    InProgress,
    Complete,
    Interrupted,
    Truncated,
}

impl From<State> for v1::RecordingState {
    fn from(state: State) -> Self {
        match state {
            State::InProgress => Self::InProgress,
            State::Complete => Self::Complete,
            State::Interrupted => Self::Interrupted,
            State::Truncated => Self::Truncated,
        }
    }
}

pub(super) async fn ls(context: &Context, args: Ls) -> Result<()> {
    let labels = label_map(&args.labels)?;
    let client = context.user().await?;
    let request = |page_token, page_size| v1::ListSessionRecordingsRequest {
        user: args.user.clone(),
        login: args.login.clone(),
        node: args.node.clone(),
        state: args.state.map(v1::RecordingState::from).unwrap_or_default().into(),
        labels: labels.clone(),
        from: args.from.map(Into::into),
        to: args.to.map(Into::into),
        page_size,
        page_token,
    };
    let recordings = match args.limit {
        Some(limit) => first(&client, limit, request).await?,
        None => list!(client, list_session_recordings, recordings, |page_token| request(
            page_token,
            mezite_client::PAGE_SIZE
        ))?,
    };
    context.print_list(recordings.into_iter().map(RecordingView::from).collect())
}

/// The first `limit` entries, in as few pages as they take.
async fn first(
    client: &Client,
    limit: usize,
    request: impl Fn(String, u32) -> v1::ListSessionRecordingsRequest,
) -> Result<Vec<v1::Recording>> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let left = u32::try_from(limit.saturating_sub(all.len())).unwrap_or(u32::MAX);
        if left == 0 {
            return Ok(all);
        }
        let page = request(token, left.min(mezite_client::PAGE_SIZE));
        let reply = call!(client, Retry::Idempotent, list_session_recordings, page)?;
        all.extend(reply.recordings.into_iter().take(left as usize));
        token = reply.next_page_token;
        if token.is_empty() {
            return Ok(all);
        }
    }
}
