use std::time::Duration;

use super::*;
use crate::{
    names::TokenName,
    tables::{AgentLabelsRow, ConditionsRow, IngestRow, RoleRow, StringsRow, TokenUseKey},
    testing::{assert_invalid, role_with_rule, traits},
    token::NewToken,
    world::{Host, World, assert_denied, labels, new_token, report},
};

const TTL: PresenceTtl = PresenceTtl(Duration::from_secs(45));

/// A role that allows the login `root` on nodes with `env=dev`.
fn dev_role() -> RoleRow {
    let node_labels = [("env".to_owned(), StringsRow { values: vec!["dev".into()] })].into();
    let allow = ConditionsRow { logins: vec!["root".into()], node_labels, ..ConditionsRow::default() };
    RoleRow { allow: Some(allow), ..RoleRow::default() }
}

fn world() -> World {
    let mut world = World::new();
    world.add_role("dev", &dev_role());
    world
}

fn page(
    world: &mut World,
    session: crate::secret::SecretDigest,
    filter: &Filter,
    size: usize,
) -> Vec<String> {
    let (mut hostnames, mut after) = (Vec::new(), None);
    for _ in 0..100 {
        let request = PageRequest { size, after };
        let page = world.call(session, |tx, context| list(tx, context, filter, &request, TTL)).unwrap();
        assert!(page.items.len() <= size);
        hostnames.extend(page.items.into_iter().map(|item| item.node.row.hostname));
        after = page.next;
        if after.is_none() {
            hostnames.sort();
            return hostnames;
        }
    }
    panic!("the list does not end");
}

#[test]
fn lists_are_filtered_as_the_single_reads_are() {
    let mut world = world();
    world.joined(NodeKind::Ssh, "web1", &[("env", "dev")]);
    world.joined(NodeKind::Ssh, "web2", &[("env", "prod")]);
    world.joined(NodeKind::Ingest, "ingest1", &[("env", "dev")]);
    let (dev, boss) = (world.user_with("ann", "dev", traits(&[])), world.boss);
    let auditor = world.user_with("eve", "auditor", traits(&[]));
    let all = Filter::default();
    assert_eq!(page(&mut world, dev, &all, 100), ["web1"]);
    assert_eq!(page(&mut world, boss, &all, 100), ["ingest1", "web1", "web2"]);
    assert_eq!(page(&mut world, auditor, &all, 100), Vec::<String>::new());
    let request = PageRequest::new(0, None);
    let item = world.call(dev, |tx, context| list(tx, context, &all, &request, TTL)).unwrap().items.remove(0);
    assert_eq!((item.logins, item.online), (["root".to_owned()].into(), true));
    let anonymous = world.run(|tx, context| list(tx, context, &all, &request, TTL));
    assert!(matches!(anonymous, Err(CoreError::Unauthenticated(_))));
}

#[test]
fn an_admins_labels_decide_and_count_at_once() {
    let mut world = world();
    let host = world.joined(NodeKind::Ssh, "web1", &[("env", "dev")]);
    let dev = world.user_with("ann", "dev", traits(&[]));
    assert_eq!(page(&mut world, dev, &Filter::default(), 100), ["web1"]);
    world.admin(|tx, context| update_labels(tx, context, &host.id(), labels(&[("env", "prod")]), 0)).unwrap();
    assert!(page(&mut world, dev, &Filter::default(), 100).is_empty());
}

#[test]
fn filters_narrow() {
    let mut world = world();
    let boss = world.boss;
    world.joined(NodeKind::Ssh, "web1", &[("env", "dev"), ("os", "linux")]);
    world.now += 44_999;
    world.joined(NodeKind::Ssh, "web2", &[("env", "prod"), ("os", "linux")]);
    let with = |pairs: &[(&str, &str)]| Filter { labels: labels(pairs), online_only: false };
    assert_eq!(page(&mut world, boss, &with(&[("os", "linux")]), 9), ["web1", "web2"]);
    assert_eq!(page(&mut world, boss, &with(&[("os", "linux"), ("env", "dev")]), 9), ["web1"]);
    assert!(page(&mut world, boss, &with(&[("os", "")]), 9).is_empty());
    let online = Filter { online_only: true, ..Filter::default() };
    assert_eq!(page(&mut world, boss, &online, 9), ["web1", "web2"]);
    world.now += 1;
    assert_eq!(page(&mut world, boss, &online, 9), ["web2"]);
    let (bad, request) = (with(&[("a b", "")]), PageRequest::new(0, None));
    assert_invalid(world.admin(|tx, context| list(tx, context, &bad, &request, TTL)), "labels");
    let foreign = PageRequest { size: 1, after: Some("x".into()) };
    let all = Filter::default();
    assert_invalid(world.admin(|tx, context| list(tx, context, &all, &foreign, TTL)), "page_token");
}

