use mezite_pki::{
    identity::Identity,
    ssh::{SshCa, parse_certificate},
    x509::{CertificateInfo, X509Ca},
};

use super::*;
use crate::{
    ca::{self, ActiveCa},
    node,
    testing::assert_invalid,
    token::NewToken,
    world::{Host, World, allowing, assert_denied, kek, labels, new_token, report, secret, token_name},
};

fn uses(world: &mut World, token: &str) -> u32 {
    world.run(|tx, _| token::get(tx, &token_name(token))).unwrap().row.uses
}

/// A world with an open token `t` for SSH nodes.
fn world() -> World {
    let mut world = World::new();
    world.add_token(allowing("t", &[]));
    world
}

fn private(active: &ActiveCa) -> String {
    let bytes = ca::unseal(&kek(), active.kind, &active.key.public, &active.key.sealed_private).unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn what_is_specified_can_be_signed_and_says_who_the_agent_is() {
    let mut world = world();
    let mut host = Host::new(NodeKind::Ssh);
    let request = host.request("Web1.Example", &["192.0.2.7", "2001:DB8::7", "web1"]);
    let certs = world.certify(&mut host, "t", &request).unwrap();
    let (now, end) = (world.now / 1000, world.now / 1000 + 30 * 24 * 3600);
    assert_eq!(certs.expires_at_ms, world.now + HOST_CERT_TTL_MS);

    let host_ca = SshCa::from_openssh(&private(&certs.host_ca)).unwrap();
    let ssh = parse_certificate(&host_ca.sign_host(certs.ssh.as_ref().unwrap()).unwrap()).unwrap();
    assert_eq!(ssh.principals, ["web1.example", "192.0.2.7", "2001:db8::7", "web1"]);
    assert_eq!((ssh.valid_after, ssh.valid_before, ssh.serial), (now - 60, end, 77));
    assert_eq!(ssh.key_id, host.id().as_str());

    let tls_ca = X509Ca::from_pems(&certs.tls_ca.key.public, &private(&certs.tls_ca)).unwrap();
    let tls = CertificateInfo::from_pem(&tls_ca.issue(&certs.tls).unwrap()).unwrap();
    let identity = Identity::Agent { cluster: "test".into(), id: host.id().into() };
    assert_eq!(tls.identity, Some(identity));
    assert_eq!(tls.dns_names, ["web1.example", "web1"]);
    assert_eq!((tls.not_before, tls.not_after, tls.ip_addresses.len()), (now - 60, end - 1, 2));
    assert!(!tls.is_ca);

    let record = world.last_audit();
    assert_eq!((record.event.as_str(), record.target), ("cert.host.issue", format!("agent:{}", host.id())));
    assert_eq!(record.fields["by"], "token:t");
}

#[test]
fn an_ingest_is_one_by_its_token_and_may_do_without_an_ssh_key() {
    let mut world = World::new();
    world.add_token(new_token("i", NodeKind::Ingest));
    let mut host = Host::new(NodeKind::Ingest);
    let request = HostCertRequest::new("", host.tls.spki_der(), "ingest1", &[], 1).unwrap();
    let certs = world.certify(&mut host, "i", &request).unwrap();
    assert!(certs.ssh.is_none());
    assert_eq!(certs.tls.dns_names, ["ingest1", "ingest.test.mezite.internal"]);
    assert!(matches!(certs.tls.identity, Some(Identity::Ingest { .. })));
    world.register(&host, "i", &report("ingest1:3027", &[])).unwrap();
    assert_eq!(world.last_audit().target, format!("ingest:{}", host.id()));
}

#[test]
fn an_ssh_node_needs_an_ssh_key() {
    let mut world = world();
    let mut host = Host::new(NodeKind::Ssh);
    let request = HostCertRequest::new("", host.tls.spki_der(), "web1", &[], 1).unwrap();
    assert_invalid(world.certify(&mut host, "t", &request), "ssh_public_key");
    assert_eq!(uses(&mut world, "t"), 0);
}

#[test]
fn requests_are_checked_field_by_field() {
    let host = Host::new(NodeKind::Ssh);
    let (ssh, tls) = (host.ssh.public_line(), host.tls.spki_der().to_vec());
    let new = |ssh: &str, tls: &[u8], hostname: &str, additional: &[String]| {
        HostCertRequest::new(ssh, tls.to_vec(), hostname, additional, 1).map(drop)
    };
    assert_invalid(new("nonsense", &tls, "a", &[]), "ssh_public_key");
    assert_invalid(new(&ssh, b"", "a", &[]), "tls_public_key");
    for bad in ["", "*", "*.example.com", "192.0.2.1", "::1", "a b", "a."] {
        assert_invalid(new(&ssh, &tls, bad, &[]), "hostname");
    }
    assert_invalid(new(&ssh, &tls, "a", &["b".into(), "*.b".into()]), "additional_principals[1]");
    let names: Vec<String> = (0..33).map(|n| format!("n{n}")).collect();
    assert_invalid(new(&ssh, &tls, "a", &names), "additional_principals");
    assert!(new(&ssh, &tls, "a", &names[..32]).is_ok());
}

#[test]
fn a_certificate_offered_as_a_key_is_refused() {
    let mut world = world();
    let mut host = Host::new(NodeKind::Ssh);
    let certs = world.ask(&mut host, "t", "web1", &[]).unwrap();
    let ca = SshCa::from_openssh(&private(&certs.host_ca)).unwrap();
    let certificate = ca.sign_host(certs.ssh.as_ref().unwrap()).unwrap();
    let offered = HostCertRequest::new(&certificate, host.tls.spki_der(), "web1", &[], 1);
    assert_invalid(offered, "ssh_public_key");
}

#[test]
fn generate_host_certs_then_register_agent_with_one_token_is_one_use() {
    let mut world = World::new();
    world.add_token(new_token("once", NodeKind::Ssh));
    let mut host = Host::new(NodeKind::Ssh);
    let request = host.request("web1", &[]);
    world.certify(&mut host, "once", &request).unwrap();
    assert_eq!(uses(&mut world, "once"), 1);
    // Replies get lost: the same keys get the same join again, before and after registration.
    let id = host.id();
    world.now += 5000;
    let again = world.certify(&mut host, "once", &request).unwrap();
    assert_eq!((again.agent_id.clone(), again.expires_at_ms), (id.clone(), world.now + HOST_CERT_TTL_MS));
    assert_eq!(world.register(&host, "once", &report("web1:22", &[])).unwrap().agent_id, id);
    let events = world.audit().len();
    assert_eq!(world.register(&host, "once", &report("web1:2222", &[])).unwrap().agent_id, id);
    assert_eq!(world.events(events), Vec::<String>::new());
    assert_eq!(world.node(&host).unwrap().presence.unwrap().address, "web1:2222");
    assert_eq!(world.certify(&mut host, "once", &request).unwrap().agent_id, id);
    assert_eq!(uses(&mut world, "once"), 1);

    let mut other = Host::new(NodeKind::Ssh);
    let refused = world.ask(&mut other, "once", "web2", &[]);
    assert_denied(refused, "not accepted");
    assert_eq!(world.last_audit().fields["reason"], "the token is used up");
}

#[test]
fn a_join_is_of_its_keys_and_names() {
    let mut world = world();
    let mut host = Host::new(NodeKind::Ssh);
    world.ask(&mut host, "t", "web1", &["192.0.2.7"]).unwrap();
    // Who knows the token and the TLS key's public side does not get a certificate for a key of its own.
    let mallory = Host { tls: host.tls, ..Host::new(NodeKind::Ssh) };
    let mut host = Host { tls: Host::new(NodeKind::Ssh).tls, ..host };
    let mut thief = Host { id: None, ..mallory };
    let request = thief.request("web1", &["192.0.2.7"]);
    assert_denied(world.certify(&mut thief, "t", &request), "another SSH key");
    assert_eq!(world.last_audit().event, "agent.join.denied");
    std::mem::swap(&mut host.tls, &mut thief.tls);
    for (hostname, additional) in [("web2", &[][..]), ("web1", &["192.0.2.8"]), ("192.0.2.7.x", &[])] {
        let refused = world.ask(&mut host, "t", hostname, additional);
        assert_denied(refused, "this agent joined as web1");
    }
    let narrower = world.ask(&mut host, "t", "web1", &[]).unwrap();
    assert_eq!(narrower.ssh.unwrap().principals, ["web1"]);
    assert_eq!(uses(&mut world, "t"), 1);
}

#[test]
fn no_wildcard_no_loopback_by_default() {
    let mut world = world();
    world.add_token(allowing("under", &["*.localhost", "*.example"]));
    world.add_token(allowing("exact", &["localhost", "127.0.0.1", "a.localhost", "web1"]));
    let try_names = |world: &mut World, token: &str, hostname: &str, additional: &[&str]| {
        let mut host = Host::new(NodeKind::Ssh);
        let request = host.request(hostname, additional);
        world.certify(&mut host, token, &request).map(|certs| certs.ssh.unwrap().principals)
    };
    for (hostname, additional) in [
        ("localhost", &[][..]),
        ("a.localhost", &[]),
        ("web1", &["127.0.0.1"]),
        ("web1", &["127.1.2.3"]),
        ("web1", &["::1"]),
        ("web1", &["::ffff:127.0.0.1"]),
        ("web1", &["0.0.0.0"]),
        ("ip6-loopback", &[]),
    ] {
        assert_denied(try_names(&mut world, "t", hostname, additional), "means every host");
        assert_eq!(world.last_audit().event, "agent.join.denied");
    }
    assert_denied(try_names(&mut world, "under", "a.localhost", &[]), "means every host");
    assert_eq!((uses(&mut world, "t"), uses(&mut world, "under")), (0, 0));
    let named = try_names(&mut world, "exact", "localhost", &["127.0.0.1"]).unwrap();
    assert_eq!(named, ["localhost", "127.0.0.1"]);
    assert_denied(try_names(&mut world, "exact", "web1", &["127.0.0.2"]), "means every host");
}

#[test]
fn only_the_principals_that_the_token_allows() {
    let mut world = World::new();
    world.add_token(allowing("t", &["*.example.com", "192.0.2.7"]));
    for (hostname, additional) in [
        ("example.com", &[][..]),
        ("web1", &[]),
        ("a.example.com", &["192.0.2.8"]),
        ("a.example.com", &["b"]),
    ] {
        let mut host = Host::new(NodeKind::Ssh);
        let request = host.request(hostname, additional);
        assert_denied(world.certify(&mut host, "t", &request), "does not allow the name");
    }
    assert_eq!(uses(&mut world, "t"), 0);
    let mut host = Host::new(NodeKind::Ssh);
    let request = host.request("A.b.Example.COM", &["192.0.2.7"]);
    assert!(world.certify(&mut host, "t", &request).is_ok());
}

#[test]
fn no_agent_gets_a_name_by_which_auth_nodes_or_ingests_are_known() {
    let mut world = world();
    world.add_token(allowing("named", &["test.mezite.internal", "*.mezite.internal"]));
    for token in ["t", "named"] {
        for hostname in ["test.mezite.internal", "ingest.test.mezite.internal", "Other.Mezite.Internal"] {
            let mut host = Host::new(NodeKind::Ssh);
            let refused = world.ask(&mut host, token, hostname, &[]);
            assert_denied(refused, "kept for the cluster");
        }
    }
}

#[test]
fn never_a_name_held_by_another_agent() {
    let mut world = world();
    let mut first = Host::new(NodeKind::Ssh);
    world.ask(&mut first, "t", "web1", &["192.0.2.7"]).unwrap();
    let refuse_both = |world: &mut World| {
        for (hostname, additional) in
            [("WEB1", &[][..]), ("web2", &["web1"]), ("web2", &["::ffff:192.0.2.7"])]
        {
            let mut host = Host::new(NodeKind::Ssh);
            let request = host.request(hostname, additional);
            assert_denied(world.certify(&mut host, "t", &request), "belongs to another agent");
        }
    };
    // Whether its holder has registered or not: a certificate for it exists.
    refuse_both(&mut world);
    world.register(&first, "t", &report("web1:22", &[])).unwrap();
    refuse_both(&mut world);
    assert_eq!(uses(&mut world, "t"), 1);
    world.now += HOST_CERT_TTL_MS - 1;
    world.add_token(allowing("later", &[]));
    let mut late = Host::new(NodeKind::Ssh);
    let request = late.request("web1", &[]);
    assert_denied(world.certify(&mut late, "later", &request), "belongs to another agent");
    // With its last certificate the agent is gone, and its names are free.
    world.now += 1;
    assert!(world.node(&first).is_none());
    assert!(world.certify(&mut late, "later", &request).is_ok());
}

#[test]
fn a_name_is_held_as_long_as_it_is_renewed() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ssh, "web1", &[("env", "prod")]);
    for _ in 0..3 {
        world.now += HOST_CERT_TTL_MS - 1000;
        let certs = world.renew(&host, &host.request("web1", &[])).unwrap();
        assert_eq!((certs.agent_id, certs.expires_at_ms), (host.id(), world.now + HOST_CERT_TTL_MS));
        assert_eq!(world.last_audit().fields["by"], "renewal");
        let node = world.node(&host).unwrap();
        assert_eq!(node.labels(), labels(&[("env", "prod")]));
    }
    world.add_token(allowing("t", &[]));
    let mut other = Host::new(NodeKind::Ssh);
    let refused = world.ask(&mut other, "t", "web1", &[]);
    assert_denied(refused, "belongs to another agent");
}

