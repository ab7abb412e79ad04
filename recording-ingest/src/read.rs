//! Reads parts of recordings. Every byte that leaves was checked against its segment's digest and, once the recording
//! is sealed, against the manifest.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Bytes, BytesMut};
use recording_format::{Digest, FormatError, ObjectKey, RecordingId, Segment, segment_prefix};

use crate::{
    error::IngestError,
    objects::Objects,
    quarantine,
    recover::{self, Stored},
};

/// Segments that were read and checked lately: a reader asks for the same one several times.
#[derive(Debug)]
pub struct SegmentCache {
    segments: Mutex<VecDeque<((RecordingId, u64), Segment)>>,
    kept: usize,
}

impl SegmentCache {
    /// Keeps at most `kept` segments.
    #[must_use]
    pub fn new(kept: usize) -> Self {
        Self { segments: Mutex::default(), kept }
    }

    fn get(&self, key: (RecordingId, u64)) -> Option<Segment> {
        let segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.iter().find(|(known, _)| *known == key).map(|(_, segment)| segment.clone())
    }

    fn put(&self, key: (RecordingId, u64), segment: Segment) {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.retain(|(known, _)| *known != key);
        segments.push_back((key, segment));
        while segments.len() > self.kept {
            segments.pop_front();
        }
    }
}

/// A recording that is being read.
#[derive(Debug)]
pub struct Reader {
    objects: Arc<Objects>,
    cache: Arc<SegmentCache>,
    stored: Stored,
    /// Where each segment starts and, once sealed, its digest; in order.
    segments: Vec<(u64, Option<Digest>)>,
    /// The segment that was read from last: one who reads on asks for it many times, and others may have driven it from the
    /// cache in between.
    current: Option<Segment>,
}

impl Reader {
    /// Opens a recording.
    ///
    /// # Errors
    /// [`IngestError::UnknownRecording`]; [`IngestError::Quarantined`] when all of it was put aside; or when the store fails or tells nothing sensible.
    pub async fn open(
        objects: Arc<Objects>,
        cache: Arc<SegmentCache>,
        id: RecordingId,
    ) -> Result<Self, IngestError> {
        let stored = match recover::load(&objects, id).await? {
            Some(stored) => stored,
            None if quarantine::holds(&objects, id).await? => {
                return Err(IngestError::Quarantined { committed: 0 });
            }
            None => return Err(IngestError::UnknownRecording),
        };
        let segments = match stored.sealed() {
            Some(signed) => signed.manifest.segments.iter().map(|s| (s.start, Some(s.sha256))).collect(),
            None => {
                let listed = objects.list(&segment_prefix(id)).await?;
                listed.into_iter().filter_map(|(key, _)| Some((start_of(key)?, None))).collect()
            }
        };
        Ok(Self { objects, cache, stored, segments, current: None })
    }

    /// What the store knows of it.
    #[must_use]
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Checks that an offset is in the recording, or its end.
    ///
    /// # Errors
    /// [`IngestError::OffsetAhead`] beyond the end.
    pub fn check(&self, offset: u64) -> Result<(), IngestError> {
        let size = self.stored.committed;
        if offset <= size { Ok(()) } else { Err(IngestError::OffsetAhead { expected: size }) }
    }

    /// Bytes from `offset` on, at most `limit`; fewer at the end of the recording.
    ///
    /// # Errors
    /// [`IngestError::OffsetAhead`] beyond the end; [`IngestError::Damaged`] or [`IngestError::Missing`] when what is
    /// stored is not what was acknowledged.
    pub async fn read(&mut self, offset: u64, limit: u64) -> Result<Bytes, IngestError> {
        self.check(offset)?;
        let wanted = offset..offset.saturating_add(limit).min(self.stored.committed);
        let mut out = BytesMut::new();
        let mut at = wanted.start;
        while at < wanted.end {
            let segment = self.segment_at(at).await?;
            segment.slices(at..wanted.end).for_each(|slice| out.extend_from_slice(&slice));
            at = segment.header().end();
        }
        Ok(out.freeze())
    }

    /// The segment that holds the byte at `offset`, checked.
    async fn segment_at(&mut self, offset: u64) -> Result<Segment, IngestError> {
        let id = self.stored.begin.recording_id;
        let after = self.segments.partition_point(|(start, _)| *start <= offset);
        let (start, sha256) =
            *after.checked_sub(1).and_then(|at| self.segments.get(at)).ok_or(IngestError::Missing)?;
        let current = self.current.take().filter(|current| current.header().start == start);
        let kept = current.or_else(|| self.cache.get((id, start)));
        // One that was put aside and sent again since is read anew.
        let kept = kept.filter(|kept| check(kept, start..offset, sha256).is_ok());
        let segment = match kept {
            Some(segment) => segment,
            None => {
                let object =
                    self.objects.get(ObjectKey::Segment(id, start)).await?.ok_or(IngestError::Missing)?;
                let segment = tokio::task::spawn_blocking(move || Segment::decode(id, object)).await??;
                check(&segment, start..offset, sha256)?;
                self.cache.put((id, start), segment.clone());
                segment
            }
        };
        self.current = Some(segment.clone());
        Ok(segment)
    }
}

/// The segment must be the one that the key and the manifest name, and reach beyond the wanted byte.
fn check(segment: &Segment, range: Range<u64>, sha256: Option<Digest>) -> Result<(), IngestError> {
    if sha256.is_some_and(|expected| expected != segment.sha256()) {
        return Err(FormatError::BadHash.into());
    }
    let header = segment.header();
    if header.start != range.start {
        return Err(FormatError::Discontinuous { expected: range.start, found: header.start }.into());
    }
    if header.end() <= range.end {
        return Err(IngestError::Missing);
    }
    Ok(())
}

fn start_of(key: ObjectKey) -> Option<u64> {
    match key {
        ObjectKey::Segment(_, start) => Some(start),
        _ => None,
    }
}
