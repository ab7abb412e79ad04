use std::collections::{BTreeMap, BTreeSet};

use mezite_pki::{ssh::SshKeyPair, x509::KeyPair};
use store_txn::{Key as _, KeyWriter};

use super::*;
use crate::{
    Credential,
    agent_identity::{
        Wanted, delete, get,
        testing::{
            Ask, Bot, HOUR, add, ask, bootstrap, digest, fresh, idempotency_key, identity, is_locked, renew,
            renewed, serials, wanted, with_ci,
        },
    },
    issue::UserCertRequest,
    lock::{NewLock, Target},
    names::LockId,
    page::PageRequest,
    tables::{IdentitySessionKey, IssuedKey, NodeKind, RoleRow, SessionKey},
    testing::{grants, name, role_name},
    user,
    world::{World, assert_denied},
};

#[test]
fn a_secret_gives_credentials_of_a_bot_that_is_no_user_of_its_name() {
    let mut world = World::new();
    let _ = world.joined(NodeKind::Ssh, "web1.example.org", &[]);
    world.add_user("ci", grants(&["auditor"]));
    add(&mut world, &wanted("CI", &["access"]), "s");
    let first = ask(1);
    let done = world.run(|tx, context| {
        let candidates = candidates(tx, context, &identity("ci"), &first.request)?;
        let ci = identity("ci");
        super::bootstrap(tx, context, Some(&ci), digest("s"), &first.request, &candidates, &fresh(1, 1))
    });
    let got = done.and_then(Verdict::into_result).unwrap();
    let (ssh, _) = got.ssh.as_ref().unwrap();
    assert_eq!((ssh.key_id.as_str(), ssh.principals.as_slice()), ("bot:ci", &["deploy".to_owned()][..]));
    let own = Identity::Bot { cluster: "test".into(), name: "ci".into() };
    assert_eq!((got.tls.identity.as_ref(), got.tls.common_name.as_str()), (Some(&own), "bot:ci"));
    assert!(got.tls.client_auth && !got.tls.server_auth && got.ssh_refusal.is_empty());
    assert_eq!(got.generation, 1);
    // All of it ends at one time: an hour, as nobody said otherwise.
    assert_eq!(got.expires_at_ms, (world.now + 3_600_000) / 1000 * 1000);
    assert_eq!(
        (ssh.valid_before, got.tls.not_after + 1),
        (got.expires_at_ms / 1000, got.expires_at_ms / 1000)
    );
    let session = fresh(1, 1).session;
    let (caller, stored) = world
        .call(session, |tx, context| Ok((context.caller.clone(), tx.get(&SessionKey(session))?.unwrap().row)))
        .unwrap();
    assert_eq!((caller.actor().as_str(), stored.expires_at_ms), ("bot:ci", got.expires_at_ms));
    assert_eq!((stored.user.as_str(), stored.agent_identity.as_str()), ("", "ci"));
    // What is issued and revoked of one is not of the other.
    let rows = world.run(|tx, _| Ok(tx.scan::<IssuedKey>(None, 10)?)).unwrap();
    let issued = rows.iter().find(|(key, _)| key.0 == ssh.serial).unwrap();
    assert_eq!((issued.1.row.kind(), issued.1.row.holder.as_str()), (TargetKind::AgentIdentity, "ci"));
    world.admin(|tx, context| user::delete(tx, context, &name("ci"))).unwrap();
    assert!(world.is_honoured(session) && !serials(&mut world).contains(&ssh.serial));
    let last = world.audit().into_iter().rfind(|row| row.event == "agent_identity.bootstrap").unwrap();
    assert_eq!((last.actor.as_str(), last.target.as_str()), ("bot:ci", "bot:ci"));
}

