//! Login sessions that are active, and their end.

use auth_core::session::{self, Listed, Owner, SessionRef};
use mezite_proto::v1;
use store_txn::Read as _;
use zeroize::Zeroizing;

use super::convert;
use crate::{authn::Call, error::ApiError, service::Service};

/// Lists sessions that are active: the caller's own, or everybody's for an admin.
pub(crate) async fn list(
    service: &Service,
    call: &Call,
    request: v1::ListActiveSessionsRequest,
) -> Result<v1::ListActiveSessionsResponse, ApiError> {
    let page = convert::page(request.page_size, &request.page_token)?;
    let owner = (!request.user.is_empty()).then(|| Owner::parse("user", &request.user)).transpose()?;
    let list =
        service.read(call, move |view, context| session::list(view, &context.caller, owner.as_ref(), &page));
    let page = list.await?.map(session);
    Ok(v1::ListActiveSessionsResponse {
        sessions: page.items,
        next_page_token: convert::page_token(page.next),
    })
}

/// The session that a call is made with, and the roles that its user has now.
pub(crate) async fn own(service: &Service, call: &Call) -> Result<(v1::Session, Vec<String>), ApiError> {
    let own = service.read(call, |view, context| {
        let caller = context.caller.user()?;
        let roles = caller.roles.iter().map(|role| role.name.to_string()).collect();
        // This is a use of it.
        Ok((session(Listed { session: caller.session.clone(), last_used_ms: view.now() }), roles))
    });
    own.await
}

/// Revokes a session. When this answers, no node honours it.
pub(crate) async fn revoke(
    service: &Service,
    call: &Call,
    request: v1::RevokeSessionRequest,
) -> Result<v1::RevokeSessionResponse, ApiError> {
    let which = SessionRef::parse("session", &Zeroizing::new(request.session))?;
    service.write(call, move |tx, context| session::revoke(tx, context, &which)).await?;
    Ok(v1::RevokeSessionResponse {})
}

/// A session as lists show it.
pub(super) fn session(listed: Listed) -> v1::Session {
    let Listed { session: row, last_used_ms } = listed;
    v1::Session {
        user: row.owner_text(),
        last_used_at: Some(convert::timestamp(last_used_ms)),
        method: row.method,
        created_at: Some(convert::timestamp(row.created_at_ms)),
        expires_at: Some(convert::timestamp(row.expires_at_ms)),
        handle: row.handle,
        client_address: row.client_address,
    }
}

#[cfg(test)]
mod tests {
    use auth_core::tables::{AuthMethod, SessionRow};

    use super::*;

    #[test]
    fn ways_to_log_in_have_the_numbers_of_the_api() {
        let number = |method: AuthMethod| v1::AuthMethod::try_from(i32::from(method)).unwrap();
        assert_eq!(number(AuthMethod::Unspecified), v1::AuthMethod::Unspecified);
        assert_eq!(number(AuthMethod::Password), v1::AuthMethod::Password);
        assert_eq!(number(AuthMethod::Webauthn), v1::AuthMethod::Webauthn);
        assert_eq!(number(AuthMethod::Spiffe), v1::AuthMethod::Spiffe);
        assert_eq!(number(AuthMethod::Sso), v1::AuthMethod::Sso);
        assert_eq!(number(AuthMethod::AgentIdentity), v1::AuthMethod::AgentIdentity);
    }

    #[test]
    fn a_session_is_shown_whole() {
        let row = SessionRow {
            user: "ann".into(),
            handle: "h".into(),
            created_at_ms: 1000,
            expires_at_ms: 2000,
            method: AuthMethod::Password.into(),
            client_address: "192.0.2.1".into(),
            epoch: 1,
            device: String::new(),
            agent_identity: String::new(),
            spiffe_id: String::new(),
            second_factor: false,
        };
        let bot = SessionRow { user: String::new(), agent_identity: "ann".into(), ..row.clone() };
        assert_eq!(session(Listed { session: bot, last_used_ms: 1500 }).user, "bot:ann");
        let shown = session(Listed { session: row, last_used_ms: 1500 });
        assert_eq!(
            (shown.user.as_str(), shown.handle.as_str(), shown.client_address.as_str()),
            ("ann", "h", "192.0.2.1")
        );
        assert_eq!(shown.method(), v1::AuthMethod::Password);
        assert_eq!((shown.created_at.unwrap().seconds, shown.expires_at.unwrap().seconds), (1, 2));
        assert_eq!(shown.last_used_at.unwrap().nanos, 500_000_000);
    }
}
