//! What can go wrong with a call, and how the caller is told: one enum, one conversion.
//!
//! What a caller is told says what to do. What only the operator should see goes to the log, under the call's
//! id.

use std::{collections::HashMap, error::Error, time::Duration};

use auth_core::CoreError;
use axum::http::StatusCode;
use mezite_pki::PkiError;
use raft_store::{MembershipError, StoreError, TransactError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Domain of ErrorInfo details.
const DOMAIN: &str = "mezite";
/// Reason that tells a client that the request surely had no effect: it may be sent again, to any node.
const NOT_COMMITTED: &str = "NOT_COMMITTED";
/// Reason that tells a client that its key is another request's, which says nothing about what took effect.
const KEY_REUSED: &str = "IDEMPOTENCY_KEY_REUSED";
/// When to try again after a condition that passes by itself, such as an election.
const RETRY_SOON: Duration = Duration::from_millis(250);

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The domain refused.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too much of this is being done already. Nothing was done.
    #[error("{what}; try again, or another node")]
    Busy {
        /// What is at its bound.
        what: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// Something that the call needs is not there now. Nothing was done.
    #[error("{0}")]
    Unavailable(&'static str),
    /// The call's time was over before it was done. It may have been carried out.
    #[error("the call took longer than its deadline")]
    DeadlineExceeded,
    /// A stream was silent for too long.
    #[error("no message within the time allowed")]
    Idle,
    /// A stream took longer than all of it may.
    #[error("the client took longer for this than it may")]
    TooSlow,
    /// The connection to an ingest broke in the middle. The call may have been carried out.
    #[error("the connection to the recording ingest broke; go on from what is durable")]
    RelayBroken,
    /// What an ingest answered to a call that was relayed to it.
    #[error("{}", .0.message())]
    Relayed(Box<Status>),
    /// A defect, or a machine that fails. The text is for the log alone.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<TransactError<CoreError>> for ApiError {
    fn from(error: TransactError<CoreError>) -> Self {
        match error {
            TransactError::Refused(refusal) => Self::Core(refusal),
            TransactError::Store(error) => Self::Store(error),
        }
    }
}

impl From<MembershipError> for ApiError {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::Store(error) => Self::Store(error),
            MembershipError::NotAMember(node_id) => {
                CoreError::NotFound { kind: "auth node", name: node_id.to_string() }.into()
            }
            MembershipError::NotCaughtUp { .. }
            | MembershipError::NoQuorum { .. }
            | MembershipError::Removed(_)
            | MembershipError::LastVoter(_) => CoreError::Precondition(error.to_string()).into(),
        }
    }
}

/// For signing: what could be wrong with the caller's input was checked before.
impl From<PkiError> for ApiError {
    fn from(error: PkiError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl ApiError {
    /// The gRPC code that the caller gets.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Core(error) => core_code(error),
            Self::Store(error) => store_code(error),
            Self::Busy { .. } => Code::ResourceExhausted,
            Self::Unavailable(_) | Self::RelayBroken => Code::Unavailable,
            Self::DeadlineExceeded | Self::Idle | Self::TooSlow => Code::DeadlineExceeded,
            Self::Relayed(status) => status.code(),
            Self::Internal(_) => Code::Internal,
        }
    }

