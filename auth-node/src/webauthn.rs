//! WebAuthn ceremonies: what is drawn and verified between the decisions of `auth_core::webauthn`. The API's methods and the web
//! pages' are thin over these functions.
//!
//! Each finish takes its ceremony away in a transaction of its own, verifies, and decides in another: so nothing that an
//! authenticator answered is looked at twice.

mod verifier;

use auth_core::{
    CoreError, Credential,
    lockout::{self, SlotSecret},
    names::{DeviceId, SessionHandle, UserName},
    secret::{SecretDigest, SecretKind},
    session::NewSession,
    tables::{AuthMethod, DeviceRow, Purpose, SessionRow},
    webauthn::{
        self, RelyingParty, WebauthnSecret,
        ceremony::{ChallengeId, NewCeremony},
        device::{self, NewDevice},
        login::{self, Asked, Assertion, BegunLogin, Taken},
    },
};
use serde_json::Value;
use store_txn::UnixMillis;
use zeroize::Zeroizing;

use self::verifier::Verifier;
use crate::{authn::Call, error::ApiError, rpc::convert, service::Service};

/// Longest username that is looked at, in bytes: far longer than any name, in whatever spelling.
const MAX_USERNAME: usize = 1024;
/// Longest id of a challenge that is looked at, in bytes.
const MAX_CHALLENGE_ID: usize = 256;
/// Largest answer of an authenticator that is read, in bytes.
const MAX_JSON: usize = 32 * 1024;

/// Whether a text is what an authenticator answers, to a login or a registration.
pub(crate) fn is_readable(credential_json: &str) -> bool {
    verifier::assertion(credential_json).is_ok() || verifier::attestation(credential_json).is_ok()
}

/// A ceremony that has begun: what its client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begun {
    /// Names the challenge, once.
    pub(crate) challenge_id: String,
    /// Options for the authenticator, JSON as in WebAuthn Level 3.
    pub(crate) options_json: String,
}

/// A user that has logged in.
pub(crate) struct LoggedIn {
    /// The session's id, a secret.
    pub(crate) session_id: Zeroizing<String>,
    /// The session.
    pub(crate) session: SessionRow,
}

impl std::fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedIn").field("session", &self.session).finish_non_exhaustive()
    }
}

/// A device that was registered.
#[derive(Debug, Clone)]
pub(crate) struct Registered {
    /// Its id.
    pub(crate) id: DeviceId,
    /// The device.
    pub(crate) device: DeviceRow,
}

/// What a ceremony is begun with, and the secret that names it.
fn ceremony(purpose: Purpose, state: Vec<u8>) -> (NewCeremony, Zeroizing<String>) {
    let secret = convert::secret();
    let new = NewCeremony {
        purpose,
        digest: SecretDigest::of(SecretKind::WebauthnChallenge, &secret),
        random: rand::random(),
        state,
        secret: fresh_secret(),
    };
    (new, secret)
}

/// For a cluster that has none yet.
fn fresh_secret() -> WebauthnSecret {
    WebauthnSecret::from_random(rand::random())
}

/// Who begins, as far as that is known, for the pace of beginnings.
fn network(call: &Call) -> String {
    format!("network:{}", lockout::network(&call.origin.client_address))
}

fn verifier(service: &Service, relying_party: &RelyingParty) -> Result<Verifier, ApiError> {
    Verifier::new(relying_party, service.settings.cluster.as_str())
}

/// Begins a login with an authenticator alone, which has to verify its user: of a user, or without a name of whoever the
/// credential says. The answer does not tell whether there is such a user.
///
/// # Errors
/// [`CoreError::Invalid`] for `username`; [`CoreError::Precondition`] without a relying party; [`ApiError::Busy`] for a
/// network that begins too many; [`ApiError::Store`].
pub(crate) async fn begin_login(service: &Service, call: &Call, username: &str) -> Result<Begun, ApiError> {
    if username.len() > MAX_USERNAME {
        return Err(CoreError::invalid("username", "it is too long to be a name").into());
    }
    // A session that has ended must not stand in the way of the next.
    let call = &Call { credential: Credential::None, ..call.clone() };
    service.pace.admit(network(call))?;
    let asked = match (username, UserName::parse("username", username).ok()) {
        ("", _) => Asked::Anybody,
        (typed, name) => {
            let given = name.as_ref().map_or(typed, UserName::as_str).to_owned();
            Asked::Named { name, given }
        }
    };
    let relying_party = service.read(call, |view, _| webauthn::relying_party(view)).await?;
    let (options, state) = verifier(service, &relying_party)?.begin_login()?;
    let (new, secret) = ceremony(Purpose::Login, state);
    let begun = service.write(call, move |tx, context| login::begin(tx, context, &asked, &new));
    Ok(challenge(begun.await?.value, options, &secret))
}

