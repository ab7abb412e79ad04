//! `requests`: access for a time, asked for and reviewed.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use serde::{Deserialize, Serialize};

use crate::{
    args::{human_duration, proto_duration, shown_duration},
    cmd::{call, list, present},
    context::Context,
    output::{self, Report, Row},
};

/// Commands on access requests.
#[derive(Debug, Subcommand)]
pub(crate) enum Requests {
    /// Ask for roles, or for access to nodes, for a time
    #[command(visible_alias = "add")]
    Create(Create),
    /// List requests that concern you: your own, and those that you may review
    Ls {
        /// Only in this state
        #[arg(long, value_enum)]
        state: Option<State>,
    },
    /// Show a request
    Get {
        /// Id of the request
        id: String,
    },
    /// Approve a request of somebody else
    Approve(Review),
    /// Deny a request of somebody else
    Deny(Review),
    /// Take one of your own requests back
    Cancel {
        /// Id of the request
        id: String,
    },
}

const CREATE_EXAMPLES: &str = "\
Examples:
  mezctl requests create --roles dba --reason 'ticket 4711' --duration 2h
  mezctl requests create --nodes 6f9d2a54-… --reason 'disk full'

Once it is approved: `mezctl certs issue --requests ID --out DIR`.";

/// Arguments of `requests create`.
#[derive(Debug, Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(crate) struct Create {
    /// Roles wanted [default: those that reach the nodes]
    #[arg(long, value_delimiter = ',', value_name = "ROLE,…")]
    roles: Vec<String>,
    /// Nodes wanted, by agent id [default: wherever the roles reach]
    #[arg(long, value_delimiter = ',', value_name = "AGENT-ID,…")]
    nodes: Vec<String>,
    /// Why
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
    /// For how long, from the approval on [default: as long as the roles allow]
    #[arg(long, value_parser = human_duration, value_name = "DURATION")]
    duration: Option<Duration>,
}

/// Arguments of `requests approve` and `requests deny`.
#[derive(Debug, Args)]
pub(crate) struct Review {
    /// Id of the request
    id: String,
    /// Why
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    Pending,
    Approved,
    Denied,
    Cancelled,
    Expired,
}

impl From<State> for v1::AccessRequestState {
    fn from(state: State) -> Self {
        match state {
            State::Pending => Self::Pending,
            State::Approved => Self::Approved,
            State::Denied => Self::Denied,
            State::Cancelled => Self::Cancelled,
            State::Expired => Self::Expired,
        }
    }
}

pub(crate) fn word(state: v1::AccessRequestState) -> &'static str {
    match state {
        v1::AccessRequestState::Unspecified => "unknown",
        v1::AccessRequestState::Pending => "pending",
        v1::AccessRequestState::Approved => "approved",
        v1::AccessRequestState::Denied => "denied",
        v1::AccessRequestState::Cancelled => "cancelled",
        v1::AccessRequestState::Expired => "expired",
    }
}

/// A review, in lists and in documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReviewView {
    author: String,
    approve: bool,
    reason: String,
    created_at: Option<String>,
}

