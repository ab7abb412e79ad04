//! The end of a recording: manifest, signature, index, marker.
//!
//! The manifest's creation is the commit point. What comes after it is derived from it and can be repaired, so its
//! failure is logged and does not take the receipt back.

use mezite_daemon::clock;
use mezite_pki::ssh::SshKeyPair;
use recording_format::{
    Codec, Digest, FORMAT_VERSION, IndexEntry, MANIFEST_NAMESPACE, Manifest, ObjectKey, RecordingId,
    RecordingState, SegmentRef, SignedManifest, decode_signed_manifest, encode_signed_manifest,
};

use crate::{
    authn::Writer,
    error::IngestError,
    metrics,
    objects::{Created, Objects, StoreError},
    recover::Stored,
    service::Ingest,
};

/// Most revisions of a manifest: four digits in its key.
const MAX_REVISION: u16 = 9_999;

/// What an agent says of the whole recording.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) total: u64,
    pub(crate) payload_sha256: Digest,
    pub(crate) ended_at_ms: Option<u64>,
}

impl End {
    /// Whether a manifest says the same of the payload.
    pub(crate) fn is_of(&self, manifest: &Manifest) -> bool {
        (manifest.length, manifest.payload_sha256) == (self.total, self.payload_sha256)
    }
}

/// Seals a recording whose segments are durable and whose payload was checked.
///
/// # Errors
/// When the store fails; [`IngestError::Sealed`] when another process sealed it with something else;
/// [`IngestError::Superseded`] when another process gave it up in between: the caller may try again.
pub(crate) async fn seal(
    ingest: &Ingest,
    writer: &Writer,
    stored: &Stored,
    segments: Vec<SegmentRef>,
    end: &End,
) -> Result<SignedManifest, IngestError> {
    let id = stored.begin.recording_id;
    let manifest = manifest(ingest, writer, stored, segments, end)?;
    let revision = manifest.revision;
    let signed = sign(ingest.identity().ssh_key(), manifest)?;
    let object = encode_signed_manifest(&signed.document, &signed.signature)?;
    let signed = match ingest.objects.create(ObjectKey::Manifest(id, revision), object.into()).await? {
        Created::Durable => signed,
        Created::Taken(existing) => adopt(id, &existing, end, stored.committed)?,
    };
    ingest.objects.settle(id).await?;
    metrics::recording_sealed();
    let entry = signed.manifest.index_entry(&signed.document);
    ingest.catalog.put(entry.clone().into());
    if let Err(error) = publish(&ingest.objects, &entry).await {
        tracing::warn!(%id, %error, "a sealed recording could not be put into the index");
    }
    Ok(signed)
}

/// Another process was first. Its manifest is as good when it says the same.
fn adopt(id: RecordingId, object: &[u8], end: &End, committed: u64) -> Result<SignedManifest, IngestError> {
    let existing = decode_signed_manifest(id, object)?;
    if end.is_of(&existing.manifest) && existing.manifest.state.is_final() {
        return Ok(existing);
    }
    let sealed = existing.manifest.state.is_final();
    Err(if sealed { IngestError::Sealed } else { IngestError::Superseded { committed } })
}

/// Index, then the marker's removal. Both can be done twice, by whoever finds a sealed recording without them.
pub(crate) async fn publish(objects: &Objects, entry: &IndexEntry) -> Result<(), StoreError> {
    let document = entry.encode().map_err(|error| StoreError::Failed(error.to_string()))?;
    objects.create(entry.key(), document.into()).await?;
    objects.delete(ObjectKey::Open(entry.recording_id)).await
}

fn manifest(
    ingest: &Ingest,
    writer: &Writer,
    stored: &Stored,
    segments: Vec<SegmentRef>,
    end: &End,
) -> Result<Manifest, IngestError> {
    let revision = stored.manifest.as_ref().map_or(0, |signed| signed.manifest.revision.saturating_add(1));
    if revision > MAX_REVISION {
        return Err(IngestError::Internal("a recording has too many revisions".to_owned()));
    }
    let identity = ingest.identity();
    let mut metadata = stored.begin.metadata.clone();
    metadata.ended_at_ms = end.ended_at_ms.or(metadata.ended_at_ms);
    Ok(Manifest {
        kind: Manifest::KIND.to_owned(),
        version: FORMAT_VERSION,
        recording_id: stored.begin.recording_id,
        revision,
        state: RecordingState::Complete,
        agent_id: stored.begin.agent_id,
        metadata,
        codec: Codec::Identity,
        length: end.total,
        payload_sha256: end.payload_sha256,
        begin_sha256: stored.begin_sha256,
        segments,
        chain_head: stored.head,
        gaps: Vec::new(),
        agent_certificate_sha256: writer.certificate,
        relayed_by: writer.relayed_by.clone(),
        ingest_id: identity.agent_id(),
        ingest_certificate_sha256: identity.certificate_sha256(),
        signing_key: identity.ssh_key().public_line().to_owned(),
        ingest_certificates: Some(identity.certificates()),
        sealed_at_ms: clock::unix_ms(),
        retain_until_ms: None,
    })
}

fn sign(key: &SshKeyPair, manifest: Manifest) -> Result<SignedManifest, IngestError> {
    manifest.check()?;
    let document = manifest.encode()?;
    let signature = key
        .sign_sshsig(MANIFEST_NAMESPACE, &document)
        .map_err(|error| IngestError::Internal(format!("the manifest could not be signed: {error}")))?;
    Ok(SignedManifest { manifest, document, signature })
}
