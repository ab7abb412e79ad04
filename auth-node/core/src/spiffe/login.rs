//! What an SVID gives: a session of the agent identity that has its SPIFFE ID.

use store_txn::{ReadExt, Transaction, TransactionExt, UnixMillis};

use super::{
    domain,
    id::{SpiffeId, TrustDomain},
};
use crate::{
    Context, CoreError, Verdict,
    agent_identity::{self, Known},
    audit::{self, EventType},
    lock,
    names::IdentityName,
    secret::SecretDigest,
    session::{self, NewSession},
    tables::{MarkEndingRow, SessionRow, SpiffeBundleRow, UsedSvidKey},
    verdict::{Refusal, Stop, audited},
};

/// What the holder of an SVID is told that is no good, whatever is wrong with it.
const NOT_ACCEPTED: &str = "the SVID is not accepted: its trust domain is not let in, nobody here has its SPIFFE ID, or it is not \
                            good for this cluster, now and for the first time; the audit log has the reason";
/// How far clocks of issuers may be off.
const LEEWAY_MS: UnixMillis = 60_000;
/// Longest life of a token, from when it was issued and from now.
const MAX_TOKEN_LIFE_MS: UnixMillis = 3_600_000;

/// What an SVID says that was verified. Times are the issuer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// The SPIFFE ID, as it is in the SVID.
    pub spiffe_id: String,
    /// When it was issued, if it says so.
    pub issued_at_ms: Option<UnixMillis>,
    /// When it ends.
    pub ends_at_ms: UnixMillis,
    /// Whoever has it may use it, and once: the digest of what is signed in it. `None`: its holder has proved to have its key.
    pub bearer: Option<SecretDigest>,
}

/// An SVID that is shown.
pub struct Attempt<'a> {
    /// The trust domain that it says it is of; `None`: it says none.
    pub domain: Option<TrustDomain>,
    /// Verifies it by the bundle of that trust domain, at this time; an empty one, where there is none. An error is for the audit
    /// log alone.
    pub verify: &'a dyn Fn(&SpiffeBundleRow, UnixMillis) -> Result<Attested, String>,
    /// The session to make.
    pub new: NewSession,
}

/// Decides on an SVID, which is used up if it is a token, and makes a session. A refusal is audited, and does not tell what is
/// wrong.
///
/// # Errors
/// [`CoreError::Storage`], [`CoreError::Internal`].
pub fn authenticate(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    attempt: &Attempt<'_>,
) -> Result<Verdict<SessionRow>, CoreError> {
    let decision = enter(tx, context, attempt);
    audited(tx, context, EventType::SpiffeLoginDenied, decision)
}

fn refused(target: &str, reason: impl Into<String>) -> Stop {
    let answer = CoreError::Denied(NOT_ACCEPTED.into());
    Stop::Refused(Refusal { answer, reason: reason.into(), target: target.to_owned() })
}

fn enter(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    attempt: &Attempt<'_>,
) -> Result<SessionRow, Stop> {
    let now = tx.now();
    let domain = attempt.domain.as_ref();
    let found = domain.map(|domain| domain::find(tx, domain)).transpose()?.flatten();
    let bundle = found.as_ref().map(|found| found.bundle.clone()).unwrap_or_default();
    // Also where there is nothing to verify it by: it takes as long.
    let attested = (attempt.verify)(&bundle, now);

    let Some(domain) = domain else {
        return Err(refused("spiffe", attested.err().unwrap_or_else(|| "it names no trust domain".into())));
    };
    let target = format!("spiffe_domain:{domain}");
    let found = found.ok_or_else(|| refused(&target, "this trust domain is not let in"))?;
    if found.good_until_ms().is_some_and(|until| now >= until) {
        return Err(refused(&target, "the bundle of this trust domain was not told for too long"));
    }
    let attested = attested.map_err(|reason| refused(&target, reason))?;
    let id = SpiffeId::parse("spiffe_id", &attested.spiffe_id);
    let id = id.map_err(|_| refused(&target, "it names no workload by a SPIFFE ID in its one form"))?;
    if id.trust_domain() != *domain {
        return Err(refused(&target, format!("it is of another trust domain: {}", id.as_str())));
    }
    check_times(&attested, now).map_err(|reason| refused(id.as_str(), reason))?;
    let (name, known) = mapped(tx, &id)?;
    use_up(tx, &attested, &id)?;
    Ok(begin(tx, context, (&name, &known), (&attempt.new, &id), &attested)?)
}

