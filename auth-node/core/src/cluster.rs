//! The cluster itself: how it is made, once, and how further auth nodes get their ids.

use std::{ops::Range, time::Duration};

use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
    ca::NewCa,
    names::{ClusterName, TokenName, UserName},
    role,
    secret::{PasswordHash, SecretDigest},
    tables::{
        AuthJoinTokenKey, AuthJoinTokenRow, CaKey, CaKeyRow, CaKind, CaRow, ClusterKey, ClusterRow, RoleKey,
        TokenKey, TokenSecretKey,
    },
    user,
    verdict::{Refusal, Stop, Verdict, audited},
};

/// The node that makes the cluster.
pub const FIRST_NODE: u64 = 1;
/// Life of an auth node's join token when its maker does not say.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Shortest life of an auth node's join token.
const MIN_TTL: Duration = Duration::from_secs(1);
/// Longest life of an auth node's join token.
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// Tokens that one transaction ends.
const END_STEP: usize = 500;
/// Longest id of a cluster, in bytes.
const MAX_CLUSTER_ID: usize = 64;

/// A cluster to make.
#[derive(Debug, Clone)]
pub struct NewCluster {
    /// Identifies the cluster for good: 1 to 64 bytes of `[a-zA-Z0-9-]`.
    pub cluster_id: String,
    /// Name.
    pub name: ClusterName,
    /// One key for each kind of authority.
    pub cas: Vec<NewCa>,
    /// The first user, who administers the cluster.
    pub admin: UserName,
    /// Hash of the first user's password.
    pub admin_password_hash: PasswordHash,
}

/// Makes the cluster: its authorities, the built-in roles and the first user.
///
/// # Errors
/// [`CoreError::AlreadyExists`] when there is one; [`CoreError::Invalid`]; [`CoreError::Storage`].
pub fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: NewCluster,
) -> Result<(), CoreError> {
    if let Some(cluster) = tx.get(&ClusterKey)? {
        return Err(CoreError::AlreadyExists { kind: "cluster", name: cluster.row.name });
    }
    check_id(&new.cluster_id)?;
    let mut kinds: Vec<_> = new.cas.iter().map(|ca| ca.kind).collect();
    kinds.sort_unstable();
    if kinds != CaKind::ALL {
        return Err(CoreError::invalid("cas", "one key for each kind of authority"));
    }
    let now = tx.now();
    for NewCa { kind, public, sealed_private } in new.cas {
        let key = CaKeyRow { public, sealed_private, created_at_ms: now };
        tx.put(&CaKey(kind), &CaRow::new(key));
    }
    for role in role::built_ins() {
        tx.put(&RoleKey(role.name), &role.row);
    }
    user::create_first_admin(tx, context, &new.admin, &new.admin_password_hash)?;
    let row = ClusterRow {
        cluster_id: new.cluster_id,
        name: new.name.into(),
        created_at_ms: now,
        next_node_id: FIRST_NODE + 1,
        session_epoch: 1,
        first_node_id: 0,
    };
    tx.put(&ClusterKey, &row);
    let fields = [("cluster_id", row.cluster_id), ("admin", new.admin.to_string())];
    audit::append(tx, context, EventType::ClusterCreate, format!("cluster:{}", row.name), &fields);
    Ok(())
}

fn check_id(id: &str) -> Result<(), CoreError> {
    let good = (1..=MAX_CLUSTER_ID).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if good { Ok(()) } else { Err(CoreError::invalid("cluster_id", "1 to 64 letters, digits and -")) }
}

/// A cluster that goes on from the state of another.
#[derive(Debug, Clone)]
pub struct Succession {
    /// Identifies the new cluster for good: as in [`NewCluster`].
    pub cluster_id: String,
    /// The new peer CA: nodes of the old cluster are none of the new one.
    pub peer_ca: NewCa,
    /// [`EventType::ClusterRestore`] or [`EventType::ClusterRecover`].
    pub event: EventType,
    /// SHA-256 of the backup, hexadecimal.
    pub backup_sha256: String,
}

