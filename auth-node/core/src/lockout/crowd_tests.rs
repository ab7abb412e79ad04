use store_txn::{Key as _, KeyWriter, Row as _};

use super::*;
use crate::{
    Context, CoreError, Verdict,
    lockout::{
        Lockout, check, clear, slots,
        tests::{LASTS_MS, THRESHOLD, fails, from, lockouts, log_in, right, with_ann},
    },
    login::{WRONG, refuse_old_password},
    testing::{Cluster, hash, name, new_session},
    user::Grants,
};

const BOUND: u32 = THRESHOLD * CROWD_FACTOR;
/// Where somebody tries one password of each of very many names.
const SPRAYER: &str = "192.0.2.1";

/// Tries a password of each of so many names that are nobody's, others each time.
fn spray(cluster: &mut Cluster, tries: u32) {
    let from = cluster.store.revision();
    for number in 0..tries {
        fails(cluster, SPRAYER, &format!("name{from}.{number}"));
    }
}

fn settings(cluster: &mut Cluster) -> Settings {
    cluster.run(|tx| crate::cluster_config::settings(tx)).unwrap()
}

#[test]
fn a_network_that_tries_many_names_is_shut_out_with_all_that_are_strange_to_it_and_only_for_a_while() {
    let mut cluster = with_ann();
    cluster.add_user("bob", Grants::default());
    log_in(&mut cluster, SPRAYER, "bob", Some(hash("bob"))).unwrap();
    cluster.now += 10;
    let first = cluster.now;
    // Names of users and of nobody count alike.
    fails(&mut cluster, SPRAYER, "ann");
    cluster.now += LASTS_MS / 2;
    spray(&mut cluster, BOUND - 2);
    assert_eq!(cluster.audit().iter().filter(|row| row.event == "user.lockout").count(), 0);
    fails(&mut cluster, "192.0.2.200", "the last");
    let until_ms = cluster.now + LASTS_MS;
    assert!(until_ms > first + LASTS_MS);
    let records = cluster.audit();
    let [.., begun, failed] = records.as_slice() else { panic!() };
    assert_eq!((begun.event.as_str(), begun.target.as_str()), ("user.lockout", "network:192.0.2.0/24"));
    assert_eq!(
        (&begun.fields["failures"], &begun.fields["until_ms"]),
        (&BOUND.to_string(), &until_ms.to_string())
    );
    assert_eq!(failed.event, "user.login.failed");

    // A right password is refused like a wrong one, and neither makes it last longer.
    let before = (cluster.store.revision(), cluster.audit().len());
    assert_eq!(right(&mut cluster, SPRAYER), Err(WRONG));
    assert_eq!(cluster.last_audit().fields["reason"], "too many failures");
    fails(&mut cluster, SPRAYER, "nobody");
    assert_eq!((cluster.store.revision() - before.0, cluster.audit().len() - before.1), (2, 2));
    // Other networks are none of it, and nor is who is known from this one.
    assert!(right(&mut cluster, "198.51.100.1").is_ok());
    fails(&mut cluster, SPRAYER, "bob");
    assert!(log_in(&mut cluster, SPRAYER, "bob", Some(hash("bob"))).is_ok());

    cluster.now = until_ms - 1;
    assert_eq!(right(&mut cluster, SPRAYER), Err(WRONG));
    cluster.now = until_ms;
    assert!(right(&mut cluster, SPRAYER).is_ok());
}

#[test]
fn whoever_has_a_user_of_its_own_takes_no_failure_back_by_logging_in() {
    let mut cluster = with_ann();
    for number in 0..BOUND {
        // Once as strange to the network, then as known from it.
        right(&mut cluster, SPRAYER).unwrap();
        fails(&mut cluster, SPRAYER, &format!("name{number}"));
    }
    cluster.add_user("bob", Grants::default());
    assert_eq!(log_in(&mut cluster, SPRAYER, "bob", Some(hash("bob"))), Err(WRONG));
}

#[test]
fn whoever_has_a_session_is_not_kept_out_by_what_others_try_and_bounded_by_its_own_failures() {
    let mut cluster = with_ann();
    let elsewhere = new_session(1);
    let session = elsewhere.digest;
    cluster.try_log_in(&from("198.51.100.1"), "ann", Some(hash("ann")), elsewhere).unwrap();
    spray(&mut cluster, BOUND);
    assert_eq!(right(&mut cluster, SPRAYER), Err(WRONG));
    let checked = |cluster: &mut Cluster| cluster.run(|tx| check(tx, &from(SPRAYER), &name("ann")));
    assert_eq!(checked(&mut cluster), Ok(()));
    for _ in 0..THRESHOLD {
        assert_eq!(checked(&mut cluster), Ok(()));
        let guess = cluster.call(session, |tx, context| {
            let context = Context { origin: from(SPRAYER).origin, ..context.clone() };
            refuse_old_password::<()>(tx, &context)
        });
        assert!(matches!(guess, Ok(Verdict::Refused(CoreError::Invalid { .. }))), "{guess:?}");
    }
    assert!(matches!(checked(&mut cluster), Err(CoreError::Precondition(_))));
}

