//! Decisions that are committed whichever way they fall: a refusal writes nothing but its audit record, in the same
//! transaction that it was decided in; nor that, where the context has it only counted.

use store_txn::{Transaction, TxError};

use crate::{
    Context, CoreError,
    audit::{self, EventType},
};

/// What was decided. It stands only once the transaction has committed.
#[must_use]
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict<T> {
    /// It was done.
    Granted(T),
    /// It was refused, and the audit log says so, unless the context has it only counted.
    Refused(CoreError),
}

impl<T> Verdict<T> {
    /// After the commit: what was granted, or the refusal.
    ///
    /// # Errors
    /// The refusal.
    pub fn into_result(self) -> Result<T, CoreError> {
        match self {
            Self::Granted(value) => Ok(value),
            Self::Refused(refusal) => Err(refusal),
        }
    }
}

/// Why a decision was not for the caller.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Refused; this is what the audit log gets.
    Refused(Refusal),
    /// It could not be decided. Nothing is written.
    Failed(CoreError),
}

/// A refusal: what the caller is told, and what the audit log is.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// For the caller.
    pub(crate) answer: CoreError,
    /// For the log: never a secret.
    pub(crate) reason: String,
    /// What was asked for, such as `token:web`.
    pub(crate) target: String,
}

impl Stop {
    /// A refusal whose reason the caller may know.
    pub(crate) fn denied(target: impl Into<String>, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Refused(Refusal { answer: CoreError::Denied(reason.clone()), reason, target: target.into() })
    }
}

impl From<CoreError> for Stop {
    fn from(error: CoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<TxError> for Stop {
    fn from(error: TxError) -> Self {
        Self::Failed(error.into())
    }
}

/// Makes a verdict of a decision that has written nothing where it is a refusal.
pub(crate) fn audited<T>(
    tx: &mut (impl Transaction + ?Sized),
    context: &Context,
    event: EventType,
    decision: Result<T, Stop>,
) -> Result<Verdict<T>, CoreError> {
    match decision {
        Ok(value) => Ok(Verdict::Granted(value)),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Refused(Refusal { answer, reason, target })) => {
            audit::append_refusal(tx, context, event, target, &[("reason", reason)]);
            Ok(Verdict::Refused(answer))
        }
    }
}
