//! Verification of a whole recording from its objects, and the collection of what a manifest needs.
//!
//! The same walk serves both: who seals a recording that others wrote learns its segments and its payload's digest
//! from the objects, and who reads a sealed one compares them with the manifest.

use bytes::Bytes;

use crate::{
    Begin, ChainHead, Digest, FormatError, Manifest, PayloadHasher, RecordingId, Segment, SegmentRef,
};

/// A walk over a recording's segments, in order.
#[derive(Debug, Clone)]
pub struct Verifier {
    id: RecordingId,
    begin_sha256: Digest,
    head: ChainHead,
    end: u64,
    payload: PayloadHasher,
    segments: Vec<SegmentRef>,
}

/// What a walk found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Digest of `begin.json`.
    pub begin_sha256: Digest,
    /// Payload bytes.
    pub length: u64,
    /// Digest of the payload.
    pub payload_sha256: Digest,
    /// The segments.
    pub segments: Vec<SegmentRef>,
    /// The chain after the last one.
    pub head: ChainHead,
}

impl Verifier {
    /// Begins with the bytes of `begin.json`.
    ///
    /// # Errors
    /// When they are not that document of this recording.
    pub fn new(id: RecordingId, begin: &[u8]) -> Result<Self, FormatError> {
        Begin::decode(id, begin)?;
        let begin_sha256 = Digest::of(begin);
        Ok(Self {
            id,
            begin_sha256,
            head: ChainHead::begin(id, begin_sha256),
            end: 0,
            payload: PayloadHasher::default(),
            segments: Vec::new(),
        })
    }

    /// Takes the next segment object and answers it, checked.
    ///
    /// # Errors
    /// When it does not verify by itself, does not start where the one before ended, or is not linked to it.
    pub fn segment(&mut self, object: Bytes) -> Result<Segment, FormatError> {
        let segment = Segment::decode(self.id, object)?;
        let header = *segment.header();
        if header.start != self.end {
            return Err(FormatError::Discontinuous { expected: self.end, found: header.start });
        }
        if header.previous != self.head {
            return Err(FormatError::BrokenChain { start: header.start });
        }
        segment.payload().for_each(|frame| self.payload.update(frame));
        self.head = segment.head();
        self.end = header.end();
        self.segments.push(SegmentRef {
            start: header.start,
            length: header.length,
            object_length: segment.object_len(),
            sha256: segment.sha256(),
        });
        Ok(segment)
    }

    /// Where the next segment must start.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// What was found, and the running digest, with which a writer can go on.
    #[must_use]
    pub fn finish(self) -> (Verified, PayloadHasher) {
        let verified = Verified {
            begin_sha256: self.begin_sha256,
            length: self.end,
            payload_sha256: self.payload.digest(),
            segments: self.segments,
            head: self.head,
        };
        (verified, self.payload)
    }
}

impl Verified {
    /// Compares with what a manifest says.
    ///
    /// # Errors
    /// [`FormatError::PayloadMismatch`] or [`FormatError::ManifestMismatch`] with the field that differs.
    pub fn matches(&self, manifest: &Manifest) -> Result<(), FormatError> {
        manifest.check()?;
        let differs = |what| Err(FormatError::ManifestMismatch { what });
        if self.begin_sha256 != manifest.begin_sha256 {
            return differs("begin_sha256");
        }
        if self.length != manifest.length {
            return differs("length");
        }
        if self.segments != manifest.segments {
            return differs("segments");
        }
        if self.payload_sha256 != manifest.payload_sha256 {
            return Err(FormatError::PayloadMismatch {
                expected: manifest.payload_sha256,
                found: self.payload_sha256,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{AgentId, Codec, EncodedSegment, Metadata, SegmentBuilder, manifest::tests::manifest};

    fn id() -> RecordingId {
        RecordingId::from_bytes([1; 16])
    }

    fn begin() -> Vec<u8> {
        let agent = AgentId::from_bytes([2; 16]);
        Begin::new(id(), agent, Metadata::default(), 0, agent).encode().unwrap()
    }

    fn segments(payloads: &[Vec<u8>]) -> Vec<EncodedSegment> {
        let (mut head, mut start) = (Begin::chain(id(), &begin()), 0);
        payloads
            .iter()
            .map(|payload| {
                let mut builder = SegmentBuilder::new(id(), start, Codec::Identity, head);
                for chunk in payload.chunks(7) {
                    builder.push(chunk, crc32c::crc32c(chunk)).unwrap();
                }
                let segment = builder.finish().unwrap();
                (head, start) = (segment.head, segment.header.end());
                segment
            })
            .collect()
    }

    fn three() -> Vec<EncodedSegment> {
        segments(&[b"first segment".to_vec(), b"second".to_vec(), b"third".to_vec()])
    }

    fn walk(segments: &[EncodedSegment]) -> Result<Verified, FormatError> {
        let mut verifier = Verifier::new(id(), &begin())?;
        for segment in segments {
            verifier.segment(segment.to_bytes())?;
        }
        Ok(verifier.finish().0)
    }

    fn manifest_of(verified: &Verified) -> Manifest {
        Manifest {
            length: verified.length,
            payload_sha256: verified.payload_sha256,
            begin_sha256: verified.begin_sha256,
            segments: verified.segments.clone(),
            chain_head: verified.head,
            ..manifest()
        }
    }

    #[test]
    fn a_left_out_exchanged_or_repeated_segment_is_noticed() {
        let all = three();
        let at = |order: &[usize]| walk(&order.iter().map(|&i| all[i].clone()).collect::<Vec<_>>());
        assert!(matches!(at(&[0, 2]), Err(FormatError::Discontinuous { .. })));
        assert!(matches!(at(&[1, 0]), Err(FormatError::Discontinuous { .. })));
        assert!(matches!(at(&[0, 0]), Err(FormatError::Discontinuous { .. })));
        let forged = segments(&[b"First segment".to_vec(), b"second".to_vec()]);
        assert!(matches!(
            walk(&[all[0].clone(), forged[1].clone()]),
            Err(FormatError::BrokenChain { start: 13 })
        ));
    }

    #[test]
    fn a_cut_recording_does_not_match_its_manifest() {
        let all = three();
        let manifest = manifest_of(&walk(&all).unwrap());
        assert_eq!(walk(&all).unwrap().matches(&manifest), Ok(()));
        let cut = walk(&all[..2]).unwrap();
        assert_eq!(cut.matches(&manifest), Err(FormatError::ManifestMismatch { what: "length" }));
    }

    #[test]
    fn a_manifest_of_another_payload_is_refused() {
        let verified = walk(&three()).unwrap();
        let mut other = manifest_of(&verified);
        other.payload_sha256 = Digest::of(b"other");
        assert!(matches!(verified.matches(&other), Err(FormatError::PayloadMismatch { .. })));
    }

    #[test]
    fn another_begin_breaks_the_chain() {
        let agent = AgentId::from_bytes([9; 16]);
        let other = Begin::new(id(), agent, Metadata::default(), 0, agent).encode().unwrap();
        let mut verifier = Verifier::new(id(), &other).unwrap();
        let broken = verifier.segment(three()[0].to_bytes()).unwrap_err();
        assert_eq!(broken, FormatError::BrokenChain { start: 0 });
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_payload(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 0..8)) {
            let verified = walk(&segments(&payloads)).unwrap();
            prop_assert_eq!(verified.payload_sha256, Digest::of(&payloads.concat()));
            prop_assert_eq!(verified.length, payloads.concat().len() as u64);
            prop_assert_eq!(verified.matches(&manifest_of(&verified)), Ok(()));
        }
    }
}
