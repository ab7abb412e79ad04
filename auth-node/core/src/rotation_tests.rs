use super::*;
use crate::{
    revocation, trust,
    world::{Host, World, new_token, report},
};

const TTL: PresenceTtl = PresenceTtl(Duration::from_secs(60));
const PHASES: [RotationPhase; 5] = [Standby, Init, UpdateClients, UpdateServers, Rollback];

fn new_key(kind: CaKind) -> NewCa {
    NewCa { kind, public: "new".into(), sealed_private: vec![1] }
}

fn to(kind: CaKind, target: RotationPhase) -> Step {
    Step { kind, target, grace: None, force: false, revision: 0 }
}

impl World {
    fn rotation(&mut self, kind: CaKind) -> Rotation {
        self.run(|tx, _| get(tx, kind)).unwrap()
    }

    fn obstacles(&mut self, kind: CaKind, members: &[u64]) -> Obstacles {
        let rotation = self.rotation(kind);
        self.run(|tx, _| Obstacles::of(tx, &rotation, members, TTL)).unwrap()
    }

    /// As the service does it: looks first, then takes the step.
    fn rotate(&mut self, step: &Step) -> Result<Rotation, CoreError> {
        let seen = (self.rotation(step.kind), self.obstacles(step.kind, &[]));
        self.run(|tx, context| super::step(tx, context, step, (&seen.0, &seen.1), Some(new_key(step.kind))))
    }

    /// Public sides: of the key that signs for servers, of the one that signs for clients, and of all.
    fn keys(&mut self, kind: CaKind) -> (String, String, Vec<String>) {
        self.run(|tx, _| {
            let (servers, clients) = (ca::active(tx, kind)?, ca::for_clients(tx, kind)?);
            let all = trust::bundle(tx)?.keys(kind).to_vec();
            Ok((servers.key.public, clients.key.public, all))
        })
        .unwrap()
    }

    /// An agent takes up what the trust bundle says now.
    fn follow(&mut self, host: &Host) {
        let revision = self.run(|tx, _| trust::revision(tx)).unwrap();
        self.beat(host, &report("web1:22", &[]).following(revision)).unwrap();
    }

