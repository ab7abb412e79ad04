//! What the store knows of a recording. Every call starts here, so any replica can take any recording on.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use recording_format::{
    Begin, ChainHead, Digest, FormatError, MAX_SEGMENTS, Manifest, ObjectKey, PayloadHasher, RecordingId,
    SegmentHeader, SignedManifest, Verified, Verifier, decode_signed_manifest, manifest_prefix, read_tail,
    segment_prefix,
};

use crate::{error::IngestError, objects::Objects};

/// Bytes of objects that are read at a time, and how many of them: what each has of a store's latency is shared.
const BATCH: (u64, usize) = (8 << 20, 64);

/// A recording, as the store has it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Owner and metadata.
    pub begin: Begin,
    /// Digest of `begin.json`.
    pub begin_sha256: Digest,
    /// The newest manifest.
    pub manifest: Option<Arc<SignedManifest>>,
    /// Bytes stored.
    pub committed: u64,
    /// The chain over them.
    pub head: ChainHead,
    /// In how many segments.
    pub segments: usize,
    /// The last of them.
    pub last: Option<LastSegment>,
}

/// Where the last segment is, and the length of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastSegment {
    /// Offset of its first payload byte.
    pub start: u64,
    /// Length of the object, in bytes.
    pub object_len: u64,
}

impl Stored {
    /// A recording that consists of `begin.json` alone.
    #[must_use]
    pub fn begun(begin: Begin, document: &[u8]) -> Self {
        let begin_sha256 = Digest::of(document);
        let head = ChainHead::begin(begin.recording_id, begin_sha256);
        Self { begin, begin_sha256, manifest: None, committed: 0, head, segments: 0, last: None }
    }

    /// Whether a manifest is of all that is stored: as many bytes can have been sent again in other segments.
    #[must_use]
    pub fn is_covered_by(&self, signed: &SignedManifest) -> bool {
        (signed.manifest.length, signed.manifest.chain_head) == (self.committed, self.head)
    }

    /// The offset at which the recording ends at the latest, where it may have so many bytes: with the most segments, it does
    /// so now.
    #[must_use]
    pub fn most(&self, bytes: u64) -> u64 {
        if self.segments < MAX_SEGMENTS { bytes } else { self.committed }
    }

    /// The manifest after which nothing can be added.
    #[must_use]
    pub fn sealed(&self) -> Option<&SignedManifest> {
        self.manifest.as_deref().filter(|signed| signed.manifest.state.is_final())
    }
}

/// As [`load`], for whoever knows how the recording stood: also answers whether it still stands so. That is told by a few
/// short reads, however many segments there are.
///
/// # Errors
/// As [`load`].
pub(crate) async fn look(
    objects: &Objects,
    id: RecordingId,
    known: Option<Stored>,
) -> Result<(Option<Stored>, bool), IngestError> {
    match known {
        Some(known) if stands(objects, id, &known).await? => Ok((Some(known), true)),
        Some(_) | None => Ok((load(objects, id).await?, false)),
    }
}

/// Whether begin and last segment are the same, none follows it, and no manifest is newer. Objects are never changed, and one that
/// is put aside takes those after it along.
async fn stands(objects: &Objects, id: RecordingId, known: &Stored) -> Result<bool, IngestError> {
    let Some(LastSegment { start, object_len }) = known.last.filter(|_| known.sealed().is_none()) else {
        return Ok(false);
    };
    let newest = objects.list(&manifest_prefix(id)).await?.pop();
    let revision = known.manifest.as_ref().map(|signed| signed.manifest.revision);
    let last = ObjectKey::Segment(id, start);
    let begin = objects.get(ObjectKey::Begin(id)).await?;
    let is_same = begin.is_some_and(|document| Digest::of(&document) == known.begin_sha256)
        && newest.map(|(key, _)| key) == revision.map(|revision| ObjectKey::Manifest(id, revision))
        && objects.length(last).await? == Some(object_len)
        && !objects.has(ObjectKey::Segment(id, known.committed)).await?;
    if !is_same {
        return Ok(false);
    }
    let (header, trailer) = objects.segment_ends(id, start, object_len).await?;
    Ok(read_tail(&header, &trailer).is_ok_and(|(_, _, head)| head == known.head))
}

