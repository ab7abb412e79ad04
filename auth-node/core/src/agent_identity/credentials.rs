//! What an agent identity gets: first for its bootstrap secret, then for what it got before.
//!
//! Each time the generation rises by one, and the identity says which one it has. One that says another than the cluster
//! knows has a copy of what somebody else has renewed: there are two, one of them stolen, and nobody can tell which. So
//! the identity is locked. Only who shows a certificate that the identity was issued, and so has its key, can bring that
//! about.
//!
//! An answer can be lost, and its client can die before it has kept it. So a call that is repeated, with the same keys and
//! the same idempotency key, is not another one: as long as it is the last one that took effect, it is answered again,
//! with the same generation, the same session and new certificates for the same keys. Whoever has the idempotency key
//! could as well have had the answer.

use std::time::Duration;

use mezite_pki::{identity::Identity, ssh::UserCertSpec, x509::LeafSpec};
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis};

use super::{CredentialRequest, Fresh, forget_secret};
use crate::{
    Caller, Context, CoreError, Verdict,
    audit::{self, EventType},
    ca::{self, ActiveCa},
    context::{self, IdentityCaller, Role},
    evaluate::Access,
    issue::{self, Candidates},
    join::BACKDATE_SECONDS,
    lock,
    names::IdentityName,
    revocation,
    secret::SecretDigest,
    session::{self, Owner},
    tables::{
        AgentIdentityKey, AgentIdentityRow, AgentIdentityStateKey, AgentIdentityStateRow, BootstrapSecretKey,
        CaKind, IdentityTlsKeyKey, IssuedRow, MarkEndingRow, SessionRow, TargetKind,
    },
    trust::{self, TrustBundle},
    verdict::{Refusal, Stop, audited},
};

/// What the holder of a secret is told that is no good, whatever is wrong with it.
const NOT_ACCEPTED: &str = "the bootstrap secret is not accepted: it is unknown, of another identity, used, replaced, or past \
                            its end; ask an administrator to reset the identity";
/// That an identity had a key is known for so long after the end of its certificate: for clocks that are behind.
const KEY_KEPT_MS: UnixMillis = 3_600_000;
/// A lock that does not end by itself.
const FOR_GOOD: UnixMillis = 0;

/// What an agent identity gets. The certificates are to be signed once the transaction has committed.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// SSH certificate, and what signs it.
    pub ssh: Option<(UserCertSpec, ActiveCa)>,
    /// Why there is none; empty when there is one.
    pub ssh_refusal: String,
    /// X.509 client certificate.
    pub tls: LeafSpec,
    /// Signs that.
    pub tls_ca: ActiveCa,
    /// What the identity trusts.
    pub trust: TrustBundle,
    /// Which of its credentials these are, from 1.
    pub generation: u64,
    /// When all of it ends.
    pub expires_at_ms: UnixMillis,
}

/// What an agent identity shows of its last credentials, to renew them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The name that its client certificate has.
    pub name: IdentityName,
    /// SHA-256 of that certificate's public key (SubjectPublicKeyInfo).
    pub key_digest: [u8; 32],
    /// Their generation, as it says.
    pub generation: u64,
}

/// An agent identity, and where it stands.
pub(crate) struct Known {
    name: IdentityName,
    row: AgentIdentityRow,
    pub(crate) roles: Vec<Role>,
    state: AgentIdentityStateRow,
}

impl Known {
    /// An agent identity, if there is one of this name.
    ///
    /// # Errors
    /// [`CoreError::Storage`].
    pub(crate) fn read(
        state: &mut (impl Read + ?Sized),
        name: &IdentityName,
    ) -> Result<Option<Self>, CoreError> {
        let Some(row) = state.get(&AgentIdentityKey(name.clone()))? else { return Ok(None) };
        let stands = state.get(&AgentIdentityStateKey(name.clone()))?;
        let roles = context::roles_of(state, &row.row.roles)?;
        let state = stands.map(|found| found.row).unwrap_or_default();
        Ok(Some(Self { name: name.clone(), row: row.row, roles, state }))
    }

