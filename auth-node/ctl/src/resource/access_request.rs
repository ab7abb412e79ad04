//! `access_request`: access for a time. The cluster gives its id; removing one is taking it back.

use anyhow::Result;
use mezite_client::Client;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};

use super::{
    Kind, Made, Options,
    document::{Document, refuse_existing, says_the_same},
};
use crate::{
    args::{Human, proto_duration},
    cmd::requests::{self, RequestView, ReviewView},
    exit::Usage,
    normal, output,
};

pub(super) struct AccessRequest;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    /// For how long, from the approval on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    duration: Option<Human>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    user: String,
    state: String,
    approvals_needed: u32,
    reviews: Vec<ReviewView>,
    created_at: Option<String>,
    expires_at: Option<String>,
}

type RequestDocument = Document<Spec, Status>;

impl From<v1::AccessRequest> for RequestDocument {
    fn from(request: v1::AccessRequest) -> Self {
        let status = Status {
            state: requests::word(request.state()).to_owned(),
            user: request.user,
            approvals_needed: request.approvals,
            reviews: request.reviews.into_iter().map(ReviewView::from).collect(),
            created_at: output::time(request.created_at.as_ref()),
            expires_at: output::time(request.expires_at.as_ref()),
        };
        let spec = Spec {
            roles: request.roles,
            nodes: request.nodes,
            reason: request.reason,
            duration: Human::of(request.duration),
        };
        Self::new(AccessRequest::NAME, request.request_id, None, spec, status)
    }
}

impl Kind for AccessRequest {
    const NAME: &'static str = "access_request";
    const PLURAL: &'static str = "access_requests";
    type Item = v1::AccessRequest;
    type Document = RequestDocument;
    const REPLACEABLE: bool = false;
    const NAMED_BY_CLUSTER: bool = true;

    fn name(document: &RequestDocument) -> Option<&str> {
        document.name()
    }

    fn settle(document: &mut RequestDocument) {
        normal::names(&mut document.spec.roles);
        normal::set(&mut document.spec.nodes);
    }

    fn fill(document: &mut RequestDocument, current: &RequestDocument) {
        if document.metadata.name.is_none() {
            document.metadata.name.clone_from(&current.metadata.name);
        }
        let (spec, current) = (&mut document.spec, &current.spec);
        spec.duration = spec.duration.or(current.duration);
        // Without roles, those are asked for that reach the nodes.
        if spec.roles.is_empty() {
            spec.roles.clone_from(&current.roles);
        }
    }

    /// Who has asked for the same, and may still get it or has it, need not ask again.
    async fn like(
        client: &Client,
        document: &RequestDocument,
        options: &Options,
    ) -> Result<Option<v1::AccessRequest>> {
        let wanted = document.unnamed();
        for state in [v1::AccessRequestState::Pending, v1::AccessRequestState::Approved] {
            for request in requests::all(client, state).await? {
                if request.user == options.user && says_the_same::<Self>(&request.clone().into(), &wanted)? {
                    return Ok(Some(request));
                }
            }
        }
        Ok(None)
    }

    fn table(requests: Vec<v1::AccessRequest>) -> String {
        output::table_of(&requests.into_iter().map(RequestView::from).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::AccessRequest>> {
        requests::all(client, v1::AccessRequestState::Unspecified).await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::AccessRequest> {
        requests::one(client, name.to_owned()).await
    }

    async fn create(client: &Client, document: RequestDocument, _: &Options) -> Result<Made> {
        refuse_existing::<Self>(client, document.name()).await?;
        let Spec { roles, nodes, reason, duration } = document.spec;
        let duration = duration.map(|duration| proto_duration(duration.0));
        let request = v1::CreateAccessRequestRequest { roles, nodes, reason, duration };
        Ok(Made::plain(requests::make(client, request).await?.request_id))
    }

    async fn replace(_: &Client, _: RequestDocument) -> Result<()> {
        Err(Usage("a request cannot be changed: take it back, and create another".into()).into())
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        requests::withdraw(client, name.to_owned()).await.map(drop)
    }
}
