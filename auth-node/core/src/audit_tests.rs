use std::collections::BTreeSet;

use store_txn::memory::MemoryStore;

use super::*;
use crate::{Origin, names::AgentId, tables::NodeRow};

#[test]
fn one_code_is_one_event() {
    let names: BTreeSet<_> = EventType::ALL.iter().map(|event| event.name()).collect();
    let numbers: BTreeSet<_> = EventType::ALL.iter().map(|event| &event.code()[..6]).collect();
    assert_eq!((names.len(), numbers.len()), (EventType::ALL.len(), EventType::ALL.len()));
    for event in EventType::ALL {
        let code = event.code();
        assert!(
            code.len() == 7 && code.starts_with("MZ") && matches!(code.as_bytes()[6], b'I' | b'W'),
            "{code}"
        );
    }
}

#[test]
fn a_record_tells_who_what_and_through_which_call() {
    let origin = Origin {
        node_id: 2,
        request_id: "r1".into(),
        client_address: "192.0.2.1".into(),
        ..Origin::default()
    };
    let context = Context { caller: Caller::Anonymous, origin };
    let mut store = MemoryStore::default();
    store
        .transact(5, |tx| {
            append(
                tx,
                &context,
                EventType::LoginFailed,
                "user:ann",
                &[("reason", "ä".repeat(MAX_OWN_VALUE))],
            );
            Ok::<_, CoreError>(())
        })
        .unwrap();
    let read = store.transact(6, |tx| records(tx, 1, 10)).unwrap();
    let (log, row) = &read[0];
    assert_eq!((log.index, log.time), (1, 5));
    assert_eq!(
        (row.event.as_str(), row.actor.as_str(), row.success),
        ("user.login.failed", "anonymous", false)
    );
    assert_eq!((row.node_id, row.request_id.as_str()), (2, "r1"));
    assert_eq!(row.fields["reason"], "ä".repeat(MAX_OWN_VALUE / 2) + "… (327680 bytes in all)");
}

#[test]
fn a_data_plane_tells_its_own_events_alone_and_not_who_or_when() {
    let mut store = MemoryStore::default();
    let context = Context { caller: Caller::Anonymous, origin: Origin::default() };
    let mut told = |event: &str, target: &str, fields: &[(&str, &str)]| {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        store.transact(5, |tx| emit(tx, &context, event, target, &fields))
    };
    for event in ["user.create", "lock.delete", "session.revoke", "", "session.*"] {
        crate::testing::assert_invalid(told(event, "x", &[]), "event");
    }
    crate::testing::assert_invalid(told("session.start", "", &[]), "target");
    crate::testing::assert_invalid(told("session.start", &"x".repeat(257), &[]), "target");
    crate::testing::assert_invalid(told("session.start", "x", &[("Bad name", "")]), "fields");
    crate::testing::assert_invalid(told("session.start", "x", &[("a", &"x".repeat(1025))]), "fields.a");
    told("session.start", "session:1", &[("actor", "user:boss")]).unwrap();
    let read = store.transact(6, |tx| records(tx, 1, 10)).unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!((read[0].1.actor.as_str(), read[0].1.target.as_str()), ("anonymous", "session:1"));
}

#[test]
fn what_became_of_recordings_is_told_by_ingests_alone() {
    let mut store = MemoryStore::default();
    let (id, node) = (AgentId::from_random([9; 16]), Box::<NodeRow>::default());
    let agent = Caller::Agent { id: id.clone(), node: node.clone() };
    let ingest = Caller::Ingest { id, node };
    let mut told = |caller: &Caller, event: &str| {
        let context = Context { caller: caller.clone(), origin: Origin::default() };
        store.transact(5, |tx| emit(tx, &context, event, "recording:1", &BTreeMap::new()))
    };
    for event in OF_INGESTS.map(EventType::name) {
        for caller in [&agent, &Caller::Anonymous] {
            assert!(matches!(told(caller, event), Err(CoreError::Denied(_))));
        }
        told(&ingest, event).unwrap();
    }
    told(&agent, "session.start").unwrap();
}

#[test]
fn what_a_stranger_writes_takes_little_room_in_the_log() {
    let context = Context { caller: Caller::Anonymous, origin: Origin::default() };
    let mut store = MemoryStore::default();
    let fields = [("reason", "x".repeat(MAX_OWN_VALUE))];
    let refused = store.transact(5, |tx| {
        append_refusal(tx, &context, EventType::AgentJoinDenied, "join", &fields);
        Ok::<_, CoreError>(())
    });
    refused.unwrap();
    let read = store.transact(6, |tx| records(tx, 1, 10)).unwrap();
    assert_eq!(read[0].1.fields["reason"], "x".repeat(1024) + "… (163840 bytes in all)");
}

#[test]
fn a_refusal_that_is_only_counted_leaves_no_record_and_the_next_one_tells_of_it() {
    let mut store = MemoryStore::default();
    for refusals in [Refusals::default(), Refusals::Counted, Refusals::Recorded { unrecorded: 1 }] {
        let origin = Origin { refusals, ..Origin::default() };
        let context = Context { caller: Caller::Anonymous, origin };
        let refused = store.transact(5, |tx| {
            append_refusal(tx, &context, EventType::AgentJoinDenied, "join", &[("reason", "no".into())]);
            Ok::<_, CoreError>(())
        });
        refused.unwrap();
    }
    let read = store.transact(6, |tx| records(tx, 1, 10)).unwrap();
    let told: Vec<_> = read.iter().map(|(_, row)| row.fields.get(UNRECORDED).cloned()).collect();
    assert_eq!(told, [None, Some("1".to_owned())]);
    assert!(read.iter().all(|(_, row)| row.fields["reason"] == "no"));
}
