//! How the program ends: the exit code, what is said, and what to do next.

use std::process::ExitCode;

use mezite_client::{ClientError, UploadError};
use tonic::Code;

use crate::cmd::agent::Ended;

/// The arguments, or a file that they name, are wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Nobody is logged in.
#[derive(Debug, thiserror::Error)]
#[error("not logged in")]
pub(crate) struct NotLoggedIn;

/// What is asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotFound(pub(crate) String);

/// What is to be made is there already.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Conflict(pub(crate) String);

/// What a failure amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Failed = 1,
    Usage = 2,
    Denied = 3,
    NotFound = 4,
    Unavailable = 5,
    Unknown = 6,
    Conflict = 7,
}

/// Prints the error and what to do, on standard error, and chooses the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", crate::output::printable(&format!("{error:#}")));
    if let Some(hint) = hint(error) {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(outcome(error) as u8)
}

fn client_error(error: &anyhow::Error) -> Option<&ClientError> {
    error.chain().find_map(|cause| match cause.downcast_ref::<UploadError>() {
        Some(UploadError::Client(error)) => Some(error),
        _ => cause.downcast_ref(),
    })
}

fn outcome(error: &anyhow::Error) -> Outcome {
    if error.chain().any(|cause| cause.is::<Usage>()) {
        return Outcome::Usage;
    }
    if error.chain().any(|cause| cause.is::<NotLoggedIn>() || cause.is::<Ended>()) {
        return Outcome::Denied;
    }
    if error.chain().any(|cause| cause.is::<NotFound>()) {
        return Outcome::NotFound;
    }
    if error.chain().any(|cause| cause.is::<Conflict>()) {
        return Outcome::Conflict;
    }
    match client_error(error) {
        Some(ClientError::Config(_)) => Outcome::Usage,
        Some(ClientError::OutcomeUnknown { .. }) => Outcome::Unknown,
        Some(error) => match error.code() {
            Some(Code::Unauthenticated | Code::PermissionDenied) => Outcome::Denied,
            Some(Code::InvalidArgument) => Outcome::Usage,
            Some(Code::NotFound) => Outcome::NotFound,
            Some(Code::Unavailable | Code::DeadlineExceeded) => Outcome::Unavailable,
            Some(Code::AlreadyExists | Code::Aborted) => Outcome::Conflict,
            _ => Outcome::Failed,
        },
        None => Outcome::Failed,
    }
}

/// Whether it failed because something is not there.
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    outcome(error) == Outcome::NotFound
}

/// Whether it failed because something is there already.
pub(crate) fn is_conflict(error: &anyhow::Error) -> bool {
    outcome(error) == Outcome::Conflict
}

fn hint(error: &anyhow::Error) -> Option<String> {
    if error.chain().any(|cause| cause.is::<NotLoggedIn>()) {
        return Some("run `mezctl login`".into());
    }
    let error = client_error(error)?;
    if matches!(error, ClientError::Untrusted { .. }) {
        return Some(
            "check --addr; for a cluster with a new CA, check its pin and log in again with --ca-pin".into(),
        );
    }
    let hint = match (error, error.code()?) {
        (_, Code::Unauthenticated) => {
            "log in again with `mezctl login`; a host joins with `mezctl agent join`"
        }
        (_, Code::PermissionDenied) => "ask an admin for a role that allows this",
        (_, Code::Aborted) => "it was changed meanwhile: get it again, and repeat your change",
        (_, Code::Unimplemented) => "the cluster does not offer this yet",
        (ClientError::Unavailable { retry_after: Some(wait), .. }, _) => {
            return Some(format!("try again in {}", humantime::format_duration(*wait)));
        }
        (_, Code::Unavailable | Code::DeadlineExceeded) => {
            "try again, or name further nodes with --addr host:port,host:port"
        }
        // The message says what to do.
        (_, Code::ResourceExhausted) if is_full(error) => return None,
        (_, Code::ResourceExhausted) => {
            let wait = error.status().and_then(|status| status.retry_after);
            return Some(wait.map_or_else(
                || "try again later".into(),
                |wait| format!("try again in {}", humantime::format_duration(wait)),
            ));
        }
        _ => return None,
    };
    Some(hint.into())
}

/// Whether the cluster's database is full: waiting does not help.
fn is_full(error: &ClientError) -> bool {
    error.status().is_some_and(|status| status.reason.as_deref() == Some("DATABASE_FULL"))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn unavailable() -> ClientError {
        ClientError::Unavailable {
            addresses: "a:1".into(),
            attempts: 1,
            reason: "x".into(),
            retry_after: None,
        }
    }

    #[test]
    fn exit_codes_tell_failures_apart() {
        let wrapped = Err::<(), _>(unavailable()).context("listing users").unwrap_err();
        assert_eq!(outcome(&wrapped), Outcome::Unavailable);
        assert_eq!(outcome(&UploadError::from(unavailable()).into()), Outcome::Unavailable);
        assert_eq!(outcome(&Usage("x".into()).into()), Outcome::Usage);
        assert_eq!(outcome(&NotLoggedIn.into()), Outcome::Denied);
        assert_eq!(outcome(&NotFound("x".into()).into()), Outcome::NotFound);
        let wrapped = Err::<(), _>(Conflict("x".into())).context("document 2").unwrap_err();
        assert_eq!(outcome(&wrapped), Outcome::Conflict);
        assert_eq!(outcome(&anyhow::anyhow!("x")), Outcome::Failed);
        let untrusted = ClientError::Untrusted { address: "a:1".into(), reason: "x".into() };
        assert_eq!(outcome(&untrusted.into()), Outcome::Failed);
        assert_eq!(outcome(&ClientError::Protocol("x".into()).into()), Outcome::Failed);
        let unknown = ClientError::OutcomeUnknown { check: "look".into(), reason: "x".into() };
        assert_eq!(outcome(&unknown.into()), Outcome::Unknown);
    }

    #[test]
    fn an_error_says_what_to_do() {
        assert!(hint(&NotLoggedIn.into()).unwrap().contains("mezctl login"));
        assert!(hint(&unavailable().into()).unwrap().contains("--addr"));
    }
}
