use super::*;
use crate::{
    Credential,
    context::authenticate,
    testing::{Cluster, anonymous, grants, hash, name, new_session},
    user::{self, Grants},
};

#[test]
fn a_login_makes_a_session_and_a_record_of_who_it_is() {
    let mut cluster = Cluster::new();
    cluster.add_user("ann", grants(&["access"]));
    let verified = cluster.run(|tx| lookup(tx, &name("ann"))).unwrap().unwrap();
    let new = new_session(7);
    let session = cluster.try_log_in(&anonymous(), "ann", Some(verified), new.clone()).unwrap();
    assert_eq!((session.user.as_str(), session.handle.as_str()), ("ann", new.handle.as_str()));

    let record = cluster.last_audit();
    assert_eq!((record.event.as_str(), record.actor.as_str()), ("user.login", "user:ann"));
    assert_eq!(record.target, format!("session:{}", new.handle));
    assert_eq!(record.client_address, "192.0.2.9");
    let caller = cluster.run(|tx| authenticate(tx, &Credential::Session(new.digest))).unwrap();
    assert_eq!(caller.user().unwrap().handle(), Some(new.handle));
}

#[test]
fn unknown_users_are_not_looked_up_into_an_error() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.run(|tx| lookup(tx, &name("nobody"))), Ok(None));
}

#[test]
fn an_unknown_user_and_a_changed_password_get_the_same_answer_and_no_session() {
    let mut cluster = Cluster::new();
    cluster.add_user("ann", Grants::default());
    cluster
        .admin(|tx, context| user::reset_password(tx, context, &name("ann"), &hash("new").into()))
        .unwrap();
    for (user, verified) in [
        ("ann", Some(hash("ann"))),
        ("ann", None),
        ("nobody", Some(hash("nobody"))),
        ("nobody", Some(PasswordHash::new(String::new()))),
        ("not a name", None),
    ] {
        let new = new_session(7);
        let refused = cluster.try_log_in(&anonymous(), user, verified, new.clone());
        assert_eq!(refused, Err(WRONG));
        assert!(!cluster.is_honoured(new.digest));
        assert_eq!(cluster.last_audit().event, "user.login.failed");
    }
    let new = new_session(7);
    assert!(cluster.try_log_in(&anonymous(), "ann", Some(hash("new")), new).is_ok());
}
