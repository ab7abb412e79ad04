//! The bytes of the peer protocol, and what happens when releases differ.

use mezite_proto::peer::{
    self, change_membership_request::Change, membership_refusal::Kind, peer_service_client::PeerServiceClient,
};
use prost::Message;

use super::*;

#[test]
fn messages_about_members_have_golden_bytes() {
    let member = peer::Member { node_id: 4, peer_address: "h:1".into(), app_address: String::new() };
    let activate = peer::ActivateRequest { member: Some(member), learner: true };
    let golden = [0x0a, 7, 0x08, 4, 0x12, 3, b'h', b':', b'1', 0x10, 1];
    assert_eq!(activate.encode_to_vec(), golden);
    assert_eq!(peer::ActivateRequest::decode(&golden[..]).unwrap(), activate);

    let request = |change| peer::ChangeMembershipRequest { change: Some(change) }.encode_to_vec();
    assert_eq!(request(Change::Add(activate))[..], [&[0x0a, 11][..], &golden].concat());
    assert_eq!(request(Change::Promote(300)), [0x10, 0xac, 2]);
    let remove = |bar| request(Change::Remove(peer::RemoveMember { node_id: 4, force: true, bar }));
    assert_eq!(remove(false), [0x1a, 4, 0x08, 4, 0x10, 1]);
    assert_eq!(remove(true), [0x1a, 6, 0x08, 4, 0x10, 1, 0x18, 1]);

    let kinds = [Kind::NotAMember, Kind::NotCaughtUp, Kind::NoQuorum, Kind::Removed, Kind::LastVoter];
    assert_eq!(kinds.map(|kind| kind as i32), [1, 2, 3, 4, 5]);
    let refusal = peer::MembershipRefusal {
        kind: Kind::NotCaughtUp.into(),
        node_id: 1,
        lag: 2,
        max_lag: 3,
        reachable: 4,
        voters: 5,
    };
    let response = peer::ChangeMembershipResponse { refusal: Some(refusal) };
    let golden = [0x0a, 12, 0x08, 2, 0x10, 1, 0x18, 2, 0x20, 3, 0x28, 4, 0x30, 5];
    assert_eq!(response.encode_to_vec(), golden);
    assert_eq!(peer::ChangeMembershipResponse::decode(&golden[..]).unwrap(), response);
}

#[test]
fn messages_of_a_handover_have_golden_bytes() {
    let vote = peer::Ballot { term: 3, node_id: 2, committed: true };
    let request = peer::TimeoutNowRequest { vote: Some(vote) };
    assert_eq!(request.encode_to_vec(), [0x0a, 6, 0x08, 3, 0x10, 2, 0x18, 1]);
    assert_eq!(peer::TimeoutNowResponse { standing: true }.encode_to_vec(), [0x08, 1]);
    assert_eq!(peer::PingRequest {}.encode_to_vec(), [0; 0]);
    assert_eq!(peer::PingResponse { clock_ms: 258 }.encode_to_vec(), [0x08, 0x82, 2]);
    let vote = peer::Ballot { term: 3, node_id: 2, committed: false };
    let request = peer::VoteRequest { vote: Some(vote), last_log_id: None, handover: true };
    assert_eq!(request.encode_to_vec(), [0x0a, 4, 0x08, 3, 0x10, 2, 0x18, 1]);
}

