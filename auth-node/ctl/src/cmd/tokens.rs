//! `tokens`: join tokens of SSH nodes and ingests.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use mezite_client::{Client, Retry};
use mezite_proto::v1;
use serde::Serialize;
use tonic::Code;

use crate::{
    args::{human_duration, key_value, label_map, proto_duration},
    cmd::{call, list, present},
    context::Context,
    exit::Usage,
    files::Pending,
    output::{self, Done, Report, Row},
};

/// Commands on join tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// Create a join token; its secret is shown once
    #[command(visible_alias = "create")]
    Add(Add),
    /// List join tokens
    Ls,
    /// Show a join token, without its secret
    Get {
        /// Name of the token
        name: String,
    },
    /// Delete a join token; hosts that joined with it stay
    #[command(visible_alias = "delete")]
    Rm {
        /// Name of the token
        name: String,
    },
}

const ADD_EXAMPLES: &str = "\
Examples:
  mezctl tokens add --labels env=prod --principals '*.example.org' --out web.token
  mezctl tokens add --kind ingest --ttl 10m --format json | jq -r .secret
  mezctl tokens add --name web --method iam --max-uses 100 --ttl 30d \\
    --allow-arn 'arn:aws:sts::123456789012:assumed-role/web/*'

A host joins with `mezctl agent join --token-file web.token …`, or on AWS with `mezctl agent join --method iam --token-name web …`.";

/// Arguments of `tokens add`.
#[derive(Debug, Args)]
#[command(after_help = ADD_EXAMPLES)]
pub(crate) struct Add {
    /// What it lets join: an SSH node or a recording ingest
    #[arg(long, value_enum, default_value_t = Kind::Node)]
    kind: Kind,
    /// How a host proves that it may use it: by its secret, or by its AWS identity
    #[arg(long, value_enum, default_value_t = Method::Token)]
    method: Method,
    /// With --method iam: AWS accounts, any identity of which may use it, unless --allow-arn narrows that
    #[arg(long, value_delimiter = ',', value_name = "ACCOUNT,…")]
    allow_account: Vec<String>,
    /// With --method iam: ARNs as `aws sts get-caller-identity` tells them; `*` and `?` match no `/`
    #[arg(long, value_delimiter = ',', value_name = "ARN,…")]
    allow_arn: Vec<String>,
    /// Name: 1 to 63 bytes of [a-z0-9-] [default: a random one]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How long it is good for, 1m to 30d
    #[arg(long, default_value = "1h", value_parser = human_duration, value_name = "DURATION")]
    ttl: Duration,
    /// How many hosts may join with it
    #[arg(
        long,
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        value_name = "COUNT"
    )]
    max_uses: u32,
    /// Labels that a node gets, as an admin's
    #[arg(long, value_delimiter = ',', value_parser = key_value, value_name = "KEY=VALUE,…")]
    labels: Vec<(String, String)>,
    /// Names that host certificates may carry: DNS names, `*.example.org`, IP addresses [default: any]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    principals: Vec<String>,
    /// File to write the secret to, mode 0600, instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// How a host proves that it may use a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    Token,
    Iam,
}

impl Method {
    /// Whom the options let in: each ARN is of its account, and an account without ARNs is let in as a whole.
    fn rules(self, accounts: &[String], arns: &[String]) -> Result<Vec<v1::IamRule>> {
        let usage = |what: String| Err(Usage(what).into());
        if self == Self::Token && !(accounts.is_empty() && arns.is_empty()) {
            return usage("--allow-account and --allow-arn are for --method iam".into());
        }
        if arns.is_empty() {
            let whole = |account: &String| v1::IamRule { account: account.clone(), ..Default::default() };
            return Ok(accounts.iter().map(whole).collect());
        }
        let mut rules = Vec::new();
        for arn in arns {
            let Some(account) = arn.split(':').nth(4) else {
                return usage(format!("`{arn}` is no ARN: see `aws sts get-caller-identity`"));
            };
            if !accounts.is_empty() && !accounts.iter().any(|given| given == account) {
                return usage(format!("`{arn}` is of none of the accounts of --allow-account"));
            }
            rules.push(v1::IamRule { account: account.to_owned(), arn: arn.clone(), ..Default::default() });
        }
        match accounts.iter().find(|account| rules.iter().all(|rule| rule.account != **account)) {
            Some(account) => usage(format!(
                "no --allow-arn is of account {account}: make a token of its own for all of it"
            )),
            None => Ok(rules),
        }
    }
}

/// What a token lets join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Node,
    Ingest,
}

impl From<Kind> for v1::TokenKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Node => Self::Node,
            Kind::Ingest => Self::Ingest,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct TokenView {
    name: String,
    kind: &'static str,
    method: &'static str,
    expires_at: Option<String>,
    uses: u32,
    max_uses: u32,
    labels: BTreeMap<String, String>,
    allowed_principals: Vec<String>,
    /// AWS identities that it lets in, as ARNs or whole accounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allowed_identities: Vec<String>,
    created_by: String,
}

/// A rule in one word.
fn identities(rule: v1::IamRule) -> String {
    let v1::IamRule { account, arn, partition } = rule;
    if arn.is_empty() { format!("{partition}:{account}") } else { arn }
}