#[test]
fn an_ingest_stays_one_when_it_renews() {
    let mut world = World::new();
    let host = world.joined(NodeKind::Ingest, "ingest1", &[]);
    world.now += HOST_CERT_TTL_MS - 1000;
    world.renew(&host, &host.request("ingest1", &[])).unwrap();
    world.now += HOST_CERT_TTL_MS - 1000;
    assert_eq!(world.run(|tx, _| node::ingests(tx)).unwrap().len(), 1);
}

#[test]
fn a_renewal_keeps_the_tls_key_and_the_names_of_the_agent() {
    let mut world = World::new();
    world.add_token(allowing("t", &[]));
    let mut host = Host::new(NodeKind::Ssh);
    world.ask(&mut host, "t", "web1", &["192.0.2.7", "w"]).unwrap();
    world.register(&host, "t", &report("web1:22", &[])).unwrap();
    let narrower = world.renew(&host, &host.request("web1", &["w"])).unwrap();
    assert_eq!(narrower.ssh.unwrap().principals, ["web1", "w"]);
    for (hostname, additional) in [("w", &[][..]), ("web2", &[]), ("web1", &["web3"])] {
        let refused = world.renew(&host, &host.request(hostname, additional));
        assert_denied(refused, "this agent joined as web1");
        assert_eq!(world.last_audit().event, "agent.join.denied");
    }
    let other = Host::new(NodeKind::Ssh);
    assert_invalid(world.renew(&host, &other.request("web1", &[])), "tls_public_key");
    // Another SSH key is the agent's to choose; from then on a join again is by that one.
    let rekeyed = Host { tls: host.tls, ..Host::new(NodeKind::Ssh) };
    let mut rekeyed = Host { id: host.id, ..rekeyed };
    let request = rekeyed.request("web1", &[]);
    assert!(world.renew(&rekeyed, &request).is_ok());
    assert!(world.certify(&mut rekeyed, "t", &request).is_ok());
    let old = HostCertRequest::new(&host.ssh.public_line(), rekeyed.tls.spki_der(), "web1", &[], 1).unwrap();
    assert_denied(world.certify(&mut rekeyed, "t", &old), "another SSH key");
}

