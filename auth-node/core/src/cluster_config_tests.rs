use super::*;
use crate::testing::{Cluster, assert_invalid};

fn set(cluster: &mut Cluster, row: &ClusterConfigRow, revision: u64) -> Result<ClusterConfigRow, CoreError> {
    cluster.admin(|tx, context| update(tx, context, row, revision))
}

#[test]
fn what_nobody_has_decided_has_a_default() {
    let settings = Settings::of(&ClusterConfigRow::default());
    assert_eq!(
        settings,
        Settings {
            second_factor: SecondFactor::Off,
            session_ttl_ms: 12 * HOUR,
            session_idle_ms: None,
            session_idle_since_ms: 0,
            session_over_before_ms: 0,
            audit_retention_ms: None,
            audit_max_events: None,
            recording_mode: RecordingMode::BestEffort,
            lockout_threshold: 10,
            lockout_ms: 15 * MINUTE,
        }
    );
}

#[test]
fn a_change_counts_at_once_is_audited_and_needs_the_current_revision() {
    let mut cluster = Cluster::new();
    let before = cluster.run(|tx| get(tx)).unwrap();
    let row = ClusterConfigRow { session_ttl_ms: Some(HOUR), ..before.row.clone() };
    set(&mut cluster, &row, before.revision).unwrap();
    let audited = cluster.last_audit();
    assert_eq!(audited.event, "cluster_config.update");
    assert_eq!(audited.fields.len(), 1);
    assert_eq!(audited.fields["session_ttl_ms"], "1000000 -> 3600000");
    let (_, session) = cluster.log_in_row("boss");
    assert_eq!(session.expires_at_ms, cluster.now + HOUR);
    let stale = set(&mut cluster, &row, before.revision);
    assert!(matches!(stale, Err(CoreError::StaleRevision { .. })), "{stale:?}");
    set(&mut cluster, &row, 0).unwrap();
}

#[test]
fn of_two_who_decide_first_one_is_told_that_the_other_has() {
    let mut cluster = Cluster::new();
    cluster
        .run(|tx| {
            tx.delete(&ClusterConfigKey);
            Ok(())
        })
        .unwrap();
    let seen = cluster.run(|tx| get(tx)).unwrap();
    assert_eq!((seen.revision, &seen.row), (UNDECIDED, &ClusterConfigRow::default()));
    let threshold = ClusterConfigRow { lockout_threshold: Some(3), ..seen.row.clone() };
    set(&mut cluster, &threshold, seen.revision).unwrap();
    let ttl = ClusterConfigRow { session_ttl_ms: Some(HOUR), ..seen.row };
    let stale = set(&mut cluster, &ttl, seen.revision);
    assert!(matches!(stale, Err(CoreError::StaleRevision { .. })), "{stale:?}");
    assert_eq!(cluster.run(|tx| settings(tx)).unwrap().lockout_threshold, 3);
}

#[test]
fn every_recording_mode_can_be_set_and_none_is_best_effort() {
    let mut cluster = Cluster::new();
    let mode = |cluster: &mut Cluster| cluster.run(|tx| settings(tx)).unwrap().recording_mode;
    assert_eq!(mode(&mut cluster), RecordingMode::BestEffort);
    for wanted in [RecordingMode::Strict, RecordingMode::Off, RecordingMode::BestEffort] {
        let row = ClusterConfigRow { recording_mode: wanted.into(), ..Default::default() };
        set(&mut cluster, &row, 0).unwrap();
        assert_eq!(mode(&mut cluster), wanted);
    }
}