#[test]
fn typing_errors_of_those_who_are_known_shut_nobody_out_and_few_failures_over_long_add_up_to_nothing() {
    let mut cluster = with_ann();
    cluster.add_user("bob", Grants::default());
    right(&mut cluster, SPRAYER).unwrap();
    for _ in 0..2 * BOUND {
        fails(&mut cluster, SPRAYER, "ann");
        right(&mut cluster, SPRAYER).unwrap();
    }
    // Each within the time of the one before it, and all together over much longer.
    for number in 0..2 * BOUND {
        fails(&mut cluster, SPRAYER, &format!("name{number}"));
        cluster.now += LASTS_MS / 10;
    }
    assert!(log_in(&mut cluster, SPRAYER, "bob", Some(hash("bob"))).is_ok());
}

#[test]
fn an_admin_sees_it_where_it_keeps_a_user_out_and_ends_it_there() {
    let mut cluster = with_ann();
    spray(&mut cluster, BOUND);
    // Nobody is kept out yet who would have to be shown.
    assert!(lockouts(&mut cluster).is_empty());
    assert_eq!(right(&mut cluster, SPRAYER), Err(WRONG));
    let until_ms = cluster.now + LASTS_MS;
    let network = Some("192.0.2.0/24".into());
    assert_eq!(lockouts(&mut cluster), [Lockout { network, of_all_users: true, failures: BOUND, until_ms }]);

    cluster.admin(|tx, context| clear(tx, context, &name("ann"))).unwrap();
    let record = cluster.last_audit();
    assert_eq!(
        (record.event.as_str(), record.fields["networks"].as_str()),
        ("user.lockout.clear", "192.0.2.0/24")
    );
    assert!(lockouts(&mut cluster).is_empty());
    assert!(right(&mut cluster, SPRAYER).is_ok());
    assert_eq!(cluster.rows(KeyWriter::table(NetworkLoginsKey::TABLE)), 0);

    // What another's lockout was ended with is not shown any more, and what goes by is forgotten.
    cluster.add_user("bob", Grants::default());
    let bob = |cluster: &mut Cluster| log_in(cluster, SPRAYER, "bob", Some(hash("bob")));
    cluster.add_user("eve", Grants::default());
    spray(&mut cluster, BOUND);
    assert_eq!(bob(&mut cluster), Err(WRONG));
    fails(&mut cluster, SPRAYER, "eve");
    cluster.admin(|tx, context| clear(tx, context, &name("eve"))).unwrap();
    assert_eq!(cluster.run(|tx| super::super::of(tx, &name("bob"))), Ok(vec![]));
    assert!(bob(&mut cluster).is_ok());
}

#[test]
fn an_invite_is_accepted_from_a_network_that_is_shut_out_and_then_its_user_is_known_there() {
    let mut cluster = with_ann();
    spray(&mut cluster, BOUND);
    assert_eq!(right(&mut cluster, SPRAYER), Err(WRONG));
    cluster.run(|tx| super::super::prove(tx, &super::super::tests::from(SPRAYER), &name("ann"))).unwrap();
    assert!(lockouts(&mut cluster).is_empty());
    assert!(right(&mut cluster, SPRAYER).is_ok());
}

#[test]
fn rows_are_bounded_and_the_networks_that_fail_most_are_remembered() {
    let mut cluster = with_ann();
    let settings = settings(&mut cluster);
    let fail = |cluster: &mut Cluster, network: &str| {
        let now = cluster.now;
        let counted = cluster.run(|tx| {
            let mut crowd = Crowd::load(tx, network, &settings)?.unwrap();
            crowd.fail(now, LASTS_MS);
            let counted = crowd.own().unwrap().failures;
            crowd.save(tx);
            Ok::<_, CoreError>(counted)
        });
        counted.unwrap()
    };
    let secret = cluster.run(|tx| SlotSecret::load(tx)).unwrap().unwrap();
    let slot = secret.of_network("the one");
    let beside = (0..).map(|number| format!("network {number}"));
    let beside: Vec<_> = beside.filter(|network| secret.of_network(network) == slot).take(50).collect();
    for times in 1..BOUND {
        assert_eq!(fail(&mut cluster, "the one"), times);
        if let Some(other) = beside.get(times as usize) {
            assert_eq!(fail(&mut cluster, other), 1);
        }
    }
    let key = NetworkLoginsKey(slot);
    let row = cluster.run(|tx| Ok(tx.get(&key)?)).unwrap().unwrap().row;
    assert_eq!(row.failing.len(), SLOT_NETWORKS);
    assert!(row.encode_row().len() < 1024);
    assert_eq!(fail(&mut cluster, "the one"), BOUND);
    assert!(cluster.run(|tx| Crowd::load(tx, "the one", &settings)).unwrap().unwrap().shut().is_some());
    assert!(cluster.run(|tx| Crowd::load(tx, &beside[0], &settings)).unwrap().unwrap().shut().is_none());
    assert!(slots::NETWORK_SLOTS * SLOT_NETWORKS as u64 <= 65_536);
    cluster.now += LASTS_MS;
    assert_eq!(cluster.rows(KeyWriter::table(NetworkLoginsKey::TABLE)), 0);
}

#[test]
fn a_cluster_without_a_secret_counts_from_its_first_login_on() {
    let mut cluster = with_ann();
    cluster
        .run(|tx| {
            tx.delete(&crate::tables::SlotSecretKey);
            Ok(())
        })
        .unwrap();
    let settings = settings(&mut cluster);
    assert!(cluster.run(|tx| Crowd::load(tx, "n", &settings)).unwrap().is_none());
    spray(&mut cluster, BOUND);
    assert_eq!(right(&mut cluster, SPRAYER), Err(WRONG));
}
