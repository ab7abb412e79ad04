//! Offsets and chain of a recording that is being written: a state machine without I/O.
//!
//! Bytes are received, then written as a segment by somebody else, then committed. What is received and what is
//! committed are told apart throughout: only the latter is ever acknowledged. Where the state comes from, and how a
//! segment becomes durable, is not decided here.

use recording_format::{
    ChainHead, Codec, Digest, EncodedSegment, MAX_CHUNK_LEN, PayloadHasher, RecordingId, SegmentBuilder,
    SegmentRef, Verified,
};

use crate::error::IngestError;

/// Everything that the durable part of a recording consists of, so that its manifest can be written without reading
/// it. Known to whoever wrote or walked the recording from its first byte.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The segments.
    pub segments: Vec<SegmentRef>,
    /// The running digest of the payload.
    pub payload: PayloadHasher,
}

/// Where a recording stands: everything before `committed` is durable.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Durable bytes.
    pub committed: u64,
    /// The chain over them.
    pub head: ChainHead,
    /// How they came about; unknown after another process wrote some of them.
    pub history: Option<History>,
}

impl Progress {
    /// A recording without bytes.
    #[must_use]
    pub fn empty(head: ChainHead) -> Self {
        Self { committed: 0, head, history: Some(History::default()) }
    }

    /// Whether both tell of the same durable bytes.
    #[must_use]
    pub fn same_place(&self, other: &Self) -> bool {
        (self.committed, self.head) == (other.committed, other.head)
    }
}

/// A recording that is being written by one call.
#[derive(Debug)]
pub struct Session {
    id: RecordingId,
    progress: Progress,
    pending: SegmentBuilder,
    /// Offset at which the recording ends at the latest.
    most: u64,
}

impl Session {
    /// Goes on from what is durable; takes nothing from the offset `most` on.
    #[must_use]
    pub fn new(id: RecordingId, progress: Progress, most: u64) -> Self {
        let pending = SegmentBuilder::new(id, progress.committed, Codec::Identity, progress.head);
        Self { id, progress, pending, most }
    }

