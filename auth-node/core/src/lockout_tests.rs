use store_txn::{Key as _, KeyWriter};

use super::*;
use crate::{
    Origin,
    login::WRONG,
    secret::PasswordHash,
    tables::{ClusterConfigKey, SessionRow},
    testing::{Cluster, anonymous, grants, hash, name, new_session, role_with_rule},
    user::{self, Grants},
};

pub(super) const THRESHOLD: u32 = 3;
pub(super) const LASTS_MS: u64 = 60_000;

pub(super) fn with_ann() -> Cluster {
    let mut cluster = Cluster::new();
    set_threshold(&mut cluster, THRESHOLD);
    cluster.add_user("ann", Grants::default());
    cluster
}

fn set_threshold(cluster: &mut Cluster, threshold: u32) {
    cluster
        .run(|tx| {
            let mut row = cluster_config::get(tx)?.row;
            (row.lockout_threshold, row.lockout_duration_ms) = (Some(threshold), Some(LASTS_MS));
            tx.put(&ClusterConfigKey, &row);
            Ok(())
        })
        .unwrap();
}

pub(super) fn from(address: &str) -> Context {
    Context { origin: Origin { client_address: address.into(), ..anonymous().origin }, ..anonymous() }
}

pub(super) fn log_in(
    cluster: &mut Cluster,
    address: &str,
    user: &str,
    verified: Option<PasswordHash>,
) -> Result<SessionRow, CoreError> {
    let new = new_session(1_000_000);
    cluster.try_log_in(&from(address), user, verified, new)
}

#[track_caller]
pub(super) fn fails(cluster: &mut Cluster, address: &str, user: &str) {
    assert_eq!(log_in(cluster, address, user, None), Err(WRONG));
}

pub(super) fn right(cluster: &mut Cluster, address: &str) -> Result<SessionRow, CoreError> {
    log_in(cluster, address, "ann", Some(hash("ann")))
}

pub(super) fn lockouts(cluster: &mut Cluster) -> Vec<Lockout> {
    cluster.run(|tx| of(tx, &name("ann"))).unwrap()
}

#[test]
fn failures_from_a_network_shut_it_out_and_no_other_and_only_for_a_while() {
    let mut cluster = with_ann();
    for address in ["192.0.2.1", "192.0.2.2"] {
        fails(&mut cluster, address, "ann");
    }
    assert!(lockouts(&mut cluster).is_empty());
    cluster.now += 10;
    fails(&mut cluster, "192.0.2.3", "ann");
    let until_ms = cluster.now + LASTS_MS;
    let lockout =
        Lockout { network: Some("192.0.2.0/24".into()), of_all_users: false, failures: THRESHOLD, until_ms };
    assert_eq!(lockouts(&mut cluster), std::slice::from_ref(&lockout));
    let records = cluster.audit();
    let [.., begun, failed] = records.as_slice() else { panic!() };
    assert_eq!((begun.event.as_str(), begun.target.as_str()), ("user.lockout", "user:ann"));
    assert_eq!(begun.fields["network"], "192.0.2.0/24");
    assert_eq!((failed.event.as_str(), failed.target.as_str()), ("user.login.failed", "user:ann"));

    // The right password is refused like a wrong one, and neither makes it last longer.
    cluster.now += LASTS_MS / 2;
    assert_eq!(right(&mut cluster, "192.0.2.1"), Err(WRONG));
    assert_eq!(cluster.last_audit().fields["reason"], "too many failures");
    fails(&mut cluster, "192.0.2.1", "ann");
    assert_eq!(lockouts(&mut cluster), [lockout]);
    assert!(right(&mut cluster, "198.51.100.1").is_ok());

    cluster.now = until_ms - 1;
    assert_eq!(right(&mut cluster, "192.0.2.1"), Err(WRONG));
    cluster.now = until_ms;
    assert!(lockouts(&mut cluster).is_empty());
    assert!(right(&mut cluster, "192.0.2.1").is_ok());
}

#[test]
fn success_forgets_the_failures_and_so_does_time() {
    let mut cluster = with_ann();
    for _ in 0..5 {
        for _ in 1..THRESHOLD {
            fails(&mut cluster, "192.0.2.1", "ann");
        }
        right(&mut cluster, "192.0.2.1").unwrap();
        for _ in 1..THRESHOLD {
            fails(&mut cluster, "192.0.2.1", "ann");
        }
        cluster.now += LASTS_MS;
    }
    assert!(right(&mut cluster, "192.0.2.1").is_ok());
}