    fn note(&mut self, serial: u64, expires_at_ms: UnixMillis, kind: TargetKind) {
        let issued = IssuedRow { kind: kind.into(), expires_at_ms, ..IssuedRow::default() };
        self.run(|tx, _| {
            revocation::note(tx, serial, &issued);
            Ok(())
        })
        .unwrap();
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, CoreError>, says: &str) {
    match result {
        Err(CoreError::Precondition(reason)) if reason.contains(says) => {}
        other => panic!("expected a refusal that says {says:?}, got {other:?}"),
    }
}

#[test]
fn every_phase_signs_with_the_right_key_and_trusts_both() {
    for kind in CaKind::ALL {
        let mut world = World::new();
        let (old, _, _) = world.keys(kind);
        let new = "new".to_owned();
        let expected = [
            (Init, &old, &old, vec![&old, &new]),
            (UpdateClients, &old, &new, vec![&old, &new]),
            (UpdateServers, &new, &new, vec![&new, &old]),
            (Standby, &new, &new, vec![&new]),
        ];
        let mut revision = world.run(|tx, _| trust::revision(tx)).unwrap();
        for (phase, servers, clients, all) in expected {
            let answered = world.rotate(&to(kind, phase)).unwrap();
            assert_eq!((answered.phase, world.rotation(kind).phase), (phase, phase));
            let all: Vec<_> = all.into_iter().cloned().collect();
            assert_eq!(world.keys(kind), (servers.clone(), clients.clone(), all), "{kind:?} {phase:?}");
            let after = world.run(|tx, _| trust::revision(tx)).unwrap();
            assert!(after > revision, "whoever follows the bundle hears of each step");
            revision = after;
        }
        let events = world.events(0);
        assert_eq!(events.iter().filter(|event| *event == "ca.rotate").count(), 4);
    }
}

#[test]
fn a_rollback_from_any_phase_leaves_what_there_was() {
    let forward = [Init, UpdateClients, UpdateServers];
    for reached in 1..=forward.len() {
        let mut world = World::new();
        let before = world.keys(CaKind::Host);
        for phase in &forward[..reached] {
            world.rotate(&to(CaKind::Host, *phase)).unwrap();
        }
        world.rotate(&to(CaKind::Host, Rollback)).unwrap();
        let (servers, clients, all) = world.keys(CaKind::Host);
        assert_eq!((&servers, &clients), (&before.0, &before.0));
        assert_eq!(all, [before.0.clone(), "new".into()], "what the new key has signed is still trusted");
        world.rotate(&to(CaKind::Host, Standby)).unwrap();
        assert_eq!(world.keys(CaKind::Host), before);
        assert_eq!(world.rotation(CaKind::Host).phase_started_at_ms, None);
        world.rotate(&to(CaKind::Host, Init)).unwrap();
    }
}

/// The table, written out once more.
#[test]
fn no_other_move_is_possible() {
    let allowed = |from, to| match from {
        Standby => to == Init,
        Init => to == UpdateClients || to == Rollback,
        UpdateClients => to == UpdateServers || to == Rollback,
        UpdateServers => to == Standby || to == Rollback,
        Rollback => to == Standby,
    };
    let ways: [&[RotationPhase]; 5] =
        [&[], &[Init], &[Init, UpdateClients], &[Init, UpdateClients, UpdateServers], &[Init, Rollback]];
    for (from, way) in PHASES.into_iter().zip(ways) {
        for target in PHASES {
            let mut world = World::new();
            for phase in way {
                world.rotate(&to(CaKind::User, *phase)).unwrap();
            }
            let keys = world.keys(CaKind::User);
            // Force does not make another way.
            let step = Step { force: true, ..to(CaKind::User, target) };
            let result = world.rotate(&step);
            assert_eq!(result.is_ok(), allowed(from, target), "{from:?} {target:?}");
            if result.is_err() {
                refused(result, "from there it goes to");
                assert_eq!((world.keys(CaKind::User), world.rotation(CaKind::User).phase), (keys, from));
            }
        }
    }
}

#[test]
fn live_agents_that_lag_hold_it_up_and_absent_ones_do_not() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ssh, "web1", &[]);
    let ingest = world.joined(NodeKind::Ingest, "in1", &[]);
    for kind in [CaKind::User, CaKind::Host, CaKind::Tls] {
        world.follow(&host);
        world.follow(&ingest);
        world.rotate(&to(kind, Init)).unwrap();
        refused(world.rotate(&to(kind, UpdateClients)), &format!("agent:{}", host.id()));
        world.follow(&host);
        // Ingests trust no user and show no host certificate.
        if kind == CaKind::Tls {
            refused(world.rotate(&to(kind, UpdateClients)), &format!("ingest:{}", ingest.id()));
            world.follow(&ingest);
        }
        assert_eq!(world.obstacles(kind, &[]), Obstacles::default());
        world.rotate(&to(kind, UpdateClients)).unwrap();
        // What it followed was the phase before.
        refused(world.rotate(&to(kind, UpdateServers)), "have not taken this phase up");
        // The way back is open whoever lags.
        world.rotate(&to(kind, Rollback)).unwrap();
        refused(world.rotate(&to(kind, Standby)), "have not taken this phase up");
        let force = Step { force: true, ..to(kind, Standby) };
        world.rotate(&force).unwrap();
    }
    world.rotate(&to(CaKind::Host, Init)).unwrap();
    world.now += 61_000;
    let obstacles = world.obstacles(CaKind::Host, &[]);
    assert_eq!((obstacles.lagging, obstacles.absent), (0, 1));
    world.rotate(&to(CaKind::Host, UpdateClients)).unwrap();
}

#[test]
fn absent_agents_hold_it_up_as_long_as_an_outage_may_have_kept_them_from_reporting() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ssh, "web1", &[]);
    let try_step = |world: &mut World, target, force, settling| {
        let step = Step { force, ..to(CaKind::Host, target) };
        let seen = (world.rotation(step.kind), world.obstacles(step.kind, &[]).settling(settling));
        world.run(|tx, context| super::step(tx, context, &step, (&seen.0, &seen.1), Some(new_key(step.kind))))
    };
    let left = Duration::from_millis(29_001);
    // Nobody is absent that there is something to follow for.
    world.now += 61_000;
    try_step(&mut world, Init, false, left).unwrap();
    refused(try_step(&mut world, UpdateClients, false, left), "they have 30 s left to report");
    // It reports: then it is known that it lags, and then that it does not.
    world.beat(&host, &report("web1:22", &[])).unwrap();
    refused(try_step(&mut world, UpdateClients, false, left), &format!("agent:{}", host.id()));
    world.follow(&host);
    world.now += 61_000;
    try_step(&mut world, UpdateClients, false, left).unwrap();
    // It is gone: the way on is open by force, and when it has had its time; the way back always.
    refused(try_step(&mut world, UpdateServers, false, Duration::from_millis(1)), "1 s left");
    try_step(&mut world, UpdateServers, true, left).unwrap();
    assert!(world.last_audit().fields["against"].contains("offline"));
    try_step(&mut world, Rollback, false, left).unwrap();
    try_step(&mut world, Standby, false, Duration::ZERO).unwrap();
}

