//! The members of the auth cluster: listed, made voters, removed.
//!
//! A change of the members is not a transaction: what is ordered is audited before it is done, and a refusal after it.

use std::{collections::BTreeSet, ops::Range};

use auth_core::{
    CoreError,
    audit::{self, EventType},
    cluster,
    page::Page,
};
use mezite_proto::v1;
use prost::Message as _;
use raft_store::{MembershipError, Report, Surveyed};

use super::convert;
use crate::{authn::Call, error::ApiError, service::Service};

/// Lists the members, ordered by id, each with its own word of how it is; and who has joined and never ran.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListMembersRequest,
) -> Result<v1::ListMembersResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token);
    let read = service.read(call, move |view, _| Ok((page?, cluster::joined_ids(view)?)));
    let (page, joined) = read.await?;
    let foreign = || CoreError::invalid("page_token", "this is not a token of this list");
    let after = page.after.map_or(Ok(0), |text| text.parse::<u64>().map_err(|_| foreign()))?;
    let mut members = all(service).await;
    members.extend(never_ran(service, joined, &members));
    members.sort_by_key(|member| member.node_id);
    members.retain(|member| member.node_id > after);
    let page = Page::cut(
        members,
        page.size,
        |member| member.encoded_len(),
        |member: &v1::Member| member.node_id.to_string(),
    );
    Ok(v1::ListMembersResponse { members: page.items, next_page_token: convert::page_token(page.next) })
}

/// Makes a learner a voter.
pub(crate) async fn add(
    service: &Service,
    call: &Call,
    request: v1::AddMemberRequest,
) -> Result<v1::AddMemberResponse, ApiError> {
    let node_id = id(request.node_id)?;
    let joined = order(service, call, EventType::AuthNodePromote, node_id, Vec::new()).await?;
    let done = service.store(call).promote(node_id).await;
    let never_ran = joined && matches!(done, Err(MembershipError::NotAMember(_)));
    settle(service, call, node_id, done).await.map_err(|error| match never_ran {
        true => waits_for_its_start(node_id).into(),
        false => error,
    })?;
    // So that this node knows of the change that it tells of. It is made, whether this succeeds or not.
    let _ = service.store.confirm(service.settings.store_deadline).await;
    let member = all(service).await.into_iter().find(|member| member.node_id == node_id);
    Ok(v1::AddMemberResponse { member })
}

/// Removes a member for ever, or who could become one.
pub(crate) async fn remove(
    service: &Service,
    call: &Call,
    request: v1::RemoveMemberRequest,
) -> Result<v1::RemoveMemberResponse, ApiError> {
    let node_id = id(request.node_id)?;
    let fields = vec![("force", request.force.to_string())];
    let joined = order(service, call, EventType::AuthNodeRemove, node_id, fields).await?;
    let mut done = service.store(call).remove(node_id, request.force).await;
    if joined && matches!(done, Err(MembershipError::NotAMember(_))) {
        done = service.store(call).bar(node_id).await;
    }
    settle(service, call, node_id, done).await?;
    Ok(v1::RemoveMemberResponse {})
}

fn id(node_id: u64) -> Result<u64, CoreError> {
    if node_id == 0 { Err(CoreError::invalid("node_id", "an id of a member is needed")) } else { Ok(node_id) }
}

fn waits_for_its_start(node_id: u64) -> CoreError {
    CoreError::Precondition(format!(
        "auth node {node_id} has joined and never ran: start it with `auth-node run`, and add it then if it has no vote"
    ))
}

fn target(node_id: u64) -> String {
    format!("auth_node:{node_id}")
}

