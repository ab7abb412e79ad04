//! `token`: a join token. Its secret is in no document; the one that is made is shown once.

use std::collections::BTreeMap;

use anyhow::Result;
use mezite_client::Client;
use mezite_proto::v1;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Kind, Made, Options,
    document::{Document, lasts},
};
use crate::{
    args::{Human, proto_duration},
    cmd::{
        present,
        tokens::{self, TokenView},
    },
    exit::Usage,
    normal, output,
    role_file::unique_keys,
};

pub(super) struct Token;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    /// What it lets join.
    #[serde(default)]
    kind: Joins,
    #[serde(default)]
    method: Method,
    /// How long it is good for, from its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<Human>,
    #[serde(default = "once")]
    max_uses: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique_keys")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allowed_principals: Vec<String>,
    /// AWS identities, for the method `iam`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    iam_rules: Vec<IamRule>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IamRule {
    account: String,
    /// Pattern; empty: any of the account.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    arn: String,
    /// Empty: that of the ARN, or `aws`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    partition: String,
}

impl From<v1::IamRule> for IamRule {
    fn from(rule: v1::IamRule) -> Self {
        let v1::IamRule { account, arn, partition } = rule;
        Self { account, arn, partition }
    }
}

impl From<IamRule> for v1::IamRule {
    fn from(rule: IamRule) -> Self {
        let IamRule { account, arn, partition } = rule;
        Self { account, arn, partition }
    }
}

fn once() -> u32 {
    1
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Joins {
    #[default]
    Node,
    Ingest,
    TrustedCluster,
    /// Of `mezctl cluster token`; no file makes one.
    AuthNode,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Method {
    #[default]
    Token,
    Iam,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    uses: u32,
    expires_at: Option<String>,
    created_at: Option<String>,
    created_by: String,
}

type TokenDocument = Document<Spec, Status>;

impl From<v1::Token> for TokenDocument {
    fn from(token: v1::Token) -> Self {
        let spec = Spec {
            kind: match token.kind() {
                v1::TokenKind::Ingest => Joins::Ingest,
                v1::TokenKind::TrustedCluster => Joins::TrustedCluster,
                v1::TokenKind::AuthNode => Joins::AuthNode,
                v1::TokenKind::Node | v1::TokenKind::Unspecified => Joins::Node,
            },
            method: match token.method() {
                v1::JoinMethod::Iam => Method::Iam,
                v1::JoinMethod::Token | v1::JoinMethod::Unspecified => Method::Token,
            },
            ttl: lasts(token.created_at, token.expires_at),
            max_uses: token.max_uses,
            labels: token.labels,
            allowed_principals: token.allowed_principals,
            iam_rules: token.iam_rules.into_iter().map(IamRule::from).collect(),
        };
        let status = Status {
            uses: token.uses,
            expires_at: output::time(token.expires_at.as_ref()),
            created_at: output::time(token.created_at.as_ref()),
            created_by: token.created_by,
        };
        Self::new(Token::NAME, token.name, None, spec, status)
    }
}

impl Kind for Token {
    const NAME: &'static str = "token";
    const PLURAL: &'static str = "tokens";
    type Item = v1::Token;
    type Document = TokenDocument;
    const REPLACEABLE: bool = false;

    fn name(document: &TokenDocument) -> Option<&str> {
        document.name()
    }

    /// Without a name, each run would make another token.
    fn check(document: &TokenDocument, options: &Options) -> Result<()> {
        match document.name() {
            None if options.force => {
                Err(Usage("with --force a token needs a `metadata.name`, by which it is found again".into())
                    .into())
            }
            _ => Ok(()),
        }
    }

    fn settle(document: &mut TokenDocument) {
        let spec = &mut document.spec;
        spec.max_uses = spec.max_uses.max(1);
        normal::hosts(&mut spec.allowed_principals);
        for rule in spec.iam_rules.iter_mut().filter(|rule| rule.partition.is_empty()) {
            rule.partition = rule.arn.split(':').nth(1).unwrap_or("aws").to_owned();
        }
        normal::set(&mut spec.iam_rules);
    }

    fn fill(document: &mut TokenDocument, current: &TokenDocument) {
        document.spec.ttl = document.spec.ttl.or(current.spec.ttl);
    }

    fn table(tokens: Vec<v1::Token>) -> String {
        output::table_of(&tokens.into_iter().map(TokenView::from).collect::<Vec<_>>())
    }

    async fn all(client: &Client) -> Result<Vec<v1::Token>> {
        tokens::all(client).await
    }

    async fn one(client: &Client, name: &str) -> Result<v1::Token> {
        tokens::one(client, name.to_owned()).await
    }

    async fn create(client: &Client, document: TokenDocument, _: &Options) -> Result<Made> {
        let Document { metadata, spec, .. } = document;
        let kind = match spec.kind {
            Joins::Node => v1::TokenKind::Node,
            Joins::Ingest => v1::TokenKind::Ingest,
            Joins::TrustedCluster => v1::TokenKind::TrustedCluster,
            Joins::AuthNode => v1::TokenKind::AuthNode,
        };
        let method = match spec.method {
            Method::Token => v1::JoinMethod::Token,
            Method::Iam => v1::JoinMethod::Iam,
        };
        let request = v1::CreateTokenRequest {
            name: metadata.name.unwrap_or_default(),
            kind: kind.into(),
            method: method.into(),
            ttl: spec.ttl.map(|ttl| proto_duration(ttl.0)),
            max_uses: spec.max_uses,
            labels: spec.labels,
            allowed_principals: spec.allowed_principals,
            iam_rules: spec.iam_rules.into_iter().map(v1::IamRule::from).collect(),
        };
        let reply = tokens::make(client, request).await?;
        let secret = Some(reply.secret).filter(|secret| !secret.is_empty());
        let secret = secret.map(|secret| ("secret", Zeroizing::new(secret)));
        Ok(Made { name: present(reply.token, "the token")?.name, secret })
    }

    async fn replace(_: &Client, _: TokenDocument) -> Result<()> {
        Err(Usage("a token cannot be changed: remove it, and create it anew".into()).into())
    }

    async fn remove(client: &Client, name: &str) -> Result<()> {
        tokens::delete(client, name.to_owned()).await
    }
}
