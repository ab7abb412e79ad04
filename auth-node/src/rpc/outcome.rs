//! How a call is carried out, whatever is the same for all of them, and how it ends: within its deadline, measured, logged.

use auth_core::{CoreError, Credential, Origin};
use mezite_proto::v1::AccessClass;
use tokio::time::Instant;
use tonic::{Code, Response, Status};

use crate::{authn::Call, error::ApiError, metrics::Measured, service::Service};

/// Ends a call of gRPC: measures it, logs it, and tells the caller what went wrong.
pub(super) fn end<T>(
    method: &'static str,
    origin: &Origin,
    stranger: bool,
    measured: Measured,
    result: Result<T, ApiError>,
) -> Result<Response<T>, Status> {
    note_end(method, origin, stranger, measured, &result);
    result.map(Response::new).map_err(|error| error.into_status(&origin.request_id))
}

/// Carries out a call that came in another way than by gRPC, and measures and logs it as one of that: within its deadline, and
/// with no more said to whoever may not make it.
///
/// # Errors
/// Of `work`; [`ApiError::DeadlineExceeded`].
pub(crate) async fn carry_out<T>(
    service: &Service,
    call: &Call,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let measured = Measured::begin(call.method.method);
    let result = within(call.deadline, async { after_admission(service, call, work.await).await }).await;
    let stranger = !matches!(call.credential, Credential::Session(_));
    note_end(call.method.method, &call.origin, stranger, measured, &result);
    result
}

/// Measures and logs the end of a call.
fn note_end<T>(
    method: &'static str,
    origin: &Origin,
    stranger: bool,
    measured: Measured,
    result: &Result<T, ApiError>,
) {
    let (request_id, client) = (origin.request_id.as_str(), origin.client_address.as_str());
    match result {
        Ok(_) => {
            tracing::debug!(method, request_id, client, "done");
            measured.end(Code::Ok);
        }
        Err(error) => {
            let code = error.code();
            if error.is_ours() {
                tracing::error!(method, request_id, client, %error, "the call failed");
            } else if stranger || matches!(code, Code::Unauthenticated | Code::ResourceExhausted) {
                // Anybody can have these said as often as they like; the metrics count them, and the audit log has what
                // matters.
                tracing::debug!(method, request_id, client, ?code, %error, "refused");
            } else {
                tracing::info!(method, request_id, client, ?code, %error, "refused");
            }
            measured.end(code);
        }
    }
}

/// Carries a call out within its deadline.
pub(super) async fn within<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    match deadline {
        None => work.await,
        Some(deadline) => {
            tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(ApiError::DeadlineExceeded))
        }
    }
}

/// Handlers parse before they read or write, and only then is it known who calls: whoever may not make the
/// call at all is told that, and nothing of what else is wrong with it.
pub(super) async fn after_admission<T>(
    service: &Service,
    call: &Call,
    result: Result<T, ApiError>,
) -> Result<T, ApiError> {
    let public = call.method.classes.contains(&AccessClass::Public);
    if !public && matches!(result, Err(ApiError::Core(CoreError::Invalid { .. }))) {
        service.read(call, |_, _| Ok(())).await?;
    }
    result
}