#[test]
fn a_renewal_needs_a_certificate() {
    let mut world = world();
    let host = Host::new(NodeKind::Ssh);
    let (request, fresh) = (host.request("web1", &[]), AgentId::from_random([1; 16]));
    let renewed = world.run(|tx, context| certify(tx, context, None, &request, &fresh));
    assert!(matches!(renewed, Err(CoreError::Unauthenticated(_))));
    let as_user = world.admin(|tx, context| certify(tx, context, None, &request, &fresh));
    assert!(matches!(as_user, Err(CoreError::Unauthenticated(_))));
    // An agent that has not registered renews by its token alone.
    let mut host = host;
    world.certify(&mut host, "t", &request).unwrap();
    assert!(matches!(world.renew(&host, &request), Err(CoreError::NotRegistered)));
}

#[test]
fn an_agent_that_left_does_not_come_back_by_its_old_join() {
    let mut world = World::new();
    world.add_token(NewToken { max_uses: 2, ..new_token("t", NodeKind::Ssh) });
    let mut host = Host::new(NodeKind::Ssh);
    let request = host.request("web1", &[]);
    world.certify(&mut host, "t", &request).unwrap();
    world.register(&host, "t", &report("web1:22", &[])).unwrap();
    world.with(&host.credential(), |tx, context| node::remove(tx, context, None)).unwrap();
    assert_denied(world.register(&host, "t", &report("web1:22", &[])), "of no join");
    assert!(world.renew(&host, &request).is_err());
    // A new join is a new use and a new agent; after that the token is used up.
    let before = host.id();
    world.certify(&mut host, "t", &request).unwrap();
    assert_ne!(host.id(), before);
    assert_eq!(uses(&mut world, "t"), 2);
}