/// Refusals cross the wire whole.
#[test]
fn refusals_survive_the_wire() {
    use crate::MembershipError as Error;
    for error in [
        Error::NotAMember(1),
        Error::NotCaughtUp { node_id: 1, lag: 2, max_lag: 3 },
        Error::NoQuorum { node_id: 1, reachable: 2, voters: 3 },
        Error::Removed(1),
        Error::LastVoter(1),
    ] {
        let text = error.to_string();
        let refusal = error.into_refusal().unwrap();
        assert_eq!(Error::from_refusal(&refusal).to_string(), text);
    }
    assert!(Error::Store(StoreError::Overloaded).into_refusal().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_a_newer_protocol_is_refused_in_clear_words() {
    let cluster = Cluster::start(1, Limits::default()).await;
    let identity = &cluster.nodes[0].identity;
    let tls = Arc::new(identity.client_config().unwrap());
    let name = identity.server_name(1).unwrap();
    let address = &cluster.addresses()[0].1;
    let channel = mezite_proto::transport::channel(address, tls, name, PATIENCE).unwrap();
    let mut client = PeerServiceClient::new(channel);
    let request = |version: Option<u32>| {
        let mut request = tonic::Request::new(peer::PingRequest {});
        if let Some(version) = version {
            request.metadata_mut().insert(crate::net::VERSION_HEADER, version.into());
        }
        request
    };
    client.ping(request(Some(1))).await.unwrap();
    let newer = client.ping(request(Some(2))).await.unwrap_err();
    assert_eq!(newer.code(), tonic::Code::FailedPrecondition);
    assert_eq!(newer.message(), "peer protocol 2 is newer than 1, which this node speaks: upgrade this node");
    let silent = client.ping(request(None)).await.unwrap_err();
    assert_eq!(silent.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_a_member_changes_nothing() {
    let cluster = Cluster::start(1, Limits::default()).await;
    cluster.leader().await;
    let pool =
        crate::net::client::PeerPool::new(cluster.authority.identity(7), crate::status::Progress::new());
    let mut client = pool.unwrap().get(1, &cluster.addresses()[0].1).unwrap();
    let change = peer::ChangeMembershipRequest { change: Some(Change::Promote(7)) };
    let denied = client.change_membership(change).await.unwrap_err();
    assert_eq!(denied.code(), tonic::Code::PermissionDenied);
    let stand = peer::TimeoutNowRequest::default();
    assert_eq!(client.timeout_now(stand).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    // Nor does one bring another in.
    let member = peer::Member { node_id: 8, ..peer::Member::default() };
    let activate = peer::ActivateRequest { member: Some(member), learner: true };
    assert_eq!(client.activate(activate).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    assert_eq!(cluster.store(0).members().len(), 1);
    // Nor writes, nor reads what is current.
    let transaction = peer::Transaction { not_after_ms: u64::MAX, ..peer::Transaction::default() };
    let propose = peer::ProposeRequest { transactions: vec![transaction] };
    assert_eq!(client.propose(propose).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    let read = client.read_index(peer::ReadIndexRequest {}).await;
    assert_eq!(read.unwrap_err().code(), tonic::Code::PermissionDenied);
}

/// A node that a receiver does not know may be its leader all the same; but nobody speaks for another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leads_and_stands_for_itself_alone() {
    let cluster = Cluster::start(1, Limits::default()).await;
    cluster.leader().await;
    let before = cluster.store(0).status().term;
    let pool =
        crate::net::client::PeerPool::new(cluster.authority.identity(7), crate::status::Progress::new());
    let mut client = pool.unwrap().get(1, &cluster.addresses()[0].1).unwrap();
    let ballots = [1, 8].map(|node_id| Some(peer::Ballot { term: before + 5, node_id, committed: true }));
    for vote in ballots.into_iter().chain([None]) {
        let append = peer::AppendRequest { vote, ..peer::AppendRequest::default() };
        assert_eq!(client.append(append).await.unwrap_err().code(), tonic::Code::PermissionDenied);
        let request = peer::VoteRequest { vote, ..peer::VoteRequest::default() };
        assert_eq!(client.vote(request).await.unwrap_err().code(), tonic::Code::PermissionDenied);
        let header = peer::SnapshotHeader { vote, ..peer::SnapshotHeader::default() };
        let message = Some(peer::install_snapshot_request::Message::Header(header));
        let stream = futures::stream::iter([peer::InstallSnapshotRequest { message }]);
        let refused = client.install_snapshot(stream).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    }
    assert_eq!(cluster.store(0).status().term, before);
    put(&cluster.store(0), "k", "v").await.unwrap();
}
