//! Login sessions. A session's id is a secret that only its holder knows; here it is a digest. What names a session to
//! others is its handle. A session that was ended is not honoured by any call that begins afterwards.

mod owner;
mod svid;
mod usage;

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt, UnixMillis, Versioned};

pub use self::{owner::Owner, usage::note_uses};
pub(crate) use self::{
    svid::{create_by_svid, end_without_spiffe_id},
    usage::{unused_ms, usage},
};
use crate::{
    Caller, Context, CoreError,
    audit::{self, EventType},
    cluster_config,
    names::{DeviceId, IdentityName, SessionHandle, UserName},
    page::{Page, PageRequest},
    revocation,
    rules::{Resource, Verb},
    secret::{SecretDigest, SecretKind},
    tables::{
        AuthMethod, ClusterKey, IdentitySessionKey, SessionHandleKey, SessionKey, SessionRefRow, SessionRow,
        SessionUseKey, TargetKind, UserSessionKey,
    },
};

const KIND: &str = "session";

/// Most sessions of one user: one more ends the one that would end first.
pub const MAX_PER_USER: usize = 100;
/// Rows that are looked at in one step where all of a user's sessions are meant.
const STEP: usize = 256;
/// Longest text that is taken for a session's id or handle, in bytes.
const MAX_REFERENCE: usize = 256;

/// A session to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    /// Digest of its id.
    pub digest: SecretDigest,
    /// Public handle.
    pub handle: SessionHandle,
    /// How the user proved itself.
    pub method: AuthMethod,
}

/// Names a session: by its handle, or by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionRef {
    /// By its public handle.
    Handle(SessionHandle),
    /// By its id, a secret.
    Id(SecretDigest),
}

impl SessionRef {
    /// Reads a handle; anything else is taken for an id.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `field` when it is empty or longer than either can be.
    pub fn parse(field: &str, text: &str) -> Result<Self, CoreError> {
        if !(1..=MAX_REFERENCE).contains(&text.len()) {
            return Err(CoreError::invalid(field, "a session's id or handle is needed"));
        }
        let id = || Self::Id(SecretDigest::of(SecretKind::Session, text));
        Ok(SessionHandle::parse(text).map_or_else(id, Self::Handle))
    }
}

/// Makes a session of a user, which lasts as long as the cluster's configuration says. It comes from the address that the context tells. Whoever has as many as a user may have
/// loses the one that would end first.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn create(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    user: &UserName,
    new: &NewSession,
) -> Result<SessionRow, CoreError> {
    create_with(tx, context, user, new, None)
}

/// As [`create`], of a user that has proved itself with a WebAuthn device.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn create_with(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    user: &UserName,
    new: &NewSession,
    device: Option<&DeviceId>,
) -> Result<SessionRow, CoreError> {
    let ends_at_ms = tx.now().saturating_add(cluster_config::settings(tx)?.session_ttl_ms);
    insert(tx, context, &user.into(), new, ends_at_ms, device)
}

/// As [`create`], of a user that a connector vouches for, with or without a second factor.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn create_of_connector(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    user: &UserName,
    new: &NewSession,
    second_factor: bool,
) -> Result<SessionRow, CoreError> {
    let row = SessionRow { second_factor, ..create(tx, context, user, new)? };
    tx.put(&SessionKey(new.digest), &row);
    Ok(row)
}

/// As [`create`], of a user or an agent identity, with the time at which it ends.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn create_until(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    owner: &Owner,
    new: &NewSession,
    ends_at_ms: UnixMillis,
) -> Result<SessionRow, CoreError> {
    insert(tx, context, owner, new, ends_at_ms, None)
}

fn insert(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    owner: &Owner,
    new: &NewSession,
    ends_at_ms: UnixMillis,
    device: Option<&DeviceId>,
) -> Result<SessionRow, CoreError> {
    let mut sessions = all_of(tx, owner)?;
    sessions.sort_by_key(|(_, session)| std::cmp::Reverse(session.expires_at_ms));
    for (handle, session) in sessions.iter().skip(MAX_PER_USER - 1) {
        remove(tx, owner, handle, session)?;
    }

    let (user, agent_identity) = match owner {
        Owner::User(name) => (name.to_string(), String::new()),
        Owner::AgentIdentity(name) => (String::new(), name.to_string()),
    };
    let row = SessionRow {
        user,
        handle: new.handle.to_string(),
        created_at_ms: tx.now(),
        expires_at_ms: ends_at_ms,
        method: new.method.into(),
        client_address: context.origin.client_address.clone(),
        epoch: epoch(tx)?,
        device: device.map(DeviceId::to_string).unwrap_or_default(),
        agent_identity,
        spiffe_id: String::new(),
        second_factor: false,
    };
    let reference = SessionRefRow { digest: new.digest.0.to_vec(), expires_at_ms: row.expires_at_ms };
    tx.put(&SessionKey(new.digest), &row);
    tx.put(&SessionHandleKey(new.handle.clone()), &reference);
    let handle = new.handle.clone();
    match owner {
        Owner::User(user) => tx.put(&UserSessionKey { user: user.clone(), handle }, &reference),
        Owner::AgentIdentity(identity) => {
            tx.put(&IdentitySessionKey { identity: identity.clone(), handle }, &reference);
        }
    }
    Ok(row)
}

