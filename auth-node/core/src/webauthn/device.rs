//! Devices of users: their registration, list and removal.
//!
//! Where a user has a device already, another is registered with a session that was made with one: whoever knows a password
//! alone would else make a second factor of its own. Where a user must have a device, by the configuration or a role, one stays.

use prost::Message as _;
use store_txn::{Read, ReadExt, Transaction, TransactionExt};

use super::{
    WebauthnSecret,
    ceremony::{self, Bound, ChallengeId, NewCeremony},
    configured, credential_key, relying_party,
};
use crate::{
    Context, CoreError, Verdict,
    audit::{self, EventType},
    cluster_config,
    context::UserCaller,
    lock,
    names::{DeviceId, UserName},
    page::{Page, PageRequest},
    revocation, second_factor, session,
    tables::{
        AuthMethod, CeremonyRow, CredentialRow, DeviceKey, DeviceRow, MarkRow, Purpose, TargetKind,
        UserDeviceKey,
    },
    web::check_text,
};

const KIND: &str = "device";

/// Most devices of a user.
pub const MAX_PER_USER: usize = 10;
/// Longest name of a device, in bytes.
const MAX_NAME: usize = 64;
/// Longest id of a credential, in bytes (WebAuthn Level 3, section 4).
const MAX_CREDENTIAL_ID: usize = 1023;
/// Largest credential as the verifier writes it, in bytes.
const MAX_CREDENTIAL: usize = 8 * 1024;

/// A registration that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunRegistration {
    /// Place of the ceremony.
    pub place: u64,
}

/// For whom a registration is to be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registrant {
    /// The relying party.
    pub relying_party: super::RelyingParty,
    /// The user.
    pub user: UserName,
    /// By what authenticators know the user.
    pub handle: [u8; 16],
    /// Ids of the credentials that it has.
    pub credentials: Vec<Vec<u8>>,
}

/// A device to be registered: what was verified.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// Its id.
    pub id: DeviceId,
    /// The credential's id.
    pub credential_id: Vec<u8>,
    /// The credential's public key and properties, as the verifier wrote them.
    pub credential: Vec<u8>,
    /// Signature counter.
    pub counter: u32,
}

/// Checks the name that a device is to have.
///
/// # Errors
/// [`CoreError::Invalid`] for `name`.
pub fn check_name(name: &str) -> Result<(), CoreError> {
    check_text("name", name, 1..=MAX_NAME)
}

/// Tells for whom the caller begins a registration, if it may.
///
/// # Errors
/// [`CoreError::Precondition`] without a relying party, and for who has as many as there may be; [`CoreError::Denied`] for a
/// further one with a session that was made with a password alone; [`CoreError::Unauthenticated`];
/// [`CoreError::Storage`].
pub fn registrant(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    secret: &WebauthnSecret,
) -> Result<Registrant, CoreError> {
    let caller = context.caller.user()?;
    let relying_party = relying_party(tx)?;
    may_register(tx, caller)?;
    let handle = secret.load_or_keep(tx)?.user_handle(&caller.name)?;
    let credentials = all_of(tx, &caller.name)?.into_iter().map(|(_, row)| row.credential_id).collect();
    Ok(Registrant { relying_party, user: caller.name.clone(), handle, credentials })
}

/// Begins a registration for the caller, with its session.
///
/// # Errors
/// As of [`registrant`].
pub fn begin(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewCeremony,
) -> Result<BegunRegistration, CoreError> {
    let caller = context.caller.user()?;
    may_register(tx, caller)?;
    let secret = new.secret.load_or_keep(tx)?;
    let bound = Bound { user: Some(&caller.name), session: Some(&caller.session.handle), ..Bound::default() };
    let place = ceremony::put(tx, context, &secret, new, &bound)?;
    audit::append(tx, context, EventType::DeviceRegisterBegin, user_target(&caller.name), &[]);
    Ok(BegunRegistration { place })
}

fn may_register(state: &mut (impl Read + ?Sized), caller: &UserCaller) -> Result<(), CoreError> {
    if !caller.user.connector.is_empty() {
        // With one it would log in when the provider does not know it any more.
        let reason = "you log in by single sign-on: what else it takes is asked for by your provider";
        return Err(CoreError::Precondition(reason.into()));
    }
    if caller.method() != AuthMethod::Webauthn && has_any(state, &caller.name)? {
        let reason = "you have a device already: to register another, log in with it first";
        return Err(CoreError::Denied(reason.into()));
    }
    if all_of(state, &caller.name)?.len() >= MAX_PER_USER {
        let reason = format!("you have {MAX_PER_USER} devices, and that is the most: remove one first");
        return Err(CoreError::Precondition(reason));
    }
    Ok(())
}

