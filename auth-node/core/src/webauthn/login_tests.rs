use super::*;
use crate::{
    login::{self, Attempt, Given, WRONG},
    secret::{SecretDigest, SecretKind},
    tables::{CeremonyKey, ClusterConfigKey},
    testing::{Cluster, anonymous, grants, hash, name, new_session},
    webauthn::device::NewDevice,
};

fn id(number: u8) -> DeviceId {
    DeviceId::from_random([number; 16])
}

/// A cluster with a user `ann` who has a device, and one `bob` who has none.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster
        .run(|tx| {
            let mut row = tx.get(&ClusterConfigKey)?.unwrap().row;
            row.webauthn_rp_id = "example.com".into();
            row.lockout_threshold = Some(3);
            tx.put(&ClusterConfigKey, &row);
            Ok(())
        })
        .unwrap();
    for user in ["ann", "bob"] {
        cluster.add_user(user, grants(&["access"]));
    }
    let ann = cluster.log_in("ann");
    let new = NewDevice { id: id(1), credential_id: vec![1; 32], credential: vec![1], counter: 5 };
    let ceremony = CeremonyRow { purpose: Purpose::Passkey.into(), ..CeremonyRow::default() };
    cluster.call(ann, |tx, context| device::register(tx, context, &ceremony, "key", &new)).unwrap();
    cluster
}

fn secret() -> WebauthnSecret {
    WebauthnSecret::from_random([1; 32])
}

fn new(purpose: Purpose) -> NewCeremony {
    let digest = SecretDigest::of(SecretKind::WebauthnChallenge, "s");
    NewCeremony { purpose, digest, random: 0, state: vec![9], secret: secret() }
}

fn named(text: &str) -> Asked {
    Asked::Named { name: UserName::parse("", text).ok(), given: text.to_owned() }
}

fn begun(cluster: &mut Cluster, asked: &Asked) -> BegunLogin {
    cluster.run(|tx| begin(tx, &anonymous(), asked, &new(Purpose::Login))).unwrap()
}

fn taken(cluster: &mut Cluster, place: u64, purpose: Purpose, credential: u8) -> Option<Taken> {
    let challenge = ChallengeId::parse(&ChallengeId::text(place, "s"));
    cluster.run(|tx| take(tx, challenge.as_ref(), purpose, &[credential; 32], &secret())).unwrap()
}

fn conclude_with(
    cluster: &mut Cluster,
    taken: Taken,
    verified: Result<u32, String>,
) -> Result<SessionRow, CoreError> {
    let assertion = Assertion {
        ceremony: Some(taken.ceremony),
        device: taken.device.map(|(id, _)| id),
        verified,
        slot_secret: SlotSecret::from_random([7; 32]),
        new: new_session(500),
    };
    cluster.run(|tx| conclude(tx, &anonymous(), &assertion))?.into_result()
}

fn log_in(
    cluster: &mut Cluster,
    asked: &Asked,
    verified: Result<u32, String>,
) -> Result<SessionRow, CoreError> {
    let begun = begun(cluster, asked);
    let taken = taken(cluster, begun.place, Purpose::Login, 1).unwrap();
    conclude_with(cluster, taken, verified)
}

#[test]
fn the_counter_is_compared_and_set_where_the_session_is_made() {
    let mut cluster = cluster();
    let session = log_in(&mut cluster, &named("ann"), Ok(6)).unwrap();
    assert_eq!(
        (session.user.as_str(), session.method(), session.device),
        ("ann", AuthMethod::Webauthn, id(1).into())
    );
    for stale in [6, 0] {
        assert_eq!(log_in(&mut cluster, &named("ann"), Ok(stale)), Err(REFUSED));
        let audit = cluster.audit();
        let [.., suspect, failed] = audit.as_slice() else { panic!() };
        assert_eq!(
            (suspect.event.as_str(), suspect.fields["counter_before"].as_str()),
            ("user.device.suspect", "6")
        );
        assert!(failed.event == "user.login.failed" && failed.fields["reason"].contains("did not rise"));
    }
    let counter = cluster.run(|tx| Ok(tx.get(&DeviceKey(id(1)))?.unwrap().row.counter));
    assert_eq!(counter, Ok(6), "what is refused changes nothing");
}

#[test]
fn an_authenticator_without_a_counter_is_taken() {
    let mut cluster = cluster();
    cluster
        .run(|tx| {
            let mut row = tx.get(&DeviceKey(id(1)))?.unwrap().row;
            row.counter = 0;
            tx.put(&DeviceKey(id(1)), &row);
            Ok(())
        })
        .unwrap();
    for _ in 0..2 {
        log_in(&mut cluster, &named("ann"), Ok(0)).unwrap();
    }
    let used = cluster.run(|tx| Ok(tx.get(&DeviceKey(id(1)))?.unwrap().row.last_used_at_ms));
    assert_eq!(used, Ok(cluster.now));
}