/// A session in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The session.
    pub session: SessionRow,
    /// When it was used last, to a twentieth of the time that it may be unused, or to ten minutes if that is for ever.
    pub last_used_ms: UnixMillis,
}

/// A page of active sessions, ordered by handle: the caller's own, or everybody's for an admin and whoever has a rule to list
/// sessions; of `owner` alone, if
/// given.
///
/// # Errors
/// [`CoreError::Unauthenticated`] when the caller is neither a user nor an agent identity; [`CoreError::Invalid`] for a
/// page token that is not of this list; [`CoreError::Storage`].
pub fn list(
    state: &mut (impl Read + ?Sized),
    caller: &Caller,
    owner: Option<&Owner>,
    page: &PageRequest,
) -> Result<Page<Listed>, CoreError> {
    let after = page.after(SessionHandle::parse)?;
    let own = match caller {
        Caller::AgentIdentity(identity) => Owner::AgentIdentity(identity.name.clone()),
        _ => Owner::User(caller.user()?.name.clone()),
    };
    let limit = page.size.saturating_add(1);
    let sees_all = caller.holder()?.may(Resource::Sessions, Verb::List);
    let references = match owner {
        // What is not the caller's own is not in the list, as if it were not there.
        Some(owner) if !sees_all && *owner != own => Vec::new(),
        None if sees_all => {
            let rows = state.scan(after.map(SessionHandleKey).as_ref(), limit)?;
            rows.into_iter().map(|(key, reference)| (key.0, reference.row)).collect()
        }
        _ => some_of(state, owner.unwrap_or(&own), after.as_ref(), limit)?,
    };
    let page = Page::cut(
        references,
        page.size,
        |(_, reference)| reference.encoded_len(),
        |(handle, _)| handle.to_string(),
    );
    let epoch = epoch(state)?;
    let mut items = Vec::with_capacity(page.items.len());
    for (_, reference) in page.items {
        let digest = digest(&reference)?;
        let Some(Versioned { row: session, .. }) = state.get(&SessionKey(digest))? else { continue };
        let usage = usage(state, digest, &session)?;
        if session.epoch == epoch && !usage.is_over {
            items.push(Listed { session, last_used_ms: usage.last_ms });
        }
    }
    Ok(Page { items, next: page.next })
}

/// Ends a session of anybody, and revokes the certificates that were issued to it.
///
/// # Errors
/// [`CoreError::NotFound`], [`CoreError::Storage`].
pub fn revoke(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    which: &SessionRef,
) -> Result<(), CoreError> {
    let name = match which {
        SessionRef::Handle(handle) => handle.to_string(),
        SessionRef::Id(_) => "no session has this id or handle".into(),
    };
    let not_found = || CoreError::NotFound { kind: KIND, name: name.clone() };
    let digest = match which {
        SessionRef::Id(digest) => *digest,
        SessionRef::Handle(handle) => {
            digest(&tx.get(&SessionHandleKey(handle.clone()))?.ok_or_else(not_found)?.row)?
        }
    };
    let session = tx.get(&SessionKey(digest))?.ok_or_else(not_found)?.row;
    end(tx, digest, &session)?;
    revocation::revoke(tx, TargetKind::Session, &session.handle);
    let fields = [("user", session.owner_text())];
    audit::append(tx, context, EventType::SessionRevoke, target(&session), &fields);
    Ok(())
}

/// Ends the session that the call is made with.
///
/// # Errors
/// [`CoreError::Unauthenticated`] when it is made with none; [`CoreError::Storage`].
pub fn logout(tx: &mut (impl Transaction + ?Sized), context: &Context) -> Result<(), CoreError> {
    let (digest, session) = match &context.caller {
        Caller::AgentIdentity(identity) => (identity.digest, &identity.session),
        caller => {
            let user = caller.user()?;
            (user.digest, &user.session)
        }
    };
    end(tx, digest, session)?;
    audit::append(tx, context, EventType::Logout, target(session), &[]);
    Ok(())
}

/// Ends a session of an agent identity, if there still is one of this handle. What ends it appends the audit record.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn end_of_identity(
    tx: &mut (impl Transaction + ?Sized),
    identity: &IdentityName,
    handle: &str,
) -> Result<(), CoreError> {
    let Some(handle) = SessionHandle::parse(handle) else { return Ok(()) };
    let key = IdentitySessionKey { identity: identity.clone(), handle: handle.clone() };
    match tx.get(&key)? {
        Some(reference) => remove(tx, &Owner::AgentIdentity(identity.clone()), &handle, &reference.row),
        None => Ok(()),
    }
}

