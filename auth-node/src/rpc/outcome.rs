//! How a call is carried out, whatever is the same for all of them, and how it ends: within its deadline, measured, logged.

use auth_core::{CoreError, Credential, Origin};
use mezite_daemon::calls::{CallSpan, Measured};
use mezite_proto::v1::AccessClass;
use tokio::time::Instant;
use tonic::{Code, Response, Status};
use tracing::{Instrument as _, Span};

use crate::{authn::Call, error::ApiError, service::Service};

/// Ends a call of gRPC: measures it, logs it, and tells the caller what went wrong.
pub(super) fn end<T>(
    span: &CallSpan,
    origin: &Origin,
    stranger: bool,
    measured: Measured,
    result: Result<T, ApiError>,
) -> Result<Response<T>, Status> {
    note_end(span, stranger, measured, &result);
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
    let work = within(call.deadline, async { after_admission(service, call, work.await).await });
    let result = work.instrument(Span::clone(&call.span)).await;
    let stranger = !matches!(call.credential, Credential::Session(_));
    note_end(&call.span, stranger, measured, &result);
    result
}

/// Measures and logs the end of a call. The line is of the call's span, which says whose it is.
fn note_end<T>(span: &CallSpan, stranger: bool, measured: Measured, result: &Result<T, ApiError>) {
    let code = result.as_ref().map_or_else(ApiError::code, |_| Code::Ok);
    let ms = span.end(measured, code);
    span.in_scope(|| match result {
        Ok(_) => tracing::debug!(ms, "done"),
        Err(error) if error.is_ours() => tracing::error!(ms, %error, "the call failed"),
        // Anybody can have these said as often as they like; the metrics count them, and the audit log has what matters.
        Err(error) if stranger || matches!(code, Code::Unauthenticated | Code::ResourceExhausted) => {
            tracing::debug!(ms, %error, "refused");
        }
        Err(error) => tracing::info!(ms, %error, "refused"),
    });
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
