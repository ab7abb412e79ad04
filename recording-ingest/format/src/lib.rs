//! The format of a session recording: what the objects of a recording are called, what is in them, and how they
//! prove each other.
//!
//! A recording is a `begin.json`, any number of immutable segments and, once it is sealed, a manifest. The segments
//! are linked by a hash chain that starts at the digest of `begin.json`; the manifest names the chain's head, each
//! segment and the digest of the payload, and is signed by the ingest that sealed it. Payload bytes are opaque; what most of
//! them are, recorded terminals, is read in [`asciicast`].
//!
//! Nothing here does I/O, reads a clock, draws randomness or signs: bytes go in, bytes and verdicts come out.

pub mod asciicast;
mod begin;
mod chain;
mod deletion;
mod digest;
mod error;
mod id;
mod index;
mod key;
mod manifest;
mod metadata;
mod segment;
mod verify;

pub use begin::{Begin, Codec, OpenMarker};
pub use chain::ChainHead;
pub use deletion::Deletion;
pub use digest::{Digest, PayloadHasher};
pub use error::FormatError;
pub use id::{AgentId, RecordingId};
pub use index::IndexEntry;
pub use key::{
    ObjectKey, index_hour_prefix, manifest_prefix, quarantine_prefix, recording_prefix, segment_prefix,
};
pub use manifest::{
    Gap, IngestCertificates, MANIFEST_NAMESPACE, Manifest, RecordingState, SegmentRef, SignedManifest,
    decode_signed_manifest, encode_signed_manifest,
};
pub use metadata::Metadata;
pub use segment::{
    EncodedSegment, FRAME_HEADER_LEN, HEADER_LEN, MAX_CHUNK_LEN, MAX_SEGMENT_PAYLOAD, MAX_SEGMENTS, Segment,
    SegmentBuilder, SegmentHeader, TRAILER_LEN, read_tail,
};
pub use verify::{Verified, Verifier};

/// Version of the JSON documents and of the segment layout that this crate writes.
pub const FORMAT_VERSION: u16 = 1;

/// The last moment that an index key can name, in Unix milliseconds: thirteen digits (November 2286).
pub const MAX_TIME_MS: u64 = 9_999_999_999_999;
