//! What may be repeated, and when. Pure: no clock and no transport here.

use std::{borrow::Cow, time::Duration};

use tonic::Code;

use crate::{IdempotencyKey, StatusError, failure::Failure};

/// Reason in `google.rpc.ErrorInfo` with which a server says that a request surely had no effect.
pub const NOT_COMMITTED: &str = "NOT_COMMITTED";
/// Reason by which an auth node says that it has looked, and that the agent or ingest which calls is not in the registry: it was
/// removed, or the cluster was restored from before it joined. That does not pass by itself.
pub const NOT_REGISTERED: &str = "NOT_REGISTERED";

/// Reason with which a server says that an idempotency key was used with another request. Which of the two took effect
/// it does not say; and where servers of two releases read the same request differently, they are one.
pub const KEY_REUSED: &str = "IDEMPOTENCY_KEY_REUSED";

/// What may be repeated of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retry {
    /// Twice is as good as once: reads, deletes, and writes that replace or that the server knows again.
    Idempotent,
    /// Twice is not, and the server sees to it: all attempts carry one idempotency key, by which it knows them as one
    /// call. For methods that `auth.proto` names. [`crate::ClientError::OutcomeUnknown`] only when an attempt may have
    /// taken effect and no other one has told until the end.
    Once {
        /// What to check in that case before calling again, as a clause: `see whether … with …`.
        check: Cow<'static, str>,
    },
    /// As [`Retry::Idempotent`], for a call that its client makes again with the same key even after it was started anew:
    /// the server knows it again by the key.
    Keyed(IdempotencyKey),
}

/// No attempt of a [`Retry::Once`] begins later after the first: five minutes, half of what servers keep answers for.
pub(crate) const ONCE_WINDOW: Duration = Duration::from_secs(5 * 60);

impl Retry {
    /// A call that must not take effect twice; `check` says what to look at when its outcome is unknown.
    pub fn once(check: impl Into<Cow<'static, str>>) -> Self {
        Self::Once { check: check.into() }
    }

    /// What to look at when the outcome is unknown, of a call to which that matters.
    pub(crate) fn check(&self) -> Option<&str> {
        match self {
            Self::Idempotent | Self::Keyed(_) => None,
            Self::Once { check } => Some(check),
        }
    }
}

/// Bounds of a call and of its repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// For a connection, handshake included. 3 s.
    pub connect_timeout: Duration,
    /// For one attempt at one address. 10 s.
    pub call_timeout: Duration,
    /// For the whole call. 30 s; of a [`Retry::Once`] at most five minutes count.
    pub overall_timeout: Duration,
    /// Attempts at each address. 12.
    pub attempts_per_address: u32,
    /// Wait before an address is asked again, doubled each time, half of it random. 100 ms.
    pub backoff_base: Duration,
    /// Longest such wait. 2 s.
    pub backoff_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(10),
            overall_timeout: Duration::from_secs(30),
            attempts_per_address: 12,
            backoff_base: Duration::from_millis(100),
            backoff_max: Duration::from_secs(2),
        }
    }
}

impl RetryPolicy {
    /// The wait after the `failures`-th failure (from 1) at an address. `jitter` is between 0 and 1.
    pub fn backoff(&self, failures: u32, jitter: f64) -> Duration {
        let doubled = self.backoff_base.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let full = doubled.min(self.backoff_max);
        full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Give the error to the caller.
    Fail,
    /// Never ask this address again in this call; go on with others.
    Exclude,
    /// Go on; come back to this address after the given wait, or the usual one.
    MoveOn(Option<Duration>),
}

/// The retry policy, as a table.
pub(crate) fn judge(retry: &Retry, failure: &Failure) -> Verdict {
    match failure {
        Failure::NotSent(_) | Failure::Broken(_) | Failure::TimedOut => Verdict::MoveOn(None),
        Failure::Untrusted(_) => Verdict::Exclude,
        Failure::Answered(status) => match status.code {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                Verdict::MoveOn(status.retry_after)
            }
            // Refused before it began; without a hint it is a quota, which waiting does not lift.
            Code::ResourceExhausted if status.retry_after.is_some() => Verdict::MoveOn(status.retry_after),
            // It may have taken effect, and another attempt with the key is told.
            Code::Unknown | Code::Internal if matches!(retry, Retry::Once { .. } | Retry::Keyed(_)) => {
                Verdict::MoveOn(None)
            }
            _ => Verdict::Fail,
        },
    }
}

/// Whether an attempt that failed so may have taken effect.
pub(crate) fn is_doubtful(failure: &Failure) -> bool {
    match failure {
        Failure::NotSent(_) | Failure::Untrusted(_) => false,
        Failure::Broken(_) | Failure::TimedOut => true,
        Failure::Answered(status) => match status.code {
            Code::Unavailable => status.reason.as_deref() != Some(NOT_COMMITTED),
            Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => true,
            _ => false,
        },
    }
}