#[test]
fn a_secret_is_good_once_and_a_repetition_of_the_call_is_answered_again() {
    let mut world = World::new();
    add(&mut world, &wanted("ci", &["access"]), "s");
    let (first, other_keys) = (ask(1), ask(1));
    let bot = bootstrap(&mut world, "ci", "s", &first, 1).unwrap();
    // With its keys and idempotency key, at whichever node: the same generation and session.
    let again = bootstrap(&mut world, "ci", "s", &first, 2).unwrap();
    assert_eq!((again.generation, again.session, again.key), (1, bot.session, bot.key));
    assert!(world.is_honoured(bot.session));
    let sessions = KeyWriter::table(IdentitySessionKey::TABLE);
    assert_eq!(world.rows(sessions), 1, "the session was replaced");
    // Another call, or other keys with the same idempotency key, is another one.
    assert_denied(bootstrap(&mut world, "ci", "s", &ask(2), 3), "not accepted");
    assert_denied(bootstrap(&mut world, "ci", "s", &other_keys, 4), "not accepted");
    // Nor is one repeated that has no idempotency key.
    add(&mut world, &wanted("cd", &["access"]), "t");
    let (ssh, tls) = (SshKeyPair::generate_ed25519("").unwrap(), KeyPair::generate_p256().unwrap());
    let request = CredentialRequest::new(&ssh.public_line(), tls.spki_der(), None, 5).unwrap();
    let nameless = Ask { number: 5, request };
    bootstrap(&mut world, "cd", "t", &nameless, 5).unwrap();
    assert_denied(bootstrap(&mut world, "cd", "t", &nameless, 6), "not accepted");
    // Once what it gave was renewed, it is gone for everybody.
    let next = renew(&mut world, &bot, &ask(7), 7).unwrap();
    assert_denied(bootstrap(&mut world, "ci", "s", &first, 8), "not accepted");
    assert!(world.is_honoured(next.session) && !world.is_honoured(bot.session));
}

#[test]
fn whatever_is_wrong_with_a_secret_the_answer_is_the_same_and_nothing_happens() {
    let mut world = World::new();
    add(&mut world, &wanted("ci", &["access"]), "s");
    add(&mut world, &wanted("late", &["access"]), "t");
    let before = world.audit().len();
    let refused =
        |world: &mut World, name: &str, secret: &str| match bootstrap(world, name, secret, &ask(9), 9) {
            Err(CoreError::Denied(answer)) => answer,
            other => panic!("{other:?}", other = other.map(|bot| bot.generation)),
        };
    let mut answers = vec![
        refused(&mut world, "ci", "wrong"),
        refused(&mut world, "nobody", "wrong"),
        refused(&mut world, "no name!", "wrong"),
        refused(&mut world, "late", "s"),
        refused(&mut world, "nobody", "s"),
    ];
    let lock = NewLock {
        id: LockId::from_random([1; 16]),
        target: Target::AgentIdentity(identity("ci")),
        message: String::new(),
        ttl: None,
    };
    world.admin(|tx, context| lock::create(tx, context, lock)).unwrap();
    answers.push(refused(&mut world, "ci", "s"));
    world.now += 3_600_000;
    answers.push(refused(&mut world, "late", "t"));
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let events = world.events(before);
    assert_eq!(events.iter().filter(|event| *event == "agent_identity.bootstrap.denied").count(), 7);
    assert!(!format!("{:?}", world.audit()).contains("\"wrong\""));
}

#[test]
fn a_secret_of_the_past_is_no_good_in_a_cluster_that_was_restored_and_only_a_digest_is_stored() {
    let mut world = World::new();
    add(&mut world, &wanted("ci", &["access"]), "a secret");
    let all = store_txn::KeyRange { start: Vec::new(), end: vec![0xff; 8] };
    let stored: Vec<u8> = world
        .run(|tx, _| {
            use store_txn::Read as _;
            Ok(tx
                .scan_raw(&all, usize::MAX)?
                .into_iter()
                .flat_map(|(key, row)| [key, row.value])
                .flatten()
                .collect())
        })
        .unwrap();
    assert!(!stored.windows(8).any(|part| part == b"a secret"));
    world
        .run(|tx, _| {
            let mut row = tx.get(&crate::tables::ClusterKey)?.unwrap().row;
            row.session_epoch += 1;
            tx.put(&crate::tables::ClusterKey, &row);
            Ok(())
        })
        .unwrap();
    assert_denied(bootstrap(&mut world, "ci", "a secret", &ask(1), 1), "not accepted");
    let shown = world.run(|tx, _| get(tx, &identity("ci"))).unwrap();
    assert_eq!((shown.secret_ends_at_ms, shown.generation), (0, 0));
}

