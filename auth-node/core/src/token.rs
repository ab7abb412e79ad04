//! Join tokens: what a host or an ingest joins the cluster with, and, to be listed and deleted beside them, those of auth
//! nodes, which `cluster` makes. The store has the digest of a token's secret; its name
//! is public and no credential. One of the method IAM has no secret, and is named by who proves to be somebody of AWS.

use std::time::Duration;

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    cluster, iam,
    labels::{self, Labels},
    names::TokenName,
    page::{Page, PageRequest},
    principal::PrincipalPattern,
    secret::SecretDigest,
    tables::{
        AuthJoinTokenRow, IamRuleRow, JoinMethod, NodeKind, TokenKey, TokenRow, TokenSecretKey,
        TokenSecretRow,
    },
    verdict::{Refusal, Stop, Verdict, audited},
};

/// Life of a token when its maker does not say.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Shortest life of a token.
const MIN_TTL: Duration = Duration::from_secs(60);
/// Longest life of a token.
const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// Most joins with one token.
const MAX_USES: u32 = 10_000;
/// Most patterns of principals that a token allows.
const MAX_PRINCIPALS: usize = 64;

/// What the holder of a secret is told that is no good, whatever is wrong with it.
const NOT_ACCEPTED: &str = "the join token is not accepted: it is unknown, used up, or past its end; ask an administrator for a new one";
/// And whoever joins by an AWS identity, whether it is that or the token that is no good.
const IAM_NOT_ACCEPTED: &str = "the join is not accepted: AWS does not know the identity, or the token does not let it in, or there is no such token \
of the method iam, or it is used up or past its end; the audit log tells an administrator which";

/// A token to make.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Public name.
    pub name: TokenName,
    /// What it lets join.
    pub kind: NodeKind,
    /// How a joiner proves that it may use it.
    pub method: JoinMethod,
    /// How long it is good; `None`: one hour. 1 minute to 30 days.
    pub ttl: Option<Duration>,
    /// How many joins it is good for; 0: one. At most 10,000.
    pub max_uses: u32,
    /// Labels, as an admin's, of a node that joins with it.
    pub labels: Labels,
    /// Patterns of the principals that it allows, at most 64; none: any ordinary one.
    pub allowed_principals: Vec<String>,
    /// Digest of the secret; for the method IAM, of one that nobody is told.
    pub secret: SecretDigest,
    /// Whom a token of the method IAM lets in, at least one; for others none.
    pub iam_rules: Vec<IamRuleRow>,
}

/// Makes a token.
///
/// # Errors
/// [`CoreError::Invalid`] for what is out of bounds; [`CoreError::Denied`] for who is no admin and would let an ingest join;
/// [`CoreError::AlreadyExists`]; [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: NewToken,
) -> Result<TokenRow, CoreError> {
    let allowed_principals = check(&new)?;
    let iam_rules = iam::checked(new.method, &new.iam_rules)?;
    let ttl = checked_ttl(new.ttl)?;
    // An ingest reads every recording: a rule for tokens is none for that.
    if new.kind == NodeKind::Ingest && !context.caller.holder()?.is_admin() {
        return Err(CoreError::Denied("a token that lets an ingest join needs the role admin".into()));
    }
    if cluster::is_auth_join_token_name(&new.name) {
        return Err(CoreError::invalid("name", "names that begin with auth-node- are of auth nodes' tokens"));
    }
    let key = TokenKey(new.name);
    if tx.get(&key)?.is_some() {
        return Err(CoreError::AlreadyExists { kind: "token", name: key.0.into() });
    }
    let now = tx.now();
    let row = TokenRow {
        kind: new.kind.into(),
        method: new.method.into(),
        expires_at_ms: now.saturating_add(ttl),
        max_uses: new.max_uses.max(1),
        uses: 0,
        labels: new.labels,
        allowed_principals,
        created_by: context.caller.actor(),
        created_at_ms: now,
        secret_digest: new.secret.0.to_vec(),
        iam_rules,
    };
    if row.method() != JoinMethod::Iam {
        let secret = TokenSecretRow { token: key.0.as_str().to_owned(), expires_at_ms: row.expires_at_ms };
        tx.put(&TokenSecretKey(new.secret), &secret);
    }
    tx.put(&key, &row);
    let kind = match row.method() {
        JoinMethod::Exchange => "trusted_cluster",
        JoinMethod::Token | JoinMethod::Iam | JoinMethod::Unspecified => row.kind().name(),
    };
    let mut fields = vec![
        ("kind", kind.to_owned()),
        ("labels", labels::shown(&row.labels)),
        ("max_uses", row.max_uses.to_string()),
        ("expires_at_ms", row.expires_at_ms.to_string()),
        ("allowed_principals", row.allowed_principals.join(",")),
    ];
    if row.method() == JoinMethod::Iam {
        fields.push(("iam_rules", iam::described(&row.iam_rules)));
    }
    audit::append(tx, context, EventType::TokenCreate, format!("token:{}", key.0), &fields);
    Ok(row)
}

