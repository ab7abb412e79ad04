//! What can go wrong with a call, and how the caller is told: one enum, one conversion.
//!
//! What a caller is told says what to do. What only the operator should see goes to the log.

use std::{collections::HashMap, time::Duration};

use recording_format::FormatError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::objects::StoreError;

/// Domain of ErrorInfo details.
const DOMAIN: &str = "mezite";

/// When to try again after a condition that passes by itself.
const RETRY_SOON: Duration = Duration::from_secs(1);
/// When to try again after the store was full or failed.
const RETRY_LATER: Duration = Duration::from_secs(10);

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// No certificate, or one that does not say who it is.
    #[error("{0}; show the client certificate of an agent of this cluster")]
    Unauthenticated(&'static str),
    /// The agent's certificate is good, and no auth node has it in the roster: it never registered, was removed, or is
    /// locked.
    #[error(
        "this agent is locked, or it is not registered in the cluster any more: have the lock removed, or join it with a \
         new token, to send recordings"
    )]
    NotRegistered,
    /// The agent is not known, and no auth node can be asked.
    #[error("this ingest cannot learn now whether the agent is registered; try again or use another ingest")]
    Unconfirmed,
    /// The caller is known and may not do this.
    #[error("{0}")]
    Denied(&'static str),
    /// A field out of its bounds.
    #[error("{field}: {reason}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No such recording.
    #[error("no such recording; the first call for a recording needs header.metadata")]
    UnknownRecording,
    /// Bytes are missing in between.
    #[error("offset is beyond the expected one; go on from offset {expected}")]
    OffsetAhead {
        /// Where to go on.
        expected: u64,
    },
    /// The caller's checksum does not match the bytes.
    #[error("chunk at offset {offset} fails its CRC32C; nothing of it was kept; send it again")]
    BadChecksum {
        /// Offset of the chunk.
        offset: u64,
    },
    /// The recording is another agent's.
    #[error("the recording belongs to another agent")]
    NotOwner,
    /// The metadata is not that of the first call.
    #[error("metadata differs from that of the recording's first call")]
    MetadataDiffers,
    /// The recording is sealed, and the caller has something else.
    #[error("the recording is sealed with another length or payload")]
    Sealed,
    /// The final message names fewer bytes than were sent.
    #[error("final.total_length is {total}, but {committed} bytes are stored")]
    TotalTooSmall {
        /// As named.
        total: u64,
        /// As stored.
        committed: u64,
    },
    /// The payload is not the one whose digest was named.
    #[error("the payload's SHA-256 is not the one named; the stored bytes are not those of the caller")]
    PayloadMismatch,
    /// Another call took over, in this process or in another.
    #[error("another call writes this recording; probe it and go on from there")]
    Superseded {
        /// What is durable.
        committed: u64,
    },
    /// Too many calls at a time.
    #[error("too many recording streams; try again or use another ingest")]
    Busy,
    /// Too many calls of one agent at a time.
    #[error("too many recording streams of this agent; try again or use another ingest")]
    AgentBusy,
    /// The disk of the store is too full for it.
    #[error("the store of this ingest has no room for {0}; try again later or use another ingest")]
    NoRoom(&'static str),
    /// Others hold the memory for what is received.
    #[error("this ingest is short of memory; go on from what is durable, or use another ingest")]
    NoMemory,
    /// Too many downloads at a time.
    #[error("too many recordings are downloaded; try again or use another ingest")]
    TooManyDownloads,
    /// Nothing came, or was taken, for too long.
    #[error("no message within the time allowed")]
    Idle,
    /// The caller went away in the middle.
    #[error("the stream broke off")]
    BrokenOff(#[source] Box<Status>),
    /// The ingest is stopping.
    #[error("this ingest is leaving; go on with another one")]
    Leaving,
    /// The cluster does not have this ingest any more.
    #[error("this ingest was removed from the cluster; go on with another one")]
    Removed,
    /// The recording is being deleted, since its time is over.
    #[error("a recording of this id is being deleted; try again later")]
    Going,
    /// The index is being built.
    #[error("the index of recordings is being built; try again or use another ingest")]
    IndexNotReady,
    /// Stored objects contradict themselves.
    #[error("stored objects of the recording are damaged: {0}")]
    Damaged(FormatError),
    /// Stored objects contradicted themselves, and were put aside.
    #[error(
        "damaged objects of the recording were put into quarantine; what is left of it ends at offset {committed}: go on \
         from there"
    )]
    Quarantined {
        /// Where to go on.
        committed: u64,
    },
    /// An object that must be there is not.
    #[error("a stored object of the recording is missing")]
    Missing,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A defect of this program.
    #[error("internal error")]
    Internal(String),
}

impl From<FormatError> for IngestError {
    fn from(error: FormatError) -> Self {
        Self::Damaged(error)
    }
}