    /// How long its credentials live.
    pub(crate) fn ttl(&self) -> Duration {
        let by_roles = Access::of(&self.roles, &self.row.traits).options().max_ttl;
        Duration::from_millis(self.row.max_ttl_ms).min(by_roles)
    }

    /// As the caller of what it does, with a session.
    pub(crate) fn caller(&self, digest: SecretDigest, session: SessionRow) -> Caller {
        Caller::AgentIdentity(Box::new(IdentityCaller {
            name: self.name.clone(),
            identity: self.row.clone(),
            roles: self.roles.clone(),
            digest,
            session,
        }))
    }
}

/// Whose bootstrap secret this is, if it is good: used for nothing, or to be answered again.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn holder(
    state: &mut (impl Read + ?Sized),
    secret: SecretDigest,
) -> Result<Option<IdentityName>, CoreError> {
    let found = state.get(&BootstrapSecretKey(secret))?;
    found.map(|found| IdentityName::parse("bootstrap_secret", &found.row.identity)).transpose()
}

/// Looks for the nodes that an identity's certificate may name: in a view of all, before the transaction.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn candidates(
    state: &mut (impl Read + ?Sized),
    context: &Context,
    name: &IdentityName,
    request: &CredentialRequest,
) -> Result<Candidates, CoreError> {
    let Some(known) = Known::read(state, name)? else { return Ok(Candidates::default()) };
    let caller = known.caller(SecretDigest([0; 32]), SessionRow::default());
    let context = Context { caller, origin: context.origin.clone() };
    match issue::candidates(state, &context, &request.certs) {
        // Whatever it is, the transaction says it.
        Err(CoreError::Denied(_) | CoreError::Precondition(_)) => Ok(Candidates::default()),
        found => found,
    }
}

/// Gives an identity its first credentials for its bootstrap secret, which is used up; or again, to the same call. A refusal
/// is audited, and does not tell what is wrong.
///
/// # Errors
/// [`CoreError::Storage`], [`CoreError::Internal`].
pub fn bootstrap(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: Option<&IdentityName>,
    secret: SecretDigest,
    request: &CredentialRequest,
    candidates: &Candidates,
    fresh: &Fresh,
) -> Result<Verdict<Credentials>, CoreError> {
    let decision = find(tx, name, secret, request).and_then(|known| {
        let first = AgentIdentityStateRow { generation: 1, ..known.state.clone() };
        Ok(give(tx, context, known, first, EventType::IdentityBootstrap, (request, candidates, fresh))?)
    });
    audited(tx, context, EventType::IdentityBootstrapDenied, decision)
}

/// The identity of a secret that is good for a request.
fn find(
    state: &mut (impl Read + ?Sized),
    name: Option<&IdentityName>,
    secret: SecretDigest,
    request: &CredentialRequest,
) -> Result<Known, Stop> {
    let refused = |target: String, reason: &str| {
        let answer = CoreError::Denied(NOT_ACCEPTED.into());
        Stop::Refused(Refusal { answer, reason: reason.to_owned(), target })
    };
    let unknown = || refused("bootstrap".into(), "the secret is unknown, replaced, or past its end");
    let whose = holder(state, secret)?.ok_or_else(unknown)?;
    let target = whose.principal();
    if name != Some(&whose) {
        return Err(refused(target, "the secret is of this identity, and was used for another"));
    }
    let known = Known::read(state, &whose)?.ok_or_else(unknown)?;
    if known.state.secret_digest != secret.0 {
        return Err(unknown());
    }
    if known.state.epoch != session::epoch(state)? {
        return Err(refused(target, "the secret is of the cluster that this one was made from"));
    }
    if let Some(reason) = lock::reason(lock::check_identity(state, &whose, &known.roles))? {
        return Err(refused(target, &reason));
    }
    match known.state.generation {
        0 => Ok(known),
        1 if request.repeats(&known.state.last_call) => Ok(known),
        _ => Err(refused(target, "the secret was used before, with other keys or by another call")),
    }
}