/// Checks all but the lifetime; returns the patterns in canonical form.
fn check(new: &NewToken) -> Result<Vec<String>, CoreError> {
    match new.method {
        JoinMethod::Exchange => return check_exchange(new).map(|()| Vec::new()),
        JoinMethod::Token | JoinMethod::Iam | JoinMethod::Unspecified => {}
    }
    if new.kind == NodeKind::Unspecified {
        return Err(CoreError::invalid("kind", "say what the token lets join: a node or an ingest"));
    }
    match new.method {
        JoinMethod::Token | JoinMethod::Iam | JoinMethod::Exchange => {}
        JoinMethod::Unspecified => {
            let reason = "this release has JOIN_METHOD_TOKEN and JOIN_METHOD_IAM";
            return Err(CoreError::invalid("method", reason));
        }
    }
    if new.max_uses > MAX_USES {
        return Err(CoreError::invalid("max_uses", format!("at most {MAX_USES}")));
    }
    labels::check("labels", &new.labels)?;
    if new.allowed_principals.len() > MAX_PRINCIPALS {
        return Err(CoreError::invalid("allowed_principals", format!("at most {MAX_PRINCIPALS}")));
    }
    let canonical = |(index, text): (usize, &String)| {
        PrincipalPattern::parse(&format!("allowed_principals[{index}]"), text)
            .map(|pattern| pattern.to_string())
    };
    new.allowed_principals.iter().enumerate().map(canonical).collect()
}

/// With a token for the exchange with another cluster nobody joins, and it is for one exchange.
fn check_exchange(new: &NewToken) -> Result<(), CoreError> {
    let reason = "a token for another cluster has none: nobody joins with it";
    if !new.labels.is_empty() {
        return Err(CoreError::invalid("labels", reason));
    }
    if !new.allowed_principals.is_empty() {
        return Err(CoreError::invalid("allowed_principals", reason));
    }
    if new.max_uses > 1 {
        return Err(CoreError::invalid("max_uses", "a token for another cluster is for one use"));
    }
    Ok(())
}

fn checked_ttl(ttl: Option<Duration>) -> Result<UnixMillis, CoreError> {
    let ttl = ttl.unwrap_or(DEFAULT_TTL);
    if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
        return Err(CoreError::invalid("ttl", "1 minute to 30 days"));
    }
    Ok(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

/// A token.
///
/// # Errors
/// [`CoreError::NotFound`]: there is none, or it has ended. [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized), name: &TokenName) -> Result<Versioned<TokenRow>, CoreError> {
    state.get(&TokenKey(name.clone()))?.ok_or_else(|| not_found(name))
}

/// A token that is there: of a host, ingest or other cluster, or of an auth node.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Of a host, ingest or other cluster.
    Join(Versioned<TokenRow>),
    /// Of an auth node.
    AuthNode(Versioned<AuthJoinTokenRow>),
}

impl Found {
    fn encoded_len(&self) -> usize {
        match self {
            Self::Join(token) => token.row.encoded_len(),
            Self::AuthNode(token) => token.row.encoded_len(),
        }
    }
}

/// A token of any kind.
///
/// # Errors
/// As of [`get`].
pub fn find_any(state: &mut (impl Read + ?Sized), name: &TokenName) -> Result<Found, CoreError> {
    match cluster::find_auth_join_token(state, name)? {
        Some((_, token)) => Ok(Found::AuthNode(token)),
        None => get(state, name).map(Found::Join),
    }
}

