//! Trust domains and workloads, for the tests of this family.

use std::time::Duration;

use store_txn::{UnixMillis, memory::MemoryTransaction};

use super::{Attempt, Attested, NewSpiffeDomain, TrustDomain, authenticate, create, domain::SpiffeDomain};
use crate::{
    Context, CoreError, Verdict, agent_identity,
    names::{IdentityName, SessionHandle},
    secret::{SecretDigest, SecretKind},
    session::NewSession,
    tables::{AuthMethod, SessionRow, SpiffeBundleRow, SpiffeEndpointRow},
    testing::{role_name, traits},
    world::World,
};

pub(crate) const RED: &str = "red.example";
pub(crate) const ID: &str = "spiffe://red.example/ns/ci";

/// Works as an admin does, who logs in again when it has to.
pub(crate) fn admin<T>(
    world: &mut World,
    work: impl FnOnce(&mut MemoryTransaction<'_>, &Context) -> Result<T, CoreError>,
) -> Result<T, CoreError> {
    let boss = world.boss;
    if !world.is_honoured(boss) {
        world.boss = world.log_in("boss");
    }
    world.admin(work)
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse("name", name).unwrap()
}

/// A bundle with one authority, which is this byte.
pub(crate) fn bundle(authority: u8, sequence: Option<u64>) -> SpiffeBundleRow {
    SpiffeBundleRow { x509_authorities: vec![vec![authority]], sequence, ..SpiffeBundleRow::default() }
}

pub(crate) fn endpoint() -> SpiffeEndpointRow {
    SpiffeEndpointRow { url: "https://red.example/bundle".into(), ..SpiffeEndpointRow::default() }
}

pub(crate) fn add(
    world: &mut World,
    name: &str,
    endpoint: Option<SpiffeEndpointRow>,
    bundle: Option<SpiffeBundleRow>,
) -> Result<SpiffeDomain, CoreError> {
    let new = NewSpiffeDomain::new(name, endpoint, bundle)?;
    admin(world, |tx, context| create(tx, context, &new))
}

/// What an admin says of an identity with these SPIFFE IDs.
pub(crate) fn wanted(name: &str, ids: &[&str]) -> agent_identity::Wanted {
    let name = IdentityName::parse("name", name).unwrap();
    let roles = [role_name("access")].into();
    let ids = ids.iter().map(|&id| id.to_owned()).collect();
    let hour = Some(Duration::from_secs(3600));
    agent_identity::Wanted::new(name, roles, traits(&[("logins", &["deploy"])]), hour, ids).unwrap()
}

/// A cluster that lets one trust domain in, with the identity `ci` for [`ID`].
pub(crate) fn with_ci() -> World {
    let mut world = World::new();
    // Late enough that a token can have been issued hours before.
    world.now = 10_000_000;
    add(&mut world, RED, None, Some(bundle(1, Some(1)))).unwrap();
    let secret = SecretDigest::of(SecretKind::Bootstrap, "s");
    let secret = agent_identity::NewSecret::new(secret, None).unwrap();
    let wanted = wanted("ci", &[ID]);
    admin(&mut world, |tx, context| agent_identity::create(tx, context, &wanted, &secret)).unwrap();
    world
}

/// What a token says that is good for a minute from now, known by a number.
pub(crate) fn token(world: &World, number: u64) -> Attested {
    Attested {
        spiffe_id: ID.into(),
        issued_at_ms: Some(world.now),
        ends_at_ms: world.now + 60_000,
        bearer: Some(SecretDigest::of(SecretKind::JwtSvid, &number.to_string())),
    }
}

/// The digest of the session that a number stands for.
pub(crate) fn session(number: u8) -> SecretDigest {
    SecretDigest::of(SecretKind::Session, &number.to_string())
}

/// Logs in with what an SVID of a trust domain says, if the authority `vouching` is in the bundle that is known.
pub(crate) fn log_in_by(
    world: &mut World,
    named: Option<&str>,
    vouching: u8,
    says: &Attested,
    number: u8,
) -> Result<SessionRow, CoreError> {
    let verify = |bundle: &SpiffeBundleRow, _now: UnixMillis| match bundle
        .x509_authorities
        .contains(&vec![vouching])
    {
        true => Ok(says.clone()),
        false => Err("no authority has signed it".to_owned()),
    };
    let new = NewSession {
        digest: session(number),
        handle: SessionHandle::from_random([number; 16]),
        method: AuthMethod::Spiffe,
    };
    let attempt = Attempt { domain: named.map(domain), verify: &verify, new };
    world.run(|tx, context| authenticate(tx, context, &attempt)).and_then(Verdict::into_result)
}

pub(crate) fn log_in(world: &mut World, says: &Attested, number: u8) -> Result<SessionRow, CoreError> {
    log_in_by(world, Some(RED), 1, says, number)
}