#[test]
fn a_token_that_took_another_ones_name_is_another_token() {
    let mut world = World::new();
    world.add_token(new_token("t", NodeKind::Ssh));
    let mut host = Host::new(NodeKind::Ssh);
    let request = host.request("web1", &[]);
    world.certify(&mut host, "t", &request).unwrap();
    world.admin(|tx, context| token::delete(tx, context, &token_name("t"))).unwrap();
    world.add_token(NewToken { secret: secret("t2"), ..new_token("t", NodeKind::Ssh) });
    assert_eq!(uses(&mut world, "t"), 0);
    // It may go on with what that one began; that is a use of it.
    let before = host.id();
    world.certify(&mut host, "t2", &request).unwrap();
    world.certify(&mut host, "t2", &request).unwrap();
    assert_eq!((host.id(), uses(&mut world, "t")), (before, 1));
    let mut other = Host::new(NodeKind::Ssh);
    assert_denied(world.ask(&mut other, "t2", "web2", &[]), "not accepted");
}

/// A join that was not registered: by the token `t`, for web1 and 192.0.2.7, and the token is over.
fn broken_off(kind: NodeKind) -> (World, Host) {
    let mut world = World::new();
    let token = NewToken { labels: labels(&[("env", "prod")]), ..new_token("t", kind) };
    world.add_token(token);
    let mut host = Host::new(kind);
    world.ask(&mut host, "t", "web1", &["192.0.2.7"]).unwrap();
    world.now += 2 * 3_600_000;
    assert_denied(world.register(&host, "t", &report("web1:22", &[])), "not accepted");
    (world, host)
}

