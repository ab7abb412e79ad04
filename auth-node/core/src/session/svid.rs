//! Sessions that agent identities get for an SVID: they end when the SPIFFE ID in it is not the identity's any more.

use store_txn::{ReadExt, Transaction, TransactionExt, UnixMillis};

use super::{NewSession, Owner, all_of, digest, insert, remove};
use crate::{
    Context, CoreError,
    names::IdentityName,
    spiffe::SpiffeId,
    tables::{SessionKey, SessionRow},
};

/// As [`super::create_until`], of an agent identity that has proved itself by an SVID.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn create_by_svid(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    identity: &IdentityName,
    (new, spiffe_id): (&NewSession, &SpiffeId),
    ends_at_ms: UnixMillis,
) -> Result<SessionRow, CoreError> {
    let owner = Owner::AgentIdentity(identity.clone());
    let row = insert(tx, context, &owner, new, ends_at_ms, None)?;
    let row = SessionRow { spiffe_id: spiffe_id.as_str().to_owned(), ..row };
    tx.put(&SessionKey(new.digest), &row);
    Ok(row)
}

/// Ends the sessions of an agent identity that were made by a SPIFFE ID other than these. What ends them appends the audit
/// record.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn end_without_spiffe_id(
    tx: &mut (impl Transaction + ?Sized),
    identity: &IdentityName,
    ids: &[String],
) -> Result<(), CoreError> {
    let owner = Owner::AgentIdentity(identity.clone());
    for (handle, reference) in all_of(tx, &owner)? {
        let session = tx.get(&SessionKey(digest(&reference)?))?;
        if session.is_some_and(|it| !it.row.spiffe_id.is_empty() && !ids.contains(&it.row.spiffe_id)) {
            remove(tx, &owner, &handle, &reference)?;
        }
    }
    Ok(())
}