#[test]
fn an_ack_of_an_earlier_rotation_does_not_count() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ssh, "web1", &[]);
    world.rotate(&to(CaKind::Host, Init)).unwrap();
    world.follow(&host);
    for phase in [Rollback, Standby, Init] {
        world.rotate(&Step { force: true, ..to(CaKind::Host, phase) }).unwrap();
    }
    assert_eq!(world.obstacles(CaKind::Host, &[]).lagging, 1);
}

#[test]
fn auth_nodes_take_up_the_tls_and_the_peer_ca() {
    let mut world = World::new();
    for (kind, follows) in [(CaKind::Tls, false), (CaKind::Peer, false), (CaKind::User, true)] {
        world.rotate(&to(kind, Init)).unwrap();
        assert_eq!(world.obstacles(kind, &[1, 2]).lagging, if follows { 0 } else { 2 }, "{kind:?}");
        let revision = world.rotation(kind).revision;
        let row = match kind {
            CaKind::Tls => FollowedRow { tls: revision, peer: 0 },
            _ => FollowedRow { tls: revision - 1, peer: revision },
        };
        world
            .run(|tx, _| {
                tx.put(&FollowedKey(2), &row);
                Ok(())
            })
            .unwrap();
        let named = if follows { vec![] } else { vec!["auth_node:1".to_owned()] };
        assert_eq!(world.obstacles(kind, &[1, 2]).named, named, "{kind:?}");
    }
}

#[test]
fn a_key_is_not_forgotten_while_certificates_of_users_need_it() {
    for kind in [CaKind::User, CaKind::Tls] {
        let mut world = World::new();
        let ends = world.now + 3_600_000;
        world.note(1, ends, TargetKind::User);
        world.note(2, ends, TargetKind::Node);
        world.rotate(&to(kind, Init)).unwrap();
        world.note(3, ends + 1000, TargetKind::User);
        world.rotate(&to(kind, UpdateClients)).unwrap();
        world.note(4, ends + 9000, TargetKind::User);
        assert_eq!(world.obstacles(kind, &[]).certificates, 0);
        world.rotate(&to(kind, UpdateServers)).unwrap();
        world.note(5, ends + 9000, TargetKind::User);
        let obstacles = world.obstacles(kind, &[]);
        assert_eq!((obstacles.certificates, obstacles.certificates_end_ms), (2, ends + 1000));
        refused(world.rotate(&to(kind, Standby)), "still good: 2, the last for 3601 s");
        world.now = ends + 1000;
        world.rotate(&to(kind, Standby)).unwrap();
    }
}

#[test]
fn a_certificate_that_is_revoked_is_waited_for_by_nobody() {
    let mut world = World::new();
    let issued = |holder: &str| IssuedRow {
        kind: TargetKind::User.into(),
        expires_at_ms: 3_600_000_000_000,
        holder: holder.into(),
        ..IssuedRow::default()
    };
    for (serial, holder) in [(1, "ann"), (2, "bob")] {
        let noted = world.run(|tx, _| {
            revocation::note(tx, serial, &issued(holder));
            Ok(())
        });
        noted.unwrap();
    }
    for phase in [Init, UpdateClients, UpdateServers] {
        world.rotate(&to(CaKind::User, phase)).unwrap();
    }
    for (holder, left) in [("bob", 1), ("ann", 0)] {
        refused(world.rotate(&to(CaKind::User, Standby)), "still good");
        let revoked = world.run(|tx, _| {
            revocation::revoke(tx, TargetKind::User, holder);
            Ok(())
        });
        revoked.unwrap();
        assert_eq!(world.obstacles(CaKind::User, &[]).certificates, left);
    }
    world.rotate(&to(CaKind::User, Standby)).unwrap();
}

#[test]
fn hosts_do_not_show_a_key_that_users_with_good_certificates_may_not_know() {
    let mut world = World::new();
    let ends = world.now + 3_600_000;
    world.note(1, ends, TargetKind::User);
    world.rotate(&to(CaKind::Host, Init)).unwrap();
    world.note(2, ends + 9000, TargetKind::User);
    world.rotate(&to(CaKind::Host, UpdateClients)).unwrap();
    world.note(3, ends + 9000, TargetKind::User);
    let obstacles = world.obstacles(CaKind::Host, &[]);
    assert_eq!((obstacles.certificates, obstacles.certificates_end_ms), (1, ends));
    refused(world.rotate(&to(CaKind::Host, UpdateServers)), "still good: 1");
    world.now = ends;
    world.rotate(&to(CaKind::Host, UpdateServers)).unwrap();
    world.rotate(&to(CaKind::Host, Standby)).unwrap();
}