#[test]
fn paging_ends_and_misses_nothing_however_few_match() {
    let mut world = world();
    let dev = world.user_with("ann", "dev", traits(&[]));
    let mut expected = Vec::new();
    for number in 0..20 {
        let env = if number % 7 == 3 { "dev" } else { "prod" };
        let hostname = format!("web{number:02}");
        world.joined(NodeKind::Ssh, &hostname, &[("env", env)]);
        if env == "dev" {
            expected.push(hostname);
        }
    }
    for size in [1, 2, 3, 4, 100] {
        assert_eq!(page(&mut world, dev, &Filter::default(), size), expected, "pages of {size}");
    }
}

/// The tables are read side by side: what one lacks, or has beside, must not shift the others.
#[test]
fn a_list_says_of_each_node_what_is_said_of_it_alone() {
    let mut world = world();
    let boss = world.boss;
    let id = |number: u8| AgentId::from_random([number; 16]);
    world
        .run(|tx, _| {
            for number in 0..200 {
                let (row, expires_at_ms) = (id(number), u64::MAX);
                if number % 2 == 0 {
                    let node = NodeRow { kind: NodeKind::Ssh.into(), expires_at_ms, ..NodeRow::default() };
                    tx.put(&NodeKey(row.clone()), &node);
                }
                if number % 3 == 0 {
                    let labels = labels(&[("n", &number.to_string())]);
                    tx.put(&AgentLabelsKey(row.clone()), &AgentLabelsRow { labels, expires_at_ms });
                }
                if number % 5 == 0 {
                    let last = PresenceRow { load: number.into(), expires_at_ms, ..PresenceRow::default() };
                    tx.put(&PresenceKey(row), &last);
                }
            }
            Ok(())
        })
        .unwrap();
    for size in [7, 1000] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let request = PageRequest { size, after };
            let all = Filter::default();
            let page = world.call(boss, |tx, context| list(tx, context, &all, &request, TTL)).unwrap();
            found.extend(page.items.into_iter().map(|item| item.node));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let alone = world.run(|tx, _| (0..200).step_by(2).map(|number| get(tx, &id(number))).collect());
        let alone: Vec<_> = Result::<Vec<_>, _>::unwrap(alone).into_iter().map(Option::unwrap).collect();
        let by_id: std::collections::BTreeMap<_, _> =
            alone.into_iter().map(|node| (node.id.clone(), node)).collect();
        assert_eq!(found, by_id.into_values().collect::<Vec<_>>());
    }
    world.now = u64::try_from(TTL.0.as_millis()).unwrap() - 1;
    let counts = world.run(|tx, _| count(tx, TTL)).unwrap();
    assert_eq!(counts, Counts { total: 100, online: 20 });
}

#[test]
fn updates_of_labels_are_bounded_compared_and_audited() {
    let mut world = world();
    let host = world.joined(NodeKind::Ssh, "web1", &[]);
    let id = host.id();
    let revision = world.node(&host).unwrap().revision;
    let update = |world: &mut World, pairs: &[(&str, &str)], revision| {
        world.admin(|tx, context| update_labels(tx, context, &id, labels(pairs), revision))
    };
    assert_eq!(update(&mut world, &[("env", "a")], revision).unwrap().labels(), labels(&[("env", "a")]));
    let record = world.last_audit();
    assert_eq!((record.event.as_str(), record.fields["admin_labels"].as_str()), ("node.update", "env=a"));
    let stale = update(&mut world, &[("env", "b")], revision);
    assert!(matches!(stale, Err(CoreError::StaleRevision { given, .. }) if given == revision));
    assert_eq!(update(&mut world, &[], 0).unwrap().labels(), labels(&[]));
    assert_invalid(update(&mut world, &[("a b", "")], 0), "admin_labels");
    let other = AgentId::from_random([200; 16]);
    let missing = world.admin(|tx, context| update_labels(tx, context, &other, Labels::new(), 0));
    assert!(matches!(missing, Err(CoreError::NotFound { kind: "node", .. })));
}

