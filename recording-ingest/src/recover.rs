//! What the store knows of a recording. Every call starts here, so any replica can take any recording on.

use std::sync::Arc;

use bytes::Bytes;
use recording_format::{
    Begin, ChainHead, Digest, FormatError, Manifest, ObjectKey, PayloadHasher, RecordingId, SegmentHeader,
    SignedManifest, Verified, Verifier, decode_signed_manifest, manifest_prefix, read_tail, segment_prefix,
};

use crate::{error::IngestError, objects::Objects};

/// A recording, as the store has it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Owner and metadata.
    pub begin: Begin,
    /// Digest of `begin.json`.
    pub begin_sha256: Digest,
    /// The newest manifest.
    pub manifest: Option<SignedManifest>,
    /// Bytes stored.
    pub committed: u64,
    /// The chain over them.
    pub head: ChainHead,
    /// In how many segments.
    pub segments: usize,
}

impl Stored {
    /// A recording that consists of `begin.json` alone.
    #[must_use]
    pub fn begun(begin: Begin, document: &[u8]) -> Self {
        let begin_sha256 = Digest::of(document);
        let head = ChainHead::begin(begin.recording_id, begin_sha256);
        Self { begin, begin_sha256, manifest: None, committed: 0, head, segments: 0 }
    }

    /// Whether a manifest is of all that is stored: as many bytes can have been sent again in other segments.
    #[must_use]
    pub fn is_covered_by(&self, signed: &SignedManifest) -> bool {
        (signed.manifest.length, signed.manifest.chain_head) == (self.committed, self.head)
    }

    /// The manifest after which nothing can be added.
    #[must_use]
    pub fn sealed(&self) -> Option<&SignedManifest> {
        self.manifest.as_ref().filter(|signed| signed.manifest.state.is_final())
    }
}

/// What the store has of a recording; `None` when it was never begun.
///
/// # Errors
/// When the store fails, or an object that tells where the recording stands is damaged.
pub async fn load(objects: &Objects, id: RecordingId) -> Result<Option<Stored>, IngestError> {
    let Some(document) = objects.get(ObjectKey::Begin(id)).await? else { return Ok(None) };
    let mut stored = Stored::begun(Begin::decode(id, &document)?, &document);
    stored.manifest = newest_manifest(objects, id).await?;
    if let Some(signed) = stored.sealed() {
        let Manifest { length, chain_head, segments, .. } = &signed.manifest;
        (stored.committed, stored.head, stored.segments) = (*length, *chain_head, segments.len());
    } else if let Some((header, head, segments)) = last_segment(objects, id).await? {
        (stored.committed, stored.head, stored.segments) = (header.end(), head, segments);
    }
    Ok(Some(stored))
}

async fn newest_manifest(objects: &Objects, id: RecordingId) -> Result<Option<SignedManifest>, IngestError> {
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

/// Reads and verifies all segments: what a manifest needs, for a recording that others wrote.
///
/// # Errors
/// When the store fails, or anything does not verify.
pub async fn walk(objects: &Arc<Objects>, id: RecordingId) -> Result<(Verified, PayloadHasher), IngestError> {
    let begin = objects.get(ObjectKey::Begin(id)).await?.ok_or(IngestError::UnknownRecording)?;
    let mut verifier = Verifier::new(id, &begin)?;
    for (key, _) in objects.list(&segment_prefix(id)).await? {
        let object = objects.get(key).await?.ok_or(IngestError::Missing)?;
        verifier = verify(verifier, object).await?;
    }
    Ok(verifier.finish())
}

/// Digests run beside the event loop, not on it.
async fn verify(mut verifier: Verifier, object: Bytes) -> Result<Verifier, IngestError> {
    tokio::task::spawn_blocking(move || {
        verifier.segment(object)?;
        Ok(verifier)
    })
    .await?
}