/// Takes a registration of the caller away, which it began with the same session, to finish it. `None`: there is none.
///
/// # Errors
/// [`CoreError::Unauthenticated`], [`CoreError::Storage`].
pub fn take(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    challenge: Option<&ChallengeId>,
) -> Result<Option<CeremonyRow>, CoreError> {
    let caller = context.caller.user()?;
    let taken = ceremony::take(tx, challenge, &[Purpose::Passkey, Purpose::SecurityKey])?;
    Ok(taken.filter(|row| row.user == caller.name.as_str() && row.session == caller.session.handle))
}

/// Refuses a registration whose ceremony is not there, or whose answer was not good, and audits it.
///
/// # Errors
/// [`CoreError::Unauthenticated`], [`CoreError::Storage`].
pub fn refuse<T>(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    answer: CoreError,
) -> Result<Verdict<T>, CoreError> {
    let target = user_target(&context.caller.user()?.name);
    let fields = [("reason", answer.to_string())];
    audit::append_refusal(tx, context, EventType::DeviceRegisterFailed, target, &fields);
    Ok(Verdict::Refused(answer))
}

/// Registers a device of the caller, whose ceremony was taken and verified.
///
/// # Errors
/// As of [`registrant`]; [`CoreError::Invalid`] for `name` and `credential_json`; [`CoreError::AlreadyExists`] for a
/// credential that is registered.
pub fn register(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    ceremony: &CeremonyRow,
    name: &str,
    new: &NewDevice,
) -> Result<DeviceRow, CoreError> {
    check_name(name)?;
    let within = (1..=MAX_CREDENTIAL_ID).contains(&new.credential_id.len());
    if !within || new.credential.len() > MAX_CREDENTIAL {
        let reason = "the credential's id or key is longer than any that is taken";
        return Err(CoreError::invalid("credential_json", reason));
    }
    let caller = context.caller.user()?;
    let relying_party = relying_party(tx)?.id;
    may_register(tx, caller)?;
    let credential = credential_key(&new.credential_id);
    if tx.get(&credential)?.is_some() {
        return Err(CoreError::AlreadyExists { kind: "credential", name: "this authenticator's".into() });
    }
    let row = DeviceRow {
        user: caller.name.to_string(),
        name: name.to_owned(),
        credential_id: new.credential_id.clone(),
        credential: new.credential.clone(),
        counter: new.counter,
        passkey: ceremony.purpose() == Purpose::Passkey,
        relying_party,
        created_at_ms: tx.now(),
        last_used_at_ms: 0,
    };
    tx.put(&DeviceKey(new.id.clone()), &row);
    tx.put(&UserDeviceKey { user: caller.name.clone(), device: new.id.clone() }, &MarkRow {});
    tx.put(&credential, &CredentialRow { device: new.id.to_string() });
    let fields = [
        ("user", row.user.clone()),
        ("name", row.name.clone()),
        ("passkey", row.passkey.to_string()),
        ("relying_party", row.relying_party.clone()),
    ];
    audit::append(tx, context, EventType::DeviceRegister, target(&new.id), &fields);
    Ok(row)
}

/// A page of the caller's devices, ordered by id.
///
/// # Errors
/// [`CoreError::Unauthenticated`]; [`CoreError::Invalid`] for a page token that is not of this list;
/// [`CoreError::Storage`].
pub fn list(
    state: &mut (impl Read + ?Sized),
    context: &Context,
    page: &PageRequest,
) -> Result<Page<(DeviceId, DeviceRow)>, CoreError> {
    let after = page.after(DeviceId::parse)?;
    let mut devices = all_of(state, &context.caller.user()?.name)?;
    devices.retain(|(id, _)| after.as_ref().is_none_or(|after| id > after));
    devices.truncate(page.size.saturating_add(1));
    Ok(Page::cut(devices, page.size, |(_, device)| device.encoded_len(), |(id, _)| id.to_string()))
}