/// What the store has of a recording; `None` when it was never begun.
///
/// # Errors
/// When the store fails, or an object that tells where the recording stands is damaged.
pub async fn load(objects: &Objects, id: RecordingId) -> Result<Option<Stored>, IngestError> {
    let Some(document) = objects.get(ObjectKey::Begin(id)).await? else { return Ok(None) };
    let mut stored = Stored::begun(Begin::decode(id, &document)?, &document);
    stored.manifest = newest_manifest(objects, id).await?.map(Arc::new);
    if let Some(signed) = stored.sealed() {
        let Manifest { length, chain_head, segments, .. } = &signed.manifest;
        (stored.committed, stored.head, stored.segments) = (*length, *chain_head, segments.len());
    } else if let Some((header, head, segments)) = last_segment(objects, id).await? {
        (stored.committed, stored.head, stored.segments) = (header.end(), head, segments);
        stored.last = Some(LastSegment { start: header.start, object_len: header.object_len() });
    }
    Ok(Some(stored))
}

/// The manifest that counts; `None` before the first one.
///
/// # Errors
/// When the store fails; [`IngestError::Damaged`].
pub(crate) async fn newest_manifest(
    objects: &Objects,
    id: RecordingId,
) -> Result<Option<SignedManifest>, IngestError> {
    let manifests = objects.list(&manifest_prefix(id)).await?;
    let Some((key, _)) = manifests.last() else { return Ok(None) };
    let object = objects.get(*key).await?.ok_or(IngestError::Missing)?;
    Ok(Some(decode_signed_manifest(id, &object)?))
}

/// The last segment, and how many there are. Two short reads: each segment carries the chain before it.
async fn last_segment(
    objects: &Objects,
    id: RecordingId,
) -> Result<Option<(SegmentHeader, ChainHead, usize)>, IngestError> {
    let segments = objects.list(&segment_prefix(id)).await?;
    let Some(&(ObjectKey::Segment(_, start), size)) = segments.last() else { return Ok(None) };
    let (header, trailer) = objects.segment_ends(id, start, size).await?;
    let (header, _, head) = read_tail(&header, &trailer)?;
    if header.id != id {
        return Err(FormatError::WrongRecording.into());
    }
    if header.start != start {
        return Err(FormatError::Discontinuous { expected: start, found: header.start }.into());
    }
    if header.object_len() != size {
        return Err(FormatError::BadLength { expected: header.object_len(), found: size }.into());
    }
    Ok(Some((header, head, segments.len())))
}

/// Reads and verifies all segments: what a manifest needs, for a recording that others wrote. So many at a time, and no more, since it
/// takes memory.
///
/// # Errors
/// When the store fails, or anything does not verify.
pub async fn walk(objects: &Arc<Objects>, id: RecordingId) -> Result<(Verified, PayloadHasher), IngestError> {
    let _walk = objects.walk().await?;
    let begin = objects.get(ObjectKey::Begin(id)).await?.ok_or(IngestError::UnknownRecording)?;
    let mut verifier = Verifier::new(id, &begin)?;
    for batch in batches(&objects.list(&segment_prefix(id)).await?) {
        let read = batch.iter().map(|(key, _)| objects.get(*key));
        let read = try_join_all(read).await?.into_iter().collect::<Option<Vec<_>>>();
        verifier = verify(verifier, read.ok_or(IngestError::Missing)?).await?;
    }
    Ok(verifier.finish())
}

/// Cuts what is read into what is read at a time.
fn batches(mut objects: &[(ObjectKey, u64)]) -> Vec<&[(ObjectKey, u64)]> {
    let mut batches = Vec::new();
    while !objects.is_empty() {
        let mut bytes = 0_u64;
        let fits = |(_, size): &&(ObjectKey, u64)| {
            bytes = bytes.saturating_add(*size);
            bytes <= BATCH.0
        };
        let count = objects.iter().take(BATCH.1).take_while(fits).count().max(1);
        let (batch, rest) = objects.split_at(count);
        batches.push(batch);
        objects = rest;
    }
    batches
}