#[test]
fn nobody_gives_itself_a_login_by_labels() {
    let mut world = world();
    world.add_role("keeper", &role_with_rule("nodes", "update"));
    let host = world.joined(NodeKind::Ssh, "web1", &[]);
    world.add_user("ann", crate::testing::grants(&["keeper", "dev"]));
    let (ann, boss) = (world.log_in("ann"), world.boss);
    let update = |world: &mut World, by, pairs: &[(&str, &str)]| {
        world.call(by, |tx, context| update_labels(tx, context, &host.id(), labels(pairs), 0))
    };
    update(&mut world, ann, &[("env", "prod")]).unwrap();
    assert_denied(update(&mut world, ann, &[("env", "dev")]), "log in there as root");
    assert_eq!(world.node(&host).unwrap().labels(), labels(&[("env", "prod")]));
    // What it has already, it may keep and give up.
    update(&mut world, boss, &[("env", "dev")]).unwrap();
    update(&mut world, ann, &[("env", "dev"), ("rack", "7")]).unwrap();
    update(&mut world, ann, &[]).unwrap();
}

#[test]
fn whoever_leaves_leaves_nothing_behind() {
    let mut world = world();
    for kind in [NodeKind::Ssh, NodeKind::Ingest] {
        let host = world.joined(kind, "web1", &[("env", "dev")]);
        world.with(&host.credential(), |tx, context| remove(tx, context, None)).unwrap();
        let record = world.last_audit();
        assert_eq!(
            (record.event.as_str(), record.actor.ends_with(host.id().as_str())),
            ("agent.leave", true)
        );
        let key_digest = host.key_digest();
        let id = host.id();
        world
            .run(|tx, _| {
                assert!(
                    tx.get(&NodeKey(id.clone()))?.is_none() && tx.get(&PresenceKey(id.clone()))?.is_none()
                );
                assert!(
                    tx.get(&AgentLabelsKey(id.clone()))?.is_none()
                        && tx.get(&IngestKey(id.clone()))?.is_none()
                );
                let token = TokenName::parse("token", "for-web1")?;
                assert!(tx.get(&TokenUseKey { token, key_digest })?.is_none());
                assert!(tx.get(&PrincipalKey("web1".into()))?.is_none());
                Ok(())
            })
            .unwrap();
        let again = world.with(&host.credential(), |tx, context| remove(tx, context, None));
        assert_denied(again, "not registered");
        world
            .admin(|tx, context| crate::token::delete(tx, context, &TokenName::parse("token", "for-web1")?))
            .unwrap();
    }
}

#[test]
fn an_agent_that_has_not_registered_removes_itself() {
    for kind in [NodeKind::Ssh, NodeKind::Ingest] {
        let mut world = world();
        world.add_token(new_token("t", kind));
        let (mut host, mut other) = (Host::new(kind), Host::new(kind));
        world.ask(&mut host, "t", "web1", &["192.0.2.7"]).unwrap();
        // The token may have ended since.
        world.now += 2 * 3_600_000;
        let leave = |world: &mut World, host: &Host, named: Option<AgentId>| {
            world.with(&host.credential(), |tx, context| remove(tx, context, named.as_ref()))
        };
        let another = AgentId::from_random([200; 16]);
        assert_denied(leave(&mut world, &host, Some(another)), "itself alone");
        // Only the holder of its key does.
        let stranger = Host { id: host.id.clone(), ..Host::new(kind) };
        assert_denied(leave(&mut world, &stranger, None), "not registered");
        world.add_token(NewToken { max_uses: 9, ..new_token("u", kind) });
        assert_denied(world.ask(&mut other, "u", "web1", &[]), "belongs to another agent");

        leave(&mut world, &host, None).unwrap();
        let record = world.last_audit();
        assert_eq!((record.event.as_str(), record.target), ("agent.leave", join::target(kind, &host.id())));
        assert_denied(leave(&mut world, &host, None), "not registered");
        assert_denied(world.register(&host, "u", &report("web1:22", &[])), "of no join");
        world.ask(&mut other, "u", "web1", &["192.0.2.7"]).unwrap();
    }
}

