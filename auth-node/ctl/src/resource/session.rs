//! `session`: a login that is active, by its public handle. It is seen and ended, and made by nobody but who logs in.

use anyhow::{Error, Result};
use mezite_client::Client;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};

use super::{
    Kind, Made, Options,
    document::{Document, refuse_existing},
};
use crate::{
    cmd::sessions::{self, SessionView},
    exit::Usage,
    normal, output,
};

pub(super) struct Session;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    user: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    method: String,
    client_address: String,
    created_at: Option<String>,
    expires_at: Option<String>,
}

type SessionDocument = Document<Spec, Status>;

impl From<v1::Session> for SessionDocument {
    fn from(session: v1::Session) -> Self {
        let status = Status {
            method: sessions::word(session.method()).to_owned(),
            client_address: session.client_address,
            created_at: output::time(session.created_at.as_ref()),
            expires_at: output::time(session.expires_at.as_ref()),
        };
        Self::new(Session::NAME, session.handle, None, Spec { user: session.user }, status)
    }
}

fn made_by_logging_in() -> Error {
    Usage("a session is made by logging in, with `mezctl login`".into()).into()
}

impl Kind for Session {
    const NAME: &'static str = "session";
    const PLURAL: &'static str = "sessions";
    type Item = v1::Session;
    type Document = SessionDocument;
    const REPLACEABLE: bool = false;

    fn name(document: &SessionDocument) -> Option<&str> {
        document.name()
    }

    fn check(document: &SessionDocument, _: &Options) -> Result<()> {
        if document.name().is_some() { Ok(()) } else { Err(made_by_logging_in()) }
    }

    fn settle(document: &mut SessionDocument) {
        document.spec.user = normal::name(&document.spec.user);
    }

    fn table(sessions: Vec<v1::Session>) -> String {
        output::table_of(&sessions.into_iter().map(SessionView::from).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::Session>> {
        sessions::all(client, "").await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::Session> {
        sessions::one(client, name).await
    }

    async fn create(client: &Client, document: SessionDocument, _: &Options) -> Result<Made> {
        refuse_existing::<Self>(client, document.name()).await?;
        Err(made_by_logging_in())
    }

    async fn replace(_: &Client, _: SessionDocument) -> Result<()> {
        Err(Usage("a session cannot be changed".into()).into())
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        sessions::delete(client, name.to_owned()).await
    }
}
