//! Names, ids and what names a session or challenge, as they are in every request.

use std::{fmt, str};

use auth_core::{
    names::{
        AgentId, ClusterName, ConnectorName, DeviceId, IdentityName, LockId, RequestId, RoleName,
        SessionHandle, TokenName, UserName,
    },
    network::Network,
    principal::Principal,
    repeat::IdempotencyKey,
    session::{Owner, SessionRef},
    sso::State,
    webauthn::ceremony::ChallengeId,
};

/// A text names something. The canonical form of a name is its own.
pub(crate) fn names(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    // No id that is looked up is longer than this, and what is hashed neither.
    assert!(SessionRef::parse("f", text).is_err() || text.len() <= 256);
    assert!(IdempotencyKey::parse(text).is_err() || text.len() == 64);
    let taken = [
        canonical(text, |text| UserName::parse("f", text).ok()),
        canonical(text, |text| RoleName::parse("f", text).ok()),
        canonical(text, |text| ConnectorName::parse("f", text).ok()),
        canonical(text, |text| IdentityName::parse("f", text).ok()),
        canonical(text, |text| Owner::parse("f", text).ok()),
        canonical(text, |text| Principal::parse("f", text).ok()),
        verbatim(text, |text| ClusterName::parse("f", text).ok()),
        verbatim(text, |text| TokenName::parse("f", text).ok()),
        verbatim(text, |text| AgentId::parse("f", text).ok()),
        verbatim(text, SessionHandle::parse),
        verbatim(text, LockId::parse),
        verbatim(text, RequestId::parse),
        verbatim(text, DeviceId::parse),
        canonical(text, Network::parse),
        placed(text, |text| State::parse(text).map(|(state, _)| state), State::text),
        placed(text, ChallengeId::parse, ChallengeId::text),
    ];
    taken.contains(&true)
}

/// Whether it is taken; and what it is read as, written down, is read as the same.
fn canonical<T: fmt::Display + fmt::Debug + PartialEq>(
    text: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> bool {
    let Some(name) = parse(text) else { return false };
    let written = name.to_string();
    assert_eq!(parse(&written).as_ref(), Some(&name), "its canonical form {written:?} is not its own");
    true
}

/// Whether it is taken; and then it was written in the one form.
fn verbatim<T: fmt::Display + fmt::Debug + PartialEq>(text: &str, parse: impl Fn(&str) -> Option<T>) -> bool {
    let Some(name) = parse(text) else { return false };
    assert_eq!(name.to_string(), text, "there is more than one form");
    true
}

/// Whether it is taken for a place and a secret; and then nothing else is read as the same.
fn placed<T>(text: &str, parse: impl Fn(&str) -> Option<T>, write: impl Fn(u64, &str) -> String) -> bool {
    if parse(text).is_none() {
        return false;
    }
    let (place, secret) = text.split_once('.').unwrap_or_default();
    let written = u64::from_str_radix(place, 16).map(|place| write(place, secret));
    assert_eq!(written.as_deref(), Ok(text), "there is more than one form");
    true
}