#[test]
fn whoever_is_asked_for_there_are_credentials_and_a_row_and_of_a_device_those_of_its_user_alone() {
    let mut cluster = cluster();
    assert_eq!(begun(&mut cluster, &named("ann")).credentials, [vec![1; 32]]);
    for other in ["bob", "nobody", "no name"] {
        let asked = begun(&mut cluster, &named(other));
        assert!(!asked.credentials.is_empty());
        assert_eq!(asked.credentials, begun(&mut cluster, &named(other)).credentials);
        assert!(cluster.run(|tx| Ok(tx.get(&CeremonyKey(asked.place))?.is_some())).unwrap());
        let taken = taken(&mut cluster, asked.place, Purpose::Login, 1).unwrap();
        assert_eq!(taken.device, None);
        // Even if it were verified.
        assert_eq!(conclude_with(&mut cluster, taken, Ok(100)), Err(REFUSED));
    }
    let asked = begun(&mut cluster, &Asked::Anybody);
    assert!(asked.credentials.is_empty());
    let taken = taken(&mut cluster, asked.place, Purpose::Login, 1).unwrap();
    assert_eq!(conclude_with(&mut cluster, taken, Ok(100)).unwrap().user, "ann");
}

#[test]
fn what_is_typed_is_nowhere_in_the_state() {
    let mut cluster = cluster();
    let asked = begun(&mut cluster, &named("hunter2"));
    let row = cluster.run(|tx| Ok(tx.get(&CeremonyKey(asked.place))?.unwrap().row)).unwrap();
    assert!(row.user.is_empty() && row.typed.len() == 32);
}

#[test]
fn failures_count_for_the_user_and_shut_out_what_would_be_good() {
    let mut cluster = cluster();
    for _ in 0..3 {
        assert_eq!(log_in(&mut cluster, &named("ann"), Err("wrong".into())), Err(REFUSED));
    }
    assert_eq!(log_in(&mut cluster, &named("ann"), Ok(100)), Err(REFUSED));
    assert_eq!(cluster.last_audit().fields["reason"], "too many failures");
    assert_eq!(cluster.run(|tx| lockout::of(tx, &name("ann"))).unwrap().len(), 1);
    let counter = cluster.run(|tx| Ok(tx.get(&DeviceKey(id(1)))?.unwrap().row.counter));
    assert_eq!(counter, Ok(5));
}

#[test]
fn what_is_gone_meanwhile_logs_nobody_in() {
    let mut cluster = cluster();
    let begun = begun(&mut cluster, &named("ann"));
    let taken = taken(&mut cluster, begun.place, Purpose::Login, 1).unwrap();
    cluster.run(|tx| device::forget_all_of(tx, &name("ann"))).unwrap();
    assert_eq!(conclude_with(&mut cluster, taken, Ok(100)), Err(REFUSED));
    assert_eq!(cluster.last_audit().fields["reason"], "the device or its user is gone");
}

#[test]
fn a_step_up_takes_the_password_that_was_verified_and_a_device() {
    let mut cluster = cluster();
    let step_up = |cluster: &mut Cluster, user: &str, password: &str| {
        let attempt = Attempt {
            name: UserName::parse("", user).ok(),
            typed: TypedName::of(user),
            slot_secret: SlotSecret::from_random([7; 32]),
            verified: Some(hash(password)),
            new: new_session(9),
        };
        let ceremony = new(Purpose::StepUp);
        cluster
            .run(|tx| login::conclude_or_step_up(tx, &anonymous(), &attempt, Some(&ceremony)))
            .unwrap()
            .into_result()
    };
    let asked = |given: Result<Given, CoreError>| match given {
        Ok(Given::StepUp(begun)) => begun,
        other => panic!("{other:?}"),
    };
    // Who has no device has a session at once.
    assert!(
        matches!(step_up(&mut cluster, "bob", "bob"), Ok(Given::Session(session)) if session.user == "bob")
    );
    assert_eq!(step_up(&mut cluster, "ann", "other"), Err(WRONG));
    assert_eq!(step_up(&mut cluster, "nobody", "other"), Err(WRONG));
    let begun = asked(step_up(&mut cluster, "ann", "ann"));
    assert_eq!(begun.credentials, [vec![1; 32]]);
    assert_eq!(
        taken(&mut cluster, begun.place, Purpose::Login, 1),
        None,
        "it is none for a login without a password"
    );
    let begun = asked(step_up(&mut cluster, "ann", "ann"));
    let taken = taken(&mut cluster, begun.place, Purpose::StepUp, 1).unwrap();
    assert_eq!(conclude_with(&mut cluster, taken, Ok(6)).unwrap().method(), AuthMethod::Webauthn);
}
