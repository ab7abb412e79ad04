use super::*;
use crate::{
    lock::{self, NewLock, Target},
    names::LockId,
    secret::{SecretDigest, SecretKind},
    tables::{ClusterConfigKey, ClusterConfigRow, RoleOptionsRow, RoleRow, SecondFactor, SessionKey},
    testing::{Cluster, assert_invalid, grants, name},
    user,
    world::assert_denied,
};

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    configure(&mut cluster, SecondFactor::Off, "example.com");
    cluster.add_user("ann", grants(&["access"]));
    cluster
}

fn configure(cluster: &mut Cluster, second_factor: SecondFactor, id: &str) {
    cluster
        .run(|tx| {
            let mut row = tx.get(&ClusterConfigKey)?.unwrap().row;
            row.second_factor = second_factor.into();
            row.webauthn_rp_id = id.into();
            tx.put::<ClusterConfigKey>(&ClusterConfigKey, &ClusterConfigRow { ..row });
            Ok(())
        })
        .unwrap();
}

fn device(number: u8) -> NewDevice {
    NewDevice {
        id: DeviceId::from_random([number; 16]),
        credential_id: vec![number; 32],
        credential: vec![1],
        counter: 0,
    }
}

/// Has a session be one that was made with a device.
fn strengthen(cluster: &mut Cluster, session: SecretDigest, device: &str) {
    cluster
        .run(|tx| {
            let mut row = tx.get(&SessionKey(session))?.unwrap().row;
            row.method = AuthMethod::Webauthn.into();
            row.device = device.into();
            tx.put(&SessionKey(session), &row);
            Ok(())
        })
        .unwrap();
}

fn add(cluster: &mut Cluster, session: SecretDigest, number: u8) -> Result<DeviceRow, CoreError> {
    let ceremony = CeremonyRow { purpose: Purpose::Passkey.into(), ..CeremonyRow::default() };
    cluster.call(session, |tx, context| register(tx, context, &ceremony, "key", &device(number)))
}

fn remove(cluster: &mut Cluster, session: SecretDigest, number: u8) -> Result<(), CoreError> {
    cluster.call(session, |tx, context| delete(tx, context, &device(number).id))
}

fn listed(cluster: &mut Cluster, session: SecretDigest) -> usize {
    let page = PageRequest::new(0, None);
    cluster.call(session, |tx, context| list(tx, context, &page)).unwrap().items.len()
}

#[test]
fn the_first_device_takes_a_password_and_a_further_one_a_session_with_a_device() {
    let mut cluster = cluster();
    let ann = cluster.log_in("ann");
    add(&mut cluster, ann, 1).unwrap();
    assert_denied(add(&mut cluster, ann, 2), "log in with it first");
    strengthen(&mut cluster, ann, device(1).id.as_str());
    for number in 2..=10 {
        add(&mut cluster, ann, number).unwrap();
    }
    let full = add(&mut cluster, ann, 11);
    assert!(matches!(full, Err(CoreError::Precondition(_))), "{full:?}");
    assert_eq!(listed(&mut cluster, ann), MAX_PER_USER);
    let page = |after| PageRequest { size: 4, after };
    let first = cluster.call(ann, |tx, context| list(tx, context, &page(None))).unwrap();
    let second = cluster.call(ann, |tx, context| list(tx, context, &page(first.next.clone()))).unwrap();
    assert_eq!((first.items.len(), second.items.len()), (4, 4));
    assert!(first.items[3].0 < second.items[0].0);
}

#[test]
fn one_credential_is_of_one_device() {
    let mut cluster = cluster();
    let ann = cluster.log_in("ann");
    let boss = cluster.boss;
    add(&mut cluster, ann, 1).unwrap();
    let taken = add(&mut cluster, boss, 1);
    assert!(matches!(taken, Err(CoreError::AlreadyExists { .. })), "{taken:?}");
    remove(&mut cluster, ann, 1).unwrap();
    add(&mut cluster, boss, 1).unwrap();
    // What is another user's is not there.
    let theirs = remove(&mut cluster, ann, 1);
    assert!(matches!(theirs, Err(CoreError::NotFound { .. })), "{theirs:?}");
    let long = NewDevice { credential_id: vec![1; 1024], ..device(3) };
    let ceremony = CeremonyRow::default();
    assert_invalid(
        cluster.call(ann, |tx, context| register(tx, context, &ceremony, "key", &long)),
        "credential_json",
    );
}