    /// Durable bytes.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.progress.committed
    }

    /// The chain over the durable bytes.
    #[must_use]
    pub fn head(&self) -> ChainHead {
        self.progress.head
    }

    /// Bytes that what was received and is not yet durable takes in memory.
    #[must_use]
    pub fn pending_object(&self) -> usize {
        self.pending.object_len()
    }

    /// Bytes received and not yet durable.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Offset up to which everything was received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.pending.end()
    }

    /// From now on takes nothing from this offset on.
    pub fn end_at(&mut self, most: u64) {
        self.most = most;
    }

    /// Checks where a call says that it starts.
    ///
    /// # Errors
    /// [`IngestError::OffsetAhead`] when bytes are missing before it.
    pub fn check_start(&self, offset: u64) -> Result<(), IngestError> {
        let expected = self.pending.end();
        if offset > expected { Err(IngestError::OffsetAhead { expected }) } else { Ok(()) }
    }

    /// Takes a chunk: all of it, the part that is new, or nothing where all of it is known. The checksum is checked
    /// first, so a chunk that was damaged on the way leaves no trace. Answers whether it is whole: what goes beyond the
    /// end of the recording is left out.
    ///
    /// # Errors
    /// [`IngestError::Invalid`] for a chunk above [`MAX_CHUNK_LEN`] or an offset that no recording can reach,
    /// [`IngestError::BadChecksum`], or [`IngestError::OffsetAhead`] when bytes are missing before it.
    pub fn chunk(&mut self, offset: u64, data: &[u8], crc32c: u32) -> Result<bool, IngestError> {
        if data.len() > MAX_CHUNK_LEN {
            return Err(IngestError::invalid("chunk.data", format!("at most {MAX_CHUNK_LEN} bytes")));
        }
        let Some(end) = offset.checked_add(data.len() as u64) else {
            return Err(IngestError::invalid("chunk.offset", "no recording is that long"));
        };
        if crc32c::crc32c(data) != crc32c {
            return Err(IngestError::BadChecksum { offset });
        }
        self.check_start(offset)?;
        let expected = self.pending.end();
        if end <= expected {
            return Ok(true);
        }
        let place =
            |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(data.len()).min(data.len());
        let (known, taken) = (place(expected), place(self.most));
        let new = data.get(known..taken).unwrap_or_default();
        let crc32c = if new.len() == data.len() { crc32c } else { crc32c::crc32c(new) };
        self.pending.push(new, crc32c)?;
        if let Some(history) = &mut self.progress.history {
            history.payload.update(new);
        }
        Ok(end <= self.most)
    }

    /// Takes out what is pending, to be written as a segment. Nothing may be received until it is
    /// [committed](Session::commit).
    #[must_use]
    pub fn take_pending(&mut self) -> Option<SegmentBuilder> {
        if self.pending.is_empty() {
            return None;
        }
        let next = SegmentBuilder::new(self.id, self.pending.end(), Codec::Identity, self.progress.head);
        Some(std::mem::replace(&mut self.pending, next))
    }

    /// Notes that a segment is durable.
    pub fn commit(&mut self, segment: &EncodedSegment) {
        self.progress.committed = segment.header.end();
        self.progress.head = segment.head;
        if let Some(history) = &mut self.progress.history {
            history.segments.push(SegmentRef {
                start: segment.header.start,
                length: segment.header.length,
                object_length: segment.object_len(),
                sha256: segment.sha256,
            });
        }
        self.pending =
            SegmentBuilder::new(self.id, self.progress.committed, Codec::Identity, self.progress.head);
    }

    /// Whether the manifest can be written without reading the segments.
    #[must_use]
    pub fn has_history(&self) -> bool {
        self.progress.history.is_some()
    }

    /// Takes in what a walk over the stored segments found.
    ///
    /// # Errors
    /// [`IngestError::Superseded`] when the walk found other bytes than this call knows of.
    pub fn learn(&mut self, verified: Verified, payload: PayloadHasher) -> Result<(), IngestError> {
        if (verified.length, verified.head) != (self.progress.committed, self.progress.head) {
            return Err(IngestError::Superseded { committed: verified.length });
        }
        self.progress.history = Some(History { segments: verified.segments, payload });
        Ok(())
    }

    /// Checks what the agent says of the whole against what is durable, and answers the segments.
    ///
    /// # Errors
    /// [`IngestError::OffsetAhead`] when bytes are missing at the end, [`IngestError::TotalTooSmall`],
    /// [`IngestError::PayloadMismatch`]; [`IngestError::Internal`] when something is pending or the history is not
    /// known.
    pub fn finish(&self, total: u64, payload_sha256: Digest) -> Result<&[SegmentRef], IngestError> {
        let (segments, found) = self.sum()?;
        let committed = self.progress.committed;
        if total > committed {
            return Err(IngestError::OffsetAhead { expected: committed });
        }
        if total < committed {
            return Err(IngestError::TotalTooSmall { total, committed });
        }
        if found != payload_sha256 {
            return Err(IngestError::PayloadMismatch);
        }
        Ok(segments)
    }

    /// The segments, and the digest of their payload.
    ///
    /// # Errors
    /// [`IngestError::Internal`] when something is pending or the history is not known.
    pub fn sum(&self) -> Result<(&[SegmentRef], Digest), IngestError> {
        let unknown =
            || IngestError::Internal("a recording was finished before all of it was known".to_owned());
        let history =
            self.progress.history.as_ref().filter(|_| self.pending.is_empty()).ok_or_else(unknown)?;
        Ok((&history.segments, history.payload.digest()))
    }

    /// What a later call can go on from. The history is dropped where it ran ahead of what is durable.
    #[must_use]
    pub fn into_progress(self) -> Progress {
        let history = self.progress.history.filter(|_| self.pending.is_empty());
        Progress { history, ..self.progress }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> RecordingId {
        RecordingId::from_bytes([1; 16])
    }

    fn fresh() -> Session {
        Session::new(id(), Progress::empty(ChainHead::begin(id(), Digest::of(b"begin"))), u64::MAX)
    }

    fn send(session: &mut Session, offset: u64, data: &[u8]) -> Result<bool, IngestError> {
        session.chunk(offset, data, crc32c::crc32c(data))
    }

    fn flush(session: &mut Session) -> EncodedSegment {
        let segment = session.take_pending().unwrap().finish().unwrap();
        session.commit(&segment);
        segment
    }

    #[test]
    fn what_is_received_is_committed_once_written() {
        let mut session = fresh();
        send(&mut session, 0, b"hello ").unwrap();
        send(&mut session, 6, b"world").unwrap();
        assert_eq!((session.committed(), session.pending()), (0, 11));
        let first = flush(&mut session);
        assert_eq!((session.committed(), session.pending()), (11, 0));
        assert_eq!(session.head(), first.head);
        send(&mut session, 11, b"!").unwrap();
        let second = flush(&mut session);
        assert_eq!(second.header.previous, first.head);
        let segments = session.finish(12, Digest::of(b"hello world!")).unwrap();
        assert_eq!(segments.iter().map(|s| (s.start, s.length)).collect::<Vec<_>>(), [(0, 11), (11, 1)]);
    }

    #[test]
    fn beyond_the_expected_offset_is_refused_and_nothing_kept() {
        let mut session = fresh();
        send(&mut session, 0, b"abc").unwrap();
        assert!(matches!(send(&mut session, 4, b"e"), Err(IngestError::OffsetAhead { expected: 3 })));
        assert!(matches!(session.check_start(4), Err(IngestError::OffsetAhead { expected: 3 })));
        assert!(session.check_start(3).is_ok() && session.check_start(0).is_ok());
        assert_eq!(session.pending(), 3);
    }

    #[test]
    fn duplicates_are_ignored_and_overlaps_trimmed() {
        let mut session = fresh();
        send(&mut session, 0, b"abcdef").unwrap();
        flush(&mut session);
        send(&mut session, 0, b"abc").unwrap();
        send(&mut session, 0, b"abcdef").unwrap();
        assert_eq!(session.pending(), 0);
        send(&mut session, 4, b"efgh").unwrap();
        send(&mut session, 6, b"gh").unwrap();
        assert_eq!(session.pending(), 2);
        let segment = flush(&mut session);
        let decoded = recording_format::Segment::decode(id(), segment.to_bytes()).unwrap();
        assert_eq!(decoded.payload().collect::<Vec<_>>(), [b"gh"]);
        assert!(session.finish(8, Digest::of(b"abcdefgh")).is_ok());
    }

    #[test]
    fn a_damaged_chunk_leaves_no_trace() {
        let mut session = fresh();
        send(&mut session, 0, b"abc").unwrap();
        for offset in [0, 1, 3, 9] {
            let refused = session.chunk(offset, b"xyz", 7);
            assert!(matches!(refused, Err(IngestError::BadChecksum { .. })), "{offset}");
        }
        send(&mut session, 3, b"def").unwrap();
        flush(&mut session);
        assert!(session.finish(6, Digest::of(b"abcdef")).is_ok());
    }

    #[test]
    fn impossible_chunks_are_refused() {
        let mut session = fresh();
        assert!(matches!(send(&mut session, u64::MAX, b"x"), Err(IngestError::Invalid { .. })));
        assert!(matches!(
            send(&mut session, 0, &vec![0; MAX_CHUNK_LEN + 1]),
            Err(IngestError::Invalid { .. })
        ));
        send(&mut session, 0, b"").unwrap();
        assert_eq!(session.take_pending().map(|builder| builder.len()), None);
    }

    #[test]
    fn the_end_must_be_the_one_that_is_stored() {
        let mut session = fresh();
        send(&mut session, 0, b"abc").unwrap();
        assert!(matches!(session.finish(3, Digest::of(b"abc")), Err(IngestError::Internal(_))));
        flush(&mut session);
        assert!(matches!(
            session.finish(4, Digest::of(b"abc")),
            Err(IngestError::OffsetAhead { expected: 3 })
        ));
        assert!(matches!(
            session.finish(2, Digest::of(b"ab")),
            Err(IngestError::TotalTooSmall { total: 2, committed: 3 })
        ));
        assert!(matches!(session.finish(3, Digest::of(b"abd")), Err(IngestError::PayloadMismatch)));
        assert!(session.finish(3, Digest::of(b"abc")).is_ok());
    }

    #[test]
    fn what_goes_beyond_the_end_is_left_out() {
        let mut session = fresh();
        session.end_at(5);
        assert!(send(&mut session, 0, b"abc").unwrap());
        assert!(!send(&mut session, 2, b"cdefg").unwrap());
        assert_eq!(session.received(), 5);
        // Nothing more is taken, and what is known is still known.
        assert!(!send(&mut session, 5, b"f").unwrap() && send(&mut session, 0, b"abcde").unwrap());
        assert!(matches!(session.sum(), Err(IngestError::Internal(_))));
        flush(&mut session);
        let (segments, digest) = session.sum().unwrap();
        assert_eq!((segments.len(), digest), (1, Digest::of(b"abcde")));
    }

    #[test]
    fn an_empty_recording_can_be_finished() {
        assert_eq!(fresh().finish(0, Digest::of(b"")).unwrap(), []);
    }

    #[test]
    fn one_that_resumes_learns_the_past_before_it_finishes() {
        let mut first = fresh();
        send(&mut first, 0, b"abc").unwrap();
        flush(&mut first);
        let mut resumed = Session::new(id(), Progress { history: None, ..first.into_progress() }, u64::MAX);
        send(&mut resumed, 3, b"def").unwrap();
        flush(&mut resumed);
        assert!(!resumed.has_history());
        assert!(matches!(resumed.finish(6, Digest::of(b"abcdef")), Err(IngestError::Internal(_))));

        let mut payload = PayloadHasher::default();
        payload.update(b"abcdef");
        let verified = |length| Verified {
            begin_sha256: Digest::of(b"begin"),
            length,
            payload_sha256: payload.digest(),
            segments: vec![],
            head: resumed.head(),
        };
        let (right, wrong) = (verified(6), verified(7));
        assert!(matches!(
            resumed.learn(wrong, payload.clone()),
            Err(IngestError::Superseded { committed: 7 })
        ));
        resumed.learn(right, payload).unwrap();
        assert!(resumed.finish(6, Digest::of(b"abcdef")).is_ok());
    }

    #[test]
    fn a_history_that_ran_ahead_is_not_passed_on() {
        let mut session = fresh();
        send(&mut session, 0, b"abc").unwrap();
        assert!(session.into_progress().history.is_none());
        let mut session = fresh();
        send(&mut session, 0, b"abc").unwrap();
        flush(&mut session);
        assert!(session.into_progress().history.is_some());
    }
}