/// Gives an identity its next credentials, by the certificate with this key and the generation that it has; or again, to
/// the call that got the last ones. Another generation than the last one locks the identity. A refusal is audited.
///
/// # Errors
/// [`CoreError::KeyReused`] for an idempotency key of the call before; [`CoreError::Storage`], [`CoreError::Internal`].
pub fn renew(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    shown: &Shown,
    request: &CredentialRequest,
    candidates: &Candidates,
    fresh: &Fresh,
) -> Result<Verdict<Credentials>, CoreError> {
    let decision = proven(tx, &shown.name, shown.key_digest).and_then(|known| {
        let last = &known.state;
        let next = match last.generation.checked_sub(shown.generation) {
            Some(1) if request.repeats(&last.last_call) => last.generation,
            // Its session would be that of the last call.
            Some(0) if request.repeats(&last.last_call) => return Err(CoreError::KeyReused.into()),
            Some(0) if last.key_digest == shown.key_digest => last.generation.saturating_add(1),
            _ => return Ok(Err(lock_copies(tx, context, &known, shown.generation, fresh)?)),
        };
        let next = AgentIdentityStateRow { generation: next, ..last.clone() };
        Ok(Ok(give(tx, context, known, next, EventType::IdentityRenew, (request, candidates, fresh))?))
    });
    Ok(match audited(tx, context, EventType::IdentityRenewDenied, decision)? {
        Verdict::Granted(Ok(credentials)) => Verdict::Granted(credentials),
        Verdict::Granted(Err(refusal)) | Verdict::Refused(refusal) => Verdict::Refused(refusal),
    })
}

/// The identity whose certificate is shown, with a key that was certified for it as it is now.
fn proven(state: &mut (impl Read + ?Sized), name: &IdentityName, shown_key: [u8; 32]) -> Result<Known, Stop> {
    let target = name.principal();
    let gone = || {
        let reason = "the client certificate is not of this agent identity as it is now: it was deleted, reset, or made anew";
        Stop::denied(target.clone(), reason)
    };
    let known = Known::read(state, name)?.ok_or_else(gone)?;
    let key = IdentityTlsKeyKey { identity: name.clone(), key_digest: shown_key };
    if state.get(&key)?.is_none() {
        return Err(gone());
    }
    match lock::reason(lock::check_identity(state, name, &known.roles))? {
        Some(reason) => {
            let answer = CoreError::Locked(reason.clone());
            Err(Stop::Refused(Refusal { answer, reason, target }))
        }
        None => Ok(known),
    }
}

/// Locks an identity of whose credentials there are two copies. Answers what is told to the one that was second.
fn lock_copies(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    known: &Known,
    generation: u64,
    fresh: &Fresh,
) -> Result<CoreError, CoreError> {
    let (name, last) = (&known.name, known.state.generation);
    let message = format!(
        "there are two copies of its credentials: generation {generation} was shown from {} after generation {last} was \
         issued; find out who has them, delete the lock, and reset the identity",
        context.origin.client_address
    );
    let by_identity = Context {
        caller: known.caller(SecretDigest([0; 32]), SessionRow::default()),
        origin: context.origin.clone(),
    };
    let fields = [("generation", generation.to_string()), ("last_generation", last.to_string())];
    audit::append(tx, &by_identity, EventType::IdentityReplay, name.principal(), &fields);
    let by_cluster = Context { caller: Caller::Cluster, origin: context.origin.clone() };
    let target = lock::Target::AgentIdentity(name.clone());
    lock::put(tx, &by_cluster, fresh.lock.clone(), &target, message, FOR_GOOD);
    match lock::check_identity(tx, name, &known.roles) {
        Err(locked @ CoreError::Locked(_)) => Ok(locked),
        Err(error) => Err(error),
        Ok(()) => Err(CoreError::Internal("a lock is not where it was put".into())),
    }
}

