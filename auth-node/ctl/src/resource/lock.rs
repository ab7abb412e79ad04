//! `lock`: who or what is kept out. The cluster gives its id.

use anyhow::Result;
use mezite_client::Client;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};

use super::{
    Kind, Made, Options,
    document::{Document, lasts, refuse_existing, says_the_same},
};
use crate::{
    args::{Human, proto_duration},
    cmd::locks::{self, LockView},
    exit::Usage,
    normal, output,
};

pub(super) struct Lock;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    /// `user:alice`, as `mezctl locks add` takes it.
    target: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    message: String,
    /// How long, from its creation; absent: until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<Human>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    created_at: Option<String>,
    created_by: String,
    expires_at: Option<String>,
}

type LockDocument = Document<Spec, Status>;

impl From<v1::Lock> for LockDocument {
    fn from(lock: v1::Lock) -> Self {
        let status = Status {
            created_at: output::time(lock.created_at.as_ref()),
            created_by: lock.created_by,
            expires_at: output::time(lock.expires_at.as_ref()),
        };
        let spec = Spec {
            target: locks::shown(lock.target),
            message: lock.message,
            ttl: lasts(lock.created_at, lock.expires_at),
        };
        Self::new(Lock::NAME, lock.lock_id, None, spec, status)
    }
}

impl Kind for Lock {
    const NAME: &'static str = "lock";
    const PLURAL: &'static str = "locks";
    type Item = v1::Lock;
    type Document = LockDocument;
    const REPLACEABLE: bool = false;
    const NAMED_BY_CLUSTER: bool = true;

    fn name(document: &LockDocument) -> Option<&str> {
        document.name()
    }

    fn check(document: &LockDocument, _: &Options) -> Result<()> {
        locks::target(&document.spec.target).map(drop)
    }

    fn settle(document: &mut LockDocument) {
        let target = &mut document.spec.target;
        if let Some((kind @ ("user" | "role"), name)) = target.split_once(':') {
            *target = format!("{kind}:{}", normal::name(name));
        }
    }

    fn fill(document: &mut LockDocument, current: &LockDocument) {
        if document.metadata.name.is_none() {
            document.metadata.name.clone_from(&current.metadata.name);
        }
    }

    /// A lock is there for what it keeps out, so the same once more would keep out nothing more; one with a TTL ends when it
    /// would have ended.
    async fn like(client: &Client, document: &LockDocument, _: &Options) -> Result<Option<v1::Lock>> {
        let wanted = document.unnamed();
        for lock in locks::all(client).await? {
            if says_the_same::<Self>(&lock.clone().into(), &wanted)? {
                return Ok(Some(lock));
            }
        }
        Ok(None)
    }

    fn table(locks: Vec<v1::Lock>) -> String {
        output::table_of(&locks.into_iter().map(LockView::from).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::Lock>> {
        locks::all(client).await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::Lock> {
        locks::one(client, name.to_owned()).await
    }

    async fn create(client: &Client, document: LockDocument, _: &Options) -> Result<Made> {
        let target = Some(v1::LockTarget { target: Some(locks::target(&document.spec.target)?) });
        refuse_existing::<Self>(client, document.name()).await?;
        let ttl = document.spec.ttl.map(|ttl| proto_duration(ttl.0));
        let request = v1::CreateLockRequest { target, message: document.spec.message, ttl };
        Ok(Made::plain(locks::make(client, request).await?.lock_id))
    }

    async fn replace(_: &Client, _: LockDocument) -> Result<()> {
        Err(Usage("a lock cannot be changed: create another, and remove this one".into()).into())
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        locks::delete(client, name.to_owned()).await
    }
}