#[test]
fn a_renewal_raises_the_generation_and_ends_the_session_before() {
    let (mut world, first) = with_ci();
    let second = renew(&mut world, &first, &ask(2), 2).unwrap();
    assert_eq!((first.generation, second.generation), (1, 2));
    assert!(!world.is_honoured(first.session) && world.is_honoured(second.session));
    // With the keys that it has, or others; but each time by a call of its own.
    let (ssh, tls) = (SshKeyPair::generate_ed25519("").unwrap(), KeyPair::generate_p256().unwrap());
    let kept = |number| {
        let key = idempotency_key(number);
        let request = CredentialRequest::new(&ssh.public_line(), tls.spki_der(), Some(&key), number);
        Ask { number, request: request.unwrap() }
    };
    let third = renew(&mut world, &second, &kept(3), 3).unwrap();
    assert!(matches!(renew(&mut world, &third, &kept(3), 4), Err(CoreError::KeyReused)));
    let fourth = renew(&mut world, &third, &kept(5), 5).unwrap();
    assert_eq!((fourth.generation, fourth.key), (4, third.key));
    assert!(!world.is_honoured(third.session) && world.is_honoured(fourth.session));
    let shown = world.run(|tx, _| get(tx, &identity("ci"))).unwrap();
    assert_eq!((shown.generation, shown.secret_ends_at_ms), (4, 0));
    let rows = KeyWriter::table(BootstrapSecretKey::TABLE);
    assert_eq!(world.rows(rows), 0, "it was used, and what it gave has arrived");
}

#[test]
fn the_very_last_renewal_can_be_repeated_and_no_other() {
    let (mut world, first) = with_ci();
    let (call, next) = (ask(2), ask(3));
    let second = renew(&mut world, &first, &call, 2).unwrap();
    // The answer was lost: by the old certificate, as late as it is good.
    world.now += 1_000_000;
    let again = renewed(&mut world, &first, &call, 3).unwrap();
    assert_eq!(again.generation, 2);
    assert!(again.expires_at_ms > world.now + 3_500_000, "it has its full life again");
    assert!(world.is_honoured(second.session), "it is the same session");
    let third = renew(&mut world, &second, &next, 4).unwrap();
    assert_eq!(third.generation, 3);
    is_locked(renew(&mut world, &first, &call, 5));
    assert!(!world.is_honoured(third.session));
}

#[test]
fn a_replayed_generation_locks_the_identity_with_all_that_it_has() {
    let (mut world, first) = with_ci();
    let stolen = first.clone();
    let second = renew(&mut world, &first, &ask(2), 2).unwrap();
    let issued = world.run(|tx, _| Ok(tx.scan::<IssuedKey>(None, 10)?)).unwrap();
    let of_bot: Vec<_> = issued
        .iter()
        .filter(|(_, issued)| issued.row.kind() == TargetKind::AgentIdentity)
        .map(|(key, _)| key.0)
        .collect();
    assert_eq!(of_bot.len(), 2);
    let before = world.audit().len();
    is_locked(renew(&mut world, &stolen, &ask(3), 3));
    assert_eq!(world.events(before), ["agent_identity.replay", "lock.create"]);
    assert!(!world.is_honoured(second.session));
    is_locked(renew(&mut world, &second, &ask(4), 4));
    assert_eq!(serials(&mut world), of_bot, "its certificates are revoked");
    let (id, lock) = world.run(|tx, _| lock::list(tx, &PageRequest::new(9, None))).unwrap().items.remove(0);
    assert_eq!((lock.row.created_by.as_str(), lock.row.name.as_str()), ("cluster", "ci"));
    assert!(lock.row.message.contains("generation 1") && lock.row.message.contains("192.0.2.9"), "{lock:?}");
    // There is one lock, whoever goes on trying; and with that alone gone, the copies are where they were.
    let locks = world.run(|tx, _| lock::list(tx, &PageRequest::new(9, None))).unwrap().items.len();
    assert_eq!(locks, 1);
    world.admin(|tx, context| lock::delete(tx, context, &id)).unwrap();
    is_locked(renew(&mut world, &stolen, &ask(5), 5));
}

