use store_txn::{ReadExt as _, TransactionExt as _};

use super::*;
use crate::{
    Credential,
    names::DeviceId,
    secret::SecretDigest,
    tables::{CeremonyRow, ClusterConfigKey, RoleOptionsRow, RoleRow, SessionKey},
    testing::{Cluster, grants},
    webauthn::device::NewDevice,
    world::assert_denied,
};

fn configure(cluster: &mut Cluster, second_factor: SecondFactor) {
    cluster
        .run(|tx| {
            let mut row = tx.get(&ClusterConfigKey)?.unwrap().row;
            row.second_factor = second_factor.into();
            row.webauthn_rp_id = "example.com".into();
            tx.put(&ClusterConfigKey, &row);
            Ok(())
        })
        .unwrap();
}

fn checked(cluster: &mut Cluster, session: SecretDigest) -> Result<(), CoreError> {
    cluster.run(|tx| {
        let caller = crate::context::authenticate(tx, &Credential::Session(session))?;
        check(tx, &caller)
    })
}

#[test]
fn the_configuration_asks_everybody_or_whoever_has_a_device_and_a_role_those_who_hold_it() {
    let mut cluster = Cluster::new();
    let strict = RoleOptionsRow { require_mfa: true, ..RoleOptionsRow::default() };
    cluster.add_role("strict", &RoleRow { options: Some(strict), ..RoleRow::default() });
    cluster.add_user("ann", grants(&["access"]));
    cluster.add_user("bob", grants(&["access"]));
    cluster.add_user("eve", grants(&["strict"]));
    let sessions = ["ann", "bob", "eve"].map(|user| cluster.log_in(user));
    configure(&mut cluster, SecondFactor::Off);
    // Bob has none.
    for (session, number) in [(sessions[0], 1), (sessions[2], 3)] {
        let new = NewDevice {
            id: DeviceId::from_random([number; 16]),
            credential_id: vec![number],
            credential: vec![1],
            counter: 0,
        };
        let ceremony = CeremonyRow::default();
        cluster.call(session, |tx, context| device::register(tx, context, &ceremony, "k", &new)).unwrap();
    }
    for (factor, closed) in [
        (SecondFactor::Off, [false, false, false]),
        (SecondFactor::Optional, [true, false, true]),
        (SecondFactor::Webauthn, [true, true, true]),
    ] {
        configure(&mut cluster, factor);
        let found = sessions.map(|session| checked(&mut cluster, session).is_err());
        assert_eq!(found, closed, "{factor:?}");
    }
    assert_denied(checked(&mut cluster, sessions[0]), "log in with your authenticator");
    assert_denied(checked(&mut cluster, sessions[1]), "register one");
    cluster
        .run(|tx| {
            let mut row = tx.get(&SessionKey(sessions[0]))?.unwrap().row;
            row.method = AuthMethod::Webauthn.into();
            tx.put(&SessionKey(sessions[0]), &row);
            Ok(())
        })
        .unwrap();
    checked(&mut cluster, sessions[0]).unwrap();
}
