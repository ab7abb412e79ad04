//! Logging in by single sign-on: logins that are under way, and what comes of what a provider says. What it says is fetched
//! and verified elsewhere.
//!
//! A login is a row from its beginning until its browser comes back, to whichever node. Whoever comes back takes the row away
//! before anything is verified, in a transaction of its own: of two who come with one state, one finds it. It is good for the
//! browser that began it, which has a secret of its own in a cookie, and for the connector as it was then.
//!
//! A program logs in through the browser of the person in front of it. It gets no session from there, but a code that is
//! good once, for a minute, and for whoever has the verifier of which it gave the digest in the beginning.

mod account;
mod conclude;
mod identity;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;

use store_txn::{Read, ReadExt, Transaction, TransactionExt, Versioned};

pub use self::{
    account::make_local,
    conclude::{Done, Next, Proved, conclude, redeem},
};
use crate::{
    Context, CoreError, Verdict,
    audit::{self, EventType},
    connector, lockout,
    names::ConnectorName,
    placed,
    secret::{SecretDigest, SecretKind},
    session,
    tables::{ConnectorRow, ProgramRow, ProviderRow, SsoLoginKey, SsoLoginRow},
    webauthn::WebauthnSecret,
};

/// What a provider says of a user, by the name of the claim.
pub type Claims = BTreeMap<String, Vec<String>>;

/// How long a login may take, in milliseconds.
pub const LIFE_MS: u64 = 10 * 60 * 1000;
/// Length of the digest of a program's verifier: SHA-256.
const CHALLENGE: usize = 32;

/// Why nobody is logged in, as far as it is told; the audit log has the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The login is not one that goes on.
    Anew,
    /// The provider has not said who it is, or not so that it is believed.
    Unproved,
    /// Whoever it is, it is not let in.
    NotLetIn,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Anew, Self::Unproved, Self::NotLetIn];

    /// For programs and pages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Anew => "anew",
            Self::Unproved => "unproved",
            Self::NotLetIn => "not-let-in",
        }
    }

    /// For callers.
    pub const fn answer(self) -> CoreError {
        CoreError::Unauthenticated(match self {
            Self::Anew => {
                "this login is unknown, used, past its end, or of another browser or program: log in anew, and finish \
                 within ten minutes"
            }
            Self::Unproved => {
                "the single sign-on provider did not say who you are, or not in a way that is believed: try again, or ask \
                 an administrator, who finds the reason in the audit log"
            }
            Self::NotLetIn => {
                "the single sign-on provider knows you, and this cluster does not let you in by it: ask an administrator, \
                 who finds the reason in the audit log"
            }
        })
    }

    /// Which one an error is, if it is one.
    pub fn of(error: &CoreError) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.answer() == *error)
    }
}

/// A program that waits on the machine of the browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(ProgramRow);

impl Program {
    /// A program that listens at a port of 127.0.0.1 and a path of 16 to 64 hexadecimal digits, and has the verifier of which
    /// this is the SHA-256.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] names the field.
    pub fn new(challenge: Vec<u8>, port: u32, path: String) -> Result<Self, CoreError> {
        if challenge.len() != CHALLENGE {
            return Err(CoreError::invalid("challenge", "the SHA-256 of the verifier, 32 bytes"));
        }
        if port == 0 || u16::try_from(port).is_err() {
            return Err(CoreError::invalid("port", "from 1 to 65535"));
        }
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if !(16..=64).contains(&path.len()) || !path.bytes().all(digit) {
            return Err(CoreError::invalid("path", "16 to 64 hexadecimal digits, in lower case"));
        }
        Ok(Self(ProgramRow { challenge, port, path }))
    }

    /// The SHA-256 of its verifier.
    pub fn challenge(&self) -> &[u8] {
        &self.0.challenge
    }

    /// Port of 127.0.0.1.
    pub fn port(&self) -> u32 {
        self.0.port
    }

    /// Path, without its slash.
    pub fn path(&self) -> &str {
        &self.0.path
    }
}

/// A connector by which one logs in, at the revision at which it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// Its name.
    pub name: ConnectorName,
    /// Its revision.
    pub revision: u64,
    /// What it says.
    pub row: ConnectorRow,
}

/// A connector to log in by.
///
/// # Errors
/// [`CoreError::NotFound`]; [`CoreError::Precondition`] for one of a kind by which nobody logs in; [`CoreError::Storage`].
pub fn way(state: &mut (impl Read + ?Sized), name: &ConnectorName) -> Result<Way, CoreError> {
    let Versioned { revision, row } = connector::get(state, name)?;
    if matches!(row.provider, Some(ProviderRow::Saml(_)) | None) {
        let reason = format!(
            "connector {name} is of SAML, by which nobody logs in with this release: use one of OIDC"
        );
        return Err(CoreError::Precondition(reason));
    }
    Ok(Way { name: name.clone(), revision, row })
}

