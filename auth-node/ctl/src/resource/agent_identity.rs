//! `agent_identity`: a bot, CI job or AI agent, its roles and traits. Its bootstrap secret is in no document; the one that is
//! made is shown once.

use std::collections::BTreeMap;

use anyhow::Result;
use mezite_client::Client;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Kind, Made, Options, document::Document};
use crate::{
    args::{Human, proto_duration},
    cmd::{
        agent_identities::{self, IdentityView},
        present,
    },
    normal, output,
    role_file::unique_keys,
};

pub(super) struct AgentIdentity;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    traits: BTreeMap<String, Vec<String>>,
    /// Longest life of its certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_ttl: Option<Human>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    spiffe_ids: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    generation: u64,
    credentials_expire_at: Option<String>,
    bootstrap_expires_at: Option<String>,
    created_at: Option<String>,
    created_by: String,
}

type IdentityDocument = Document<Spec, Status>;

impl From<v1::AgentIdentity> for IdentityDocument {
    fn from(identity: v1::AgentIdentity) -> Self {
        let traits = identity.traits.into_iter().map(|(name, strings)| (name, strings.values)).collect();
        let status = Status {
            generation: identity.generation,
            credentials_expire_at: output::time(identity.credentials_expire_at.as_ref()),
            bootstrap_expires_at: output::time(identity.bootstrap_expires_at.as_ref()),
            created_at: output::time(identity.created_at.as_ref()),
            created_by: identity.created_by,
        };
        let spec = Spec {
            roles: identity.roles,
            traits,
            max_ttl: Human::of(identity.max_ttl),
            spiffe_ids: identity.spiffe_ids,
        };
        Self::new(AgentIdentity::NAME, identity.name, Some(identity.revision), spec, status)
    }
}

fn message(document: IdentityDocument) -> Result<v1::AgentIdentity> {
    let (name, revision, spec) = (document.needed_name()?, document.revision(), document.spec);
    let traits = spec.traits.into_iter().map(|(name, values)| (name, v1::Strings { values }));
    Ok(v1::AgentIdentity {
        name,
        revision,
        traits: traits.collect(),
        roles: spec.roles,
        max_ttl: spec.max_ttl.map(|ttl| proto_duration(ttl.0)),
        spiffe_ids: spec.spiffe_ids,
        ..Default::default()
    })
}

impl Kind for AgentIdentity {
    const NAME: &'static str = "agent_identity";
    const PLURAL: &'static str = "agent_identities";
    type Item = v1::AgentIdentity;
    type Document = IdentityDocument;
    const REPLACEABLE: bool = true;

    fn name(document: &IdentityDocument) -> Option<&str> {
        document.name()
    }

    fn settle(document: &mut IdentityDocument) {
        normal::optional_name(&mut document.metadata.name);
        normal::names(&mut document.spec.roles);
        normal::set(&mut document.spec.spiffe_ids);
        document.spec.traits.values_mut().for_each(normal::set);
    }

    fn fill(document: &mut IdentityDocument, current: &IdentityDocument) {
        document.spec.max_ttl = document.spec.max_ttl.or(current.spec.max_ttl);
    }

    fn table(identities: Vec<v1::AgentIdentity>) -> String {
        output::table_of(&identities.into_iter().map(IdentityView::from).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::AgentIdentity>> {
        agent_identities::all(client).await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::AgentIdentity> {
        agent_identities::one(client, name.to_owned()).await
    }

    async fn create(client: &Client, document: IdentityDocument, _: &Options) -> Result<Made> {
        let identity = v1::AgentIdentity { revision: 0, ..message(document)? };
        let request = v1::CreateAgentIdentityRequest { identity: Some(identity), bootstrap_ttl: None };
        let reply = agent_identities::make(client, request).await?;
        let secret = Some(("bootstrap secret", Zeroizing::new(reply.bootstrap_secret)));
        Ok(Made { name: present(reply.identity, "the identity")?.name, secret })
    }

    async fn replace(client: &Client, document: IdentityDocument) -> Result<()> {
        agent_identities::replace(client, message(document)?).await.map(drop)
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        agent_identities::delete(client, name.to_owned()).await.map(drop)
    }
}
