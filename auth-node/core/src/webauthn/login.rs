//! Logging in with an authenticator: alone, or after a password.
//!
//! Alone it counts for two factors, for it must have verified its user; after a password, that somebody touched it is enough.
//! Failures count as those of passwords do, and while those shut a user's logins out, an authenticator opens nothing either.

use store_txn::{Read, ReadExt, Transaction, TransactionExt};

use super::{
    WebauthnSecret,
    ceremony::{self, Bound, ChallengeId, NewCeremony},
    credential_key, device, relying_party,
};
use crate::{
    Caller, Context, CoreError, Verdict,
    audit::{self, EventType},
    context::{Role, UserCaller, roles},
    lock,
    lockout::{self, SlotSecret, Tries, TypedName, Whose},
    names::{DeviceId, UserName},
    secret::PasswordHash,
    session::{self, NewSession},
    tables::{
        AuthMethod, CeremonyRow, DeviceKey, DeviceRow, Purpose, SessionRow, TargetKind, UserKey, UserRow,
    },
};

/// The one answer to what does not log in, whatever is wrong, and to all that comes while the user's logins are shut.
pub const REFUSED: CoreError = CoreError::Unauthenticated(
    "the login is not accepted: begin anew, with an authenticator that is registered; after too many failures, wait a while",
);

/// Whom a login is begun for.
#[derive(Debug, Clone)]
pub enum Asked {
    /// Whoever the credential says: it must be discoverable.
    Anybody,
    /// A user.
    Named {
        /// The name, if what was given is one.
        name: Option<UserName>,
        /// What was given, in its canonical form if it has one. It is not written down.
        given: String,
    },
}

/// A login that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BegunLogin {
    /// Place of the ceremony.
    pub place: u64,
    /// Ids of the credentials that are asked for; none: any that is discoverable.
    pub credentials: Vec<Vec<u8>>,
}

/// Begins a login with an authenticator alone. Who asks for somebody by name gets ids of credentials, whoever it is.
///
/// # Errors
/// [`CoreError::Precondition`] without a relying party; [`CoreError::Storage`].
pub fn begin(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    asked: &Asked,
    new: &NewCeremony,
) -> Result<BegunLogin, CoreError> {
    relying_party(tx)?;
    let secret = new.secret.load_or_keep(tx)?;
    let Asked::Named { name, given } = asked else {
        let place = ceremony::put(tx, context, &secret, new, &Bound::default())?;
        return Ok(BegunLogin { place, credentials: Vec::new() });
    };
    let mut user = None;
    if let Some(name) = name
        && tx.get(&UserKey(name.clone()))?.is_some()
    {
        user = Some(name);
    }
    // Made also for who has devices: it costs the same.
    let fakes = secret.fakes(given)?;
    let credentials = match user {
        Some(name) => device::current_of(tx, name)?.into_iter().map(|(_, row)| row.credential_id).collect(),
        None => Vec::new(),
    };
    let bound = Bound { user, typed: Some(TypedName::of(given)), ..Bound::default() };
    let place = ceremony::put(tx, context, &secret, new, &bound)?;
    Ok(BegunLogin { place, credentials: if credentials.is_empty() { fakes } else { credentials } })
}

/// Begins the second half of a login of a user whose password was just verified. It is bound to that password. `None`: the user
/// has no device.
///
/// # Errors
/// [`CoreError::Storage`].
pub(crate) fn begin_step_up(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    name: &UserName,
    verified: &PasswordHash,
    new: &NewCeremony,
) -> Result<Option<BegunLogin>, CoreError> {
    let devices = device::current_of(tx, name)?;
    if devices.is_empty() {
        return Ok(None);
    }
    let secret = new.secret.load_or_keep(tx)?;
    let typed = Some(TypedName::of(name.as_str()));
    let bound = Bound { user: Some(name), typed, proof: Some(verified), session: None };
    let place = ceremony::put(tx, context, &secret, new, &bound)?;
    audit::append(tx, context, EventType::StepUpBegin, format!("user:{name}"), &[]);
    let credentials = devices.into_iter().map(|(_, row)| row.credential_id).collect();
    Ok(Some(BegunLogin { place, credentials }))
}