impl From<v1::AccessReview> for ReviewView {
    fn from(review: v1::AccessReview) -> Self {
        Self {
            created_at: output::time(review.created_at.as_ref()),
            author: review.author,
            approve: review.approve,
            reason: review.reason,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct RequestView {
    id: String,
    user: String,
    roles: Vec<String>,
    nodes: Vec<String>,
    reason: String,
    state: &'static str,
    approvals_needed: u32,
    reviews: Vec<ReviewView>,
    duration: Option<String>,
    created_at: Option<String>,
    expires_at: Option<String>,
}

impl From<v1::AccessRequest> for RequestView {
    fn from(request: v1::AccessRequest) -> Self {
        let duration = request.duration.and_then(|duration| Duration::try_from(duration).ok());
        Self {
            state: word(request.state()),
            duration: duration.map(shown_duration),
            created_at: output::time(request.created_at.as_ref()),
            expires_at: output::time(request.expires_at.as_ref()),
            id: request.request_id,
            user: request.user,
            roles: request.roles,
            nodes: request.nodes,
            reason: request.reason,
            approvals_needed: request.approvals,
            reviews: request.reviews.into_iter().map(ReviewView::from).collect(),
        }
    }
}

impl Report for RequestView {
    fn text(&self) -> String {
        let review = |review: &ReviewView| {
            let did = if review.approve { "approves" } else { "denies" };
            let why = if review.reason.is_empty() { String::new() } else { format!(": {}", review.reason) };
            format!("{} {did}{why}", review.author)
        };
        let reviews = self.reviews.iter().map(review).collect::<Vec<_>>().join("; ");
        let next = match self.state {
            "approved" => format!("mezctl certs issue --requests {} --out DIR", self.id),
            "pending" => format!("mezctl requests approve {}, by a reviewer", self.id),
            _ => String::new(),
        };
        output::fields(&[
            ("id", self.id.clone()),
            ("user", self.user.clone()),
            ("roles", self.roles.join(",")),
            ("nodes", self.nodes.join(",")),
            ("reason", self.reason.clone()),
            ("state", self.state.into()),
            ("approvals", format!("{} needed", self.approvals_needed)),
            ("reviews", reviews),
            ("duration", self.duration.clone().unwrap_or_default()),
            ("created", self.created_at.clone().unwrap_or_default()),
            ("expires", self.expires_at.clone().unwrap_or_default()),
            ("next", next),
        ])
    }
}

impl Row<6> for RequestView {
    const HEADER: [&'static str; 6] = ["ID", "USER", "STATE", "ROLES", "EXPIRES", "REASON"];

    fn row(&self) -> [String; 6] {
        [
            self.id.clone(),
            self.user.clone(),
            self.state.into(),
            self.roles.join(","),
            self.expires_at.clone().unwrap_or_default(),
            self.reason.clone(),
        ]
    }
}

pub(crate) async fn run(context: &Context, command: Requests) -> Result<()> {
    match command {
        Requests::Create(args) => create(context, args).await,
        Requests::Ls { state } => ls(context, state).await,
        Requests::Get { id } => get(context, id).await,
        Requests::Approve(args) => review(context, args, true).await,
        Requests::Deny(args) => review(context, args, false).await,
        Requests::Cancel { id } => cancel(context, id).await,
    }
}

fn check(id: &str) -> Retry {
    Retry::once(format!("see `mezctl requests get {id}`"))
}

/// Makes a request.
pub(crate) async fn make(
    client: &Client,
    request: v1::CreateAccessRequestRequest,
) -> Result<v1::AccessRequest> {
    let reply = call!(client, Retry::once("see `mezctl requests ls`"), create_access_request, request)?;
    present(reply.request, "the request")
}

/// Requests that concern the caller, in this state or any.
pub(crate) async fn all(client: &Client, state: v1::AccessRequestState) -> Result<Vec<v1::AccessRequest>> {
    Ok(list!(client, list_access_requests, requests, |page_token| v1::ListAccessRequestsRequest {
        state: state.into(),
        page_size: mezite_client::PAGE_SIZE,
        page_token
    })?)
}

/// A request.
pub(crate) async fn one(client: &Client, request_id: String) -> Result<v1::AccessRequest> {
    let request = v1::GetAccessRequestRequest { request_id };
    let reply = call!(client, Retry::Idempotent, get_access_request, request)?;
    present(reply.request, "the request")
}

/// Takes a request back.
pub(crate) async fn withdraw(client: &Client, request_id: String) -> Result<v1::AccessRequest> {
    let check = check(&request_id);
    let request = v1::CancelAccessRequestRequest { request_id };
    let reply = call!(client, check, cancel_access_request, request)?;
    present(reply.request, "the request")
}

async fn create(context: &Context, args: Create) -> Result<()> {
    let request = v1::CreateAccessRequestRequest {
        roles: args.roles,
        nodes: args.nodes,
        reason: args.reason,
        duration: args.duration.map(proto_duration),
    };
    context.print(&RequestView::from(make(&context.user().await?, request).await?))
}

async fn ls(context: &Context, state: Option<State>) -> Result<()> {
    let state = state.map_or(v1::AccessRequestState::Unspecified, Into::into);
    let requests = all(&context.user().await?, state).await?;
    context.print_list(requests.into_iter().map(RequestView::from).collect())
}

async fn get(context: &Context, request_id: String) -> Result<()> {
    context.print(&RequestView::from(one(&context.user().await?, request_id).await?))
}

async fn review(context: &Context, args: Review, approve: bool) -> Result<()> {
    let client = context.user().await?;
    let check = check(&args.id);
    let request = v1::ReviewAccessRequestRequest { request_id: args.id, approve, reason: args.reason };
    let reply = call!(client, check, review_access_request, request)?;
    context.print(&RequestView::from(present(reply.request, "the request")?))
}

async fn cancel(context: &Context, request_id: String) -> Result<()> {
    context.print(&RequestView::from(withdraw(&context.user().await?, request_id).await?))
}
