//! That a session is used. It is noted coarsely, since each note is a write: when it was not for a twentieth of the time that a
//! session may be unused. Beyond that time a tenth is granted: one half for what was not noted, the other for a note to
//! commit. So a session ends not before it was unused for so long, and at most a tenth later.

use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis};

use crate::{
    CoreError, cluster_config,
    secret::SecretDigest,
    tables::{SessionKey, SessionRow, SessionUseKey, SessionUseRow},
};

/// That a session is used is noted once in this part of the time that it may be unused.
const NOTED_PART: u64 = 20;
/// And this part of it is granted beyond.
const GRANTED_PART: u64 = 10;
/// The same in milliseconds, for a session that may be unused for ever: ten minutes.
pub(super) const NOTED_MS: UnixMillis = 10 * 60 * 1000;

/// How a session is used.
pub(crate) struct Usage {
    /// When it was used last, as far as that was noted; at the latest when it began.
    pub(super) last_ms: UnixMillis,
    /// It was unused for too long.
    pub(crate) is_over: bool,
    /// A use is to be noted.
    pub(crate) is_due: bool,
}

/// How long after its last noted use a session is over that may be unused for so long, both in milliseconds.
pub(crate) const fn unused_ms(idle_ms: u64) -> u64 {
    idle_ms.saturating_add(idle_ms / GRANTED_PART)
}

/// How a session is used, by the time of the state.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn usage(
    state: &mut (impl Read + ?Sized),
    digest: SecretDigest,
    session: &SessionRow,
) -> Result<Usage, CoreError> {
    if !session.agent_identity.is_empty() {
        // Nobody has left it open by mistake: it is a program's, and ends soon.
        return Ok(Usage { last_ms: session.created_at_ms, is_over: false, is_due: false });
    }
    let settings = cluster_config::settings(state)?;
    let noted = state.get(&SessionUseKey(digest))?.map_or(0, |noted| noted.row.last_used_ms);
    let (now, last_ms) = (state.now(), noted.max(session.created_at_ms));
    let unused = now.saturating_sub(last_ms.max(settings.session_idle_since_ms));
    let noted_ms = settings.session_idle_ms.map_or(NOTED_MS, |idle| idle / NOTED_PART);
    let is_over = |idle: u64| unused >= unused_ms(idle);
    Ok(Usage {
        last_ms,
        is_over: last_ms <= settings.session_over_before_ms || settings.session_idle_ms.is_some_and(is_over),
        is_due: now.saturating_sub(last_ms) >= noted_ms,
    })
}

/// Notes when sessions were used, of those that still are.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn note_uses<'a>(
    tx: &mut (impl Transaction + ?Sized),
    uses: impl IntoIterator<Item = (&'a SecretDigest, &'a UnixMillis)>,
) -> Result<(), CoreError> {
    for (digest, used_ms) in uses {
        let Some(session) = tx.get(&SessionKey(*digest))? else { continue };
        let usage = usage(tx, *digest, &session.row)?;
        // One that is over stays so: a call may have been refused by now.
        if !usage.is_over && usage.last_ms < *used_ms {
            let row = SessionUseRow { last_used_ms: *used_ms, expires_at_ms: session.row.expires_at_ms };
            tx.put(&SessionUseKey(*digest), &row);
        }
    }
    Ok(())
}