impl From<v1::Token> for TokenView {
    fn from(token: v1::Token) -> Self {
        Self {
            kind: match token.kind() {
                v1::TokenKind::Node => "node",
                v1::TokenKind::Ingest => "ingest",
                v1::TokenKind::TrustedCluster => "trusted-cluster",
                v1::TokenKind::AuthNode => "auth-node",
                v1::TokenKind::Unspecified => "unknown",
            },
            method: match token.method() {
                v1::JoinMethod::Token => "token",
                v1::JoinMethod::Iam => "iam",
                v1::JoinMethod::Unspecified => "unknown",
            },
            expires_at: output::time(token.expires_at.as_ref()),
            name: token.name,
            uses: token.uses,
            max_uses: token.max_uses,
            labels: token.labels,
            allowed_principals: token.allowed_principals,
            allowed_identities: token.iam_rules.into_iter().map(identities).collect(),
            created_by: token.created_by,
        }
    }
}

impl Report for TokenView {
    fn text(&self) -> String {
        output::fields(&[
            ("name", self.name.clone()),
            ("kind", self.kind.into()),
            ("method", self.method.into()),
            ("expires", self.expires_at.clone().unwrap_or_default()),
            ("uses", format!("{} of {}", self.uses, self.max_uses)),
            ("labels", output::pairs(&self.labels)),
            ("principals", self.allowed_principals.join(",")),
            ("identities", self.allowed_identities.join(",")),
            ("created by", self.created_by.clone()),
        ])
    }
}

impl Row<6> for TokenView {
    const HEADER: [&'static str; 6] = ["NAME", "KIND", "METHOD", "USES", "EXPIRES", "LABELS"];

    fn row(&self) -> [String; 6] {
        [
            self.name.clone(),
            self.kind.into(),
            self.method.into(),
            format!("{}/{}", self.uses, self.max_uses),
            self.expires_at.clone().unwrap_or_default(),
            output::pairs(&self.labels),
        ]
    }
}

#[derive(Serialize)]
struct NewToken {
    #[serde(flatten)]
    token: TokenView,
    /// Absent when it went to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
}

impl Report for NewToken {
    fn text(&self) -> String {
        let secret = self.secret.clone().unwrap_or_default();
        let file = self.secret_file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        self.token.text() + &output::fields(&[("secret", secret), ("secret file", file)])
    }
}

pub(crate) async fn run(context: &Context, command: Tokens) -> Result<()> {
    match command {
        Tokens::Add(args) => add(context, args).await,
        Tokens::Ls => ls(context).await,
        Tokens::Get { name } => get(context, name).await,
        Tokens::Rm { name } => rm(context, name).await,
    }
}

async fn add(context: &Context, args: Add) -> Result<()> {
    let iam_rules = args.method.rules(&args.allow_account, &args.allow_arn)?;
    if args.method == Method::Iam && args.out.is_some() {
        return Err(Usage("a token of the method iam has no secret: leave out --out".into()).into());
    }
    let client = context.user().await?;
    let out = args.out.as_deref().map(Pending::create).transpose()?;
    let request = v1::CreateTokenRequest {
        name: args.name.unwrap_or_default(),
        kind: v1::TokenKind::from(args.kind).into(),
        method: match args.method {
            Method::Token => v1::JoinMethod::Token.into(),
            Method::Iam => v1::JoinMethod::Iam.into(),
        },
        ttl: Some(proto_duration(args.ttl)),
        max_uses: args.max_uses,
        labels: label_map(&args.labels)?,
        allowed_principals: args.principals,
        iam_rules,
    };
    let reply = make(&client, request).await?;
    let mut report = NewToken {
        token: present(reply.token, "the token")?.into(),
        secret: Some(reply.secret).filter(|secret| !secret.is_empty()),
        secret_file: None,
    };
    if let Some(out) = out {
        out.write_secret(&report.secret.take().unwrap_or_default())?;
        report.secret_file.clone_from(&args.out);
    }
    context.print(&report)
}

/// Creates a token; its secret is in the reply.
pub(crate) async fn make(
    client: &Client,
    request: v1::CreateTokenRequest,
) -> Result<v1::CreateTokenResponse> {
    let check = Retry::once("see `mezctl tokens ls`: a token whose secret nobody has is of no use");
    Ok(call!(client, check, create_token, request)?)
}

/// All tokens.
pub(crate) async fn all(client: &Client) -> Result<Vec<v1::Token>> {
    Ok(list!(client, list_tokens, tokens, |page_token| v1::ListTokensRequest {
        page_size: mezite_client::PAGE_SIZE,
        page_token
    })?)
}

/// A token.
pub(crate) async fn one(client: &Client, name: String) -> Result<v1::Token> {
    let reply = call!(client, Retry::Idempotent, get_token, v1::GetTokenRequest { name })?;
    present(reply.token, "the token")
}

/// Deletes a token.
pub(crate) async fn delete(client: &Client, name: String) -> Result<()> {
    match call!(client, Retry::Idempotent, delete_token, v1::DeleteTokenRequest { name }) {
        Ok(v1::DeleteTokenResponse {}) => Ok(()),
        Err(error) if error.repeated_with(Code::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn ls(context: &Context) -> Result<()> {
    let tokens = all(&context.user().await?).await?;
    context.print_list(tokens.into_iter().map(TokenView::from).collect())
}

async fn get(context: &Context, name: String) -> Result<()> {
    context.print(&TokenView::from(one(&context.user().await?, name).await?))
}

async fn rm(context: &Context, name: String) -> Result<()> {
    delete(&context.user().await?, name.clone()).await?;
    context.print(&Done::new(format!("Deleted token {name}.")))
}