#[test]
fn who_guesses_from_everywhere_shuts_out_those_networks_alone_that_are_not_known() {
    let mut cluster = with_ann();
    right(&mut cluster, "192.0.2.1").unwrap();
    let mut tried = 0;
    for network in 0..100 {
        for _ in 1..THRESHOLD {
            fails(&mut cluster, &format!("198.51.{network}.1"), "ann");
            tried += 1;
        }
        if !lockouts(&mut cluster).is_empty() {
            break;
        }
    }
    assert_eq!(tried, THRESHOLD * STRANGE_FACTOR);
    let until_ms = cluster.now + LASTS_MS;
    assert_eq!(
        lockouts(&mut cluster),
        [Lockout { network: None, of_all_users: false, failures: tried, until_ms }]
    );
    assert_eq!(right(&mut cluster, "203.0.113.1"), Err(WRONG));
    // Ann at home is not kept out, and may mistake herself as anybody may.
    fails(&mut cluster, "192.0.2.9", "ann");
    assert!(right(&mut cluster, "192.0.2.1").is_ok());
    // That she did does not open it for the others.
    assert_eq!(right(&mut cluster, "203.0.113.1"), Err(WRONG));
    cluster.now = until_ms;
    assert!(right(&mut cluster, "203.0.113.1").is_ok());
}

#[test]
fn what_is_remembered_is_bounded_however_many_networks_and_names_are_tried() {
    let mut cluster = with_ann();
    set_threshold(&mut cluster, 1000);
    for number in 0..300_u32 {
        fails(&mut cluster, &format!("2001:db8:{number:x}::1"), "ann");
    }
    let row = cluster.run(|tx| stored(tx, &Whose::User(name("ann")))).unwrap();
    assert_eq!((row.failing.len(), row.strange_failures), (MAX_STRANGE, 300));

    for number in 0..50 {
        cluster.now += 1;
        cluster.admin(|tx, context| clear(tx, context, &name("ann"))).unwrap();
        right(&mut cluster, &format!("10.0.{number}.1")).unwrap();
    }
    let row = cluster.run(|tx| stored(tx, &Whose::User(name("ann")))).unwrap();
    assert_eq!(row.known.len(), MAX_KNOWN);
    assert!(is_known(&row, "10.0.49.0/24") && !is_known(&row, "10.0.33.0/24"));

    for number in 0..3000 {
        fails(&mut cluster, "192.0.2.1", &format!("nobody{number}"));
        fails(&mut cluster, "192.0.2.1", &format!("no name {number}"));
    }
    let rows = cluster.rows(KeyWriter::table(NobodysLoginsKey::TABLE));
    assert!(rows as u64 <= slots::NAME_SLOTS && rows > 900, "{rows}");
    assert_eq!(cluster.rows(KeyWriter::table(LoginsKey::TABLE)), 2);
    // They are gone when there is nothing left to remember.
    cluster.now += LASTS_MS;
    assert_eq!(cluster.rows(KeyWriter::table(NobodysLoginsKey::TABLE)), 0);
    cluster.now += KNOWN_MS;
    assert_eq!(cluster.rows(KeyWriter::table(LoginsKey::TABLE)), 0);
}

#[test]
fn the_bound_of_strangers_follows_from_the_threshold_however_many_networks_they_have() {
    let mut cluster = with_ann();
    set_threshold(&mut cluster, 15);
    right(&mut cluster, "10.0.0.1").unwrap();
    // One network tries in earnest, many others once.
    for _ in 1..15 {
        fails(&mut cluster, "192.0.2.1", "ann");
    }
    for number in 15..150 {
        assert!(lockouts(&mut cluster).is_empty(), "{number}");
        fails(&mut cluster, &format!("2001:db8:{number:x}::1"), "ann");
    }
    // Those that are forgotten to make room are the ones that tried least: this one is not.
    let row = cluster.run(|tx| stored(tx, &Whose::User(name("ann")))).unwrap();
    let kept = row.failing.iter().find(|failing| failing.network == "192.0.2.0/24").unwrap();
    assert_eq!((row.failing.len(), kept.failures), (MAX_STRANGE, 14));
    assert_eq!((row.strange_failures, lockouts(&mut cluster).len()), (149, 0));
    fails(&mut cluster, "203.0.113.9", "ann");
    assert_eq!((lockouts(&mut cluster)[0].network.clone(), lockouts(&mut cluster)[0].failures), (None, 150));
    assert_eq!(right(&mut cluster, "203.0.113.1"), Err(WRONG));
    assert!(right(&mut cluster, "10.0.0.1").is_ok());
}

#[test]
fn a_name_that_is_nobodys_writes_what_a_users_does() {
    let mut cluster = with_ann();
    let mut written = Vec::new();
    for user in ["ann", "nobody", "no name"] {
        for _ in 0..=THRESHOLD {
            let before = (cluster.store.revision(), cluster.audit().len());
            fails(&mut cluster, "192.0.2.1", user);
            let failures =
                cluster.audit()[before.1..].iter().filter(|row| row.event == "user.login.failed").count();
            written.push((cluster.store.revision() - before.0, failures));
        }
    }
    assert!(written.iter().all(|written| *written == (1, 1)), "{written:?}");
    let nobodys = cluster.audit().into_iter().filter(|row| row.target == "user:?").count();
    assert_eq!(nobodys as u32, 2 * (THRESHOLD + 1));
    assert!(cluster.audit().iter().all(|row| !format!("{row:?}").contains("nobody")));
    // It is counted beside the names of its slot, which gives nobody a session.
    assert_eq!(log_in(&mut cluster, "198.51.100.1", "nobody", Some(hash("nobody"))), Err(WRONG));
}

