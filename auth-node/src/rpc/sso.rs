//! Single sign-on of programs: where a browser begins, and the session in the end. What is between is the web pages'.

use auth_core::{session::Listed, sso::Program};
use mezite_proto::v1;
use zeroize::Zeroizing;

use super::sessions;
use crate::{authn::Call, error::ApiError, service::Service, sso};

/// Tells which page the person in front of a program opens.
pub(crate) async fn begin(
    service: &Service,
    call: &Call,
    request: v1::BeginSsoLoginRequest,
) -> Result<v1::BeginSsoLoginResponse, ApiError> {
    let v1::BeginSsoLoginRequest { connector, challenge, port, path } = request;
    let program = Program::new(challenge.into(), port, path)?;
    let (url, confirmation) = sso::page(service, call, &connector, &program).await?;
    Ok(v1::BeginSsoLoginResponse { url, confirmation })
}

/// Exchanges a program's code for its session.
pub(crate) async fn finish(
    service: &Service,
    call: &Call,
    request: v1::FinishSsoLoginRequest,
) -> Result<v1::FinishSsoLoginResponse, ApiError> {
    let (code, verifier) = (Zeroizing::new(request.code), Zeroizing::new(request.verifier));
    let (id, session) = sso::redeem(service, call, &code, &verifier).await?;
    let last_used_ms = session.created_at_ms;
    Ok(v1::FinishSsoLoginResponse {
        session_id: id.as_str().to_owned(),
        session: Some(sessions::session(Listed { session, last_used_ms })),
    })
}
