//! `user`: a local user, its roles and traits. Its password is in no document: without one, an invite is made for it.

use std::collections::BTreeMap;

use anyhow::Result;
use mezite_client::Client;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Kind, Made, Options, document::Document};
use crate::{
    cmd::{
        present,
        users::{self, UserView},
    },
    normal, output,
    role_file::unique_keys,
};

pub(super) struct User;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    traits: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    created_at: Option<String>,
    created_by: String,
}

type UserDocument = Document<Spec, Status>;

impl From<v1::User> for UserDocument {
    fn from(user: v1::User) -> Self {
        let traits = user.traits.into_iter().map(|(name, strings)| (name, strings.values)).collect();
        let status =
            Status { created_at: output::time(user.created_at.as_ref()), created_by: user.created_by };
        let spec = Spec { roles: user.roles, traits };
        Self::new(User::NAME, user.name, Some(user.revision), spec, status)
    }
}

fn message(document: UserDocument) -> Result<v1::User> {
    let traits = document.spec.traits.clone().into_iter();
    Ok(v1::User {
        name: document.needed_name()?,
        revision: document.revision(),
        traits: traits.map(|(name, values)| (name, v1::Strings { values })).collect(),
        roles: document.spec.roles,
        ..Default::default()
    })
}

impl Kind for User {
    const NAME: &'static str = "user";
    const PLURAL: &'static str = "users";
    type Item = v1::User;
    type Document = UserDocument;
    const REPLACEABLE: bool = true;

    fn name(document: &UserDocument) -> Option<&str> {
        document.name()
    }

    fn check(document: &UserDocument, _: &Options) -> Result<()> {
        document.needed_name().map(drop)
    }

    fn settle(document: &mut UserDocument) {
        normal::optional_name(&mut document.metadata.name);
        normal::names(&mut document.spec.roles);
        document.spec.traits.values_mut().for_each(normal::set);
    }

    fn table(users: Vec<v1::User>) -> String {
        output::table_of(&users.into_iter().map(UserView::from).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::User>> {
        users::all(client).await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::User> {
        users::one(client, name.to_owned()).await
    }

    async fn create(client: &Client, document: UserDocument, options: &Options) -> Result<Made> {
        let user = v1::User { revision: 0, ..message(document)? };
        let password = options.password.as_deref().cloned().unwrap_or_default();
        let request = v1::CreateUserRequest { user: Some(user), password, invite_ttl: None };
        let reply = users::make(client, request).await?;
        let invite = Some(Zeroizing::new(reply.invite_secret)).filter(|invite| !invite.is_empty());
        let name = present(reply.user, "the user")?.name;
        Ok(Made { name, secret: invite.map(|invite| ("invite", invite)) })
    }

    async fn replace(client: &Client, document: UserDocument) -> Result<()> {
        users::replace(client, message(document)?).await.map(drop)
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        users::delete(client, name.to_owned()).await.map(drop)
    }
}