/// What may become the second half of a login whose first half is a password: `None` without a relying party.
///
/// # Errors
/// [`ApiError::Store`].
pub(crate) async fn step_up(service: &Service, call: &Call) -> Result<Option<StepUp>, ApiError> {
    let relying_party = service.read(call, |view, _| match webauthn::relying_party(view) {
        Ok(relying_party) => Ok(Some(relying_party)),
        Err(CoreError::Precondition(_)) => Ok(None),
        Err(error) => Err(error),
    });
    let Some(relying_party) = relying_party.await? else { return Ok(None) };
    let (options, state) = verifier(service, &relying_party)?.begin_step_up()?;
    let (ceremony, secret) = ceremony(Purpose::StepUp, state);
    Ok(Some(StepUp { ceremony, options, secret }))
}

/// The second half of a login, until it is known whether it is asked for.
pub(crate) struct StepUp {
    pub(crate) ceremony: NewCeremony,
    options: Value,
    secret: Zeroizing<String>,
}

impl StepUp {
    /// It is: what the client is told.
    pub(crate) fn asked(self, begun: BegunLogin) -> Begun {
        challenge(begun, self.options, &self.secret)
    }
}

/// A challenge for its client, which asks for these credentials. No transports are told with them: fakes have none.
fn challenge(begun: BegunLogin, mut options: Value, secret: &str) -> Begun {
    let BegunLogin { place, credentials } = begun;
    let credentials = credentials.iter().map(|id| verifier::descriptor(id)).collect();
    if let Some(options) = options.as_object_mut() {
        options.insert("allowCredentials".into(), Value::Array(credentials));
    }
    Begun { challenge_id: ChallengeId::text(place, secret), options_json: options.to_string() }
}

/// Finishes a login with an authenticator alone.
///
/// # Errors
/// [`CoreError::Invalid`] for `credential_json` that is none; [`login::REFUSED`] for all that does not log in;
/// [`ApiError::Store`].
pub(crate) async fn finish_login(
    service: &Service,
    call: &Call,
    challenge_id: &str,
    credential_json: &str,
) -> Result<LoggedIn, ApiError> {
    finish(service, call, Purpose::Login, challenge_id, credential_json).await
}

/// Finishes a login of which the first half was a password.
///
/// # Errors
/// As of [`finish_login`].
pub(crate) async fn finish_step_up(
    service: &Service,
    call: &Call,
    challenge_id: &str,
    credential_json: &str,
) -> Result<LoggedIn, ApiError> {
    finish(service, call, Purpose::StepUp, challenge_id, credential_json).await
}

async fn finish(
    service: &Service,
    call: &Call,
    purpose: Purpose,
    challenge_id: &str,
    credential_json: &str,
) -> Result<LoggedIn, ApiError> {
    check_bounds(challenge_id, credential_json)?;
    let answer = verifier::assertion(credential_json)?;
    let call = &Call { credential: Credential::None, ..call.clone() };
    let (challenge, credential_id) = (ChallengeId::parse(challenge_id), answer.credential_id().to_vec());
    let secret = fresh_secret();
    let taken = service.write(call, move |tx, _| {
        let relying_party = webauthn::relying_party(tx)?;
        let taken = login::take(tx, challenge.as_ref(), purpose, &credential_id, &secret)?;
        Ok((relying_party, taken))
    });
    let (relying_party, taken) = taken.await?.value;
    let verifier = verifier(service, &relying_party)?;
    let (ceremony, device, verified) = match taken {
        None => (None, None, Err("there is no such challenge".to_owned())),
        Some(Taken { ceremony, device, handle }) => {
            let credential = device.as_ref().map(|(_, row)| (row.credential.as_slice(), handle));
            let verified = verifier.finish_login(&ceremony.state, &answer, credential, ceremony.named);
            (Some(ceremony), device.map(|(id, _)| id), verified)
        }
    };
    let session_id = convert::secret();
    let assertion = Assertion {
        ceremony,
        device,
        verified,
        slot_secret: SlotSecret::from_random(rand::random()),
        new: NewSession {
            digest: SecretDigest::of(SecretKind::Session, &session_id),
            handle: SessionHandle::from_random(rand::random()),
            method: AuthMethod::Webauthn,
        },
    };
    let session = service.decide(call, move |tx, context| login::conclude(tx, context, &assertion)).await?;
    Ok(LoggedIn { session_id, session })
}

