use super::*;
use crate::{
    tables::NodeKind,
    testing::assert_invalid,
    world::{Host, World, assert_denied, labels, report},
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
    assert_denied(world.beat(&host, &report("", &[])), "not registered");
    world.register(&host, "t", &report("web1:22", &[])).unwrap();
    assert!(world.beat(&host, &report("", &[])).is_ok());

    let other_key = Host { id: host.id.clone(), ..Host::new(NodeKind::Ssh) };
    assert!(matches!(world.beat(&other_key, &report("", &[])), Err(CoreError::Unauthenticated(_))));
    let as_ingest = Host { kind: NodeKind::Ingest, ..host };
    assert!(matches!(world.beat(&as_ingest, &report("", &[])), Err(CoreError::Unauthenticated(_))));
    let boss = Credential::Session(world.boss);
    for credential in [Credential::None, boss] {
        let refused = world.run(|tx, _| record(tx, &credential, &report("", &[])));
        assert!(matches!(refused, Err(CoreError::Unauthenticated(_))));
    }
    let host = Host { kind: NodeKind::Ssh, ..as_ingest };
    world.with(&host.credential(), |tx, context| crate::node::remove(tx, context, None)).unwrap();
    assert_denied(world.beat(&host, &report("", &[])), "not registered");
}

#[test]
fn an_agent_is_alive_until_its_ttl_is_over() {
    let ttl = PresenceTtl(Duration::from_secs(45));
    assert!(ttl.is_alive(1000, 1000) && ttl.is_alive(1000, 45_999) && ttl.is_alive(1000, 0));
    assert!(!ttl.is_alive(1000, 46_000));
}