/// Digests run beside the event loop, not on it.
async fn verify(mut verifier: Verifier, objects: Vec<Bytes>) -> Result<Verifier, IngestError> {
    tokio::task::spawn_blocking(move || {
        for object in objects {
            verifier.segment(object)?;
        }
        Ok(verifier)
    })
    .await?
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use recording_format::{AgentId, Codec, Metadata, SegmentBuilder, encode_signed_manifest};

    use super::*;

    const ID: [u8; 16] = [1; 16];

    /// A recording that grows by segments of a few bytes.
    struct Growing {
        objects: Objects,
        id: RecordingId,
        end: u64,
        head: ChainHead,
    }

    impl Growing {
        async fn begin() -> Self {
            let (objects, id) = (Objects::with_store(Arc::new(InMemory::new())), RecordingId::from_bytes(ID));
            let agent = AgentId::from_bytes([2; 16]);
            let begin = Begin::new(id, agent, Metadata::default(), 0, agent).encode().unwrap();
            let head = Begin::chain(id, &begin);
            objects.create(ObjectKey::Begin(id), begin.into()).await.unwrap();
            Self { objects, id, end: 0, head }
        }

        async fn grow(&mut self, bytes: &[u8]) {
            let mut builder = SegmentBuilder::new(self.id, self.end, Codec::Identity, self.head);
            builder.push(bytes, crc32c::crc32c(bytes)).unwrap();
            let segment = builder.finish().unwrap();
            let key = ObjectKey::Segment(self.id, self.end);
            self.objects.create(key, segment.to_bytes().into()).await.unwrap();
            (self.end, self.head) = (segment.header.end(), segment.head);
        }

        async fn load(&self) -> Stored {
            load(&self.objects, self.id).await.unwrap().unwrap()
        }

        /// Whether it stands as it was known, and in any case is what it is.
        async fn stands(&self, known: &Stored) -> bool {
            let (looked, stands) = look(&self.objects, self.id, Some(known.clone())).await.unwrap();
            let (looked, loaded) = (looked.unwrap(), self.load().await);
            assert_eq!((looked.committed, looked.head), (loaded.committed, loaded.head));
            assert_eq!((looked.manifest, looked.last), (loaded.manifest, loaded.last));
            assert_eq!(looked.segments, loaded.segments);
            stands
        }
    }

    #[tokio::test]
    async fn a_recording_ends_at_its_largest_size_or_with_the_most_segments() {
        let mut recording = Growing::begin().await;
        recording.grow(b"one").await;
        let mut stored = recording.load().await;
        for (segments, most) in [(1, 100), (MAX_SEGMENTS - 1, 100), (MAX_SEGMENTS, 3), (MAX_SEGMENTS + 1, 3)]
        {
            stored.segments = segments;
            assert_eq!(stored.most(100), most, "{segments}");
        }
    }

    #[tokio::test]
    async fn what_is_known_counts_while_it_is_all_there_is() {
        let mut recording = Growing::begin().await;
        let begun = recording.load().await;
        assert!(!recording.stands(&begun).await, "nothing is known of one without segments");
        recording.grow(b"one").await;
        recording.grow(b"two").await;
        let known = recording.load().await;
        assert!(recording.stands(&known).await);
        recording.grow(b"three").await;
        assert!(!recording.stands(&known).await);
        let known = recording.load().await;
        // The last is put aside, and sent again: as long, and then in one piece with what follows.
        for other in [&b"THREE"[..], b"three and more"] {
            recording.objects.delete(ObjectKey::Segment(recording.id, 6)).await.unwrap();
            (recording.end, recording.head) = (6, recording.load().await.head);
            assert!(!recording.stands(&known).await);
            recording.grow(other).await;
            assert!(!recording.stands(&known).await);
        }
        let known = recording.load().await;
        assert!(recording.stands(&known).await);
        let begin = ObjectKey::Begin(recording.id);
        let document = recording.objects.get(begin).await.unwrap().unwrap();
        recording.objects.delete(begin).await.unwrap();
        assert!(!stands(&recording.objects, recording.id, &known).await.unwrap());
        recording.objects.create(begin, document.into()).await.unwrap();
        // What does not verify is seen by who looks at all.
        let manifest = encode_signed_manifest(b"{}", "").unwrap();
        recording.objects.create(ObjectKey::Manifest(recording.id, 0), manifest.into()).await.unwrap();
        let looked = look(&recording.objects, recording.id, Some(known)).await;
        assert!(matches!(looked, Err(IngestError::Damaged(_))));
        assert!(matches!(
            look(&recording.objects, RecordingId::from_bytes([9; 16]), None).await,
            Ok((None, false))
        ));
    }

    #[test]
    fn small_objects_are_read_together_and_large_ones_alone() {
        let sizes = [vec![1; 100], vec![5 << 20, 3 << 20, 1, 9 << 20, 4 << 20]].concat();
        let id = RecordingId::from_bytes([1; 16]);
        let objects: Vec<_> =
            (0..).zip(sizes).map(|(start, size)| (ObjectKey::Segment(id, start), size)).collect();
        let counts: Vec<_> = batches(&objects).iter().map(|batch| batch.len()).collect();
        assert_eq!(counts, [64, 37, 2, 1, 1]);
        assert_eq!(batches(&objects).concat(), objects);
        assert_eq!(batches(&[]), [] as [&[_]; 0]);
    }
}