/// Ends all sessions of a user or agent identity but one. Answers how many those were. What ends them appends the audit record.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn end_all_of(
    tx: &mut (impl Transaction + ?Sized),
    owner: &Owner,
    except: Option<SecretDigest>,
) -> Result<u32, CoreError> {
    let mut ended = 0;
    for (handle, reference) in all_of(tx, owner)? {
        if except.is_none_or(|kept| reference.digest != kept.0) {
            remove(tx, owner, &handle, &reference)?;
            ended += 1;
        }
    }
    Ok(ended)
}

/// Ends the sessions of a user that were made with a device, but one. Answers how many those were. What ends them appends
/// the audit record.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn end_all_with(
    tx: &mut (impl Transaction + ?Sized),
    user: &UserName,
    device: &DeviceId,
    except: SecretDigest,
) -> Result<u32, CoreError> {
    let owner = user.into();
    let mut ended = 0;
    for (handle, reference) in all_of(tx, &owner)? {
        let digest = digest(&reference)?;
        let session = tx.get(&SessionKey(digest))?;
        if digest != except && session.is_some_and(|session| session.row.device == device.as_str()) {
            remove(tx, &owner, &handle, &reference)?;
            ended += 1;
        }
    }
    Ok(ended)
}

/// How the audit log names a session.
pub(crate) fn target(session: &SessionRow) -> String {
    format!("session:{}", session.handle)
}

fn all_of(
    tx: &mut (impl Transaction + ?Sized),
    owner: &Owner,
) -> Result<Vec<(SessionHandle, SessionRefRow)>, CoreError> {
    let mut all: Vec<(SessionHandle, SessionRefRow)> = Vec::new();
    loop {
        let rows = some_of(tx, owner, all.last().map(|(handle, _)| handle), STEP)?;
        let last_step = rows.len() < STEP;
        all.extend(rows);
        if last_step {
            return Ok(all);
        }
    }
}

/// Sessions of a user or agent identity after a handle, so many at most.
fn some_of(
    state: &mut (impl Read + ?Sized),
    owner: &Owner,
    after: Option<&SessionHandle>,
    limit: usize,
) -> Result<Vec<(SessionHandle, SessionRefRow)>, CoreError> {
    let after = after.cloned();
    Ok(match owner {
        Owner::User(user) => {
            let (front, user) = (UserSessionKey::front(user), user.clone());
            let after = after.map(|handle| UserSessionKey { user, handle });
            let rows = state.scan_under::<UserSessionKey>(front, after.as_ref(), limit)?;
            rows.into_iter().map(|(key, reference)| (key.handle, reference.row)).collect()
        }
        Owner::AgentIdentity(identity) => {
            let (front, identity) = (IdentitySessionKey::front(identity), identity.clone());
            let after = after.map(|handle| IdentitySessionKey { identity, handle });
            let rows = state.scan_under::<IdentitySessionKey>(front, after.as_ref(), limit)?;
            rows.into_iter().map(|(key, reference)| (key.handle, reference.row)).collect()
        }
    })
}

fn end(
    tx: &mut (impl Transaction + ?Sized),
    digest: SecretDigest,
    session: &SessionRow,
) -> Result<(), CoreError> {
    let owner = Owner::of(session)?;
    let handle = SessionHandle::parse(&session.handle).ok_or_else(|| damaged("its handle is not one"))?;
    let reference = SessionRefRow { digest: digest.0.to_vec(), expires_at_ms: session.expires_at_ms };
    remove(tx, &owner, &handle, &reference)
}

fn remove(
    tx: &mut (impl Transaction + ?Sized),
    owner: &Owner,
    handle: &SessionHandle,
    reference: &SessionRefRow,
) -> Result<(), CoreError> {
    let digest = digest(reference)?;
    tx.delete(&SessionKey(digest));
    tx.delete(&SessionUseKey(digest));
    tx.delete(&SessionHandleKey(handle.clone()));
    let handle = handle.clone();
    match owner {
        Owner::User(user) => tx.delete(&UserSessionKey { user: user.clone(), handle }),
        Owner::AgentIdentity(identity) => {
            tx.delete(&IdentitySessionKey { identity: identity.clone(), handle });
        }
    }
    Ok(())
}

fn digest(reference: &SessionRefRow) -> Result<SecretDigest, CoreError> {
    let bytes: Result<[u8; 32], _> = reference.digest.as_slice().try_into();
    bytes.map(SecretDigest).map_err(|_| damaged("its digest is not one"))
}

fn damaged(what: &str) -> CoreError {
    CoreError::Internal(format!("a stored session is damaged: {what}"))
}

pub(crate) fn epoch(state: &mut (impl Read + ?Sized)) -> Result<u64, CoreError> {
    Ok(state.get(&ClusterKey)?.map_or(0, |cluster| cluster.row.session_epoch))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
