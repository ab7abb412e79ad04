use auth_core::{
    names::AgentId,
    tables::{CaKey, CaKeyRow, CaRow, NodeKey, NodeKind, NodeRow},
};
use store_txn::TransactionExt as _;
use tonic::Code;

use super::*;
use crate::rpc::testing::{Node, with};

fn request() -> v1::RotateCaRequest {
    v1::RotateCaRequest {
        kind: v1::CaKind::Host.into(),
        target_phase: v1::RotationPhase::Init.into(),
        ..Default::default()
    }
}

#[track_caller]
fn refused(request: v1::RotateCaRequest, named: &str) {
    let refused = parse(&request);
    assert!(matches!(&refused, Err(CoreError::Invalid { field, .. }) if field == named), "{refused:?}");
}

#[test]
fn what_cannot_be_rotated_names_its_field() {
    assert!(parse(&request()).is_ok());
    for kind in [v1::CaKind::Unspecified as i32, 77] {
        refused(v1::RotateCaRequest { kind, ..request() }, "kind");
    }
    for target_phase in [0, 77] {
        refused(v1::RotateCaRequest { target_phase, ..request() }, "target_phase");
    }
    let grace_period = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    refused(v1::RotateCaRequest { grace_period, ..request() }, "grace_period");
    let grace_period = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let step = parse(&v1::RotateCaRequest { grace_period, ..request() }).unwrap();
    assert_eq!(step.grace, Some(std::time::Duration::from_secs(60)));
}

#[tokio::test]
async fn a_step_by_hand_right_after_an_outage_waits_for_those_that_could_not_report_unless_it_is_forced() {
    // Of this node nobody knows how long it could not take reports.
    let node = Node::start().await;
    let put = node.service.store.transact(|tx| {
        let key = CaKeyRow { public: "old".into(), ..CaKeyRow::default() };
        tx.put(&CaKey(CaKind::Host), &CaRow::new(key));
        let agent = NodeRow { kind: NodeKind::Ssh.into(), expires_at_ms: u64::MAX, ..NodeRow::default() };
        tx.put(&NodeKey(AgentId::parse("", "6f9619ff-8b86-4011-b42d-00c04fc964ff")?), &agent);
        Ok::<_, CoreError>(())
    });
    put.await.map_err(ApiError::from).unwrap();
    let boss = node.boss().await;
    let step = async |target: v1::RotationPhase, force| {
        let request = v1::RotateCaRequest { target_phase: target.into(), force, ..request() };
        rotate(&node.service, &with(&boss, "RotateCA"), request).await
    };
    step(v1::RotationPhase::Init, false).await.unwrap();
    let refused = step(v1::RotationPhase::UpdateClients, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.to_string().contains("60 s left to report") && refused.to_string().contains("force"));
    step(v1::RotationPhase::UpdateClients, true).await.unwrap();
    step(v1::RotationPhase::UpdateServers, false).await.unwrap_err();

    // Once they have had their time, whoever is absent holds nothing up.
    node.service.attendance.settle();
    step(v1::RotationPhase::UpdateServers, false).await.unwrap();
}