#[test]
fn a_rollback_waits_for_the_certificates_of_the_new_key() {
    for reached in [&[Init][..], &[Init, UpdateClients], &[Init, UpdateClients, UpdateServers]] {
        let mut world = World::new();
        let ends = world.now + 3_600_000;
        let mut by_new = 0;
        for (serial, phase) in (1..).zip(reached) {
            world.note(10 * serial, ends, TargetKind::User);
            world.rotate(&to(CaKind::User, *phase)).unwrap();
            world.note(10 * serial + 1, ends, TargetKind::User);
            by_new = match phase {
                UpdateClients => 1,
                UpdateServers => 3,
                _ => 0,
            };
        }
        world.rotate(&to(CaKind::User, Rollback)).unwrap();
        world.note(99, ends, TargetKind::User);
        assert_eq!(world.obstacles(CaKind::User, &[]).certificates, by_new, "{reached:?}");
        assert_eq!(world.rotate(&to(CaKind::User, Standby)).is_ok(), by_new == 0);
    }
}

#[test]
fn a_step_is_taken_on_what_was_seen_alone() {
    let mut world = World::new();
    let seen = world.rotation(CaKind::Host);
    let nothing = Obstacles::default();
    world.rotate(&to(CaKind::Host, Init)).unwrap();
    let late =
        world.run(|tx, context| step(tx, context, &to(CaKind::Host, UpdateClients), (&seen, &nothing), None));
    assert!(matches!(late, Err(CoreError::StaleRevision { .. })), "{late:?}");
    let given = Step { revision: seen.revision, ..to(CaKind::Host, UpdateClients) };
    assert!(matches!(world.rotate(&given), Err(CoreError::StaleRevision { .. })));
    let now = world.rotation(CaKind::Host).revision;
    world.rotate(&Step { revision: now, ..to(CaKind::Host, UpdateClients) }).unwrap();
}

#[test]
fn an_automatic_rotation_is_due_a_third_of_its_grace_period_after_each_step() {
    let mut world = World::new();
    let grace = Some(Duration::from_secs(30));
    world.rotate(&Step { grace, ..to(CaKind::Host, Init) }).unwrap();
    for phase in [UpdateClients, UpdateServers, Standby] {
        let (rotation, now) = (world.rotation(CaKind::Host), world.now);
        assert_eq!(rotation.next_phase_at_ms, Some(now + 10_000));
        assert_eq!(rotation.due(now + 9_999), None);
        let due = rotation.due(now + 10_000).unwrap();
        assert_eq!((due.target, due.force, due.revision), (phase, false, rotation.revision));
        world.now += 10_000;
        world.rotate(&due).unwrap();
    }
    assert_eq!(world.rotation(CaKind::Host).due(u64::MAX), None);

    // One that is taken back stands still.
    world.rotate(&Step { grace, force: true, ..to(CaKind::Host, Init) }).unwrap();
    assert!(world.rotation(CaKind::Host).due(u64::MAX).unwrap().force);
    world.rotate(&to(CaKind::Host, Rollback)).unwrap();
    assert_eq!(world.rotation(CaKind::Host).due(u64::MAX), None);
}

#[test]
fn a_grace_period_has_bounds_and_comes_with_the_first_step() {
    let mut world = World::new();
    for seconds in [0, 2, 91 * 86_400] {
        let grace = Some(Duration::from_secs(seconds));
        let refused = world.rotate(&Step { grace, ..to(CaKind::Host, Init) });
        assert!(matches!(refused, Err(CoreError::Invalid { field, .. }) if field == "grace_period"));
    }
    world.rotate(&to(CaKind::Host, Init)).unwrap();
    let grace = Some(Duration::from_secs(60));
    let refused = world.rotate(&Step { grace, ..to(CaKind::Host, UpdateClients) });
    assert!(matches!(refused, Err(CoreError::Invalid { field, .. }) if field == "grace_period"));
}

#[test]
fn certificates_are_signed_by_the_key_of_the_phase() {
    let mut world = World::new();
    let (mut host, mut ingest) = (Host::new(NodeKind::Ssh), Host::new(NodeKind::Ingest));
    world.add_token(new_token("web", NodeKind::Ssh));
    world.add_token(new_token("in", NodeKind::Ingest));
    for kind in [CaKind::Host, CaKind::Tls] {
        for phase in [Init, UpdateClients] {
            world.rotate(&to(kind, phase)).unwrap();
        }
    }
    let certs = world.ask(&mut host, "web", "web1", &[]).unwrap();
    assert_ne!(certs.host_ca.key.public, "new", "sshd is a server");
    assert_eq!(certs.tls_ca.key.public, "new", "an agent is a client of auth nodes");
    let certs = world.ask(&mut ingest, "in", "in1", &[]).unwrap();
    assert_ne!(certs.tls_ca.key.public, "new", "an ingest serves");
}
