use mezite_pki::ssh::{SshPublicKey, verify_sshsig};

use super::*;
use crate::rpc::testing::{Node, assert_invalid, with};

#[test]
fn a_checkpoint_says_all_that_it_proves_and_is_signed() {
    let authority = SshCa::generate().unwrap();
    let bounds = LogBounds { first: 3, last: 9, anchor: [1; 32], head: [2; 32] };
    let made = checkpoint("c-1", &bounds, 77_123, &authority).unwrap();
    let (anchor, head) = ("01".repeat(32), "02".repeat(32));
    assert_eq!(
        made.statement,
        format!(
            "mezite audit checkpoint v1\ncluster_id c-1\nfirst 3\nanchor {anchor}\nlast 9\nhash {head}\ntime_ms 77123\n"
        )
    );
    assert_eq!((made.first_index, made.last_index, made.last_hash.as_ref()), (3, 9, &[2; 32][..]));
    let key = SshPublicKey::parse(&authority.public_line()).unwrap();
    verify_sshsig(&made.signature, NAMESPACE, made.statement.as_bytes(), &key).unwrap();
    assert!(verify_sshsig(&made.signature, "manifest@mezite", made.statement.as_bytes(), &key).is_err());
}

#[tokio::test]
async fn events_are_told_and_found_again() {
    let node = Node::start().await;
    let boss = node.boss().await;
    let fields = [("login".to_owned(), "root".to_owned())].into();
    let request =
        v1::EmitAuditEventRequest { event: "session.start".into(), target: "session:1".into(), fields };
    let told = emit(&node.service, &with(&boss, "EmitAuditEvent"), request.clone()).await.unwrap();
    assert_eq!(told.request_id, "r");
    let find = |request| {
        let call = with(&boss, "QueryAuditEvents");
        let service = std::sync::Arc::clone(&node.service);
        async move { query(&service, &call, request).await }
    };
    let events = vec!["session.*".to_owned()];
    let found = find(v1::QueryAuditEventsRequest { events, ..Default::default() }).await.unwrap();
    assert_eq!((found.events.len(), found.next_page_token.as_str(), found.checkpoint), (1, "", None));
    let event = &found.events[0];
    assert_eq!(
        (event.actor.as_str(), event.target.as_str(), event.code.as_str()),
        ("user:boss", "session:1", "MZ4000I")
    );
    assert_eq!((event.client_address.as_str(), event.node_id, event.success), ("192.0.2.9", 1, true));
    assert!(event.record.is_empty() && event.chain_hash.len() == 32);

    let negative = Some(prost_types::Timestamp { seconds: -1, nanos: 0 });
    assert_invalid(find(v1::QueryAuditEventsRequest { from: negative, ..Default::default() }).await, "from");
    let events = vec!["no.such".to_owned()];
    assert_invalid(find(v1::QueryAuditEventsRequest { events, ..Default::default() }).await, "events[0]");
    let other = v1::EmitAuditEventRequest { event: "user.create".into(), ..request };
    assert_invalid(emit(&node.service, &with(&boss, "EmitAuditEvent"), other).await, "event");
}
