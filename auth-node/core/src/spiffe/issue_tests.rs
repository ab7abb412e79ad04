use mezite_pki::x509::KeyPair;

use super::*;
use crate::{
    Credential, agent_identity,
    secret::{SecretDigest, SecretKind},
    spiffe::testing::{admin, log_in, session, token, wanted, with_ci},
    tables::NodeKind,
    testing::assert_invalid,
    world::World,
};

fn ask(world: &mut World, credential: &Credential) -> Result<IssuedSvid, CoreError> {
    let key = KeyPair::generate_p256().unwrap().spki_der();
    world.with(credential, |tx, context| issue(tx, context, key.clone()))
}

#[test]
fn agents_and_agent_identities_get_svids_of_their_own_names() {
    let mut world = with_ci();
    let host = world.joined(NodeKind::Ssh, "web1.example.org", &[]);
    let got = ask(&mut world, &host.credential()).unwrap();
    let now = world.now;
    assert_eq!(got.spiffe_id.as_str(), format!("spiffe://test/agent/{}", host.id()));
    assert_eq!((got.expires_at_ms, got.spec.not_after), (now + 4 * 3_600_000, now / 1000 + 4 * 3600 - 1));
    assert_eq!((got.ca.kind, got.bundle.len()), (CaKind::Spiffe, 1));
    let record = world.last_audit();
    assert_eq!((record.event.as_str(), record.actor), ("spiffe.svid.issue", format!("agent:{}", host.id())));

    let shown = token(&world, 1);
    let made = log_in(&mut world, &shown, 1).unwrap();
    let got = ask(&mut world, &Credential::Session(session(1))).unwrap();
    assert_eq!(got.spiffe_id.as_str(), "spiffe://test/bot/ci");
    assert_eq!(got.expires_at_ms, made.expires_at_ms, "it ends with the session");
}

#[test]
fn nobody_else_gets_one_nor_a_name_that_no_spiffe_id_can_have() {
    let mut world = with_ci();
    // Of an admin who is logged in.
    admin(&mut world, |_, _| Ok(())).unwrap();
    let boss = world.boss;
    for credential in [Credential::None, Credential::Session(boss)] {
        let refused = ask(&mut world, &credential);
        assert!(matches!(refused, Err(CoreError::Unauthenticated(_))), "{refused:?}");
    }
    let host = world.joined(NodeKind::Ssh, "web1.example.org", &[]);
    let bad = world.with(&host.credential(), |tx, context| issue(tx, context, b"x".to_vec()));
    assert_invalid(bad, "public_key");

    let id = "spiffe://red.example/ns/at";
    let secret = SecretDigest::of(SecretKind::Bootstrap, "t");
    let secret = agent_identity::NewSecret::new(secret, None).unwrap();
    let wanted = wanted("ci@build", &[id]);
    admin(&mut world, |tx, context| agent_identity::create(tx, context, &wanted, &secret)).unwrap();
    let shown = crate::spiffe::Attested { spiffe_id: id.into(), ..token(&world, 1) };
    log_in(&mut world, &shown, 1).unwrap();
    match ask(&mut world, &Credential::Session(session(1))) {
        Err(CoreError::Precondition(reason)) => assert!(reason.contains("ci@build"), "{reason}"),
        other => panic!("{other:?}"),
    }
}