    /// Stable name of the condition, for ErrorInfo and metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Core(error) => core_reason(error),
            Self::Store(error) => store_reason(error),
            Self::Busy { .. } => "BUSY",
            Self::Unavailable(_) => NOT_COMMITTED,
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Idle => "IDLE",
            Self::TooSlow => "TOO_SLOW",
            Self::RelayBroken => "RELAY_BROKEN",
            Self::Relayed(_) => "RELAYED",
            Self::Internal(_) => "INTERNAL",
        }
    }

    /// Whether it is the operator's business and not the caller's.
    pub(crate) fn is_ours(&self) -> bool {
        self.code() == Code::Internal && !matches!(self, Self::Relayed(_))
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => Some(*retry_after),
            Self::Unavailable(_) | Self::RelayBroken => Some(RETRY_SOON),
            Self::Store(error) if error.is_retriable() || matches!(error, StoreError::OutcomeUnknown) => {
                Some(RETRY_SOON)
            }
            Self::Store(_)
            | Self::Core(_)
            | Self::DeadlineExceeded
            | Self::Idle
            | Self::TooSlow
            | Self::Relayed(_)
            | Self::Internal(_) => None,
        }
    }

    /// What the caller is told. `request_id` is under what the operator's log has more of it.
    pub(crate) fn into_status(self, request_id: &str) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason(), DOMAIN, HashMap::new());
        if let Self::Core(CoreError::Invalid { field, reason }) = &self {
            details.add_bad_request_violation(field.clone(), reason.clone());
        }
        if let Some(delay) = self.retry_after() {
            details.set_retry_info(Some(delay));
        }
        details.set_request_info(request_id, "");
        let (code, message) = (self.code(), self.message(request_id));
        match self {
            // An ingest speaks to the same clients: its details stay as they are.
            Self::Relayed(status) => *status,
            _ => Status::with_error_details(code, message, details),
        }
    }

    /// As [`ApiError::into_status`], for a caller that came by HTTP without gRPC.
    pub(crate) fn into_problem(self, request_id: &str) -> Problem {
        Problem {
            status: http_status(self.code()),
            code: self.reason(),
            message: self.message(request_id),
            field: match &self {
                Self::Core(CoreError::Invalid { field, .. }) => field.clone(),
                _ => String::new(),
            },
            retry_after: self.retry_after(),
            request_id: request_id.to_owned(),
        }
    }

    fn message(&self, request_id: &str) -> String {
        if self.is_ours() {
            format!("internal error; the node's log has more under request id {request_id}")
        } else {
            self.to_string()
        }
    }
}

/// What a caller by HTTP is told of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// Stable name of the condition, as in ErrorInfo.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// Path of the field that is wrong; empty when none is.
    pub(crate) field: String,
    /// When to try again, if that helps.
    pub(crate) retry_after: Option<Duration>,
    /// Under what the operator's log has more of it; empty when it has nothing.
    pub(crate) request_id: String,
}

impl Problem {
    /// One that is found before there is a call.
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let (field, request_id) = (String::new(), String::new());
        Self { status, code, message: message.into(), field, retry_after: None, request_id }
    }
}

/// The status of HTTP that a code has, as google/rpc/code.proto says it.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

fn core_code(error: &CoreError) -> Code {
    match error {
        CoreError::Invalid { .. } | CoreError::KeyReused => Code::InvalidArgument,
        CoreError::Unauthenticated(_) | CoreError::NotRegistered => Code::Unauthenticated,
        CoreError::Denied(_) | CoreError::Locked(_) => Code::PermissionDenied,
        CoreError::NotFound { .. } => Code::NotFound,
        CoreError::AlreadyExists { .. } => Code::AlreadyExists,
        CoreError::StaleRevision { .. } => Code::Aborted,
        CoreError::Precondition(_) => Code::FailedPrecondition,
        CoreError::Unimplemented => Code::Unimplemented,
        CoreError::Storage(_) | CoreError::Internal(_) => Code::Internal,
    }
}

fn core_reason(error: &CoreError) -> &'static str {
    match error {
        CoreError::Invalid { .. } => "INVALID_FIELD",
        CoreError::KeyReused => KEY_REUSED,
        CoreError::Unauthenticated(_) => "UNAUTHENTICATED",
        CoreError::NotRegistered => "NOT_REGISTERED",
        CoreError::Denied(_) => "DENIED",
        CoreError::Locked(_) => "LOCKED",
        CoreError::NotFound { .. } => "NOT_FOUND",
        CoreError::AlreadyExists { .. } => "ALREADY_EXISTS",
        CoreError::StaleRevision { .. } => "STALE_REVISION",
        CoreError::Precondition(_) => "FAILED_PRECONDITION",
        CoreError::Unimplemented => "UNIMPLEMENTED",
        CoreError::Storage(_) | CoreError::Internal(_) => "INTERNAL",
    }
}

fn store_code(error: &StoreError) -> Code {
    match error {
        StoreError::Unavailable(_)
        | StoreError::OutcomeUnknown
        | StoreError::Contended(_)
        | StoreError::Stopped(_) => Code::Unavailable,
        StoreError::Overloaded | StoreError::DatabaseFull { .. } => Code::ResourceExhausted,
        StoreError::TooLarge(_) => Code::InvalidArgument,
        StoreError::Read(_)
        | StoreError::DataDirectory(_)
        | StoreError::Config(_)
        | StoreError::Identity(_)
        | StoreError::Io { .. } => Code::Internal,
    }
}

