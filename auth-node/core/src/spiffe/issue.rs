//! SVIDs of the cluster's own trust domain, which has the cluster's name: for its agents and agent identities.

use std::time::Duration;

use mezite_pki::x509::{SvidSpec, check_public_key};
use store_txn::{Transaction, UnixMillis};

use super::id::{SCHEME, SpiffeId};
use crate::{
    Caller, Context, CoreError,
    audit::{self, EventType},
    ca::{self, ActiveCa},
    context,
    join::BACKDATE_SECONDS,
    tables::CaKind,
    trust,
};

/// Life of an SVID: nobody is told of one that is revoked, so it is short.
const LIFE: Duration = Duration::from_secs(4 * 3600);

/// An SVID, to be signed once the transaction has committed.
#[derive(Debug, Clone)]
pub struct IssuedSvid {
    /// The SPIFFE ID that it has.
    pub spiffe_id: SpiffeId,
    /// The certificate.
    pub spec: SvidSpec,
    /// Signs it.
    pub ca: ActiveCa,
    /// X.509 authorities of the trust domain, PEM.
    pub bundle: Vec<String>,
    /// When it ends.
    pub expires_at_ms: UnixMillis,
}

/// Issues an SVID to the calling agent or agent identity, for its key (DER SubjectPublicKeyInfo). It ends after four hours, and
/// with the session of an agent identity.
///
/// # Errors
/// [`CoreError::Invalid`] for the key; [`CoreError::Precondition`] for an agent identity whose name no SPIFFE ID can have, and
/// before the cluster has this authority; [`CoreError::Unauthenticated`] for anybody else; [`CoreError::Storage`].
pub fn issue(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    public_key: Vec<u8>,
) -> Result<IssuedSvid, CoreError> {
    check_public_key(&public_key).map_err(CoreError::pki("public_key"))?;
    let trust = trust::bundle(tx)?;
    let life_ms = u64::try_from(LIFE.as_millis()).unwrap_or(u64::MAX);
    let longest = tx.now().saturating_add(life_ms);
    let (path, ends) = match &context.caller {
        Caller::Agent { id, .. } => (format!("agent/{id}"), longest),
        Caller::AgentIdentity(identity) => {
            (format!("bot/{}", identity.name), longest.min(identity.session.expires_at_ms))
        }
        _ => return Err(context::NO_SESSION),
    };
    let text = format!("{SCHEME}{}/{path}", trust.cluster_name);
    let spiffe_id = SpiffeId::parse("name", &text).map_err(|_| {
        CoreError::Precondition(format!(
            "no SPIFFE ID can have the name of this agent identity, {path}: it may have letters, digits, '.', '_' and '-' alone"
        ))
    })?;
    // To the second, as certificates are: the last one of the lifetime there, the first one after it here.
    let not_after = (ends / 1000).saturating_sub(1);
    let spec = SvidSpec {
        public_key,
        spiffe_id: text,
        not_before: (tx.now() / 1000).saturating_sub(BACKDATE_SECONDS),
        not_after,
    };
    let ca = ca::for_clients(tx, CaKind::Spiffe)?;
    let expires_at_ms = ends / 1000 * 1000;
    let fields = [("spiffe_id", spec.spiffe_id.clone()), ("expires_at_ms", expires_at_ms.to_string())];
    audit::append(tx, context, EventType::SvidIssue, context.caller.actor(), &fields);
    let bundle = trust.keys(CaKind::Spiffe).to_vec();
    Ok(IssuedSvid { spiffe_id, spec, ca, bundle, expires_at_ms })
}

#[cfg(test)]
#[path = "issue_tests.rs"]
mod tests;