/// Begins the registration of a device for the caller; of a discoverable credential, for a passkey.
///
/// # Errors
/// As of [`device::registrant`]; [`ApiError::Busy`] for a user that begins too many; [`ApiError::Store`].
pub(crate) async fn begin_registration(
    service: &Service,
    call: &Call,
    passkey: bool,
) -> Result<Begun, ApiError> {
    let secret = fresh_secret();
    let registrant =
        service.write(call, move |tx, context| device::registrant(tx, context, &secret)).await?.value;
    service.pace.admit(format!("user:{}", registrant.user))?;
    let purpose = if passkey { Purpose::Passkey } else { Purpose::SecurityKey };
    let (options, state) =
        verifier(service, &registrant.relying_party)?.begin_registration(&registrant, purpose)?;
    let (new, secret) = ceremony(purpose, state);
    let begun = service.write(call, move |tx, context| device::begin(tx, context, &new)).await?.value;
    Ok(Begun { challenge_id: ChallengeId::text(begun.place, &secret), options_json: options.to_string() })
}

/// Finishes the registration of a device of the caller.
///
/// # Errors
/// [`CoreError::Invalid`] for `name`, for `challenge_id` that is unknown, used or over, and for `credential_json` that is no good;
/// as of [`device::register`]; [`ApiError::Store`].
pub(crate) async fn finish_registration(
    service: &Service,
    call: &Call,
    challenge_id: &str,
    credential_json: &str,
    name: &str,
) -> Result<Registered, ApiError> {
    check_bounds(challenge_id, credential_json)?;
    device::check_name(name)?;
    let answer = verifier::attestation(credential_json)?;
    let challenge = ChallengeId::parse(challenge_id);
    let taken = service.write(call, move |tx, context| {
        let relying_party = webauthn::relying_party(tx)?;
        Ok((relying_party, device::take(tx, context, challenge.as_ref())?))
    });
    let (relying_party, ceremony) = taken.await?.value;
    let verified = match &ceremony {
        Some(ceremony) => verifier(service, &relying_party)?
            .finish_registration(ceremony.purpose(), &ceremony.state, &answer)
            .map_err(|reason| CoreError::invalid("credential_json", reason)),
        None => Err(CoreError::invalid("challenge_id", "it is unknown, used, or past its end: begin anew")),
    };
    let (ceremony, verified) = match (ceremony, verified) {
        (Some(ceremony), Ok(verified)) => (ceremony, verified),
        (_, refused) => {
            let answer = refused.err().unwrap_or(CoreError::Internal("a ceremony is missing".into()));
            return service
                .decide(call, move |tx, context| device::refuse(tx, context, answer.clone()))
                .await;
        }
    };
    let id = DeviceId::from_random(rand::random());
    let new = NewDevice {
        id: id.clone(),
        credential_id: verified.credential_id,
        credential: verified.credential,
        counter: verified.counter,
    };
    let name = name.to_owned();
    let registered =
        service.write(call, move |tx, context| device::register(tx, context, &ceremony, &name, &new));
    Ok(Registered { id, device: registered.await?.value })
}

fn check_bounds(challenge_id: &str, credential_json: &str) -> Result<(), CoreError> {
    let fields =
        [("challenge_id", challenge_id, MAX_CHALLENGE_ID), ("credential_json", credential_json, MAX_JSON)];
    match fields.iter().find(|(_, text, most)| text.len() > *most) {
        Some((field, _, most)) => Err(CoreError::invalid(*field, format!("at most {most} bytes"))),
        None => Ok(()),
    }
}

/// When a device was used last, if it ever was.
pub(crate) fn last_used(device: &DeviceRow) -> Option<UnixMillis> {
    Some(device.last_used_at_ms).filter(|used| *used != 0)
}

#[cfg(test)]
#[path = "webauthn/tests.rs"]
mod tests;