#[test]
fn every_bound_is_kept_and_names_its_field() {
    let mut cluster = Cluster::new();
    let default = ClusterConfigRow::default;
    let bad = [
        ("session_ttl", ClusterConfigRow { session_ttl_ms: Some(MINUTE - 1), ..default() }),
        ("session_ttl", ClusterConfigRow { session_ttl_ms: Some(30 * DAY + 1), ..default() }),
        ("session_idle_timeout", ClusterConfigRow { session_idle_timeout_ms: Some(0), ..default() }),
        ("audit_retention", ClusterConfigRow { audit_retention_ms: Some(DAY - 1), ..default() }),
        ("audit_max_events", ClusterConfigRow { audit_max_events: Some(999), ..default() }),
        ("lockout_threshold", ClusterConfigRow { lockout_threshold: Some(1001), ..default() }),
        ("lockout_duration", ClusterConfigRow { lockout_duration_ms: Some(DAY + 1), ..default() }),
        ("second_factor", ClusterConfigRow { second_factor: 99, ..default() }),
        ("second_factor", ClusterConfigRow { second_factor: SecondFactor::Optional.into(), ..default() }),
        ("webauthn_rp_id", ClusterConfigRow { webauthn_rp_id: "192.0.2.1".into(), ..default() }),
        ("webauthn_rp_id", ClusterConfigRow { webauthn_rp_id: "Example.com".into(), ..default() }),
        (
            "webauthn_rp_id",
            ClusterConfigRow { webauthn_origins: vec!["https://a.example".into()], ..default() },
        ),
        ("recording_mode", ClusterConfigRow { recording_mode: -1, ..default() }),
    ];
    for (field, row) in bad {
        assert_invalid(set(&mut cluster, &row, 0), &format!("config.{field}"));
    }
}

#[test]
fn origins_are_of_the_relying_party() {
    let mut cluster = Cluster::new();
    let row = |origins: &[&str]| ClusterConfigRow {
        webauthn_rp_id: "example.com".into(),
        webauthn_origins: origins.iter().map(|&origin| origin.to_owned()).collect(),
        ..ClusterConfigRow::default()
    };
    for good in [&[][..], &["https://example.com", "https://a.b.example.com:8443"]] {
        set(&mut cluster, &row(good), 0).unwrap();
    }
    for bad in [
        "http://example.com",
        "https://example.org",
        "https://badexample.com",
        "https://example.com/login",
        "https://example.com/",
        "https://example.com?x",
        "https://.example.com",
        "https://[::1]:1",
        "https://example.com.evil.org",
        "",
    ] {
        assert_invalid(set(&mut cluster, &row(&[bad]), 0), "config.webauthn_origins");
    }
    assert_invalid(set(&mut cluster, &row(&["https://example.com"; 9]), 0), "config.webauthn_origins");
}

#[test]
fn a_second_factor_is_required_of_everybody_only_by_who_has_one_and_then_its_relying_party_stays() {
    let mut cluster = Cluster::new();
    let row = |second_factor: SecondFactor, id: &str| ClusterConfigRow {
        second_factor: second_factor.into(),
        webauthn_rp_id: id.into(),
        ..ClusterConfigRow::default()
    };
    set(&mut cluster, &row(SecondFactor::Optional, "example.com"), 0).unwrap();
    let refused = set(&mut cluster, &row(SecondFactor::Webauthn, "example.com"), 0);
    assert!(
        matches!(&refused, Err(CoreError::Precondition(why)) if why.contains("README.md")),
        "{refused:?}"
    );
    let boss = cluster.boss;
    for (relying_party, good) in [("example.org", false), ("example.com", true)] {
        cluster
            .run(|tx| {
                let key = crate::tables::SessionKey(boss);
                let id = DeviceId::from_random([1; 16]);
                let mut session = tx.get(&key)?.unwrap().row;
                session.method = crate::tables::AuthMethod::Webauthn.into();
                session.device = id.to_string();
                tx.put(&key, &session);
                let relying_party = relying_party.to_owned();
                let device = crate::tables::DeviceRow { relying_party, ..Default::default() };
                tx.put(&DeviceKey(id), &device);
                Ok(())
            })
            .unwrap();
        let set = set(&mut cluster, &row(SecondFactor::Webauthn, "example.com"), 0);
        assert_eq!(set.is_ok(), good, "{set:?}");
    }
    assert_eq!(cluster.last_audit().fields["second_factor"], "Optional -> Webauthn");
    let refused = set(&mut cluster, &row(SecondFactor::Webauthn, "example.org"), 0);
    assert!(matches!(refused, Err(CoreError::Precondition(_))), "{refused:?}");
    set(&mut cluster, &row(SecondFactor::Optional, "example.org"), 0).unwrap();
    assert_eq!(cluster.last_audit().fields["webauthn_rp_id"], "example.com -> example.org");
}
