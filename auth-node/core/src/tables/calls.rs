//! Calls that take effect once: what they were answered, for their repetitions.

use store_txn::{Key, KeyReader, KeyWriter, Row, Table, UnixMillis};

use crate::secret::SecretDigest;

digest_key!(
    /// A call that took effect once, by a digest of its idempotency key, its caller and its method: see `repeat`.
    AnswerKey -> AnswerRow, 40, "answers"
);

/// What a call was answered, for its repetitions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnswerRow {
    /// SHA-256 of the request and the reply, encrypted under a key that only the client can make: see `repeat`.
    #[prost(bytes = "vec", tag = "1")]
    pub sealed: Vec<u8>,
    /// Until when it is kept.
    #[prost(uint64, tag = "2")]
    pub expires_at_ms: UnixMillis,
}
ending_rows!(AnswerRow);