impl From<tokio::task::JoinError> for IngestError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl IngestError {
    /// A field out of its bounds.
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }

    /// The code of gRPC that says it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Unauthenticated(_) | Self::NotRegistered => Code::Unauthenticated,
            Self::Denied(_) | Self::NotOwner => Code::PermissionDenied,
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::UnknownRecording => Code::NotFound,
            Self::OffsetAhead { .. } => Code::OutOfRange,
            Self::BadChecksum { .. }
            | Self::PayloadMismatch
            | Self::Damaged(_)
            | Self::Quarantined { .. }
            | Self::Missing => Code::DataLoss,
            Self::MetadataDiffers | Self::Sealed | Self::TotalTooSmall { .. } => Code::FailedPrecondition,
            Self::Superseded { .. } => Code::Aborted,
            Self::Busy
            | Self::AgentBusy
            | Self::NoRoom(_)
            | Self::NoMemory
            | Self::TooManyDownloads
            | Self::Store(StoreError::Full) => Code::ResourceExhausted,
            Self::Idle => Code::DeadlineExceeded,
            Self::BrokenOff(_) => Code::Cancelled,
            Self::Leaving
            | Self::Removed
            | Self::Going
            | Self::Unconfirmed
            | Self::IndexNotReady
            | Self::Store(StoreError::Failed(_) | StoreError::Untrusted) => Code::Unavailable,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// Stable name of the condition, for ErrorInfo and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "UNAUTHENTICATED",
            Self::NotRegistered => "NOT_REGISTERED",
            Self::Unconfirmed => "REGISTRATION_UNCONFIRMED",
            Self::Denied(_) => "DENIED",
            Self::Invalid { .. } => "INVALID_FIELD",
            Self::UnknownRecording => "UNKNOWN_RECORDING",
            Self::OffsetAhead { .. } => "OFFSET_AHEAD",
            Self::BadChecksum { .. } => "BAD_CHECKSUM",
            Self::NotOwner => "NOT_OWNER",
            Self::MetadataDiffers => "METADATA_DIFFERS",
            Self::Sealed => "SEALED",
            Self::TotalTooSmall { .. } => "TOTAL_TOO_SMALL",
            Self::PayloadMismatch => "PAYLOAD_MISMATCH",
            Self::Superseded { .. } => "SUPERSEDED",
            Self::Busy | Self::AgentBusy => "TOO_MANY_STREAMS",
            Self::NoRoom(_) => "STORE_LOW",
            Self::NoMemory => "MEMORY_SHORT",
            Self::TooManyDownloads => "TOO_MANY_DOWNLOADS",
            Self::Idle => "IDLE",
            Self::BrokenOff(_) => "BROKEN_OFF",
            Self::Leaving => "LEAVING",
            Self::Removed => "INGEST_REMOVED",
            Self::Going => "GOING",
            Self::IndexNotReady => "INDEX_NOT_READY",
            Self::Damaged(_) => "DAMAGED",
            Self::Quarantined { .. } => "QUARANTINED",
            Self::Missing => "MISSING_OBJECT",
            Self::Store(StoreError::Full) => "STORE_FULL",
            Self::Store(StoreError::Failed(_)) => "STORE_FAILED",
            Self::Store(StoreError::Untrusted) => "STORE_UNTRUSTED",
            Self::Internal(_) => "INTERNAL",
        }
    }

    /// Whether it is the operator's business and not the caller's.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Missing | Self::Store(_) | Self::Internal(_))
    }

    /// What the operator's log gets, beside what the caller is told.
    #[must_use]
    pub fn internals(&self) -> String {
        match self {
            Self::Internal(what) => what.clone(),
            Self::Store(StoreError::Failed(what)) => what.clone(),
            other => other.to_string(),
        }
    }

    fn info(&self) -> HashMap<String, String> {
        match self {
            Self::OffsetAhead { expected } => {
                HashMap::from([("expected_offset".to_owned(), expected.to_string())])
            }
            Self::Superseded { committed }
            | Self::Quarantined { committed }
            | Self::TotalTooSmall { committed, .. } => {
                HashMap::from([("committed_offset".to_owned(), committed.to_string())])
            }
            _ => HashMap::new(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy
            | Self::AgentBusy
            | Self::NoMemory
            | Self::TooManyDownloads
            | Self::Leaving
            | Self::Removed
            | Self::Unconfirmed
            | Self::IndexNotReady
            | Self::Superseded { .. } => Some(RETRY_SOON),
            Self::NoRoom(_) | Self::Going | Self::Store(_) => Some(RETRY_LATER),
            _ => None,
        }
    }
}

impl IngestError {
    /// What the caller is told. `request_id` is under what the operator's log has more of it.
    #[must_use]
    pub fn into_status(self, request_id: &str) -> Status {
        let mut details = ErrorDetails::with_error_info(self.reason(), DOMAIN, self.info());
        if let Self::Invalid { field, reason } = &self {
            details.add_bad_request_violation(*field, reason.clone());
        }
        if let Some(delay) = self.retry_after() {
            details.set_retry_info(Some(delay));
        }
        details.set_request_info(request_id, "");
        Status::with_error_details(self.code(), self.to_string(), details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_learns_where_to_go_on() {
        let status = IngestError::OffsetAhead { expected: 42 }.into_status("r");
        assert_eq!(status.code(), Code::OutOfRange);
        let info = status.get_error_details().error_info().unwrap().clone();
        assert_eq!((info.domain.as_str(), info.reason.as_str()), ("mezite", "OFFSET_AHEAD"));
        assert_eq!(info.metadata["expected_offset"], "42");
    }

    #[test]
    fn internals_stay_inside() {
        let secret = "/var/lib/secret/path";
        for error in [IngestError::Internal(secret.into()), StoreError::Failed(secret.into()).into()] {
            assert!(error.internals().contains(secret));
            let status = error.into_status("r");
            assert!(!status.message().contains(secret), "{}", status.message());
        }
    }

    #[test]
    fn a_field_is_named() {
        let status = IngestError::invalid("header.recording_id", "not a UUID").into_status("r");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "header.recording_id");
    }
}