/// Ends join tokens of hosts and of auth nodes, some of them: answers how many, 0 when there are none left. In a state
/// that is of an earlier time they could be used again.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn end_join_tokens(tx: &mut (impl Transaction + ?Sized)) -> Result<usize, CoreError> {
    let nodes = tx.scan::<AuthJoinTokenKey>(None, END_STEP)?;
    let hosts = tx.scan::<TokenKey>(None, END_STEP)?;
    for (key, _) in &nodes {
        tx.delete(key);
    }
    for (key, token) in &hosts {
        if let Ok(digest) = token.row.secret_digest.as_slice().try_into() {
            tx.delete(&TokenSecretKey(SecretDigest(digest)));
        }
        tx.delete(key);
    }
    Ok(nodes.len() + hosts.len())
}

/// Makes the state that of a new cluster: no session of the old one counts, and no node of it is known. Does nothing
/// where that was done already. Call it when [`end_join_tokens`] has nothing left.
///
/// # Errors
/// [`CoreError::Precondition`] for a state that is not of a cluster; [`CoreError::Invalid`]; [`CoreError::Storage`].
pub fn succeed(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: Succession,
) -> Result<(), CoreError> {
    let mut row = get(tx)?.row;
    if row.cluster_id == new.cluster_id {
        return Ok(());
    }
    check_id(&new.cluster_id)?;
    if new.peer_ca.kind != CaKind::Peer {
        return Err(CoreError::invalid("peer_ca", "a key of the peer CA"));
    }
    let old_id = std::mem::replace(&mut row.cluster_id, new.cluster_id);
    row.session_epoch += 1;
    row.next_node_id = row.next_node_id.max(FIRST_NODE + 1);
    row.first_node_id = row.next_node_id;
    tx.put(&ClusterKey, &row);
    let NewCa { public, sealed_private, .. } = new.peer_ca;
    let key = CaKeyRow { public, sealed_private, created_at_ms: tx.now() };
    tx.put(&CaKey(CaKind::Peer), &CaRow::new(key));
    let fields = [
        ("old_cluster_id", old_id),
        ("cluster_id", row.cluster_id),
        ("backup_sha256", new.backup_sha256),
        ("session_epoch", row.session_epoch.to_string()),
    ];
    audit::append(tx, context, new.event, format!("cluster:{}", row.name), &fields);
    Ok(())
}

/// The cluster.
///
/// # Errors
/// [`CoreError::Precondition`] when there is none yet; [`CoreError::Storage`].
pub fn get(state: &mut (impl Read + ?Sized)) -> Result<Versioned<ClusterRow>, CoreError> {
    let missing =
        || CoreError::Precondition("there is no cluster yet: run `auth-node init` on its first node".into());
    state.get(&ClusterKey)?.ok_or_else(missing)
}

/// The ids of auth nodes that have joined this cluster, its first node apart: members, removed ones, and those that never ran.
///
/// # Errors
/// As of [`get`].
pub fn joined_ids(state: &mut (impl Read + ?Sized)) -> Result<Range<u64>, CoreError> {
    let row = get(state)?.row;
    Ok(row.first_node_id.max(FIRST_NODE + 1)..row.next_node_id)
}

/// Begins the names of auth nodes' join tokens, which nobody chooses.
const TOKEN_NAME: &str = "auth-node-";
/// Bytes of its secret's digest that such a name tells.
const TOKEN_NAME_BYTES: usize = 16;

/// The name by which the join token of an auth node is listed and deleted.
///
/// # Errors
/// None for a digest.
pub fn auth_join_token_name(secret: SecretDigest) -> Result<TokenName, CoreError> {
    let told = secret.0.iter().take(TOKEN_NAME_BYTES);
    let digits: String = told.map(|byte| format!("{byte:02x}")).collect();
    TokenName::parse("name", &format!("{TOKEN_NAME}{digits}"))
}

/// Whether a name is kept for tokens of auth nodes.
pub(crate) fn is_auth_join_token_name(name: &TokenName) -> bool {
    name.as_str().starts_with(TOKEN_NAME)
}

/// The lowest digest of which this is the name.
fn lowest_digest(name: &TokenName) -> Option<SecretDigest> {
    let mut digest = [0; 32];
    let digits = name.as_str().strip_prefix(TOKEN_NAME)?;
    hex::decode_to_slice(digits, digest.get_mut(..TOKEN_NAME_BYTES)?).ok()?;
    Some(SecretDigest(digest))
}