#[test]
fn a_join_that_broke_off_goes_on_with_another_token() {
    // With the certificates, or, where the answer that had them was lost, without.
    for (kind, has_certificates) in [(NodeKind::Ssh, true), (NodeKind::Ssh, false), (NodeKind::Ingest, true)]
    {
        let (mut world, mut host) = broken_off(kind);
        let id = host.id();
        let token = NewToken { labels: labels(&[("env", "dev")]), ..new_token("u", kind) };
        world.add_token(token);
        let mut stranger = Host::new(kind);
        assert_denied(world.ask(&mut stranger, "u", "web1", &[]), "belongs to another agent");
        if !has_certificates {
            let certs = world.ask(&mut host, "u", "web1", &["192.0.2.7"]).unwrap();
            assert_eq!(certs.expires_at_ms, world.now + HOST_CERT_TTL_MS);
        }
        let good = report("web1:22", &[]);
        for _ in 0..2 {
            assert_eq!(world.register(&host, "u", &good).unwrap().agent_id, id);
            assert_eq!(uses(&mut world, "u"), 1);
        }
        let node = world.node(&host).unwrap();
        assert_eq!((node.row.token.as_str(), node.labels()), ("u", labels(&[("env", "dev")])));
        // It is registered, and its one join is over: the same again is nobody else's.
        assert_denied(world.ask(&mut stranger, "u", "web2", &[]), "not accepted");
        let key_digest = host.key_digest();
        world
            .run(|tx, _| {
                assert!(tx.get(&JoinKey(id.clone()))?.is_none());
                assert!(tx.get(&TokenUseKey { token: token_name("t"), key_digest })?.is_none());
                Ok(())
            })
            .unwrap();
        world.with(&host.credential(), |tx, context| node::remove(tx, context, None)).unwrap();
        assert_denied(world.register(&host, "u", &good), "of no join");
    }
}