#[test]
fn admins_see_the_joins_that_were_not_finished() {
    let mut world = world();
    world.joined(NodeKind::Ssh, "web0", &[]);
    let dev = world.user_with("ann", "dev", traits(&[]));
    world.add_token(NewToken {
        max_uses: 9,
        labels: labels(&[("env", "dev")]),
        ..new_token("t", NodeKind::Ssh)
    });
    let hosts: Vec<_> = ["web1", "web2", "web3"]
        .map(|hostname| {
            let mut host = Host::new(NodeKind::Ssh);
            world.ask(&mut host, "t", hostname, &[]).unwrap();
            host
        })
        .into();
    let see = |world: &mut World, session, pairs: &[(&str, &str)], size, after| {
        let (filter, page) =
            (Filter { labels: labels(pairs), online_only: false }, PageRequest { size, after });
        let seen = world.call(session, |tx, context| unfinished(tx, context, &filter, &page))?;
        let shown = |node: Node| (node.row.hostname, node.row.registered_at_ms);
        Ok::<_, CoreError>((seen.items.into_iter().map(shown).collect::<Vec<_>>(), seen.next))
    };
    let boss = world.boss;
    let (first, next) = see(&mut world, boss, &[], 2, None).unwrap();
    assert_eq!(first, [("web1".to_owned(), 0), ("web2".to_owned(), 0)]);
    assert_eq!(see(&mut world, boss, &[], 2, next).unwrap(), (vec![("web3".to_owned(), 0)], None));
    assert_eq!(see(&mut world, boss, &[("env", "dev")], 9, None).unwrap().0.len(), 3);
    assert!(see(&mut world, boss, &[("env", "prod")], 9, None).unwrap().0.is_empty());
    assert_denied(see(&mut world, dev, &[], 9, None), "for the role admin");

    world.register(&hosts[0], "t", &report("web1:22", &[])).unwrap();
    world.admin(|tx, context| remove(tx, context, Some(&hosts[1].id()))).unwrap();
    assert_eq!(see(&mut world, boss, &[], 9, None).unwrap().0, [("web3".to_owned(), 0)]);
}

#[test]
fn only_an_admin_removes_another_agent() {
    let mut world = world();
    let (first, second) =
        (world.joined(NodeKind::Ssh, "web1", &[]), world.joined(NodeKind::Ssh, "web2", &[]));
    let dev = world.user_with("ann", "dev", traits(&[]));
    let named = first.id();
    let by_agent = world.with(&second.credential(), |tx, context| remove(tx, context, Some(&named)));
    assert_denied(by_agent, "itself alone");
    assert_denied(world.call(dev, |tx, context| remove(tx, context, Some(&named))), "needs the role admin");
    let anonymous = world.run(|tx, context| remove(tx, context, Some(&named)));
    assert!(matches!(anonymous, Err(CoreError::Unauthenticated(_))));
    assert_invalid(world.admin(|tx, context| remove(tx, context, None)), "agent_id");
    assert!(world.node(&first).is_some() && world.node(&second).is_some());
    world.admin(|tx, context| remove(tx, context, Some(&named))).unwrap();
    assert_eq!(world.last_audit().actor, "user:boss");
    assert!(world.node(&first).is_none() && world.node(&second).is_some());
    let again = world.admin(|tx, context| remove(tx, context, Some(&named)));
    assert!(matches!(again, Err(CoreError::NotFound { .. })));
}

/// Whether its token is still good or not: the names are held as long as the certificates last.
#[test]
fn an_admin_removes_one_that_never_registered_and_it_stays_out() {
    for (kind, later) in [(NodeKind::Ssh, 0), (NodeKind::Ingest, 0), (NodeKind::Ssh, 2 * 3_600_000)] {
        let mut world = world();
        let (mut host, mut other) = (Host::new(kind), Host::new(kind));
        world.add_token(new_token("first", kind));
        world.ask(&mut host, "first", "web1", &[]).unwrap();
        world.now += later;
        world.add_token(new_token("second", kind));
        assert_denied(world.ask(&mut other, "second", "web1", &[]), "belongs to another agent");

        let (id, web1) = (host.id(), report("web1:22", &[]));
        world.admin(|tx, context| remove(tx, context, Some(&id))).unwrap();
        let record = world.last_audit();
        assert_eq!((record.event.as_str(), record.target), ("agent.leave", join::target(kind, &id)));
        assert_eq!(record.fields["principals"], "web1");

        // Neither its certificate nor its join brings it back.
        for _ in 0..2 {
            let registered = world.register(&host, "first", &web1);
            assert!(matches!(registered, Err(CoreError::Denied(_))), "{registered:?}");
            let again = world.ask(&mut host, "first", "web1", &[]);
            assert!(matches!(again, Err(CoreError::Denied(_))), "{:?}", again.map(|certs| certs.agent_id));
            // From now on the name is another's.
            if other.id.is_none() {
                world.ask(&mut other, "second", "web1", &[]).unwrap();
                world.register(&other, "second", &web1).unwrap();
            }
        }
        assert!(world.node(&host).is_none() && world.node(&other).is_some());
        let gone = world.admin(|tx, context| remove(tx, context, Some(&id)));
        assert!(matches!(gone, Err(CoreError::NotFound { .. })), "{gone:?}");
    }
}