#[test]
fn the_last_device_stays_where_a_second_factor_is_required() {
    let mut cluster = cluster();
    let ann = cluster.log_in("ann");
    add(&mut cluster, ann, 1).unwrap();
    let role = |require_mfa| RoleRow {
        options: Some(RoleOptionsRow { require_mfa, ..RoleOptionsRow::default() }),
        ..RoleRow::default()
    };
    cluster.add_role("strict", &role(true));
    for by_role in [true, false] {
        let roles: &[&str] = if by_role { &["access", "strict"] } else { &["access"] };
        cluster.admin(|tx, context| user::update(tx, context, &name("ann"), 0, &grants(roles))).unwrap();
        let factor = if by_role { SecondFactor::Off } else { SecondFactor::Webauthn };
        configure(&mut cluster, factor, "example.com");
        let weak = cluster.log_in("ann");
        assert_denied(remove(&mut cluster, weak, 1), "log in with one first");
        strengthen(&mut cluster, ann, device(1).id.as_str());
        let last = remove(&mut cluster, ann, 1);
        assert!(matches!(last, Err(CoreError::Precondition(_))), "{last:?}");
        // With another one it is not the last, but if that is locked, or for another relying party.
        add(&mut cluster, ann, 2).unwrap();
        let boss = cluster.boss;
        strengthen(&mut cluster, boss, "");
        let lock = NewLock {
            id: LockId::from_random([1; 16]),
            target: Target::Device(device(2).id),
            message: String::new(),
            ttl: None,
        };
        cluster.admin(|tx, context| lock::create(tx, context, lock.clone())).unwrap();
        assert!(matches!(remove(&mut cluster, ann, 1), Err(CoreError::Precondition(_))));
        assert!(matches!(remove(&mut cluster, ann, 2), Err(CoreError::Locked(_))));
        cluster.admin(|tx, context| lock::delete(tx, context, &LockId::from_random([1; 16]))).unwrap();
        remove(&mut cluster, ann, 2).unwrap();
    }
    for (factor, number) in [(SecondFactor::Optional, 1), (SecondFactor::Off, 3)] {
        configure(&mut cluster, factor, "example.com");
        let weak = cluster.log_in("ann");
        match factor {
            SecondFactor::Optional => {
                assert_denied(remove(&mut cluster, weak, number), "log in with one first");
                remove(&mut cluster, ann, number).unwrap();
            }
            _ => {
                add(&mut cluster, weak, number).unwrap();
                remove(&mut cluster, weak, number).unwrap();
            }
        }
        assert_eq!(listed(&mut cluster, weak), 0);
    }
}

#[test]
fn a_device_that_is_removed_takes_its_sessions_with_it() {
    let mut cluster = cluster();
    let (ann, with_it, own) = (cluster.log_in("ann"), cluster.log_in("ann"), cluster.log_in("ann"));
    add(&mut cluster, ann, 1).unwrap();
    for session in [with_it, own] {
        strengthen(&mut cluster, session, device(1).id.as_str());
    }
    remove(&mut cluster, own, 1).unwrap();
    assert!(cluster.is_honoured(ann) && cluster.is_honoured(own) && !cluster.is_honoured(with_it));
    assert_eq!(cluster.last_audit().fields["sessions_ended"], "1");
}

#[test]
fn a_device_is_for_its_relying_party() {
    let mut cluster = cluster();
    let ann = cluster.log_in("ann");
    add(&mut cluster, ann, 1).unwrap();
    configure(&mut cluster, SecondFactor::Optional, "example.org");
    // It counts for nothing now, so this one is a first one.
    add(&mut cluster, ann, 2).unwrap();
    assert_denied(add(&mut cluster, ann, 3), "log in with it first");
    assert_eq!(cluster.run(|tx| current_of(tx, &name("ann"))).unwrap()[0].0, device(2).id);
}

#[test]
fn an_admin_removes_the_devices_of_who_has_lost_them_and_a_user_that_is_deleted_leaves_none() {
    use store_txn::Key as _;
    let mut cluster = cluster();
    let ann = cluster.log_in("ann");
    add(&mut cluster, ann, 1).unwrap();
    let removed = cluster.admin(|tx, context| user::remove_devices(tx, context, &name("ann")));
    assert_eq!(removed, Ok(1));
    let record = cluster.last_audit();
    assert_eq!(
        (record.event.as_str(), record.fields["devices_removed"].as_str()),
        ("user.device.delete", "1")
    );
    add(&mut cluster, ann, 1).unwrap();
    cluster.admin(|tx, context| user::delete(tx, context, &name("ann"))).unwrap();
    for table in [DeviceKey::TABLE, UserDeviceKey::TABLE, crate::tables::CredentialKey::TABLE] {
        assert_eq!(cluster.rows(store_txn::KeyWriter::table(table)), 0, "{table:?}");
    }
}

#[test]
fn a_registration_is_begun_and_taken_with_one_session() {
    let mut cluster = cluster();
    let (ann, other) = (cluster.log_in("ann"), cluster.log_in("ann"));
    let secret = WebauthnSecret::from_random([1; 32]);
    let new = NewCeremony {
        purpose: Purpose::Passkey,
        digest: SecretDigest::of(SecretKind::WebauthnChallenge, "s"),
        random: 0,
        state: Vec::new(),
        secret: secret.clone(),
    };
    let asked = cluster.call(ann, |tx, context| registrant(tx, context, &secret)).unwrap();
    assert_eq!((asked.user.as_str(), asked.credentials.len()), ("ann", 0));
    for (session, found) in [(other, false), (ann, true)] {
        let begun = cluster.call(ann, |tx, context| begin(tx, context, &new)).unwrap();
        let challenge = ChallengeId::parse(&ChallengeId::text(begun.place, "s"));
        let mut taken =
            |session| cluster.call(session, |tx, context| take(tx, context, challenge.as_ref())).unwrap();
        assert_eq!(taken(session).is_some(), found);
        assert_eq!(taken(ann), None);
    }
}