#[test]
fn no_generation_but_the_last_one_renews_and_an_old_key_does_not_either() {
    for ahead in [2_u64, 5, u64::MAX] {
        let (mut world, bot) = with_ci();
        is_locked(renew(&mut world, &Bot { generation: ahead, ..bot }, &ask(2), 2));
    }
    // Who had a key once does not become the bot by saying the right number.
    let (mut world, first) = with_ci();
    let second = renew(&mut world, &first, &ask(2), 2).unwrap();
    is_locked(renew(&mut world, &Bot { generation: 2, ..first }, &ask(3), 3));
    assert!(!world.is_honoured(second.session));
}

#[test]
fn who_shows_no_key_of_the_identity_as_it_is_now_can_neither_renew_nor_lock_it() {
    let (mut world, old) = with_ci();
    // Another's key, and that of one who had the name before.
    let stranger = Bot { key: [7; 32], ..old.clone() };
    assert_denied(renew(&mut world, &stranger, &ask(2), 2), "not of this agent identity");
    assert_denied(
        renew(&mut world, &Bot { name: identity("nobody"), ..old.clone() }, &ask(3), 3),
        "not of this",
    );
    world.admin(|tx, context| delete(tx, context, &identity("ci"))).unwrap();
    assert_denied(renew(&mut world, &old, &ask(4), 4), "not of this");
    add(&mut world, &wanted("ci", &["access"]), "t");
    let new = bootstrap(&mut world, "ci", "t", &ask(5), 5).unwrap();
    for generation in [0, 1, 2] {
        let old = Bot { generation, ..old.clone() };
        assert_denied(renew(&mut world, &old, &ask(6), 6), "not of this");
    }
    assert!(world.is_honoured(new.session));
    assert_eq!(world.last_audit().event, "agent_identity.renew.denied");
}

#[test]
fn the_life_of_credentials_is_the_shortest_that_identity_and_roles_allow() {
    let mut world = World::new();
    let options = crate::tables::RoleOptionsRow { max_session_ttl_ms: Some(600_000), ..Default::default() };
    world.add_role("short", &RoleRow { options: Some(options), ..RoleRow::default() });
    let roles: BTreeSet<_> = [role_name("short")].into();
    for (text, roles, max_ttl, wanted) in [
        ("a", roles.clone(), 2 * HOUR, 600_000),
        ("b", roles, Duration::from_secs(300), 300_000),
        ("c", BTreeSet::new(), 2 * HOUR, 7_200_000),
    ] {
        let new = Wanted::new(identity(text), roles, BTreeMap::new(), Some(max_ttl), vec![]).unwrap();
        add(&mut world, &new, text);
        let done = ask(1);
        let bot = bootstrap(&mut world, text, text, &done, 1).unwrap();
        let next = renewed(&mut world, &bot, &ask(2), 2).unwrap();
        assert_eq!(next.expires_at_ms, world.now + wanted, "{text}");
        // It may log in nowhere: it has all the rest, and is told why.
        assert!(next.ssh.is_none() && next.ssh_refusal.contains("allow no login"), "{text}");
    }
}

#[test]
fn a_session_of_a_bot_gets_certificates_for_ssh_by_its_roles_and_no_client_certificate() {
    let (mut world, bot) = with_ci();
    let ssh = SshKeyPair::generate_ed25519("").unwrap().public_line();
    let tls = KeyPair::generate_p256().unwrap().spki_der();
    let mut certs = |tls: Vec<u8>| {
        let request = UserCertRequest::new(std::slice::from_ref(&ssh), tls, None, vec![], "", || 5).unwrap();
        world.call(bot.session, |tx, context| {
            let candidates = issue::candidates(tx, context, &request)?;
            issue::user_certs(tx, context, &request, &candidates)
        })
    };
    assert_eq!(certs(Vec::new()).unwrap().ssh[0].key_id, "bot:ci");
    assert_denied(certs(tls), "renews its client certificate");
}

#[test]
fn a_certificate_alone_is_nobody() {
    let (mut world, bot) = with_ci();
    let shown = Credential::AgentIdentity { name: bot.name, key_digest: bot.key };
    let caller = world.with(&shown, |_, context| Ok(context.caller.clone())).unwrap();
    assert_eq!(caller, Caller::Anonymous);
}