/// Whether this error of a later attempt of a [`Retry::Once`] says that no earlier one took effect. The server answers
/// it only to a request that could not have any, or after it has looked whether there was one; what is refused before
/// that, such as a session that is not valid any more, says nothing.
pub(crate) fn settles(status: &StatusError) -> bool {
    status.reason.as_deref() != Some(KEY_REUSED)
        && matches!(
            status.code,
            Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::Aborted
                | Code::FailedPrecondition
                | Code::OutOfRange
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: Code, reason: Option<&str>, retry_after: Option<Duration>) -> Failure {
        Failure::Answered(Box::new(StatusError {
            code,
            message: String::new(),
            reason: reason.map(str::to_owned),
            retry_after,
            violations: Vec::new(),
            repeated: false,
        }))
    }

    const HINT: Option<Duration> = Some(Duration::from_millis(70));

    #[test]
    fn idempotent_calls_move_on_from_everything_that_may_pass() {
        let judge = |failure| judge(&Retry::Idempotent, &failure);
        assert_eq!(judge(Failure::NotSent("x".into())), Verdict::MoveOn(None));
        assert_eq!(judge(Failure::Broken("x".into())), Verdict::MoveOn(None));
        assert_eq!(judge(Failure::TimedOut), Verdict::MoveOn(None));
        assert_eq!(judge(answered(Code::Unavailable, None, HINT)), Verdict::MoveOn(HINT));
        assert_eq!(judge(answered(Code::DeadlineExceeded, None, None)), Verdict::MoveOn(None));
        assert_eq!(judge(answered(Code::ResourceExhausted, None, HINT)), Verdict::MoveOn(HINT));
    }

    #[test]
    fn what_takes_effect_once_is_repeated_like_what_is_idempotent() {
        let create = Retry::once("look");
        let judge = |failure| judge(&create, &failure);
        for failure in [Failure::NotSent("x".into()), Failure::Broken("x".into()), Failure::TimedOut] {
            assert_eq!(judge(failure.clone()), Verdict::MoveOn(None), "{failure:?}");
        }
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::ResourceExhausted] {
            assert_eq!(judge(answered(code, None, HINT)), Verdict::MoveOn(HINT), "{code:?}");
        }
        for code in [Code::Internal, Code::Unknown] {
            assert_eq!(judge(answered(code, None, None)), Verdict::MoveOn(None), "{code:?}");
        }
    }

    #[test]
    fn an_attempt_is_doubtful_unless_it_surely_had_no_effect() {
        for doubtful in [
            Failure::Broken("x".into()),
            Failure::TimedOut,
            answered(Code::Unavailable, None, HINT),
            answered(Code::Unavailable, Some("OUTCOME_UNKNOWN"), HINT),
            answered(Code::DeadlineExceeded, None, None),
            answered(Code::Cancelled, None, None),
            answered(Code::Internal, None, None),
            answered(Code::Unknown, None, None),
        ] {
            assert!(is_doubtful(&doubtful), "{doubtful:?}");
        }
        for sure in [
            Failure::NotSent("x".into()),
            Failure::Untrusted("x".into()),
            answered(Code::Unavailable, Some(NOT_COMMITTED), HINT),
            answered(Code::ResourceExhausted, None, HINT),
            answered(Code::AlreadyExists, None, None),
            answered(Code::Unauthenticated, None, None),
        ] {
            assert!(!is_doubtful(&sure), "{sure:?}");
        }
        let settles = |code, reason: Option<&str>| match answered(code, reason, None) {
            Failure::Answered(status) => settles(&status),
            other => panic!("{other:?}"),
        };
        assert!(settles(Code::AlreadyExists, None) && settles(Code::Aborted, None));
        assert!(!settles(Code::Unauthenticated, None) && !settles(Code::PermissionDenied, None));
        assert!(settles(Code::InvalidArgument, Some("INVALID_FIELD")));
        assert!(!settles(Code::InvalidArgument, Some(KEY_REUSED)));
    }

    #[test]
    fn answers_are_final() {
        for retry in [Retry::Idempotent, Retry::once("look")] {
            for code in [
                Code::InvalidArgument,
                Code::Unauthenticated,
                Code::PermissionDenied,
                Code::NotFound,
                Code::AlreadyExists,
                Code::Aborted,
                Code::FailedPrecondition,
                Code::OutOfRange,
                Code::DataLoss,
                Code::Unimplemented,
                Code::ResourceExhausted,
            ] {
                assert_eq!(judge(&retry, &answered(code, None, None)), Verdict::Fail, "{code:?}");
            }
            assert_eq!(judge(&retry, &Failure::Untrusted("x".into())), Verdict::Exclude);
        }
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.backoff(1, 1.0), Duration::from_millis(100));
        assert_eq!(policy.backoff(1, 0.0), Duration::from_millis(50));
        assert_eq!(policy.backoff(3, 1.0), Duration::from_millis(400));
        assert_eq!(policy.backoff(u32::MAX, 1.0), Duration::from_secs(2));
    }
}