/// Audits what is ordered. Answers whether the node has joined this cluster, ever.
async fn order(
    service: &Service,
    call: &Call,
    event: EventType,
    node_id: u64,
    fields: Vec<(&'static str, String)>,
) -> Result<bool, ApiError> {
    let ordered = service.write(call, move |tx, context| {
        audit::append(tx, context, event, target(node_id), &fields);
        Ok(cluster::joined_ids(tx)?.contains(&node_id))
    });
    Ok(ordered.await?.value)
}

/// Audits a refusal. A failure is none: the change may still be made.
async fn settle(
    service: &Service,
    call: &Call,
    node_id: u64,
    done: Result<(), MembershipError>,
) -> Result<(), ApiError> {
    if let Err(refusal) = &done
        && !matches!(refusal, MembershipError::Store(_))
    {
        let fields = vec![("reason", refusal.to_string())];
        let audited = service.write(call, move |tx, context| {
            audit::append_refusal(tx, context, EventType::AuthNodeChangeRefused, target(node_id), &fields);
            Ok(())
        });
        audited.await?;
    }
    Ok(done?)
}

/// Those of who has joined that are no members, and were not removed.
fn never_ran(
    service: &Service,
    joined: Range<u64>,
    members: &[v1::Member],
) -> impl Iterator<Item = v1::Member> + use<> {
    let known: BTreeSet<_> = members.iter().map(|member| member.node_id).collect();
    let store = service.store.clone();
    let waiting = joined.filter(move |node_id| !known.contains(node_id) && !store.was_removed(*node_id));
    waiting.map(|node_id| v1::Member {
        node_id,
        health: v1::MemberHealth::NeverRan.into(),
        ..v1::Member::default()
    })
}

/// The members, ascending by id, each with its own word of how it is.
pub(super) async fn all(service: &Service) -> Vec<v1::Member> {
    let surveyed = service.store.survey().await;
    let leader = leader(&surveyed);
    surveyed.into_iter().map(|one| member(one, leader)).collect()
}

/// Who leads, by its own word. After an election two may say so; the later term is right.
fn leader(surveyed: &[Surveyed]) -> Option<u64> {
    let claims = surveyed.iter().filter_map(|one| {
        let report = one.report.as_ref().ok()?;
        (report.leader_id == Some(one.member.node_id)).then_some((report.term, one.member.node_id))
    });
    claims.max().map(|(_, node_id)| node_id)
}

fn member(surveyed: Surveyed, leader: Option<u64>) -> v1::Member {
    let Surveyed { member, lag, report } = surveyed;
    let (health, problem, report) = match report {
        Ok(report @ Report { problem: None, .. }) => (v1::MemberHealth::Ready, String::new(), report),
        Ok(mut report) => (v1::MemberHealth::NotReady, report.problem.take().unwrap_or_default(), report),
        Err(why) => (v1::MemberHealth::Unreachable, why, Report::default()),
    };
    v1::Member {
        node_id: member.node_id,
        peer_address: member.peer_address,
        api_address: member.app_address,
        voter: member.voter,
        matched_index: member.matched_index.unwrap_or_default(),
        leader: leader == Some(member.node_id),
        lag,
        health: health.into(),
        problem,
        database_size: report.database_size,
        database_full: report.database_full,
    }
}

#[cfg(test)]
mod tests {
    use auth_core::tables::{ClusterKey, ClusterRow};
    use raft_store::MemberStatus;
    use store_txn::TransactionExt as _;
    use tonic::Code;

    use super::*;
    use crate::rpc::testing::{Node, with};

    fn surveyed(node_id: u64, report: Result<Report, String>) -> Surveyed {
        let member = MemberStatus {
            node_id,
            peer_address: "p:1".into(),
            app_address: "a:1".into(),
            voter: true,
            matched_index: None,
        };
        Surveyed { member, lag: None, report }
    }

    #[test]
    fn a_member_is_ready_not_ready_or_unreachable() {
        let health = |report| {
            let member = member(surveyed(1, report), None);
            (member.health(), member.problem)
        };
        assert_eq!(health(Ok(Report::default())), (v1::MemberHealth::Ready, String::new()));
        let lags = Report { problem: Some("it lags".into()), ..Report::default() };
        assert_eq!(health(Ok(lags)), (v1::MemberHealth::NotReady, "it lags".into()));
        assert_eq!(health(Err("gone".into())), (v1::MemberHealth::Unreachable, "gone".into()));
    }

    #[test]
    fn of_two_that_say_they_lead_the_later_one_does() {
        let says = |term, leader_id| Ok(Report { term, leader_id: Some(leader_id), ..Report::default() });
        let all = [surveyed(1, says(4, 1)), surveyed(2, says(5, 2)), surveyed(3, says(6, 2))];
        assert_eq!(leader(&all), Some(2));
        assert_eq!(leader(&all[2..]), None, "it only says that another leads");
    }

    #[tokio::test]
    async fn a_change_that_is_refused_is_audited_twice() {
        let node = Node::start().await;
        let boss = node.boss().await;
        let request = v1::AddMemberRequest { node_id: 7 };
        let refused = add(&node.service, &with(&boss, "AddMember"), request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        let request = v1::RemoveMemberRequest { node_id: 1, force: true };
        let refused = remove(&node.service, &with(&boss, "RemoveMember"), request).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.to_string().contains("only voter"), "{refused}");
        assert_eq!(node.audited("auth_node.promote").await.len(), 1);
        let ordered = &node.audited("auth_node.remove").await[0];
        assert_eq!((ordered.target.as_str(), ordered.fields["force"].as_str()), ("auth_node:1", "true"));
        let refusals = node.audited("auth_node.change.refused").await;
        assert_eq!(refusals.iter().map(|row| row.success).collect::<Vec<_>>(), [false, false]);
        assert!(id(0).is_err());
    }

    #[tokio::test]
    async fn who_has_joined_and_never_ran_is_listed_and_can_be_removed() {
        let node = Node::start().await;
        let boss = node.boss().await;
        let joined = node.service.store.transact(|tx| {
            tx.put(&ClusterKey, &ClusterRow { session_epoch: 1, next_node_id: 5, ..ClusterRow::default() });
            Ok::<_, CoreError>(())
        });
        joined.await.map_err(ApiError::from).unwrap();
        let remove = async |node_id| {
            let request = v1::RemoveMemberRequest { node_id, force: false };
            remove(&node.service, &with(&boss, "RemoveMember"), request).await
        };
        let listed = async || {
            let request = v1::ListMembersRequest::default();
            let members = list(&node.service, &with(&boss, "ListMembers"), request).await.unwrap().members;
            members.iter().map(|member| (member.node_id, member.health())).collect::<Vec<_>>()
        };
        let add = async |node_id| {
            let request = v1::AddMemberRequest { node_id };
            super::add(&node.service, &with(&boss, "AddMember"), request).await.unwrap_err()
        };
        let waits = add(2).await;
        assert_eq!(waits.code(), Code::FailedPrecondition);
        assert!(waits.to_string().contains("start it with `auth-node run`"), "{waits}");
        assert_eq!(add(5).await.code(), Code::NotFound);
        let never = v1::MemberHealth::NeverRan;
        assert_eq!(listed().await, [(1, v1::MemberHealth::Ready), (2, never), (3, never), (4, never)]);
        remove(3).await.unwrap();
        remove(3).await.unwrap();
        assert_eq!(listed().await, [(1, v1::MemberHealth::Ready), (2, never), (4, never)]);
        assert!(!add(3).await.to_string().contains("never ran"), "it was removed");
        assert!(node.service.store.was_removed(3) && node.service.store.members().len() == 1);
        // One that will be given out has not joined.
        assert_eq!(remove(5).await.unwrap_err().code(), Code::NotFound);
        assert!(!node.service.store.was_removed(5));
    }

    #[tokio::test]
    async fn members_are_paged() {
        let node = Node::start().await;
        let boss = node.boss().await;
        let page = async |page_token: String| {
            let request = v1::ListMembersRequest { page_size: 1, page_token };
            list(&node.service, &with(&boss, "ListMembers"), request).await
        };
        let first = page(String::new()).await.unwrap();
        assert_eq!((first.members.len(), first.next_page_token.as_str()), (1, ""));
        assert!(first.members[0].leader && first.members[0].lag == Some(0));
        assert!(page(convert::page_token(Some("1".into()))).await.unwrap().members.is_empty());
        assert!(page(convert::page_token(Some("x".into()))).await.is_err());
    }
}
