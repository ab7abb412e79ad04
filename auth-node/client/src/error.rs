//! What can go wrong in a call, as a caller has to tell it apart.

use std::{fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A failed call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The client was set up wrongly: an address, a certificate, a key or a name cannot be used.
    #[error("{0}")]
    Config(String),
    /// No address answered in time, or each said that it cannot serve now. Nothing was committed by this call,
    /// or it does not matter because the call is idempotent.
    #[error("the cluster is unavailable ({addresses}; attempts: {attempts}): {reason}")]
    Unavailable {
        /// The addresses, as a list.
        addresses: String,
        /// How many attempts were made.
        attempts: u32,
        /// The failure that tells most of the last ones at each address.
        reason: String,
        /// When the server said to try again.
        retry_after: Option<Duration>,
    },
    /// No address showed a certificate that can be trusted, or the server does not trust ours.
    #[error("{address} cannot be trusted: {reason}")]
    Untrusted {
        /// The last address tried.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The call may or may not have taken effect, and calling again, which is another call, is not the same as once.
    #[error("it is not known whether the request took effect ({reason}); {check}")]
    OutcomeUnknown {
        /// What to check before trying again.
        check: String,
        /// What happened.
        reason: String,
    },
    /// The server's answer cannot be used: it lacks something, or contradicts itself.
    #[error("the cluster's answer cannot be used: {0}")]
    Protocol(String),
    /// The server answered with an error.
    #[error(transparent)]
    Status(Box<StatusError>),
}

impl ClientError {
    /// The gRPC code of the server's answer, if it answered.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) => Some(status.code),
            Self::Unavailable { .. } => Some(Code::Unavailable),
            Self::Config(_) | Self::Untrusted { .. } | Self::OutcomeUnknown { .. } | Self::Protocol(_) => {
                None
            }
        }
    }

    /// The server's answer, if it answered.
    #[must_use]
    pub fn status(&self) -> Option<&StatusError> {
        match self {
            Self::Status(status) => Some(status),
            _ => None,
        }
    }

    /// Whether the server answered for this reason (`google.rpc.ErrorInfo`).
    #[must_use]
    pub fn has_reason(&self, reason: &str) -> bool {
        self.status().is_some_and(|status| status.reason.as_deref() == Some(reason))
    }

    /// Whether a repetition found `code` after an attempt with unknown outcome: `NOT_FOUND` from a delete then means
    /// that the first attempt had deleted it.
    #[must_use]
    pub fn repeated_with(&self, code: Code) -> bool {
        self.status().is_some_and(|status| status.repeated && status.code == code)
    }
}

/// What the server finds wrong with a field of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field, such as `user.name`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

/// An error that the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatusError {
    /// The gRPC code.
    pub code: Code,
    /// The server's message, for people.
    pub message: String,
    /// Stable reason (`google.rpc.ErrorInfo`), such as `NOT_COMMITTED`.
    pub reason: Option<String>,
    /// When to try again (`google.rpc.RetryInfo`).
    pub retry_after: Option<Duration>,
    /// Fields that are wrong (`google.rpc.BadRequest`).
    pub violations: Vec<FieldViolation>,
    /// An earlier attempt of the same call may have taken effect.
    pub repeated: bool,
}

impl std::error::Error for StatusError {}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message.as_str() {
            "" => f.write_str(self.code.description())?,
            message => f.write_str(message)?,
        }
        for violation in &self.violations {
            if !self.message.contains(&violation.description) {
                write!(f, "; {}: {}", violation.field, violation.description)?;
            }
        }
        Ok(())
    }
}

impl From<&Status> for StatusError {
    fn from(status: &Status) -> Self {
        let bad_request = status.get_details_bad_request();
        let violations = bad_request.into_iter().flat_map(|bad| bad.field_violations);
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason: status.get_details_error_info().map(|info| info.reason),
            retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
            violations: violations
                .map(|violation| FieldViolation {
                    field: violation.field,
                    description: violation.description,
                })
                .collect(),
            repeated: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn details_are_read() {
        let mut details = ErrorDetails::new();
        details.set_error_info(crate::NOT_COMMITTED, "mezite", std::collections::HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(250)));
        details.add_bad_request_violation("user.name", "too long");
        let error =
            StatusError::from(&Status::with_error_details(Code::InvalidArgument, "bad request", details));
        assert_eq!(error.reason.as_deref(), Some(crate::NOT_COMMITTED));
        assert_eq!(error.retry_after, Some(Duration::from_millis(250)));
        assert_eq!(error.to_string(), "bad request; user.name: too long");
    }

    #[test]
    fn only_a_repetition_counts_as_one() {
        let status = StatusError::from(&Status::not_found("gone"));
        assert!(!ClientError::Status(Box::new(status.clone())).repeated_with(Code::NotFound));
        let repeated = StatusError { repeated: true, ..status };
        assert!(ClientError::Status(Box::new(repeated.clone())).repeated_with(Code::NotFound));
        assert!(!ClientError::Status(Box::new(repeated)).repeated_with(Code::AlreadyExists));
    }
}
