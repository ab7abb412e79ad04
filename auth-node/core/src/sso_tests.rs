use super::{testing::*, *};
use crate::{
    tables::{ClusterKey, SamlRow},
    testing::{Cluster, anonymous, assert_invalid},
};

fn begin_at(cluster: &mut Cluster, connector: &str, program: Option<Program>) -> u64 {
    let connector = connector_name(connector);
    cluster
        .run(|tx| {
            let revision = way(tx, &connector)?.revision;
            let new = NewLogin {
                state: SecretDigest::of(SecretKind::SsoState, "state"),
                browser: SecretDigest::of(SecretKind::SsoBrowser, "browser"),
                random: 1,
                connector: connector.clone(),
                revision,
                program: program.clone(),
                secret: WebauthnSecret::from_random([1; 32]),
            };
            begin(tx, &anonymous(), &new)
        })
        .unwrap()
}

fn take_with(cluster: &mut Cluster, state: &str, browser: &str, connector: &str) -> Taken {
    let state = State::parse(state).map(|(state, _)| state);
    let browser = Some(SecretDigest::of(SecretKind::SsoBrowser, browser));
    cluster.run(|tx| take(tx, state, browser, &connector_name(connector))).unwrap()
}

#[test]
fn a_login_is_taken_once_by_the_browser_and_at_the_connector_that_it_began_with() {
    let mut cluster = cluster();
    let place = begin_at(&mut cluster, "corp", None);
    let state = State::text(place, "state");
    // What is guessed takes nothing.
    for wrong in ["", "state", "1.state", &State::text(place, "other"), &State::text(place + 1, "state")] {
        assert!(take_with(&mut cluster, wrong, "browser", "corp").way.is_err(), "{wrong}");
    }
    let taken = take_with(&mut cluster, &state, "browser", "corp");
    assert_eq!((taken.way.unwrap().name.as_str(), taken.program), ("corp", None));
    assert_eq!(
        take_with(&mut cluster, &state, "browser", "corp").way,
        Err("the state is unknown, used, or past its end")
    );

    // Another browser, or connector, uses it up.
    add(&mut cluster, "other", oidc(), vec![]);
    let taken_by = |cluster: &mut Cluster, browser: &str, connector: &str| {
        let place = begin_at(cluster, "corp", Some(program()));
        let taken = take_with(cluster, &State::text(place, "state"), browser, connector);
        assert_eq!(cluster.rows(store_txn::KeyWriter::table(<SsoLoginKey as store_txn::Key>::TABLE)), 0);
        (taken.way.is_ok(), taken.program)
    };
    assert_eq!(taken_by(&mut cluster, "another", "corp"), (false, None));
    assert_eq!(taken_by(&mut cluster, "browser", "other"), (false, Some(program())));
    assert_eq!(taken_by(&mut cluster, "browser", "corp"), (true, Some(program())));
    let place = begin_at(&mut cluster, "corp", None);
    let state = State::parse(&State::text(place, "state")).map(|(state, _)| state);
    let none = cluster.run(|tx| take(tx, state, None, &connector_name("corp"))).unwrap();
    assert_eq!(none.way, Err("it was begun by another browser"));
}

#[test]
fn a_login_ends_with_its_time_its_connector_and_its_cluster() {
    let mut cluster = cluster();
    let taken = |cluster: &mut Cluster, place| {
        take_with(cluster, &State::text(place, "state"), "browser", "corp").way.map(drop)
    };
    let place = begin_at(&mut cluster, "corp", None);
    let delete = |cluster: &mut Cluster| {
        cluster.admin(|tx, context| connector::delete(tx, context, &connector_name("corp"))).unwrap();
    };
    delete(&mut cluster);
    assert_eq!(taken(&mut cluster, place), Err("the connector was removed meanwhile"));
    add(&mut cluster, "corp", oidc(), vec![]);
    let place = begin_at(&mut cluster, "corp", None);
    delete(&mut cluster);
    add(&mut cluster, "corp", oidc(), vec![]);
    assert_eq!(taken(&mut cluster, place), Err("the connector was changed meanwhile"));
    let place = begin_at(&mut cluster, "corp", None);
    cluster
        .run(|tx| {
            let mut row = tx.get(&ClusterKey)?.unwrap().row;
            row.session_epoch += 1;
            tx.put(&ClusterKey, &row);
            Ok(())
        })
        .unwrap();
    assert_eq!(taken(&mut cluster, place), Err("it was begun before the cluster was restored"));

    let place = begin_at(&mut cluster, "corp", None);
    cluster.now += LIFE_MS - 1;
    taken(&mut cluster, place).unwrap();
    let place = begin_at(&mut cluster, "corp", None);
    cluster.now += LIFE_MS;
    assert_eq!(taken(&mut cluster, place), Err("the state is unknown, used, or past its end"));
}

#[test]
fn nobody_logs_in_by_saml_and_a_program_is_found_at_a_port_and_path_alone() {
    let mut cluster = cluster();
    let saml = SamlRow { entity_id: "e".into(), sso_url: "https://a.example".into(), certificates: vec![] };
    let row = ConnectorRow { provider: Some(ProviderRow::Saml(saml)), ..ConnectorRow::default() };
    let key = crate::tables::ConnectorKey(connector_name("old"));
    cluster
        .run(|tx| {
            tx.put(&key, &row);
            Ok(())
        })
        .unwrap();
    let refused = cluster.run(|tx| way(tx, &connector_name("old"))).unwrap_err();
    assert!(matches!(&refused, CoreError::Precondition(reason) if reason.contains("SAML")), "{refused:?}");
    let none = cluster.run(|tx| way(tx, &connector_name("none"))).unwrap_err();
    assert!(matches!(none, CoreError::NotFound { .. }));

    let path = "0123456789abcdef";
    assert_invalid(Program::new(vec![0; 31], 1, path.into()), "challenge");
    for port in [0, 65_536] {
        assert_invalid(Program::new(vec![0; 32], port, path.into()), "port");
    }
    for wrong in
        ["", "0123456789abcde", "0123456789ABCDEF", "../../0123456789", "a@evil.example/#0", &"0".repeat(65)]
    {
        assert_invalid(Program::new(vec![0; 32], 1, wrong.into()), "path");
    }
}

#[test]
fn refusals_are_told_apart_by_what_is_answered() {
    for refusal in Refusal::ALL {
        assert_eq!(Refusal::of(&refusal.answer()), Some(refusal));
    }
    assert_eq!(Refusal::of(&crate::login::WRONG), None);
}