/// Removes a device of the caller, ends the sessions that were made with it, but for the one of the call, and revokes their
/// certificates. Where a second factor is required of the caller, it takes a session with one; where the caller must have a device,
/// one stays.
///
/// # Errors
/// [`CoreError::NotFound`] for what is not a device of the caller; [`CoreError::Locked`] for one that is locked;
/// [`CoreError::Denied`], [`CoreError::Precondition`], [`CoreError::Unauthenticated`], [`CoreError::Storage`].
pub fn delete(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    id: &DeviceId,
) -> Result<(), CoreError> {
    let caller = context.caller.user()?;
    let not_found = || CoreError::NotFound { kind: KIND, name: id.to_string() };
    let row = tx.get(&DeviceKey(id.clone()))?.map(|stored| stored.row);
    let row = row.filter(|row| row.user == caller.name.as_str()).ok_or_else(not_found)?;
    // Else its user would register it again, under an id that is not locked.
    lock::check(tx, TargetKind::Device, id.as_str())?;
    if second_factor::is_required(tx, caller)? && caller.method() != AuthMethod::Webauthn {
        let reason = "a second factor is required of you: to remove a device, log in with one first";
        return Err(CoreError::Denied(reason.into()));
    }
    if second_factor::must_have_device(tx, caller)? {
        let usable = usable_of(tx, &caller.name)?;
        if usable.iter().any(|(usable, _)| usable == id) && usable.len() == 1 {
            let reason =
                "this is your last device, and a second factor is required of you: register another first";
            return Err(CoreError::Precondition(reason.into()));
        }
    }
    forget(tx, &caller.name, id, &row);
    let ended = session::end_all_with(tx, &caller.name, id, caller.digest)?;
    let fields =
        [("user", row.user.clone()), ("name", row.name.clone()), ("sessions_ended", ended.to_string())];
    audit::append(tx, context, EventType::DeviceDelete, target(id), &fields);
    Ok(())
}

/// Removes all devices of a user. Answers how many those were. What removes them ends the user's sessions, and appends the
/// audit record.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn forget_all_of(tx: &mut (impl Transaction + ?Sized), user: &UserName) -> Result<u32, CoreError> {
    let devices = all_of(tx, user)?;
    for (id, row) in &devices {
        forget(tx, user, id, row);
    }
    Ok(u32::try_from(devices.len()).unwrap_or(u32::MAX))
}

fn forget(tx: &mut (impl Transaction + ?Sized), user: &UserName, id: &DeviceId, row: &DeviceRow) {
    tx.delete(&DeviceKey(id.clone()));
    tx.delete(&UserDeviceKey { user: user.clone(), device: id.clone() });
    tx.delete(&credential_key(&row.credential_id));
    revocation::revoke(tx, TargetKind::Device, id.as_str());
}

/// All devices of a user, ordered by id.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn all_of(
    state: &mut (impl Read + ?Sized),
    user: &UserName,
) -> Result<Vec<(DeviceId, DeviceRow)>, CoreError> {
    let keys = state.scan_under::<UserDeviceKey>(UserDeviceKey::front(user), None, MAX_PER_USER)?;
    let mut devices = Vec::with_capacity(keys.len());
    for (key, _) in keys {
        if let Some(stored) = state.get(&DeviceKey(key.device.clone()))? {
            devices.push((key.device, stored.row));
        }
    }
    Ok(devices)
}

/// The devices of a user that are for the cluster's relying party, locked or not.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn current_of(
    state: &mut (impl Read + ?Sized),
    user: &UserName,
) -> Result<Vec<(DeviceId, DeviceRow)>, CoreError> {
    let Some(relying_party) = configured(&cluster_config::get(state)?.row) else { return Ok(Vec::new()) };
    let mut devices = all_of(state, user)?;
    devices.retain(|(_, row)| row.relying_party == relying_party.id);
    Ok(devices)
}

/// Those of them that are not locked.
fn usable_of(
    state: &mut (impl Read + ?Sized),
    user: &UserName,
) -> Result<Vec<(DeviceId, DeviceRow)>, CoreError> {
    let mut usable = Vec::new();
    for (id, row) in current_of(state, user)? {
        if lock::on(state, TargetKind::Device, id.as_str())?.is_none() {
            usable.push((id, row));
        }
    }
    Ok(usable)
}

/// Whether a user has a device for the cluster's relying party. One that is locked counts: a lock makes no room for another.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn has_any(state: &mut (impl Read + ?Sized), user: &UserName) -> Result<bool, CoreError> {
    Ok(!current_of(state, user)?.is_empty())
}

/// How the audit log names a device.
pub(super) fn target(id: &DeviceId) -> String {
    format!("device:{id}")
}

fn user_target(name: &UserName) -> String {
    format!("user:{name}")
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
