use super::*;
use crate::{
    tables::NodeKind,
    testing::{Observed, assert_invalid},
    world::{Host, World, labels, report},
};

#[test]
fn reports_are_bounded() {
    let new =
        |version: &str, address: &str, labels: Labels| Report::new(version.into(), labels, address.into(), 3);
    assert!(new("", "", Labels::new()).is_ok());
    assert!(new(&"1".repeat(64), "web1:22", Labels::new()).is_ok());
    for bad in [&"1".repeat(65), "1 0", "1\n", "ä"] {
        assert_invalid(new(bad, "", Labels::new()), "version");
    }
    assert_invalid(new("1", "web1", Labels::new()), "address");
    assert_invalid(new("1", "", labels(&[("a b", "")])), "labels");
    let many = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
    assert_invalid(new("1", "", many), "labels");
}

#[test]
fn a_report_is_kept_and_an_unset_address_stays() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ssh, "web1", &[("env", "dev")]);
    world.now += 5000;
    let new = Report::new("2.0".into(), labels(&[("env", "prod")]), String::new(), 7).unwrap();
    assert_eq!(world.beat(&host, &new), Ok(host.id()));
    let node = world.node(&host).unwrap();
    let presence = node.presence.clone().unwrap();
    assert_eq!((presence.last_seen_ms, presence.address.as_str()), (world.now, "web1:22"));
    assert_eq!((presence.version.as_str(), presence.load), ("2.0", 7));
    assert_eq!(node.labels(), labels(&[("env", "prod")]));
    world.beat(&host, &report("web1:2222", &[])).unwrap();
    let node = world.node(&host).unwrap();
    assert_eq!(node.presence.as_ref().unwrap().address, "web1:2222");
    assert!(node.labels().is_empty());
}

/// Access is decided by labels: decisions must not run again for every heartbeat, nor an admin's update be in vain.
#[test]
fn a_report_that_changes_nothing_touches_neither_node_nor_labels() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ssh, "web1", &[("env", "dev")]);
    let key = AgentLabelsKey(host.id());
    let labels_at = |world: &mut World| world.run(|tx, _| Ok(tx.get(&key)?.unwrap().revision)).unwrap();
    let before = (world.node(&host).unwrap().revision, labels_at(&mut world));
    world.now += 1000;
    world.beat(&host, &report("", &[("env", "dev")])).unwrap();
    assert_eq!((world.node(&host).unwrap().revision, labels_at(&mut world)), before);
    world.beat(&host, &report("", &[("env", "prod")])).unwrap();
    assert_eq!(world.node(&host).unwrap().revision, before.0);
    assert!(labels_at(&mut world) > before.1);
}

#[test]
fn only_registered_agents_report() {
    let mut world = World::new();
    world.add_token(crate::world::new_token("t", NodeKind::Ssh));
    let mut host = Host::new(NodeKind::Ssh);
    world.ask(&mut host, "t", "web1", &[]).unwrap();
    assert!(matches!(world.beat(&host, &report("", &[])), Err(CoreError::NotRegistered)));
    world.register(&host, "t", &report("web1:22", &[])).unwrap();
    assert!(world.beat(&host, &report("", &[])).is_ok());

    let other_key = Host { id: host.id.clone(), ..Host::new(NodeKind::Ssh) };
    assert!(matches!(world.beat(&other_key, &report("", &[])), Err(CoreError::Unauthenticated(_))));
    let as_ingest = Host { kind: NodeKind::Ingest, ..host };
    assert!(matches!(world.beat(&as_ingest, &report("", &[])), Err(CoreError::Unauthenticated(_))));
    let boss = Credential::Session(world.boss);
    for credential in [Credential::None, boss] {
        let refused = world.report(&credential, &report("", &[]));
        assert!(matches!(refused, Err(CoreError::Unauthenticated(_))));
    }
    let host = Host { kind: NodeKind::Ssh, ..as_ingest };
    world.with(&host.credential(), |tx, context| crate::node::remove(tx, context, None)).unwrap();
    assert!(matches!(world.beat(&host, &report("", &[])), Err(CoreError::NotRegistered)));
}

fn lock(world: &mut World, number: u16, host: &Host) {
    let mut random = [0; 16];
    random[..2].copy_from_slice(&number.to_be_bytes());
    let target = crate::lock::Target::Node(host.id());
    let id = crate::names::LockId::from_random(random);
    let new = crate::lock::NewLock { id, target, message: String::new(), ttl: None };
    world.admin(|tx, context| crate::lock::create(tx, context, new)).unwrap();
}

#[test]
fn each_report_of_a_batch_stands_or_falls_by_itself() {
    let mut world = World::new();
    let [good, locked, gone] = ["web1", "web2", "web3"].map(|name| world.joined(NodeKind::Ssh, name, &[]));
    let ingest = world.joined(NodeKind::Ingest, "ingest1", &[]);
    lock(&mut world, 1, &locked);
    world.with(&gone.credential(), |tx, context| crate::node::remove(tx, context, None)).unwrap();
    world.now += 5000;
    let stranger = Credential::None;
    let of = |host: &Host| (host.credential(), report("", &[]));
    let reports = [of(&good), of(&locked), of(&gone), (stranger, report("", &[])), of(&ingest), of(&good)];
    let results = world.run(|tx, _| record(tx, &reports)).unwrap();
    assert!(
        matches!(
            results.as_slice(),
            [
                Ok(_),
                Err(CoreError::Locked(_)),
                Err(CoreError::NotRegistered),
                Err(CoreError::Unauthenticated(_)),
                Ok(_),
                Ok(_)
            ]
        ),
        "{results:?}"
    );
    let now = world.now;
    let mut seen =
        |host: &Host| world.node(host).and_then(|node| node.presence).map(|last| last.last_seen_ms);
    assert_eq!([seen(&good), seen(&locked), seen(&gone)], [Some(now), Some(now - 5000), None]);
    assert_eq!(seen(&ingest), Some(now));
}

/// What a batch reads is checked again on every node: two keys a report, and one range for all.
#[test]
fn a_batch_reads_the_locks_once_unless_there_are_very_many() {
    let mut world = World::new();
    let hosts: Vec<_> =
        (0..10).map(|number| world.joined(NodeKind::Ssh, &format!("web{number}"), &[])).collect();
    let reports: Vec<_> = hosts.iter().map(|host| (host.credential(), report("web:22", &[]))).collect();
    let read = |world: &mut World| {
        let counted = world.run(|tx, _| {
            let mut counted = Observed::new(tx);
            let results = record(&mut counted, &reports)?;
            let refused = results.iter().filter(|result| result.is_err()).count();
            Ok((counted.ranges, counted.keys, refused))
        });
        counted.unwrap()
    };
    assert_eq!(read(&mut world), (1, 20, 0));
    lock(&mut world, 0, &hosts[3]);
    assert_eq!(read(&mut world), (1, 20, 1));
    for number in 1..=1024 {
        lock(&mut world, number, &hosts[3]);
    }
    let (ranges, _, refused) = read(&mut world);
    assert_eq!((ranges, refused), (11, 1));
}

#[test]
fn an_agent_is_alive_until_its_ttl_is_over() {
    let ttl = PresenceTtl(Duration::from_secs(45));
    assert!(ttl.is_alive(1000, 1000) && ttl.is_alive(1000, 45_999) && ttl.is_alive(1000, 0));
    assert!(!ttl.is_alive(1000, 46_000));
}
