//! What can be wrong with a recording's bytes.

use crate::Digest;

/// A document, segment or chain that is not what it should be. None of these is cured by trying again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not a UUID in lower case with hyphens.
    #[error("not a UUID in lower case with hyphens")]
    BadId,
    /// Not a SHA-256 in lower-case hex.
    #[error("not a SHA-256 in lower-case hex")]
    BadDigest,
    /// Not the key of an object of ours.
    #[error("not the key of a recording object")]
    BadKey,
    /// A document that is not the JSON it should be.
    #[error("{document}: {reason}")]
    BadDocument {
        /// Which document.
        document: &'static str,
        /// What is wrong, without the document's contents.
        reason: String,
    },
    /// A version that this release does not read.
    #[error("{document}: version {version} is not known to this release")]
    UnknownVersion {
        /// Which document.
        document: &'static str,
        /// The version found.
        version: u16,
    },
    /// The bytes do not begin with a segment's magic.
    #[error("not a segment")]
    BadMagic,
    /// Fewer or more bytes than the header says.
    #[error("segment of {found} bytes where {expected} were expected")]
    BadLength {
        /// By the header.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// The header's checksum does not match.
    #[error("segment header is corrupt")]
    BadHeader,
    /// A frame's length is zero, above [`crate::MAX_CHUNK_LEN`], or runs past the segment.
    #[error("segment frame at byte {at} is malformed")]
    BadFrame {
        /// Position in the segment object.
        at: u64,
    },
    /// A frame's checksum does not match.
    #[error("segment frame at payload offset {offset} fails its CRC32C")]
    BadCrc {
        /// Payload offset of the frame.
        offset: u64,
    },
    /// The segment's digest does not match its bytes.
    #[error("segment fails its SHA-256")]
    BadHash,
    /// The segment is of another recording.
    #[error("segment belongs to another recording")]
    WrongRecording,
    /// The segment does not start where the one before ended.
    #[error("segment starts at {found} where {expected} was expected")]
    Discontinuous {
        /// End of the one before.
        expected: u64,
        /// Start of this one.
        found: u64,
    },
    /// The segment's link is not the chain's head.
    #[error("segment at {start} is not linked to the one before it")]
    BrokenChain {
        /// Start of the segment.
        start: u64,
    },
    /// The manifest does not say what the segments do.
    #[error("manifest disagrees with the segments: {what}")]
    ManifestMismatch {
        /// Which of its fields.
        what: &'static str,
    },
    /// The payload is not the one whose digest was named.
    #[error("payload has SHA-256 {found}, not {expected}")]
    PayloadMismatch {
        /// As named.
        expected: Digest,
        /// As computed.
        found: Digest,
    },
    /// More than a builder takes.
    #[error("chunk of {len} bytes does not fit")]
    ChunkTooLong {
        /// Its length.
        len: usize,
    },
}
