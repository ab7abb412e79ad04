use std::collections::BTreeMap;

use store_txn::TransactionExt as _;

use super::*;
use crate::{
    Caller, Origin,
    cluster_config::settings,
    tables::{ClusterConfigKey, ClusterConfigRow},
    testing::{Cluster, assert_invalid},
};

/// A log of its own: events `1..=count`, each at ten times its number, by ann and the cluster in turn.
fn log(count: u64) -> Cluster {
    let mut cluster = Cluster::new();
    // What the making of the cluster wrote is forgotten.
    let before = cluster.audit().len() as u64 + 1;
    cluster
        .run(|tx| {
            tx.trim(LOG, before);
            Ok(())
        })
        .unwrap();
    for number in 1..=count {
        cluster.now = 10 * number;
        let caller = if number % 2 == 0 { Caller::Cluster } else { Caller::Anonymous };
        let context = Context { caller, origin: Origin::default() };
        let fields = BTreeMap::from([("n".to_owned(), format!("Number {number}"))]);
        cluster
            .run(|tx| audit::emit(tx, &context, "session.start", &format!("session:{number}"), &fields))
            .unwrap();
    }
    cluster
}

/// The numbers of all events of a query, page by page.
fn numbers(cluster: &mut Cluster, filter: &Filter, order: Order, size: u32) -> Vec<u64> {
    let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page =
            cluster.run(|tx| query(tx, filter, order, &PageRequest::new(size, after.clone()))).unwrap();
        assert!(page.items.len() <= usize::try_from(size).unwrap());
        found.extend(page.items.iter().map(|(record, _)| record.time / 10));
        assert!(page.next != after || page.next.is_none(), "a page without progress");
        after = page.next;
        pages += 1;
        assert!(pages < 10_000);
        if after.is_none() {
            return found;
        }
    }
}

fn filter() -> Filter {
    Filter::default()
}

#[test]
fn pages_have_every_event_once_in_both_orders_and_every_size() {
    let mut cluster = log(600);
    let up: Vec<u64> = (1..=600).collect();
    let down: Vec<u64> = up.iter().rev().copied().collect();
    for size in [1, 7, 256, 257, 1000] {
        assert_eq!(numbers(&mut cluster, &filter(), Order::Ascending, size), up, "{size}");
        assert_eq!(numbers(&mut cluster, &filter(), Order::Descending, size), down, "{size}");
    }
}

#[test]
fn filters_are_and_ed() {
    let mut cluster = log(40);
    let new = |events: &[&str], actor: &str, times, text: &str| {
        let events: Vec<_> = events.iter().map(|&event| event.to_owned()).collect();
        Filter::new(&events, actor.into(), times, text, 0).unwrap()
    };
    let any = (None, None);
    let mut found = |filter: Filter| numbers(&mut cluster, &filter, Order::Ascending, 3);
    assert_eq!(found(new(&[], "", (Some(100), Some(130)), "")), [10, 11, 12]);
    assert_eq!(found(new(&[], "", (Some(101), None), ""))[0], 11);
    assert_eq!(found(new(&[], "cluster", (None, Some(50)), "")), [2, 4]);
    assert_eq!(found(new(&[], "", any, "NUMBER 4")), [4, 40]);
    assert_eq!(found(new(&[], "", any, "session:39")), [39]);
    assert_eq!(found(new(&["session.*"], "", (None, Some(30)), "")), [1, 2]);
    assert_eq!(found(new(&["user.*", "session.end"], "", any, "")), [0_u64; 0]);
    assert_eq!(found(Filter { from_index: 1, ..new(&[], "", (None, Some(20)), "") }), [1]);
    assert_eq!(found(new(&[], "", (Some(100), Some(50)), "")), [0_u64; 0]);
}

#[test]
fn an_actor_is_found_with_its_kind_and_without() {
    let mut cluster = Cluster::new();
    for actor in ["user:boss", "boss"] {
        let filter = Filter::new(&[], actor.into(), (None, None), "", 0).unwrap();
        assert!(!numbers(&mut cluster, &filter, Order::Descending, 10).is_empty(), "{actor}");
    }
    let filter = Filter::new(&[], "os".into(), (None, None), "", 0).unwrap();
    assert!(numbers(&mut cluster, &filter, Order::Descending, 10).is_empty());
}

#[test]
fn what_cannot_be_is_refused_by_its_field() {
    let new = |event: &str, text: &str| Filter::new(&[event.into()], String::new(), (None, None), text, 0);
    for event in ["user.creat", "users.*", "*", "", "user.create.*"] {
        assert_invalid(new(event, ""), "events[0]");
    }
    assert!(new("user.create", "").is_ok());
    assert_invalid(new("user.create", &"x".repeat(257)), "text");
    assert_invalid(Filter::new(&vec!["user.*".into(); 65], String::new(), (None, None), "", 0), "events");
    let mut cluster = log(1);
    let page = PageRequest::new(1, Some("x".into()));
    assert_invalid(cluster.run(|tx| query(tx, &filter(), Order::Ascending, &page)), "page_token");
}

#[test]
fn old_and_surplus_events_are_forgotten_a_thousand_at_a_time_and_the_log_says_so() {
    let mut cluster = log(2500);
    let first = |cluster: &mut Cluster| cluster.run(|tx| Ok(tx.log_bounds(LOG)?)).unwrap().first;
    let begin = first(&mut cluster);
    let set = |cluster: &mut Cluster, row: ClusterConfigRow| {
        cluster
            .run(|tx| {
                tx.put(&ClusterConfigKey, &row);
                Ok(())
            })
            .unwrap();
    };
    let is_due = |cluster: &mut Cluster| {
        cluster
            .run(|tx| {
                let settings = settings(tx)?;
                due(tx, &settings)
            })
            .unwrap()
    };
    assert_eq!(is_due(&mut cluster), None, "by default all is kept");
    set(&mut cluster, ClusterConfigRow { audit_max_events: Some(2000), ..ClusterConfigRow::default() });
    assert_eq!(is_due(&mut cluster), None, "five hundred too many are not enough");
    set(&mut cluster, ClusterConfigRow { audit_max_events: Some(1500), ..ClusterConfigRow::default() });
    assert_eq!(is_due(&mut cluster), Some(begin + 1000));
    // By age: what is older than time 22,000 are the first 2199.
    cluster.now = 30_000;
    set(&mut cluster, ClusterConfigRow { audit_retention_ms: Some(8_000), ..ClusterConfigRow::default() });
    let before = is_due(&mut cluster).unwrap();
    assert_eq!(before, begin + 2199);
    let context = Context { caller: Caller::Cluster, origin: Origin::default() };
    cluster.run(|tx| trim(tx, &context, before)).unwrap();
    assert_eq!(first(&mut cluster), begin + 1000, "one transaction forgets no more than a thousand");
    cluster.run(|tx| trim(tx, &context, before)).unwrap();
    assert_eq!(first(&mut cluster), begin + 2000);
    assert_eq!(is_due(&mut cluster), None);
    let told = cluster.last_audit();
    assert_eq!((told.event.as_str(), told.actor.as_str()), ("audit.trim", "cluster"));
    assert_eq!(numbers(&mut cluster, &filter(), Order::Ascending, 1000)[0], 2001);
}
