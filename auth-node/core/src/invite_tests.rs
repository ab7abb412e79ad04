use store_txn::{Key as _, KeyWriter};

use super::*;
use crate::{
    lock::{self, NewLock, Target},
    login::WRONG,
    names::LockId,
    secret::SecretKind,
    tables::{ClusterKey, ClusterRow},
    testing::{Cluster, anonymous, assert_invalid, grants, hash, name, new_session},
    user::{self, NewUser, Proof},
};

const HOUR: UnixMillis = 3_600_000;

fn digest(secret: &str) -> SecretDigest {
    SecretDigest::of(SecretKind::Invite, secret)
}

fn new(secret: &str) -> Proof {
    Proof::Invite(NewInvite::new(digest(secret), None).unwrap())
}

/// A cluster with ann, who was invited with this secret.
fn inviting(secret: &str) -> Cluster {
    let mut cluster = Cluster::new();
    let ann = NewUser { name: name("ann"), grants: grants(&["access"]), proof: new(secret) };
    cluster.admin(|tx, context| user::create(tx, context, &ann)).unwrap();
    cluster
}

fn take(cluster: &mut Cluster, secret: &str, password: &str) -> Result<UserName, CoreError> {
    let accepted = cluster.run(|tx| accept(tx, &anonymous(), digest(secret), Some(&hash(password))));
    accepted.unwrap().into_result()
}

#[track_caller]
fn assert_denied(result: Result<UserName, CoreError>) {
    assert_eq!(result, Err(CoreError::Denied(NOT_ACCEPTED.into())));
}

fn log_in(cluster: &mut Cluster, password: &str) -> bool {
    match cluster.try_log_in(&anonymous(), "ann", Some(hash(password)), new_session(9)) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error, WRONG);
            false
        }
    }
}

#[test]
fn an_invite_sets_a_password_once() {
    let mut cluster = inviting("s3cret");
    let events: Vec<_> = cluster.audit().into_iter().map(|row| row.event).collect();
    assert!(events.ends_with(&["user.create".into(), "user.invite".into()]), "{events:?}");
    let ends = cluster.run(|tx| ends_at(tx, &name("ann"))).unwrap();
    assert_eq!(ends, Some(cluster.now + HOUR));
    // Nobody logs in without a password: there is nothing that one could be verified against.
    assert_eq!(cluster.run(|tx| crate::login::lookup(tx, &name("ann"))), Ok(None));
    let empty = PasswordHash::new(String::new());
    let refused = cluster.try_log_in(&anonymous(), "ann", Some(empty), new_session(9));
    assert_eq!(refused, Err(WRONG));

    assert_eq!(cluster.run(|tx| holder(tx, digest("s3cret"))), Ok(Some(name("ann"))));
    assert_eq!(take(&mut cluster, "s3cret", "first"), Ok(name("ann")));
    let record = cluster.last_audit();
    assert_eq!((record.event.as_str(), record.target.as_str()), ("user.invite.accept", "user:ann"));
    assert!(log_in(&mut cluster, "first"));
    for table in [InviteKey::TABLE, InviteSecretKey::TABLE] {
        assert_eq!(cluster.rows(KeyWriter::table(table)), 0, "{}", table.name);
    }
    assert_denied(take(&mut cluster, "s3cret", "second"));
    assert!(!log_in(&mut cluster, "second") && log_in(&mut cluster, "first"));
    assert!(cluster.audit().iter().all(|record| !format!("{record:?}").contains("s3cret")));
}

#[test]
fn an_unknown_an_expired_and_a_used_invite_are_answered_alike_and_audited() {
    let mut cluster = inviting("s3cret");
    cluster.now += HOUR - 1;
    assert_denied(take(&mut cluster, "guessed", "mine"));
    let record = cluster.last_audit();
    assert_eq!((record.event.as_str(), record.target.as_str()), ("user.invite.denied", "invite"));
    // A secret of another kind is none of an invite.
    let of_session = SecretDigest::of(SecretKind::Session, "s3cret");
    assert_eq!(cluster.run(|tx| holder(tx, of_session)), Ok(None));
    // Nothing was hashed: then there was no such invite when the call began.
    let early = cluster.run(|tx| accept(tx, &anonymous(), digest("s3cret"), None)).unwrap();
    assert_denied(early.into_result());
    cluster.now += 1;
    assert_denied(take(&mut cluster, "s3cret", "mine"));
    assert_eq!(cluster.run(|tx| ends_at(tx, &name("ann"))), Ok(None));
    assert_eq!(cluster.audit().iter().filter(|row| row.event == "user.invite.denied").count(), 3);
    assert!(!log_in(&mut cluster, "mine"));
}

