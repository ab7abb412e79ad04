//! Changes of the members, and why they are refused, as the peer protocol has them.

use mezite_proto::peer::{self, change_membership_request as proto, membership_refusal::Kind};

use super::{Change, MembershipError, Role};
use crate::{error::StoreError, raft::PeerNode};

impl MembershipError {
    /// The refusal as the peer protocol has it, or the failure that is none.
    pub(crate) fn into_refusal(self) -> Result<peer::MembershipRefusal, StoreError> {
        let refusal = |kind: Kind, node_id| peer::MembershipRefusal {
            kind: kind.into(),
            node_id,
            ..peer::MembershipRefusal::default()
        };
        Ok(match self {
            Self::NotAMember(node_id) => refusal(Kind::NotAMember, node_id),
            Self::NotCaughtUp { node_id, lag, max_lag } => {
                peer::MembershipRefusal { lag, max_lag, ..refusal(Kind::NotCaughtUp, node_id) }
            }
            Self::NoQuorum { node_id, reachable, voters } => {
                peer::MembershipRefusal { reachable, voters, ..refusal(Kind::NoQuorum, node_id) }
            }
            Self::Removed(node_id) => refusal(Kind::Removed, node_id),
            Self::LastVoter(node_id) => refusal(Kind::LastVoter, node_id),
            Self::Store(error) => return Err(error),
        })
    }

    /// The refusal that the leader told.
    pub(crate) fn from_refusal(refusal: &peer::MembershipRefusal) -> Self {
        let node_id = refusal.node_id;
        match refusal.kind() {
            Kind::NotAMember => Self::NotAMember(node_id),
            Kind::NotCaughtUp => Self::NotCaughtUp { node_id, lag: refusal.lag, max_lag: refusal.max_lag },
            Kind::NoQuorum => {
                Self::NoQuorum { node_id, reachable: refusal.reachable, voters: refusal.voters }
            }
            Kind::Removed => Self::Removed(node_id),
            Kind::LastVoter => Self::LastVoter(node_id),
            Kind::Unspecified => Self::Store(StoreError::Unavailable(
                "the leader refuses for a reason that this release does not know",
            )),
        }
    }
}

impl From<peer::ActivateRequest> for Change {
    fn from(request: peer::ActivateRequest) -> Self {
        let member = request.member.unwrap_or_default();
        let node = PeerNode { peer_address: member.peer_address, app_address: member.app_address };
        let role = if request.learner { Role::Learner } else { Role::Voter };
        Self::Add { node_id: member.node_id, node, role }
    }
}

impl TryFrom<peer::ChangeMembershipRequest> for Change {
    type Error = ();

    fn try_from(request: peer::ChangeMembershipRequest) -> Result<Self, ()> {
        Ok(match request.change.ok_or(())? {
            proto::Change::Add(request) => request.into(),
            proto::Change::Promote(node_id) => Self::Promote { node_id },
            proto::Change::Remove(peer::RemoveMember { node_id, force, bar }) => {
                Self::Remove { node_id, force, bar }
            }
        })
    }
}

impl Change {
    /// As it is taken to the leader.
    pub(super) fn to_proto(&self) -> peer::ChangeMembershipRequest {
        let change = match self {
            Self::Add { node_id, node, role } => proto::Change::Add(activation(*node_id, node, *role)),
            Self::Promote { node_id } => proto::Change::Promote(*node_id),
            Self::Remove { node_id, force, bar } => {
                proto::Change::Remove(peer::RemoveMember { node_id: *node_id, force: *force, bar: *bar })
            }
        };
        peer::ChangeMembershipRequest { change: Some(change) }
    }
}

/// What a node asks for that takes part.
pub(super) fn activation(node_id: u64, node: &PeerNode, role: Role) -> peer::ActivateRequest {
    let member = peer::Member {
        node_id,
        peer_address: node.peer_address.clone(),
        app_address: node.app_address.clone(),
    };
    peer::ActivateRequest { member: Some(member), learner: role == Role::Learner }
}
