//! The one error of this crate. Its text is fit for the one who called: it says what to do, and holds no secret.

use mezite_pki::PkiError;
use store_txn::TxError;

/// Why something was not done. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// A field of the input is not as it must be.
    #[error("{field}: {reason}")]
    Invalid {
        /// Path of the field in the request, such as `role.options.max_session_ttl`.
        field: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The idempotency key was used with another request. The call that had it first may have taken effect, and this
    /// may be the same one as another release of the server reads it.
    #[error(
        "{}: it was used with another request: draw a new one for each call, and keep it for its repetitions alone",
        crate::repeat::FIELD
    )]
    KeyReused,
    /// The caller has not proved who it is.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The caller's certificate is good, and of no agent or ingest that is in the registry: it has not registered, was removed, or
    /// joined after the backup that the cluster was restored from. That does not pass by itself.
    #[error("this agent is not registered, or not any more: join the cluster with a new token")]
    NotRegistered,
    /// The caller may not do this.
    #[error("{0}")]
    Denied(String),
    /// There is a lock on the caller, on one of its roles, or on what it asks for.
    #[error("{0}")]
    Locked(String),
    /// There is no such object, or none that the caller may know of.
    #[error("no such {kind}: {name}")]
    NotFound {
        /// What kind of object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error("{kind} exists already: {name}")]
    AlreadyExists {
        /// What kind of object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has changed since the caller read it.
    #[error(
        "{kind} {name} has changed since revision {given}: it is at {current}; read it again and repeat the change"
    )]
    StaleRevision {
        /// What kind of object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The revision that the caller had.
        given: u64,
        /// The revision that it has.
        current: u64,
    },
    /// The state of things does not allow it now.
    #[error("{0}")]
    Precondition(String),
    /// The method is declared and does nothing in this release.
    #[error("this method is not implemented")]
    Unimplemented,
    /// A stored row cannot be read, or the storage failed. The text is for the log alone.
    #[error("storage: {0}")]
    Storage(#[from] TxError),
    /// Something failed that no input explains. The text is for the log alone.
    #[error("internal: {0}")]
    Internal(String),
}

impl CoreError {
    /// A field that is not as it must be.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// For `map_err`: what the PKI refused about a field. Its own failures stay internal.
    pub fn pki(field: &'static str) -> impl Fn(PkiError) -> Self {
        move |error| match error {
            PkiError::Randomness | PkiError::Internal(_) => Self::Internal(error.to_string()),
            refused => Self::invalid(field, refused.to_string()),
        }
    }

    /// Refuses an update whose revision is not the current one; 0 means «whatever it is now».
    ///
    /// # Errors
    /// [`CoreError::StaleRevision`].
    pub fn check_revision(kind: &'static str, name: &str, given: u64, current: u64) -> Result<(), Self> {
        if given == 0 || given == current {
            return Ok(());
        }
        Err(Self::StaleRevision { kind, name: name.to_owned(), given, current })
    }
}