/// Tokens of any kind by name; those that have ended are not among them.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token of another list; [`CoreError::Storage`].
pub fn list(
    state: &mut (impl Read + ?Sized),
    page: &PageRequest,
) -> Result<Page<(TokenName, Found)>, CoreError> {
    let after = page.after.as_deref().map(|name| TokenName::parse("page_token", name)).transpose()?;
    let auth_nodes = cluster::list_auth_join_tokens(state, after.as_ref(), page.size + 1)?;
    let others = state.scan(after.map(TokenKey).as_ref(), page.size + 1)?;
    let others = others.into_iter().map(|(key, row)| (key.0, Found::Join(row)));
    let mut tokens: Vec<_> =
        auth_nodes.into_iter().map(|(name, row)| (name, Found::AuthNode(row))).chain(others).collect();
    tokens.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(Page::cut(tokens, page.size, |(_, token)| token.encoded_len(), |(name, _)| name.as_str().to_owned()))
}

/// Deletes a token of any kind. Who joined with it stays; joins that are not finished need another one.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub fn delete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &TokenName,
) -> Result<(), CoreError> {
    if let Some((key, _)) = cluster::find_auth_join_token(tx, name)? {
        tx.delete(&key);
        audit::append(tx, context, EventType::TokenDelete, format!("token:{name}"), &[]);
        return Ok(());
    }
    let row = get(tx, name)?.row;
    if let Ok(digest) = row.secret_digest.as_slice().try_into() {
        tx.delete(&TokenSecretKey(SecretDigest(digest)));
    }
    tx.delete(&TokenKey(name.clone()));
    audit::append(tx, context, EventType::TokenDelete, format!("token:{name}"), &[]);
    Ok(())
}

/// Tells whether a secret's token would let one more join now. It does not use it. A refusal is audited.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn validate(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
) -> Result<Verdict<TokenRow>, CoreError> {
    let decision = find(tx, secret).and_then(|(name, row)| {
        check_unused(&name, &row)?;
        Ok(row)
    });
    audited(tx, context, EventType::AgentJoinDenied, decision)
}

/// The token of a secret. Method and time are checked; uses are not.
pub(crate) fn find(
    state: &mut (impl Read + ?Sized),
    secret: SecretDigest,
) -> Result<(TokenName, TokenRow), Stop> {
    find_for(state, secret, JoinMethod::Token)
}

/// As [`find`], of a token of another method with a secret.
pub(crate) fn find_for(
    state: &mut (impl Read + ?Sized),
    secret: SecretDigest,
    method: JoinMethod,
) -> Result<(TokenName, TokenRow), Stop> {
    let unknown = || refused("join", "the token is unknown, deleted, or past its end");
    let name = state.get(&TokenSecretKey(secret))?.ok_or_else(unknown)?.row.token;
    let name = TokenName::parse("token", &name)?;
    let row = state.get(&TokenKey(name.clone()))?.ok_or_else(unknown)?.row;
    if row.method() != method || row.secret_digest != secret.0 {
        return Err(refused(format!("token:{name}"), "the token has no such secret"));
    }
    Ok((name, row))
}

/// The token of this name, if an identity is what it is used with. Method and time are checked; uses are not.
pub(crate) fn find_iam(state: &mut (impl Read + ?Sized), name: &TokenName) -> Result<TokenRow, Stop> {
    let found = state.get(&TokenKey(name.clone()))?.filter(|found| found.row.method() == JoinMethod::Iam);
    found.map(|found| found.row).ok_or_else(|| {
        let reason = "there is no token of this name and the method iam, or it is past its end";
        refused_by(JoinMethod::Iam, format!("token:{name}"), reason)
    })
}

/// Refuses a token whose joins have all been made.
pub(crate) fn check_unused(name: &TokenName, row: &TokenRow) -> Result<(), Stop> {
    if row.uses < row.max_uses {
        return Ok(());
    }
    Err(refused_by(row.method(), format!("token:{name}"), "the token is used up"))
}

/// A refusal by which the caller cannot tell what is wrong with the token.
pub(crate) fn refused(target: impl Into<String>, reason: impl Into<String>) -> Stop {
    refused_by(JoinMethod::Token, target, reason)
}

/// As [`refused`], of a token of this method: nor, by IAM, whether it is the token or the identity.
pub(crate) fn refused_by(method: JoinMethod, target: impl Into<String>, reason: impl Into<String>) -> Stop {
    let answer = match method {
        JoinMethod::Iam => IAM_NOT_ACCEPTED,
        JoinMethod::Token | JoinMethod::Exchange | JoinMethod::Unspecified => NOT_ACCEPTED,
    };
    let answer = CoreError::Denied(answer.into());
    Stop::Refused(Refusal { answer, reason: reason.into(), target: target.into() })
}

fn not_found(name: &TokenName) -> CoreError {
    CoreError::NotFound { kind: "token", name: name.as_str().to_owned() }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
