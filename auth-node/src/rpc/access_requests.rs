//! Access requests.

use std::time::Duration;

use auth_core::{
    CoreError,
    access_request::{self, NewRequest, Request},
    names::{AgentId, RequestId, RoleName},
    tables::RequestState,
};
use mezite_proto::v1;
use store_txn::{Read as _, UnixMillis};

use super::convert;
use crate::{authn::Call, error::ApiError, once::Once, service::Service};

/// Asks for roles, or for access to nodes, for a time.
pub(crate) async fn create(
    service: &Service,
    call: &Call,
    request: v1::CreateAccessRequestRequest,
) -> Result<v1::CreateAccessRequestResponse, ApiError> {
    let once = Once::of(call, &request);
    let new = parse(request)?;
    let create = service.write_once(call, once, move |tx, context| {
        let made = access_request::create(tx, context, &new)?;
        Ok(v1::CreateAccessRequestResponse { request: Some(reply(made, tx.now())) })
    });
    create.await
}

/// Answers one access request.
pub(crate) async fn get(
    service: &Service,
    call: &Call,
    request: v1::GetAccessRequestRequest,
) -> Result<v1::GetAccessRequestResponse, ApiError> {
    let id = id(&request.request_id)?;
    let found = service.read(call, move |view, context| {
        let found = access_request::get(view, context, &id)?;
        Ok(reply(found, view.now()))
    });
    Ok(v1::GetAccessRequestResponse { request: Some(found.await?) })
}

/// Lists the access requests that concern the caller.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListAccessRequestsRequest,
) -> Result<v1::ListAccessRequestsResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let wanted = match RequestState::try_from(request.state) {
        Ok(RequestState::Unspecified) => None,
        Ok(state) => Some(state),
        Err(_) => return Err(CoreError::invalid("state", "there is no such state").into()),
    };
    let list = service.read(call, move |view, context| {
        let page = access_request::list(view, context, wanted, &page)?;
        let now = view.now();
        Ok(page.map(|request| reply(request, now)))
    });
    let page = list.await?;
    Ok(v1::ListAccessRequestsResponse {
        requests: page.items,
        next_page_token: convert::page_token(page.next),
    })
}

/// Approves or denies.
pub(crate) async fn review(
    service: &Service,
    call: &Call,
    request: v1::ReviewAccessRequestRequest,
) -> Result<v1::ReviewAccessRequestResponse, ApiError> {
    let once = Once::of(call, &request);
    let id = id(&request.request_id)?;
    let (approve, reason) = (request.approve, request.reason);
    let review = service.write_once(call, once, move |tx, context| {
        let reviewed = access_request::review(tx, context, &id, approve, &reason)?;
        Ok(v1::ReviewAccessRequestResponse { request: Some(reply(reviewed, tx.now())) })
    });
    review.await
}

/// Takes one of the caller's own requests back.
pub(crate) async fn cancel(
    service: &Service,
    call: &Call,
    request: v1::CancelAccessRequestRequest,
) -> Result<v1::CancelAccessRequestResponse, ApiError> {
    let once = Once::of(call, &request);
    let id = id(&request.request_id)?;
    let cancel = service.write_once(call, once, move |tx, context| {
        let cancelled = access_request::cancel(tx, context, &id)?;
        Ok(v1::CancelAccessRequestResponse { request: Some(reply(cancelled, tx.now())) })
    });
    cancel.await
}

fn id(text: &str) -> Result<RequestId, CoreError> {
    let refused = || CoreError::invalid("request_id", "32 hexadecimal digits, as lists show it");
    RequestId::parse(text).ok_or_else(refused)
}

fn parse(request: v1::CreateAccessRequestRequest) -> Result<NewRequest, CoreError> {
    let role = |(index, name): (usize, &String)| RoleName::parse(&format!("roles[{index}]"), name);
    let node = |(index, id): (usize, &String)| AgentId::parse(&format!("nodes[{index}]"), id);
    Ok(NewRequest {
        id: RequestId::from_random(rand::random()),
        roles: request.roles.iter().enumerate().map(role).collect::<Result<_, _>>()?,
        nodes: request.nodes.iter().enumerate().map(node).collect::<Result<_, _>>()?,
        reason: request.reason,
        duration: request.duration.map(|duration| convert::duration_in("duration", duration)).transpose()?,
    })
}

fn reply((id, stored): Request, now: UnixMillis) -> v1::AccessRequest {
    let state = stored.row.state_at(now);
    let row = stored.row;
    let review = |review: auth_core::tables::ReviewRow| v1::AccessReview {
        author: review.author,
        approve: review.approve,
        reason: review.reason,
        created_at: Some(convert::timestamp(review.created_at_ms)),
    };
    v1::AccessRequest {
        request_id: id.into(),
        user: row.user,
        roles: row.roles,
        nodes: row.nodes,
        reason: row.reason,
        state: i32::from(state),
        reviews: row.reviews.into_iter().map(review).collect(),
        created_at: Some(convert::timestamp(row.created_at_ms)),
        expires_at: Some(convert::timestamp(row.ends_at_ms)),
        revision: stored.revision,
        duration: Some(convert::duration_out(Duration::from_millis(row.duration_ms))),
        approvals: row.approvals,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_the_numbers_of_the_api() {
        for (state, told) in [
            (RequestState::Unspecified, v1::AccessRequestState::Unspecified),
            (RequestState::Pending, v1::AccessRequestState::Pending),
            (RequestState::Approved, v1::AccessRequestState::Approved),
            (RequestState::Denied, v1::AccessRequestState::Denied),
            (RequestState::Cancelled, v1::AccessRequestState::Cancelled),
            (RequestState::Expired, v1::AccessRequestState::Expired),
        ] {
            assert_eq!(v1::AccessRequestState::try_from(i32::from(state)), Ok(told));
        }
    }

    #[test]
    fn bad_input_names_its_field() {
        let field = |request| match parse(request) {
            Err(CoreError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let request = v1::CreateAccessRequestRequest::default;
        let roles = vec!["dev".to_owned(), "a b".to_owned()];
        assert_eq!(field(v1::CreateAccessRequestRequest { roles, ..request() }), "roles[1]");
        let nodes = vec!["web1".to_owned()];
        assert_eq!(field(v1::CreateAccessRequestRequest { nodes, ..request() }), "nodes[0]");
        let duration = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        assert_eq!(field(v1::CreateAccessRequestRequest { duration, ..request() }), "duration");
        assert!(id("x").is_err());
    }
}