/// Checks the times of an SVID by the state's: what a node's own clock says was looked at before.
fn check_times(attested: &Attested, now: UnixMillis) -> Result<(), &'static str> {
    let ends = attested.ends_at_ms;
    if attested.bearer.is_none() {
        return if now < ends { Ok(()) } else { Err("it has ended") };
    }
    if now >= ends.saturating_add(LEEWAY_MS) {
        return Err("it has ended");
    }
    let issued = attested.issued_at_ms.unwrap_or(now);
    if issued > now.saturating_add(LEEWAY_MS) {
        return Err("it was issued in the future");
    }
    // From the earlier of both: one from the past is no better for it, and one that does not say lives from now.
    if ends.saturating_sub(issued.min(now)) > MAX_TOKEN_LIFE_MS + LEEWAY_MS {
        return Err("it lives for longer than an hour");
    }
    Ok(())
}

/// The agent identity that has a SPIFFE ID, unless it is locked.
fn mapped(tx: &mut (impl Transaction + ?Sized), id: &SpiffeId) -> Result<(IdentityName, Known), Stop> {
    let unmapped = || refused(id.as_str(), "no agent identity has this SPIFFE ID");
    let name = agent_identity::by_spiffe_id(tx, id.as_str())?.ok_or_else(unmapped)?;
    let known = Known::read(tx, &name)?.ok_or_else(unmapped)?;
    match lock::reason(lock::check_identity(tx, &name, &known.roles))? {
        Some(reason) => Err(refused(&name.principal(), reason)),
        None => Ok((name, known)),
    }
}

/// Uses a token up. It is remembered for as long as it would be taken.
fn use_up(tx: &mut (impl Transaction + ?Sized), attested: &Attested, id: &SpiffeId) -> Result<(), Stop> {
    let Some(digest) = attested.bearer else { return Ok(()) };
    let key = UsedSvidKey(digest);
    if tx.get(&key)?.is_some() {
        return Err(refused(id.as_str(), "it was used before"));
    }
    tx.put(&key, &MarkEndingRow { expires_at_ms: attested.ends_at_ms.saturating_add(LEEWAY_MS) });
    Ok(())
}

fn begin(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    (name, known): (&IdentityName, &Known),
    (new, id): (&NewSession, &SpiffeId),
    attested: &Attested,
) -> Result<SessionRow, CoreError> {
    let ttl_ms = u64::try_from(known.ttl().as_millis()).unwrap_or(u64::MAX);
    let by_identity = tx.now().saturating_add(ttl_ms);
    // A token is exchanged; with a key that was proved goes what was proved with it.
    let ends = if attested.bearer.is_some() { by_identity } else { by_identity.min(attested.ends_at_ms) };
    let session = session::create_by_svid(tx, context, name, (new, id), ends)?;
    let caller = known.caller(new.digest, session.clone());
    let context = Context { caller, origin: context.origin.clone() };
    let kind = if attested.bearer.is_some() { "jwt" } else { "x509" };
    let fields = [
        ("spiffe_id", id.as_str().to_owned()),
        ("svid", kind.to_owned()),
        ("svid_ends_at_ms", attested.ends_at_ms.to_string()),
        ("session", session.handle.clone()),
        ("expires_at_ms", session.expires_at_ms.to_string()),
    ];
    audit::append(tx, &context, EventType::SpiffeLogin, name.principal(), &fields);
    Ok(session)
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
