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
    let (row, _) = cluster.run(|tx| lookup(tx, &name("ann"))).unwrap().unwrap();
    let new = new_session(7);
    let verified = PasswordHash::new(row.password_hash);
    let session = cluster.run(|tx| complete(tx, &anonymous(), &name("ann"), &verified, &new)).unwrap();
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
    cluster.admin(|tx, context| user::reset_password(tx, context, &name("ann"), &hash("new"))).unwrap();
    let records = cluster.audit().len();
    for (user, verified) in
        [("ann", hash("ann")), ("nobody", hash("nobody")), ("nobody", PasswordHash::new(String::new()))]
    {
        let new = new_session(7);
        let refused = cluster.run(|tx| complete(tx, &anonymous(), &name(user), &verified, &new));
        assert_eq!(refused, Err(WRONG));
        assert!(!cluster.is_honoured(new.digest));
    }
    assert_eq!(cluster.audit().len(), records);
    let new = new_session(7);
    assert!(cluster.run(|tx| complete(tx, &anonymous(), &name("ann"), &hash("new"), &new)).is_ok());
}