#[test]
fn a_new_invite_or_password_ends_the_one_before() {
    let mut cluster = inviting("first");
    cluster.admin(|tx, context| user::reset_password(tx, context, &name("ann"), &new("second"))).unwrap();
    assert_denied(take(&mut cluster, "first", "mine"));
    cluster
        .admin(|tx, context| user::reset_password(tx, context, &name("ann"), &hash("given").into()))
        .unwrap();
    assert_denied(take(&mut cluster, "second", "mine"));
    assert!(log_in(&mut cluster, "given"));
    assert_eq!(cluster.rows(KeyWriter::table(InviteSecretKey::TABLE)), 0);

    cluster.admin(|tx, context| user::reset_password(tx, context, &name("ann"), &new("third"))).unwrap();
    cluster.admin(|tx, context| user::delete(tx, context, &name("ann"))).unwrap();
    assert_denied(take(&mut cluster, "third", "mine"));
    cluster.add_user("ann", grants(&["access"]));
    assert_denied(take(&mut cluster, "third", "mine"));
}

#[test]
fn an_invite_ends_the_password_and_all_sessions_at_once() {
    let mut cluster = Cluster::new();
    cluster.add_user("ann", grants(&["access"]));
    let session = cluster.log_in("ann");
    let ended = cluster.admin(|tx, context| user::reset_password(tx, context, &name("ann"), &new("s")));
    assert_eq!(ended, Ok(1));
    assert!(!cluster.is_honoured(session) && !log_in(&mut cluster, "ann"));
    take(&mut cluster, "s", "ann").unwrap();
    assert!(!cluster.is_honoured(session) && log_in(&mut cluster, "ann"));
}

#[test]
fn nobody_invites_itself_and_an_invited_admin_is_not_the_last_one() {
    let mut cluster = Cluster::new();
    let own = cluster.admin(|tx, context| user::reset_password(tx, context, &name("boss"), &new("s")));
    assert!(matches!(own, Err(CoreError::Precondition(_))), "{own:?}");
    let second = NewUser { name: name("second"), grants: grants(&["admin"]), proof: new("s") };
    cluster.admin(|tx, context| user::create(tx, context, &second)).unwrap();
    let left = cluster.admin(|tx, context| user::delete(tx, context, &name("boss")));
    assert!(matches!(left, Err(CoreError::Precondition(_))), "{left:?}");
    take(&mut cluster, "s", "second").unwrap();
    cluster.admin(|tx, context| user::delete(tx, context, &name("boss"))).unwrap();
}

#[test]
fn who_is_locked_is_not_let_in_by_an_invite_and_keeps_it() {
    let mut cluster = inviting("s");
    let id = LockId::from_random([1; 16]);
    let new =
        NewLock { id: id.clone(), target: Target::User(name("ann")), message: "away".into(), ttl: None };
    cluster.admin(|tx, context| lock::create(tx, context, new)).unwrap();
    assert_denied(take(&mut cluster, "s", "mine"));
    assert!(cluster.last_audit().fields["reason"].contains("away"));
    cluster.admin(|tx, context| lock::delete(tx, context, &id)).unwrap();
    assert!(take(&mut cluster, "s", "mine").is_ok());
}

#[test]
fn no_invite_of_the_past_counts_in_a_cluster_that_was_restored() {
    let mut cluster = inviting("s");
    let restored = cluster.run(|tx| {
        tx.put(&ClusterKey, &ClusterRow { session_epoch: 2, ..ClusterRow::default() });
        Ok(())
    });
    restored.unwrap();
    assert_eq!(cluster.run(|tx| ends_at(tx, &name("ann"))), Ok(None));
    assert_denied(take(&mut cluster, "s", "mine"));
}

#[test]
fn the_secret_of_an_invite_is_stored_only_as_a_hash() {
    use store_txn::{KeyRange, Read as _};
    let mut cluster = inviting("s3cret-of-ann");
    let everything = KeyRange { start: Vec::new(), end: vec![0xff; 8] };
    let rows = cluster.run(|tx| Ok::<_, CoreError>(tx.scan_raw(&everything, usize::MAX)?)).unwrap();
    let stored: Vec<u8> = rows.into_iter().flat_map(|(key, row)| [key, row.value]).flatten().collect();
    let has = |part: &[u8]| stored.windows(part.len()).any(|window| window == part);
    assert!(!has(b"s3cret-of-ann"));
    assert!(has(&digest("s3cret-of-ann").0), "this is where it would be found");
}

#[test]
fn the_life_of_an_invite_is_bounded() {
    let of = |seconds| NewInvite::new(digest("s"), Some(Duration::from_secs(seconds)));
    for bad in [0, 59, 7 * 24 * 3600 + 1] {
        assert_invalid(of(bad), "invite_ttl");
    }
    for good in [60, 7 * 24 * 3600] {
        assert_eq!(of(good).unwrap().ttl_ms, good * 1000);
    }
}

#[test]
fn an_invite_from_a_network_makes_that_known() {
    let mut cluster = inviting("s");
    take(&mut cluster, "s", "ann").unwrap();
    let tries = cluster.run(|tx| {
        lockout::Tries::load(tx, lockout::Whose::User(name("ann")), &anonymous().origin.client_address)
    });
    assert!(tries.unwrap().is_known());
}