/// A ceremony that was taken, with what is needed to verify what an authenticator answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// The ceremony.
    pub ceremony: CeremonyRow,
    /// The device of the credential that was shown, if the ceremony asks for it.
    pub device: Option<(DeviceId, DeviceRow)>,
    /// By what authenticators know the device's user.
    pub handle: [u8; 16],
}

/// Takes a ceremony of this purpose away, to finish it. `None`: there is none.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn take(
    tx: &mut (impl Transaction + ?Sized),
    challenge: Option<&ChallengeId>,
    purpose: Purpose,
    credential_id: &[u8],
    secret: &WebauthnSecret,
) -> Result<Option<Taken>, CoreError> {
    let Some(ceremony) = ceremony::take(tx, challenge, &[purpose])? else { return Ok(None) };
    let relying_party = relying_party(tx)?.id;
    let device = find(tx, credential_id)?.filter(|(_, row)| {
        row.relying_party == relying_party && (!ceremony.named || row.user == ceremony.user)
    });
    let handle = match &device {
        Some((_, row)) => {
            let user = UserName::parse("device.user", &row.user)?;
            secret.load_or_keep(tx)?.user_handle(&user)?
        }
        None => [0; 16],
    };
    Ok(Some(Taken { ceremony, device, handle }))
}

fn find(
    state: &mut (impl Read + ?Sized),
    credential_id: &[u8],
) -> Result<Option<(DeviceId, DeviceRow)>, CoreError> {
    let Some(credential) = state.get(&credential_key(credential_id))? else { return Ok(None) };
    let Some(id) = DeviceId::parse(&credential.row.device) else { return Ok(None) };
    Ok(state.get(&DeviceKey(id.clone()))?.map(|stored| (id, stored.row)))
}

/// What came of the verification of an authenticator's answer.
#[derive(Debug, Clone)]
pub struct Assertion {
    /// The ceremony, which was taken; `None`: there was none.
    pub ceremony: Option<CeremonyRow>,
    /// The device whose credential was shown, if it is one that was asked for.
    pub device: Option<DeviceId>,
    /// The signature counter that was shown, or what is wrong with the answer.
    pub verified: Result<u32, String>,
    /// What slots are to depend on, if the cluster has no such secret yet.
    pub slot_secret: SlotSecret,
    /// The session to make.
    pub new: NewSession,
}

/// Why nobody is logged in.
struct Failure {
    reason: String,
    counts: bool,
}

impl Failure {
    fn counted(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), counts: true }
    }

    fn uncounted(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), counts: false }
    }
}

/// Who is to be logged in.
struct Admitted {
    name: UserName,
    user: UserRow,
    roles: Vec<Role>,
    id: DeviceId,
    device: DeviceRow,
}

/// Makes the session of a user whose authenticator's answer was verified, and keeps the signature counter; or counts the
/// failure, and audits it. Either is refused with [`REFUSED`] while the user's logins are shut.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn conclude(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    assertion: &Assertion,
) -> Result<Verdict<SessionRow>, CoreError> {
    let Some(ceremony) = &assertion.ceremony else {
        return Ok(refuse(
            tx,
            context,
            "user:?".into(),
            "the challenge is unknown, used, or past its end".into(),
        ));
    };
    let shown = match &assertion.device {
        Some(id) => tx.get(&DeviceKey(id.clone()))?.map(|stored| (id.clone(), stored.row)),
        None => None,
    };
    let name = match (ceremony.user.as_str(), &shown) {
        ("", Some((_, device))) if !ceremony.named => UserName::parse("device.user", &device.user).ok(),
        (name, _) => UserName::parse("ceremony.user", name).ok(),
    };
    let user = match name {
        Some(name) => tx.get(&UserKey(name.clone()))?.map(|user| (name, user.row)),
        None => None,
    };
    let secret = assertion.slot_secret.load_or_keep(tx)?;
    let whose = match &user {
        Some((name, _)) => Whose::User(name.clone()),
        None => Whose::Nobody(secret.of_name(TypedName::from_stored(&ceremony.typed))),
    };
    let target = user.as_ref().map_or_else(|| "user:?".to_owned(), |(name, _)| format!("user:{name}"));
    let mut tries = Tries::load(tx, whose, &context.origin.client_address)?;
    let admitted = match tries.are_shut() {
        true => Err(Failure::uncounted("too many failures")),
        false => admit(tx, context, ceremony, user, shown, &assertion.verified)?,
    };
    match admitted {
        Ok(admitted) => {
            tries.succeed();
            tries.save(tx);
            grant(tx, context, admitted, &assertion.new).map(Verdict::Granted)
        }
        Err(Failure { reason, counts }) => {
            if counts {
                lockout::fail(tx, context, &mut tries);
            }
            tries.save(tx);
            Ok(refuse(tx, context, target, reason))
        }
    }
}