/// Gives an identity credentials of the generation that `next` says; the session of the last ones ends.
fn give(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    known: Known,
    next: AgentIdentityStateRow,
    event: EventType,
    (request, candidates, fresh): (&CredentialRequest, &Candidates, &Fresh),
) -> Result<Credentials, CoreError> {
    let name = &known.name;
    session::end_of_identity(tx, name, &known.state.session)?;
    let ttl_ms = u64::try_from(known.ttl().as_millis()).unwrap_or(u64::MAX);
    // To the second, as certificates are.
    let expires_at_ms = tx.now().saturating_add(ttl_ms) / 1000 * 1000;
    let owner = Owner::AgentIdentity(name.clone());
    let session = session::create_until(tx, context, &owner, &fresh.session(), expires_at_ms)?;
    let key = IdentityTlsKeyKey { identity: name.clone(), key_digest: request.key_digest };
    tx.put(&key, &MarkEndingRow { expires_at_ms: expires_at_ms.saturating_add(KEY_KEPT_MS) });
    let state = AgentIdentityStateRow {
        key_digest: request.key_digest.to_vec(),
        session: session.handle.clone(),
        last_call: request.call.clone(),
        ends_at_ms: expires_at_ms,
        ..next
    };
    tx.put(&AgentIdentityStateKey(name.clone()), &state);
    if state.generation > 1 {
        // What it was used for has arrived.
        forget_secret(tx, &state);
    }

    let target = name.principal();
    let caller = known.caller(fresh.session, session);
    let context = Context { caller, origin: context.origin.clone() };
    let fields = [
        ("generation", state.generation.to_string()),
        ("session", state.session.clone()),
        ("expires_at_ms", expires_at_ms.to_string()),
        ("tls_key_sha256", hex::encode(request.key_digest)),
    ];
    audit::append(tx, &context, event, target, &fields);
    certify(tx, &context, &known, &state, (request, candidates, fresh))
}

/// Says what is to be signed for an identity with a session.
fn certify(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    known: &Known,
    state: &AgentIdentityStateRow,
    (request, candidates, fresh): (&CredentialRequest, &Candidates, &Fresh),
) -> Result<Credentials, CoreError> {
    let (ssh, ssh_refusal) = match issue::user_certs(tx, context, &request.certs, candidates) {
        Ok(certs) => (certs.ssh.into_iter().next().map(|spec| (spec, certs.user_ca)), String::new()),
        // An identity that logs in nowhere has its session and client certificate all the same.
        Err(CoreError::Denied(reason) | CoreError::Precondition(reason)) => {
            let issued = IssuedRow {
                kind: TargetKind::AgentIdentity.into(),
                holder: known.name.to_string(),
                session: state.session.clone(),
                expires_at_ms: state.ends_at_ms,
                ..IssuedRow::default()
            };
            // A rotation waits for the end of the client certificate.
            revocation::note(tx, fresh.serial, &issued);
            (None, reason)
        }
        Err(error) => return Err(error),
    };
    let trust = trust::bundle(tx)?;
    let (cluster, name) = (trust.cluster_name.clone(), known.name.to_string());
    let tls = LeafSpec {
        public_key: request.tls_public_key.clone(),
        common_name: known.name.principal(),
        identity: Some(Identity::Bot { cluster, name }),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        not_before: (tx.now() / 1000).saturating_sub(BACKDATE_SECONDS),
        // The last second of the lifetime here, the first one after it in SSH's.
        not_after: (state.ends_at_ms / 1000).saturating_sub(1),
        client_auth: true,
        server_auth: false,
    };
    let tls_ca = ca::for_clients(tx, CaKind::Tls)?;
    let (generation, expires_at_ms) = (state.generation, state.ends_at_ms);
    Ok(Credentials { ssh, ssh_refusal, tls, tls_ca, trust, generation, expires_at_ms })
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
