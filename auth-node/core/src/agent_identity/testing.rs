//! Bots, for the tests of this family.

use std::time::Duration;

use mezite_pki::{identity::Identity, ssh::SshKeyPair, x509::KeyPair};
use sha2::{Digest as _, Sha256};

use super::{
    CredentialRequest, Credentials, Fresh, NewSecret, Shown, Wanted, bootstrap as give_first, candidates,
    create, holder, renew as give_next,
};
use crate::{
    CoreError, Verdict,
    names::{IdentityName, LockId, SessionHandle},
    repeat::IdempotencyKey,
    revocation,
    secret::{SecretDigest, SecretKind},
    tables::NodeKind,
    testing::{role_name, traits},
    world::World,
};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn identity(text: &str) -> IdentityName {
    IdentityName::parse("name", text).unwrap()
}

pub(crate) fn wanted(text: &str, roles: &[&str]) -> Wanted {
    let roles = roles.iter().map(|role| role_name(role)).collect();
    Wanted::new(identity(text), roles, traits(&[("logins", &["deploy"])]), None, Vec::new()).unwrap()
}

pub(crate) fn digest(text: &str) -> SecretDigest {
    SecretDigest::of(SecretKind::Bootstrap, text)
}

pub(crate) fn secret(text: &str) -> NewSecret {
    NewSecret::new(digest(text), None).unwrap()
}

/// What a bot has, and what it asks for next.
#[derive(Clone, Debug)]
pub(crate) struct Bot {
    pub(crate) name: IdentityName,
    /// Of the certificate that it has.
    pub(crate) key: [u8; 32],
    pub(crate) generation: u64,
    pub(crate) session: SecretDigest,
}

/// One call for credentials: its keys and its idempotency key.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) number: u64,
    pub(crate) request: CredentialRequest,
}

pub(crate) fn idempotency_key(number: u64) -> IdempotencyKey {
    IdempotencyKey::parse(&format!("{number:064x}")).unwrap()
}

pub(crate) fn ask(number: u64) -> Ask {
    let (ssh, tls) = (SshKeyPair::generate_ed25519("").unwrap(), KeyPair::generate_p256().unwrap());
    let key = idempotency_key(number);
    let request = CredentialRequest::new(&ssh.public_line(), tls.spki_der(), Some(&key), number).unwrap();
    Ask { number, request }
}

pub(crate) fn fresh(number: u64, try_number: u8) -> Fresh {
    Fresh {
        session: SecretDigest::of(SecretKind::Session, &format!("of call {number}")),
        handle: SessionHandle::from_random([try_number; 16]),
        serial: number + 1_000_000,
        lock: LockId::from_random([try_number; 16]),
    }
}

pub(crate) fn made(ask: &Ask, credentials: &Credentials) -> Bot {
    let Some(Identity::Bot { name, .. }) = &credentials.tls.identity else { panic!("it is no bot's") };
    Bot {
        name: identity(name),
        key: Sha256::digest(&credentials.tls.public_key).into(),
        generation: credentials.generation,
        session: fresh(ask.number, 0).session,
    }
}

pub(crate) fn bootstrap(
    world: &mut World,
    name: &str,
    secret: &str,
    ask: &Ask,
    try_number: u8,
) -> Result<Bot, CoreError> {
    let name = IdentityName::parse("name", name).ok();
    let done = world.run(|tx, context| {
        let candidates = match holder(tx, digest(secret))? {
            Some(name) => candidates(tx, context, &name, &ask.request)?,
            None => Default::default(),
        };
        let fresh = fresh(ask.number, try_number);
        give_first(tx, context, name.as_ref(), digest(secret), &ask.request, &candidates, &fresh)
    });
    done.and_then(Verdict::into_result).map(|credentials| made(ask, &credentials))
}

pub(crate) fn renewed(
    world: &mut World,
    bot: &Bot,
    ask: &Ask,
    try_number: u8,
) -> Result<Credentials, CoreError> {
    let done = world.run(|tx, context| {
        let candidates = candidates(tx, context, &bot.name, &ask.request)?;
        let shown = Shown { name: bot.name.clone(), key_digest: bot.key, generation: bot.generation };
        give_next(tx, context, &shown, &ask.request, &candidates, &fresh(ask.number, try_number))
    });
    done.and_then(Verdict::into_result)
}

pub(crate) fn renew(world: &mut World, bot: &Bot, ask: &Ask, try_number: u8) -> Result<Bot, CoreError> {
    renewed(world, bot, ask, try_number).map(|credentials| made(ask, &credentials))
}

pub(crate) fn add(world: &mut World, wanted: &Wanted, text: &str) {
    world.admin(|tx, context| create(tx, context, wanted, &secret(text))).unwrap();
}

/// A cluster with a node and the bot `ci`, whose role lets it log in there.
pub(crate) fn with_ci() -> (World, Bot) {
    let mut world = World::new();
    let _ = world.joined(NodeKind::Ssh, "web1.example.org", &[]);
    add(&mut world, &wanted("ci", &["access"]), "s");
    let bot = bootstrap(&mut world, "ci", "s", &ask(1), 1).unwrap();
    (world, bot)
}

pub(crate) fn is_locked<T: std::fmt::Debug>(result: Result<T, CoreError>) {
    assert!(matches!(result, Err(CoreError::Locked(_))), "{result:?}");
}

pub(crate) fn serials(world: &mut World) -> Vec<u64> {
    world.run(|tx, _| revocation::serials(tx)).unwrap()
}