/// Whether the answer of an authenticator logs its user in, by what the state says now.
fn admit(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    ceremony: &CeremonyRow,
    user: Option<(UserName, UserRow)>,
    shown: Option<(DeviceId, DeviceRow)>,
    verified: &Result<u32, String>,
) -> Result<Result<Admitted, Failure>, CoreError> {
    let counter = match verified {
        Ok(counter) => *counter,
        Err(reason) => return Ok(Err(Failure::counted(reason.clone()))),
    };
    let Some(((name, user), (id, mut device))) = user.zip(shown) else {
        return Ok(Err(Failure::counted("the device or its user is gone")));
    };
    if device.user != name.as_str() || device.relying_party != relying_party(tx)?.id {
        return Ok(Err(Failure::counted("the device is not one of this user and relying party")));
    }
    if !user.connector.is_empty() {
        return Ok(Err(Failure::uncounted("the user logs in by single sign-on alone")));
    }
    if ceremony.purpose() == Purpose::StepUp && ceremony.proof != ceremony::proof(&password_of(&user)) {
        return Ok(Err(Failure::uncounted("the password was changed meanwhile")));
    }
    let roles = roles(tx, &user)?;
    if let Some(reason) = lock::reason(lock::check_user(tx, &name, &roles))? {
        return Ok(Err(Failure::uncounted(reason)));
    }
    if let Some(reason) = lock::reason(lock::check(tx, TargetKind::Device, id.as_str()))? {
        return Ok(Err(Failure::uncounted(reason)));
    }
    if (counter, device.counter) != (0, 0) && counter <= device.counter {
        let fields = [
            ("user", name.to_string()),
            ("counter", counter.to_string()),
            ("counter_before", device.counter.to_string()),
        ];
        audit::append(tx, context, EventType::DeviceSuspect, device::target(&id), &fields);
        return Ok(Err(Failure::counted(
            "the signature counter did not rise: there may be a copy of the device",
        )));
    }
    device.counter = counter;
    device.last_used_at_ms = tx.now();
    Ok(Ok(Admitted { name, user, roles, id, device }))
}

fn grant(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    admitted: Admitted,
    new: &NewSession,
) -> Result<SessionRow, CoreError> {
    let Admitted { name, user, roles, id, device } = admitted;
    tx.put(&DeviceKey(id.clone()), &device);
    let new = NewSession { method: AuthMethod::Webauthn, ..new.clone() };
    let session = session::create_with(tx, context, &name, &new, Some(&id))?;
    let fields = [("user", name.to_string()), ("method", "webauthn".to_owned()), ("device", id.to_string())];
    let caller =
        UserCaller { name, user, roles, digest: new.digest, session: session.clone(), use_is_due: false };
    let context = Context { caller: Caller::User(Box::new(caller)), origin: context.origin.clone() };
    audit::append(tx, &context, EventType::Login, session::target(&session), &fields);
    Ok(session)
}

fn refuse<T>(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    target: String,
    reason: String,
) -> Verdict<T> {
    let fields = [("reason", reason), ("method", "webauthn".to_owned())];
    audit::append_refusal(tx, context, EventType::LoginFailed, target, &fields);
    Verdict::Refused(REFUSED)
}

fn password_of(user: &UserRow) -> PasswordHash {
    PasswordHash::new(user.password_hash.clone())
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