#[test]
fn another_token_goes_on_with_a_join_only_by_the_rules_of_a_new_one() {
    let (mut world, mut host) = broken_off(NodeKind::Ssh);
    world.add_token(new_token("kind", NodeKind::Ingest));
    world.add_token(allowing("names", &["web1"]));
    world.add_token(new_token("used", NodeKind::Ssh));
    let mut other = Host::new(NodeKind::Ssh);
    world.ask(&mut other, "used", "web2", &[]).unwrap();
    world.add_token(allowing("good", &["web1", "192.0.2.7"]));
    let good = report("web1:22", &[]);
    let before = world.events(0).len();
    for (token, says) in
        [("kind", "another kind"), ("names", "does not allow the name 192.0.2.7"), ("used", "not accepted")]
    {
        assert_denied(world.register(&host, token, &good), says);
        // Asked for fewer names than it holds, it is refused for those that it holds.
        assert_denied(world.ask(&mut host, token, "web1", &[]), says);
    }
    assert_eq!(world.events(before), ["agent.join.denied"; 6]);
    assert_eq!((uses(&mut world, "kind"), uses(&mut world, "names"), uses(&mut world, "used")), (0, 0, 1));

    // Nor is it another's: of another TLS key, or with the host's own and another SSH key.
    let stranger = Host { id: host.id.clone(), ..Host::new(NodeKind::Ssh) };
    assert_denied(world.register(&stranger, "good", &good), "of no join");
    let thief = Host { tls: host.tls, ..Host::new(NodeKind::Ssh) };
    let request = thief.request("web1", &["192.0.2.7"]);
    let mut host = Host { tls: thief.tls, ..host };
    assert_denied(world.certify(&mut Host::new(NodeKind::Ssh), "good", &request), "another SSH key");
    let unheld = world.ask(&mut host, "good", "web1", &["192.0.2.7"]).map(|certs| certs.agent_id);
    assert_eq!(unheld.unwrap(), host.id());
    assert_eq!(uses(&mut world, "good"), 1);
    assert_eq!(world.register(&host, "good", &good).unwrap().agent_id, host.id());
    assert_eq!(uses(&mut world, "good"), 1);
}
