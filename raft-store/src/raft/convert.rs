//! openraft's types to and from the peer protocol, which is also how they are stored.

use mezite_proto::peer;
use openraft::{
    Entry, EntryPayload, LeaderId, LogId, Membership, SnapshotMeta, StoredMembership, Vote,
    raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse},
};
use prost::Message;

use super::{Command, PeerNode, TypeConfig};
use crate::error::StoreError;

fn missing(what: &str) -> StoreError {
    StoreError::DataDirectory(format!("a Raft message or record has no {what}"))
}

pub(crate) fn log_id(id: &peer::LogId) -> LogId<u64> {
    LogId { leader_id: LeaderId::new(id.term, id.leader_id), index: id.index }
}

pub(crate) fn from_log_id(id: &LogId<u64>) -> peer::LogId {
    peer::LogId { term: id.leader_id.term, leader_id: id.leader_id.node_id, index: id.index }
}

pub(crate) fn vote(ballot: &peer::Ballot) -> Vote<u64> {
    Vote { leader_id: LeaderId::new(ballot.term, ballot.node_id), committed: ballot.committed }
}

pub(crate) fn vote_to_proto(vote: &Vote<u64>) -> peer::Ballot {
    peer::Ballot { term: vote.leader_id.term, node_id: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn member_from_node(node_id: u64, node: &PeerNode) -> peer::Member {
    peer::Member { node_id, peer_address: node.peer_address.clone(), app_address: node.app_address.clone() }
}

pub(crate) fn membership_to_proto(membership: &Membership<u64, PeerNode>) -> peer::Membership {
    let configs = membership.get_joint_config().iter();
    peer::Membership {
        configs: configs.map(|ids| peer::VoterSet { node_ids: ids.iter().copied().collect() }).collect(),
        members: membership.nodes().map(|(id, node)| member_from_node(*id, node)).collect(),
    }
}

pub(crate) fn membership(stored: &peer::Membership) -> Membership<u64, PeerNode> {
    let configs = stored.configs.iter().map(|set| set.node_ids.iter().copied().collect()).collect();
    let nodes: std::collections::BTreeMap<_, _> = stored
        .members
        .iter()
        .map(|member| {
            let node = PeerNode {
                peer_address: member.peer_address.clone(),
                app_address: member.app_address.clone(),
            };
            (member.node_id, node)
        })
        .collect();
    Membership::new(configs, nodes)
}

pub(crate) fn stored_membership(
    at: Option<&peer::LogId>,
    stored: Option<&peer::Membership>,
) -> StoredMembership<u64, PeerNode> {
    match stored {
        Some(stored) => StoredMembership::new(at.map(log_id), membership(stored)),
        None => StoredMembership::default(),
    }
}

pub(crate) fn entry_to_proto(entry: &Entry<TypeConfig>) -> peer::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => peer::entry::Payload::Blank(peer::Blank {}),
        EntryPayload::Normal(Command(batch)) => peer::entry::Payload::Batch(batch.clone()),
        EntryPayload::Membership(membership) => {
            peer::entry::Payload::Membership(membership_to_proto(membership))
        }
    };
    peer::Entry { log_id: Some(from_log_id(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn entry(stored: peer::Entry) -> Result<Entry<TypeConfig>, StoreError> {
    let payload = match stored.payload.ok_or_else(|| missing("payload this release understands"))? {
        peer::entry::Payload::Blank(peer::Blank {}) => EntryPayload::Blank,
        peer::entry::Payload::Batch(batch) => EntryPayload::Normal(Command(batch)),
        peer::entry::Payload::Membership(stored) => EntryPayload::Membership(membership(&stored)),
    };
    let log_id = log_id(&stored.log_id.ok_or_else(|| missing("log id"))?);
    Ok(Entry { log_id, payload })
}

/// Version byte of a stored log entry.
const ENTRY_VERSION: u8 = 1;

/// A log entry as it is stored: a version byte, then the protocol's encoding.
pub(crate) fn encode_entry(entry: &Entry<TypeConfig>) -> Vec<u8> {
    let proto = entry_to_proto(entry);
    let mut out = Vec::with_capacity(1 + proto.encoded_len());
    out.push(ENTRY_VERSION);
    proto.encode_raw(&mut out);
    out
}

pub(crate) fn decode_entry(bytes: &[u8]) -> Result<Entry<TypeConfig>, StoreError> {
    entry(decode_stored(bytes)?)
}

/// A stored log entry in the protocol's form.
pub(crate) fn decode_stored(bytes: &[u8]) -> Result<peer::Entry, StoreError> {
    match bytes.split_first() {
        Some((&ENTRY_VERSION, body)) => peer::Entry::decode(body)
            .map_err(|error| StoreError::DataDirectory(format!("a log entry does not decode: {error}"))),
        Some((version, _)) => Err(StoreError::DataDirectory(format!(
            "a log entry has version {version}; this release knows {ENTRY_VERSION}: run the newer release"
        ))),
        None => Err(missing("content")),
    }
}

pub(crate) fn append_request_to_proto(request: &AppendEntriesRequest<TypeConfig>) -> peer::AppendRequest {
    peer::AppendRequest {
        vote: Some(vote_to_proto(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(from_log_id),
        entries: request.entries.iter().map(entry_to_proto).collect(),
        leader_commit: request.leader_commit.as_ref().map(from_log_id),
    }
}

pub(crate) fn append_request(
    request: peer::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, StoreError> {
    Ok(AppendEntriesRequest {
        vote: vote(&request.vote.ok_or_else(|| missing("vote"))?),
        prev_log_id: request.prev_log_id.as_ref().map(log_id),
        entries: request.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        leader_commit: request.leader_commit.as_ref().map(log_id),
    })
}

pub(crate) fn append_response_to_proto(response: AppendEntriesResponse<u64>) -> peer::AppendResponse {
    use peer::append_response::Result as Proto;
    let result = match response {
        AppendEntriesResponse::Success => Proto::Success(peer::Blank {}),
        AppendEntriesResponse::PartialSuccess(matching) => {
            Proto::PartialSuccess(peer::PartialSuccess { matching: matching.as_ref().map(from_log_id) })
        }
        AppendEntriesResponse::Conflict => Proto::Conflict(peer::Blank {}),
        AppendEntriesResponse::HigherVote(vote) => Proto::HigherVote(vote_to_proto(&vote)),
    };
    peer::AppendResponse { result: Some(result) }
}

pub(crate) fn append_response(
    response: &peer::AppendResponse,
) -> Result<AppendEntriesResponse<u64>, StoreError> {
    use peer::append_response::Result as Proto;
    Ok(match response.result.as_ref().ok_or_else(|| missing("result"))? {
        Proto::Success(_) => AppendEntriesResponse::Success,
        Proto::PartialSuccess(part) => {
            AppendEntriesResponse::PartialSuccess(part.matching.as_ref().map(log_id))
        }
        Proto::Conflict(_) => AppendEntriesResponse::Conflict,
        Proto::HigherVote(ballot) => AppendEntriesResponse::HigherVote(vote(ballot)),
    })
}

pub(crate) fn vote_request_to_proto(request: &VoteRequest<u64>) -> peer::VoteRequest {
    peer::VoteRequest {
        vote: Some(vote_to_proto(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(from_log_id),
        handover: false,
    }
}

pub(crate) fn vote_request(request: &peer::VoteRequest) -> Result<VoteRequest<u64>, StoreError> {
    Ok(VoteRequest {
        vote: vote(request.vote.as_ref().ok_or_else(|| missing("vote"))?),
        last_log_id: request.last_log_id.as_ref().map(log_id),
    })
}

pub(crate) fn vote_response_to_proto(response: &VoteResponse<u64>) -> peer::VoteResponse {
    peer::VoteResponse {
        vote: Some(vote_to_proto(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(from_log_id),
    }
}

pub(crate) fn vote_response(response: &peer::VoteResponse) -> Result<VoteResponse<u64>, StoreError> {
    Ok(VoteResponse {
        vote: vote(response.vote.as_ref().ok_or_else(|| missing("vote"))?),
        vote_granted: response.granted,
        last_log_id: response.last_log_id.as_ref().map(log_id),
    })
}

pub(crate) fn snapshot_meta_to_proto(meta: &SnapshotMeta<u64, PeerNode>) -> peer::SnapshotMeta {
    peer::SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(from_log_id),
        membership_log_id: meta.last_membership.log_id().as_ref().map(from_log_id),
        membership: Some(membership_to_proto(meta.last_membership.membership())),
        snapshot_id: meta.snapshot_id.clone(),
    }
}

pub(crate) fn snapshot_meta(meta: &peer::SnapshotMeta) -> SnapshotMeta<u64, PeerNode> {
    SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(log_id),
        last_membership: stored_membership(meta.membership_log_id.as_ref(), meta.membership.as_ref()),
        snapshot_id: meta.snapshot_id.clone(),
    }
}

pub(crate) fn snapshot_header(
    header: &peer::SnapshotHeader,
) -> Result<(Vote<u64>, SnapshotMeta<u64, PeerNode>), StoreError> {
    let meta = header.meta.as_ref().ok_or_else(|| missing("snapshot meta"))?;
    Ok((vote(header.vote.as_ref().ok_or_else(|| missing("vote"))?), snapshot_meta(meta)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;

    use super::*;

    #[test]
    fn stored_entries_have_golden_bytes() {
        let log_id = LogId { leader_id: LeaderId::new(3, 2), index: 9 };
        let normal = Entry { log_id, payload: EntryPayload::Normal(Command(Bytes::from_static(b"xy"))) };
        let bytes = encode_entry(&normal);
        assert_eq!(bytes, [1, 0x0a, 6, 0x08, 3, 0x10, 2, 0x18, 9, 0x1a, 2, b'x', b'y']);
        let read = decode_entry(&bytes).unwrap();
        assert_eq!((read.log_id, matches!(read.payload, EntryPayload::Normal(_))), (log_id, true));
        let mut newer = bytes;
        newer[0] = 2;
        assert!(decode_entry(&newer).unwrap_err().to_string().contains("newer release"));
        assert!(decode_entry(&[]).is_err());
    }

    #[test]
    fn votes_and_log_ids_have_golden_bytes() {
        let ballot = vote_to_proto(&Vote::new_committed(3, 2));
        assert_eq!(ballot.encode_to_vec(), [0x08, 3, 0x10, 2, 0x18, 1]);
        let id = from_log_id(&LogId { leader_id: LeaderId::new(3, 2), index: 300 });
        assert_eq!(id.encode_to_vec(), [0x08, 3, 0x10, 2, 0x18, 0xac, 0x02]);
        assert_eq!((vote(&ballot), log_id(&id).index), (Vote::new_committed(3, 2), 300));
    }

    #[test]
    fn a_joint_membership_survives() {
        let node = |n: u64| PeerNode { peer_address: format!("h:{n}"), app_address: format!("a:{n}") };
        let nodes: std::collections::BTreeMap<_, _> = [1, 2, 3].map(|n| (n, node(n))).into();
        let joint = Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])], nodes);
        assert_eq!(membership(&membership_to_proto(&joint)), joint);
    }
}