/// The join token of an auth node that has this name.
pub(crate) fn find_auth_join_token(
    state: &mut (impl Read + ?Sized),
    name: &TokenName,
) -> Result<Option<(AuthJoinTokenKey, Versioned<AuthJoinTokenRow>)>, CoreError> {
    let Some(lowest) = lowest_digest(name) else { return Ok(None) };
    // A scan begins behind its key, which no secret has: it ends with sixteen zeros.
    let Some((key, row)) = state.scan(Some(&AuthJoinTokenKey(lowest)), 1)?.pop() else { return Ok(None) };
    let digest: SecretDigest = key.0;
    Ok((auth_join_token_name(digest)? == *name).then_some((AuthJoinTokenKey(digest), row)))
}

/// Join tokens of auth nodes by name, after this one.
pub(crate) fn list_auth_join_tokens(
    state: &mut (impl Read + ?Sized),
    after: Option<&TokenName>,
    limit: usize,
) -> Result<Vec<(TokenName, Versioned<AuthJoinTokenRow>)>, CoreError> {
    let last = after.and_then(lowest_digest).map(|SecretDigest(mut last)| {
        last.iter_mut().skip(TOKEN_NAME_BYTES).for_each(|byte| *byte = u8::MAX);
        AuthJoinTokenKey(SecretDigest(last))
    });
    let mut tokens = Vec::new();
    for (key, row) in state.scan::<AuthJoinTokenKey>(last.as_ref(), limit)? {
        let name = auth_join_token_name(key.0)?;
        // A name of another kind is before all of these, or behind them.
        if after.is_none_or(|after| name > *after) {
            tokens.push((name, row));
        }
    }
    Ok(tokens)
}

/// Makes a join token for one auth node; answers when it ends. `ttl` unset: one hour; at most a day.
///
/// # Errors
/// [`CoreError::Invalid`] for `ttl`; [`CoreError::Storage`].
pub fn create_auth_join_token(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    ttl: Option<Duration>,
) -> Result<UnixMillis, CoreError> {
    let ttl = ttl.unwrap_or(DEFAULT_TTL);
    if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
        return Err(CoreError::invalid("ttl", "1 second to 1 day"));
    }
    let expires_at_ms = tx.now().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let row =
        AuthJoinTokenRow { created_by: context.caller.actor(), expires_at_ms, ..AuthJoinTokenRow::default() };
    tx.put(&AuthJoinTokenKey(secret), &row);
    let name = auth_join_token_name(secret)?;
    let fields = [("token", name.to_string()), ("expires_at_ms", expires_at_ms.to_string())];
    audit::append(tx, context, EventType::AuthNodeTokenCreate, "auth_node", &fields);
    Ok(expires_at_ms)
}

/// Uses an auth node's join token for the holder of the keys of which this is the digest: the id of the new node. The same
/// keys get the same id again, as long as the token lasts, so that a lost reply does no harm; others get nothing. A
/// refusal is audited.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn use_auth_join_token(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    key_digest: [u8; 32],
) -> Result<Verdict<u64>, CoreError> {
    let decision = assign_node_id(tx, context, secret, key_digest);
    audited(tx, context, EventType::AuthNodeJoinDenied, decision)
}

fn assign_node_id(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: SecretDigest,
    key_digest: [u8; 32],
) -> Result<u64, Stop> {
    let refused = |reason: &str| {
        let answer = "the join token is not accepted: it is unknown, used, or past its end; \
                      make a new one with `mezctl cluster token`";
        let answer = CoreError::Denied(answer.into());
        Stop::Refused(Refusal { answer, reason: reason.into(), target: "auth_node".into() })
    };
    let key = AuthJoinTokenKey(secret);
    let mut token = tx.get(&key)?.ok_or_else(|| refused("the token is unknown or past its end"))?.row;
    let again = token.node_id != 0;
    if again && token.used_by != key_digest {
        return Err(refused("the token was used with other keys"));
    }
    if !again {
        let mut cluster = get(tx)?.row;
        token.node_id = cluster.next_node_id;
        token.used_by = key_digest.to_vec();
        cluster.next_node_id += 1;
        tx.put(&ClusterKey, &cluster);
        tx.put(&key, &token);
    }
    // A repeated join gets the cluster's keys again, so the log must have it too.
    let fields = [
        ("keys_sha256", hex::encode(key_digest)),
        ("again", again.to_string()),
        ("token_by", token.created_by),
        ("token", auth_join_token_name(secret)?.to_string()),
    ];
    audit::append(tx, context, EventType::AuthNodeJoin, format!("auth_node:{}", token.node_id), &fields);
    Ok(token.node_id)
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