fn store_reason(error: &StoreError) -> &'static str {
    match error {
        // What stops in the middle of a write or of a change of the members is `OutcomeUnknown`.
        StoreError::Unavailable(_) | StoreError::Contended(_) | StoreError::Stopped(_) => NOT_COMMITTED,
        StoreError::OutcomeUnknown => "OUTCOME_UNKNOWN",
        StoreError::Overloaded => "OVERLOADED",
        StoreError::DatabaseFull { .. } => "DATABASE_FULL",
        StoreError::TooLarge(_) => "TOO_LARGE",
        StoreError::Read(_)
        | StoreError::DataDirectory(_)
        | StoreError::Config(_)
        | StoreError::Identity(_)
        | StoreError::Io { .. } => "INTERNAL",
    }
}

/// An error and its sources.
pub(crate) fn described(error: &dyn Error) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use store_txn::TxError;

    use super::*;

    #[test]
    fn a_client_learns_whether_a_write_may_have_happened() {
        let reason = |error: ApiError| {
            let status = error.into_status("r");
            (
                status.code(),
                status.get_details_error_info().unwrap().reason,
                status.get_details_retry_info().is_some(),
            )
        };
        let surely_not = (Code::Unavailable, NOT_COMMITTED.to_owned(), true);
        assert_eq!(reason(StoreError::Unavailable("no leader").into()), surely_not);
        assert_eq!(reason(StoreError::Contended(64).into()), surely_not);
        assert_eq!(reason(ApiError::Unavailable("no ingest")), surely_not);
        // Another node may take it, at once.
        let elsewhere = (Code::Unavailable, NOT_COMMITTED.to_owned(), false);
        assert_eq!(reason(StoreError::Stopped("removed".into()).into()), elsewhere);
        let (code, unknown, _) = reason(StoreError::OutcomeUnknown.into());
        assert_eq!((code, unknown.as_str()), (Code::Unavailable, "OUTCOME_UNKNOWN"));
        let (code, _, hint) = reason(StoreError::Overloaded.into());
        assert_eq!((code, hint), (Code::ResourceExhausted, true));
    }

    #[test]
    fn errors_to_clients_say_what_to_do_and_internals_go_to_the_log_with_a_request_id() {
        let secret = "/var/lib/secret/path";
        let errors: [ApiError; 4] = [
            ApiError::Internal(secret.into()),
            CoreError::Internal(secret.into()).into(),
            CoreError::Storage(TxError::Storage(secret.into())).into(),
            StoreError::DataDirectory(secret.into()).into(),
        ];
        for error in errors {
            assert!(error.is_ours() && error.to_string().contains(secret));
            let status = error.into_status("7f3a");
            assert_eq!(status.code(), Code::Internal);
            assert!(
                !status.message().contains(secret) && status.message().contains("7f3a"),
                "{}",
                status.message()
            );
            assert_eq!(status.get_details_request_info().unwrap().request_id, "7f3a");
        }
    }

    #[test]
    fn a_field_is_named() {
        let status = ApiError::from(CoreError::invalid("user.name", "too long")).into_status("r");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "user.name");
    }

    #[test]
    fn by_http_as_much_is_told_as_by_grpc() {
        let problem = ApiError::from(CoreError::invalid("username", "too long")).into_problem("r");
        assert_eq!((problem.status, problem.code), (StatusCode::BAD_REQUEST, "INVALID_FIELD"));
        assert_eq!((problem.field.as_str(), problem.message.as_str()), ("username", "username: too long"));
        let busy = ApiError::Busy { what: "too much", retry_after: Duration::from_secs(1) }.into_problem("r");
        assert_eq!(busy.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(busy.retry_after, Some(Duration::from_secs(1)));
        let away = ApiError::from(StoreError::Unavailable("no leader")).into_problem("r");
        assert_eq!((away.status, away.code), (StatusCode::SERVICE_UNAVAILABLE, NOT_COMMITTED));
        let ours = ApiError::Internal("/var/lib/secret".into()).into_problem("7f3a");
        assert_eq!(ours.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!ours.message.contains("secret") && ours.message.contains("7f3a"), "{}", ours.message);
    }

    #[test]
    fn what_an_ingest_answered_reaches_the_client_unchanged() {
        let status = ApiError::Relayed(Box::new(Status::data_loss("at 42"))).into_status("r");
        assert_eq!((status.code(), status.message()), (Code::DataLoss, "at 42"));
    }
}