#[test]
fn nobody_clears_the_lockout_of_a_user_who_has_more() {
    let mut cluster = with_ann();
    cluster.add_role("helpdesk", &role_with_rule("users", "*"));
    cluster.add_user("helga", grants(&["helpdesk"]));
    let helga = cluster.log_in("helga");
    let refused = cluster.call(helga, |tx, context| clear(tx, context, &name("boss")));
    assert!(matches!(refused, Err(CoreError::Denied(_))), "{refused:?}");
    cluster.call(helga, |tx, context| clear(tx, context, &name("ann"))).unwrap();
}

#[test]
fn an_admin_sees_and_clears_a_lockout_and_so_does_a_new_password() {
    let mut cluster = with_ann();
    let shut = |cluster: &mut Cluster| {
        for _ in 0..THRESHOLD {
            fails(cluster, "192.0.2.1", "ann");
        }
        assert_eq!(lockouts(cluster).len(), 1);
    };
    shut(&mut cluster);
    cluster.admin(|tx, context| clear(tx, context, &name("ann"))).unwrap();
    let record = cluster.last_audit();
    assert_eq!((record.event.as_str(), record.target.as_str()), ("user.lockout.clear", "user:ann"));
    assert!(right(&mut cluster, "192.0.2.1").is_ok());
    let missing = cluster.admin(|tx, context| clear(tx, context, &name("nobody")));
    assert!(matches!(missing, Err(CoreError::NotFound { .. })));

    shut(&mut cluster);
    cluster
        .admin(|tx, context| user::reset_password(tx, context, &name("ann"), &hash("ann").into()))
        .unwrap();
    assert!(lockouts(&mut cluster).is_empty());
    shut(&mut cluster);
    cluster.admin(|tx, context| user::delete(tx, context, &name("ann"))).unwrap();
    cluster.add_user("ann", grants(&["access"]));
    assert!(lockouts(&mut cluster).is_empty() && right(&mut cluster, "192.0.2.1").is_ok());
}

#[test]
fn a_wrong_old_password_counts_like_a_failed_login() {
    let mut cluster = with_ann();
    let ann = cluster.log_in("ann");
    let wrong = |cluster: &mut Cluster| {
        let refused = cluster.call(ann, |tx, context| crate::login::refuse_old_password::<()>(tx, context));
        refused.unwrap().into_result().unwrap_err()
    };
    let address = anonymous().origin.client_address;
    fails(&mut cluster, &address, "ann");
    for _ in 1..THRESHOLD {
        let refused = wrong(&mut cluster);
        assert!(matches!(refused, CoreError::Invalid { field, .. } if field == "old_password"));
        assert_eq!(cluster.last_audit().event, "user.password.change.failed");
    }
    // What was verified meanwhile is not taken any more, here or at a login.
    let changed =
        cluster.call(ann, |tx, context| user::change_password(tx, context, &hash("ann"), &hash("new")));
    assert!(matches!(changed, Err(CoreError::Precondition(_))), "{changed:?}");
    assert_eq!(right(&mut cluster, &address), Err(WRONG));
    let checked = cluster.call(ann, |tx, context| check(tx, context, &name("ann")));
    assert!(matches!(checked, Err(CoreError::Precondition(_))));
    // A wrong one is answered as the right one was.
    assert_eq!(Err(wrong(&mut cluster)), checked);
    assert_eq!(lockouts(&mut cluster)[0].failures, THRESHOLD);
    // The session goes on.
    assert!(cluster.is_honoured(ann));
    cluster.now += LASTS_MS;
    cluster.call(ann, |tx, context| user::change_password(tx, context, &hash("ann"), &hash("new"))).unwrap();
}

#[test]
fn a_lock_is_no_failure_and_a_threshold_counts_at_once() {
    let mut cluster = with_ann();
    let lock = |tx: &mut store_txn::memory::MemoryTransaction<'_>, context: &Context| {
        let new = crate::lock::NewLock {
            id: crate::names::LockId::from_random([1; 16]),
            target: crate::lock::Target::User(name("ann")),
            message: String::new(),
            ttl: None,
        };
        crate::lock::create(tx, context, new)
    };
    cluster.admin(lock).unwrap();
    for _ in 0..=THRESHOLD {
        assert_eq!(right(&mut cluster, "192.0.2.1"), Err(WRONG));
    }
    let id = crate::names::LockId::from_random([1; 16]);
    cluster.admin(|tx, context| crate::lock::delete(tx, context, &id)).unwrap();
    assert!(right(&mut cluster, "192.0.2.1").is_ok());

    fails(&mut cluster, "192.0.2.1", "ann");
    let lower = |tx: &mut store_txn::memory::MemoryTransaction<'_>, context: &Context| {
        let mut row = cluster_config::get(tx)?.row;
        row.lockout_threshold = Some(1);
        cluster_config::update(tx, context, &row, 0)
    };
    cluster.admin(lower).unwrap();
    assert_eq!(right(&mut cluster, "192.0.2.1"), Err(WRONG));
}
