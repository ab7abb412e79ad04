//! `recordings`: session recordings, sent by hosts and fetched by people.

mod get;
mod ls;
mod play;
mod upload;
mod verify;

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Subcommand;
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use recording_format::{Manifest, RecordingId};
use serde::Serialize;

use crate::{
    cmd::{call, present},
    context::Context,
    exit::Usage,
    output::{self, Report, Row},
};

/// Bytes asked for at once: the most that is answered.
const RANGE: u32 = 1 << 20;

/// Commands on session recordings.
#[derive(Debug, Subcommand)]
pub(crate) enum Recordings {
    /// Send a recording, as the agent of this host, until there is a receipt for it; with its --id it is resumed
    Upload(upload::Upload),
    /// List recordings, newest first
    Ls(ls::Ls),
    /// Show a recording, or fetch its payload
    Get(get::Get),
    /// Play a recorded session in this terminal
    Play(play::Play),
    /// Prove recordings: any change, and any that the cluster did not seal, is told, and the exit code is 1
    Verify(verify::Verify),
}

#[derive(Serialize)]
struct RecordingView {
    recording_id: String,
    state: &'static str,
    user: String,
    login: String,
    node: String,
    started_at: Option<String>,
    ended_at: Option<String>,
    payload_format: String,
    labels: BTreeMap<String, String>,
    size: u64,
    payload_sha256: String,
    manifest_sha256: String,
    agent_id: String,
}

impl From<v1::Recording> for RecordingView {
    fn from(recording: v1::Recording) -> Self {
        let state = state_name(recording.state());
        let metadata = recording.metadata.unwrap_or_default();
        Self {
            recording_id: recording.recording_id,
            state,
            user: metadata.user,
            login: metadata.login,
            node: metadata.node,
            started_at: output::time(metadata.started_at.as_ref()),
            ended_at: output::time(metadata.ended_at.as_ref()),
            payload_format: metadata.format,
            labels: metadata.labels,
            size: recording.size,
            payload_sha256: hex::encode(&recording.payload_sha256),
            manifest_sha256: hex::encode(&recording.manifest_sha256),
            agent_id: recording.agent_id,
        }
    }
}

impl Report for RecordingView {
    fn text(&self) -> String {
        output::fields(&[
            ("recording", self.recording_id.clone()),
            ("state", self.state.into()),
            ("user", self.user.clone()),
            ("login", self.login.clone()),
            ("node", self.node.clone()),
            ("started", self.started_at.clone().unwrap_or_default()),
            ("ended", self.ended_at.clone().unwrap_or_default()),
            ("format", self.payload_format.clone()),
            ("labels", output::pairs(&self.labels)),
            ("size", output::size(self.size)),
            ("sha256", self.payload_sha256.clone()),
            ("manifest", self.manifest_sha256.clone()),
            ("agent", self.agent_id.clone()),
        ])
    }
}

impl Row<7> for RecordingView {
    const HEADER: [&'static str; 7] = ["RECORDING", "STATE", "USER", "LOGIN", "NODE", "STARTED", "SIZE"];

    fn row(&self) -> [String; 7] {
        [
            self.recording_id.clone(),
            self.state.into(),
            self.user.clone(),
            self.login.clone(),
            self.node.clone(),
            self.started_at.clone().unwrap_or_default(),
            output::size(self.size),
        ]
    }
}

pub(crate) async fn run(context: &Context, command: Recordings) -> Result<()> {
    match command {
        Recordings::Upload(args) => upload::upload(context, args).await,
        Recordings::Ls(args) => ls::ls(context, args).await,
        Recordings::Get(args) => get::get(context, args).await,
        Recordings::Play(args) => play::play(context, args).await,
        Recordings::Verify(args) => verify::verify(context, args).await,
    }
}

fn state_name(state: v1::RecordingState) -> &'static str {
    match state {
        v1::RecordingState::InProgress => "in-progress",
        v1::RecordingState::Complete => "complete",
        v1::RecordingState::Interrupted => "interrupted",
        v1::RecordingState::Truncated => "truncated",
        v1::RecordingState::Unspecified => "unknown",
    }
}

fn parse_id(text: &str) -> Result<RecordingId> {
    text.parse().map_err(|_| Usage(format!("`{text}` is not a recording's id: a UUID, lower case")).into())
}

/// The next bytes of a recording from `offset` on, and what is known of it now.
async fn range(
    client: &Client,
    id: RecordingId,
    offset: u64,
    limit: u32,
) -> Result<(v1::Recording, bytes::Bytes)> {
    let request =
        v1::GetSessionRecordingRequest { recording_id: id.to_string(), offset, limit, ..Default::default() };
    let reply = call!(client, Retry::Idempotent, get_session_recording, request)?;
    Ok((present(reply.recording, "the recording")?, reply.data))
}

/// Tells of bytes that are missing of a recording, by its manifest: what was interrupted alone can lack any.
async fn tell_missing(client: &Client, recording: &v1::Recording) -> Result<()> {
    if recording.state() != v1::RecordingState::Interrupted {
        return Ok(());
    }
    let id = parse_id(&recording.recording_id)?;
    let request = v1::GetSessionRecordingRequest {
        recording_id: id.to_string(),
        with_receipt: true,
        ..Default::default()
    };
    let receipt = call!(client, Retry::Idempotent, get_session_recording, request)?.receipt;
    // Whether it is one is for `recordings verify`.
    let manifest = receipt.and_then(|receipt| Manifest::decode(id, &receipt.manifest).ok());
    match manifest.iter().flat_map(|manifest| &manifest.gaps).map(|gap| gap.length).sum::<u64>() {
        0 => {}
        missing => output::warn(&format!(
            "{missing} bytes of the session are missing, for they were damaged in the store: it ends before them"
        )),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id = "0190a1b2-0000-4000-8000-00000000000a";
        assert!(parse_id(id).is_ok());
        for wrong in ["", "../../etc", &id.to_uppercase(), "{x}"] {
            assert!(parse_id(wrong).unwrap_err().is::<Usage>(), "{wrong}");
        }
    }
}