#[test]
fn live_ingests_are_those_that_reported_the_least_busy_first() {
    let mut world = world();
    let first = world.joined(NodeKind::Ingest, "i1", &[]);
    let second = world.joined(NodeKind::Ingest, "i2", &[]);
    world.joined(NodeKind::Ssh, "web1", &[]);
    let live = |world: &mut World| world.run(|tx, _| live_ingests(tx, TTL)).unwrap();
    let busy = |load| presence::Report::new("1".into(), Labels::new(), String::new(), load).unwrap();
    world.beat(&first, &busy(5)).unwrap();
    world.beat(&second, &busy(2)).unwrap();
    assert_eq!(live(&mut world), ["i2:22", "i1:22"]);
    world.now += 44_000;
    world.beat(&first, &busy(9)).unwrap();
    world.now += 1000;
    assert_eq!(live(&mut world), ["i1:22"]);
    assert_eq!(world.run(|tx, _| ingests(tx)).unwrap().len(), 2);
}

/// As where an autoscaler makes and ends ingests, each of them another one, for weeks.
#[test]
fn dead_ingests_hide_no_live_one() {
    let mut world = world();
    let id = |number: u32| AgentId::parse("id", &format!("{number:08}-0000-4000-8000-000000000000")).unwrap();
    let expires_at_ms = world.now + 1_000_000;
    world
        .run(|tx, _| {
            let now = tx.now();
            for number in 0..5_000 {
                let last_seen_ms = if number == 4_990 { now } else { 0 };
                let address = format!("i{number}:3027");
                let presence = PresenceRow { last_seen_ms, address, expires_at_ms, ..Default::default() };
                tx.put(&IngestKey(id(number)), &IngestRow { expires_at_ms });
                tx.put(&PresenceKey(id(number)), &presence);
            }
            Ok(())
        })
        .unwrap();
    let live = |world: &mut World| world.run(|tx, _| live_ingests(tx, TTL)).unwrap();
    assert_eq!(live(&mut world), ["i4990:3027"]);
    // And as many live ones as there may be are not all told of.
    world
        .run(|tx, _| {
            let now = tx.now();
            for number in 0..5_000 {
                let address = format!("i{number}:3027");
                let presence =
                    PresenceRow { last_seen_ms: now, address, expires_at_ms, ..Default::default() };
                tx.put(&PresenceKey(id(number)), &presence);
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(live(&mut world).len(), 1_000);
    // They go with their certificates.
    world.now = expires_at_ms;
    assert!(live(&mut world).is_empty());
    assert!(world.run(|tx, _| Ok(tx.scan::<IngestKey>(None, 1)?)).unwrap().is_empty());
}

#[test]
fn ssh_nodes_are_counted() {
    let mut world = world();
    assert_eq!(world.run(|tx, _| count(tx, TTL)).unwrap(), Counts::default());
    let host = world.joined(NodeKind::Ssh, "web1", &[]);
    world.joined(NodeKind::Ssh, "web2", &[]);
    world.joined(NodeKind::Ingest, "i1", &[]);
    world.now += 40_000;
    world.beat(&host, &report("", &[])).unwrap();
    world.now += 10_000;
    assert_eq!(world.run(|tx, _| count(tx, TTL)).unwrap(), Counts { total: 2, online: 1 });
}

/// A filter that matches one node of thousands: pages may be empty, and still go on.
#[test]
fn a_page_looks_at_so_many_nodes_and_goes_on_from_there() {
    let mut world = world();
    let dev = world.user_with("ann", "dev", traits(&[]));
    let id = |number: u32| AgentId::parse("id", &format!("{number:08}-0000-4000-8000-000000000000")).unwrap();
    let row = |env: &str| NodeRow {
        kind: NodeKind::Ssh.into(),
        hostname: env.into(),
        admin_labels: labels(&[("env", env)]),
        expires_at_ms: u64::MAX,
        ..NodeRow::default()
    };
    world
        .run(|tx, _| {
            for number in 0..5000 {
                tx.put(&NodeKey(id(number)), &row(if number == 4990 { "dev" } else { "prod" }));
            }
            Ok(())
        })
        .unwrap();
    let first = PageRequest::new(10, None);
    let all = Filter::default();
    let page = world.call(dev, |tx, context| list(tx, context, &all, &first, TTL)).unwrap();
    assert_eq!((page.items.len(), page.next.clone()), (0, Some(id(4095).to_string())));
    let second = PageRequest::new(10, page.next);
    let page = world.call(dev, |tx, context| list(tx, context, &all, &second, TTL)).unwrap();
    assert_eq!((page.items.len(), page.items[0].node.id.clone(), page.next), (1, id(4990), None));
}
