use super::*;
use crate::{
    testing::assert_invalid,
    token::NewToken,
    world::{Host, World, allowing, assert_denied, labels, new_token, report, secret},
};

#[test]
fn registration_needs_the_certificate_of_the_join() {
    let mut world = World::new();
    world.add_token(allowing("t", &[]));
    let report = report("web1:22", &[]);
    let anonymous = world.run(|tx, context| register(tx, context, secret("t"), &report));
    assert!(matches!(anonymous, Err(CoreError::Unauthenticated(_))));
    let as_user = world.admin(|tx, context| register(tx, context, secret("t"), &report));
    assert!(matches!(as_user, Err(CoreError::Unauthenticated(_))));
}

#[test]
fn an_agent_registers_for_itself_alone() {
    let mut world = World::new();
    world.add_token(allowing("t", &[]));
    let mut host = Host::new(NodeKind::Ssh);
    world.ask(&mut host, "t", "web1", &[]).unwrap();
    let mut neighbour = Host::new(NodeKind::Ssh);
    world.ask(&mut neighbour, "t", "web2", &[]).unwrap();
    let good = report("web1:22", &[]);

    world.add_token(new_token("ingests", NodeKind::Ingest));
    assert_denied(world.register(&host, "ingests", &good), "another kind");
    let stranger = Host { id: host.id.clone(), ..Host::new(NodeKind::Ssh) };
    assert_denied(world.register(&stranger, "t", &good), "of no join");
    let as_neighbour = Host { id: neighbour.id.clone(), ..Host::new(NodeKind::Ssh) };
    let as_neighbour = Host { tls: host.tls, ..as_neighbour };
    assert_denied(world.register(&as_neighbour, "t", &good), "of no join");
    let host = Host { tls: as_neighbour.tls, ..host };
    let as_ingest = Host { kind: NodeKind::Ingest, ..host };
    assert_denied(world.register(&as_ingest, "t", &good), "of no join");
    assert_eq!(world.last_audit().event, "agent.join.denied");
    let host = Host { kind: NodeKind::Ssh, ..as_ingest };

    assert_invalid(world.register(&host, "t", &report("", &[])), "address");
    assert_eq!(world.register(&host, "t", &good).unwrap().cluster_name, "test");
    let record = world.last_audit();
    assert_eq!((record.event.as_str(), record.fields["token"].as_str()), ("agent.join", "t"));
}

#[test]
fn a_node_gets_the_labels_of_its_token() {
    let mut world = World::new();
    let token = NewToken { labels: labels(&[("env", "prod")]), ..new_token("t", NodeKind::Ssh) };
    world.add_token(token);
    let mut host = Host::new(NodeKind::Ssh);
    world.ask(&mut host, "t", "web1", &[]).unwrap();
    world.register(&host, "t", &report("web1:22", &[("env", "dev"), ("os", "linux")])).unwrap();
    assert_eq!(world.node(&host).unwrap().labels(), labels(&[("env", "prod"), ("os", "linux")]));
}