/// A login to be begun.
#[derive(Debug, Clone)]
pub struct NewLogin {
    /// Digest of the state's secret.
    pub state: SecretDigest,
    /// Digest of the browser's secret.
    pub browser: SecretDigest,
    /// Which place it takes.
    pub random: u64,
    /// By which connector.
    pub connector: ConnectorName,
    /// At which revision the browser is sent to its provider.
    pub revision: u64,
    /// The program that logs in, if it is one.
    pub program: Option<Program>,
    /// What places are to depend on, if the cluster has no such secret yet.
    pub secret: WebauthnSecret,
}

/// Begins a login, and answers its place.
///
/// # Errors
/// As of [`way`]; [`Refusal::Anew`] when the connector was changed meanwhile.
pub fn begin(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    new: &NewLogin,
) -> Result<u64, CoreError> {
    if way(tx, &new.connector)?.revision != new.revision {
        return Err(Refusal::Anew.answer());
    }
    let secret = new.secret.load_or_keep(tx)?;
    let network = format!("sso:network:{}", lockout::network(&context.origin.client_address));
    let place = placed::place(secret.slot(&network, placed::SLOTS)?, new.random);
    let row = SsoLoginRow {
        digest: new.state.0.to_vec(),
        browser: new.browser.0.to_vec(),
        connector: new.connector.to_string(),
        connector_revision: new.revision,
        program: new.program.clone().map(|program| program.0),
        epoch: session::epoch(tx)?,
        expires_at_ms: tx.now().saturating_add(LIFE_MS),
    };
    tx.put(&SsoLoginKey(place), &row);
    Ok(place)
}

/// Names a login: its place, and a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    place: u64,
    digest: SecretDigest,
}

impl State {
    /// What the provider gets of a login at a place.
    pub fn text(place: u64, secret: &str) -> String {
        placed::text(place, secret)
    }

    /// Reads one, with its secret. `None`: it cannot be one.
    pub fn parse(text: &str) -> Option<(Self, &str)> {
        let (place, secret) = placed::parse(text)?;
        Some((Self { place, digest: SecretDigest::of(SecretKind::SsoState, secret) }, secret))
    }
}

/// What was found of a login that somebody comes back with. It is gone now.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// The program that it is for, where it is the right browser that comes back.
    pub program: Option<Program>,
    /// The connector, or why the login does not go on.
    pub way: Result<Way, &'static str>,
}

/// Takes a login away, to finish it at the connector whose provider the browser says that it comes from.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn take(
    tx: &mut (impl Transaction + ?Sized),
    state: Option<State>,
    browser: Option<SecretDigest>,
    connector: &ConnectorName,
) -> Result<Taken, CoreError> {
    let none = |reason| Ok(Taken { program: None, way: Err(reason) });
    let Some(State { place, digest }) = state else { return none("there is no state") };
    let key = SsoLoginKey(place);
    let Some(stored) = tx.get(&key)?.filter(|stored| stored.row.digest == digest.0) else {
        return none("the state is unknown, used, or past its end");
    };
    tx.delete(&key);
    let row = stored.row;
    if row.epoch != session::epoch(tx)? {
        return none("it was begun before the cluster was restored");
    }
    if browser.is_none_or(|browser| row.browser != browser.0) {
        return none("it was begun by another browser");
    }
    let program = row.program.map(Program);
    let refused = |program, reason| Ok(Taken { program, way: Err(reason) });
    if row.connector != connector.as_str() {
        return refused(program, "it was begun at another connector");
    }
    match way(tx, connector) {
        Ok(way) if way.revision == row.connector_revision => Ok(Taken { program, way: Ok(way) }),
        Ok(_) => refused(program, "the connector was changed meanwhile"),
        Err(CoreError::NotFound { .. } | CoreError::Precondition(_)) => {
            refused(program, "the connector was removed meanwhile")
        }
        Err(error) => Err(error),
    }
}

/// Refuses a login, and audits why.
pub fn refuse<T>(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    connector: &ConnectorName,
    reason: &str,
    refusal: Refusal,
) -> Verdict<T> {
    refuse_user(tx, context, connector, "user:?".into(), reason, refusal)
}

fn refuse_user<T>(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    connector: &ConnectorName,
    target: String,
    reason: &str,
    refusal: Refusal,
) -> Verdict<T> {
    let fields =
        [("reason", reason.to_owned()), ("method", "sso".to_owned()), ("connector", connector.to_string())];
    audit::append_refusal(tx, context, EventType::LoginFailed, target, &fields);
    Verdict::Refused(refusal.answer())
}

#[cfg(test)]
#[path = "sso_tests.rs"]
mod tests;
