//! The hash chain over a recording's segments.
//!
//! It begins at the digest of `begin.json`, so a chain is good for one recording and one owner, and each link takes
//! in the segment's place, length and digest, so that nothing can be left out, exchanged or put elsewhere.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Digest, RecordingId};

/// Sets this chain's digests apart from any other use of SHA-256.
const DOMAIN: &[u8] = b"mezite recording chain v1\0";

/// The newest link.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainHead(Digest);

impl ChainHead {
    /// The chain of a recording without segments: SHA256(domain ‖ id ‖ SHA256(begin.json)).
    #[must_use]
    pub fn begin(id: RecordingId, begin_sha256: Digest) -> Self {
        Self(Digest::of_parts(&[DOMAIN, id.as_bytes(), begin_sha256.as_bytes()]))
    }

    /// The chain with one more segment: SHA256(head ‖ start ‖ length ‖ SHA256(segment)), numbers big-endian.
    #[must_use]
    pub fn extend(&self, start: u64, length: u64, segment_sha256: Digest) -> Self {
        Self(Digest::of_parts(&[
            self.0.as_bytes(),
            &start.to_be_bytes(),
            &length.to_be_bytes(),
            segment_sha256.as_bytes(),
        ]))
    }

    /// A head that was computed elsewhere.
    #[must_use]
    pub fn from_digest(digest: Digest) -> Self {
        Self(digest)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl fmt::Display for ChainHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ChainHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_is_golden() {
        let id = RecordingId::from_bytes([0x11; 16]);
        let head = ChainHead::begin(id, Digest::of(b"begin"));
        assert_eq!(head.to_string(), "83d718a33fc8495996b77bd78340417ce52825525bce42d73c110777f616de1a");
        let next = head.extend(0, 5, Digest::of(b"segment"));
        assert_eq!(next.to_string(), "41153c18a91f3f19112822c807e79e82d7561071103f082c2917674f3e73e6eb");
    }

    #[test]
    fn every_part_counts() {
        let id = RecordingId::from_bytes([0x11; 16]);
        let head = ChainHead::begin(id, Digest::of(b"begin"));
        assert_ne!(head, ChainHead::begin(RecordingId::from_bytes([0x12; 16]), Digest::of(b"begin")));
        assert_ne!(head, ChainHead::begin(id, Digest::of(b"other")));
        let link = head.extend(0, 5, Digest::of(b"s"));
        assert_ne!(link, head.extend(1, 5, Digest::of(b"s")));
        assert_ne!(link, head.extend(0, 6, Digest::of(b"s")));
        assert_ne!(link, head.extend(0, 5, Digest::of(b"t")));
    }
}
