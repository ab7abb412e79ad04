//! The end of a recording: manifest, signature, index, marker.
//!
//! The manifest's creation is the commit point. What comes after it is derived from it and can be repaired, so its
//! failure is logged and does not take the receipt back.

use mezite_daemon::clock;
use mezite_pki::ssh::SshKeyPair;
use recording_format::{
    Codec, Digest, FORMAT_VERSION, Gap, IndexEntry, MANIFEST_NAMESPACE, Manifest, ObjectKey, RecordingId,
    RecordingState, SegmentRef, SignedManifest, decode_signed_manifest, encode_signed_manifest,
    quarantine_prefix,
};

use crate::{
    authn::Writer,
    error::IngestError,
    metrics,
    objects::{Created, Objects, StoreError},
    recover::Stored,
    retention::millis,
    service::Ingest,
};

/// Most revisions of a manifest: four digits in its key.
const MAX_REVISION: u16 = 9_999;
/// What is in a notice: all there is to tell is in the manifest.
const NOTICE: &[u8] = b"{}";

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

/// What is to be sealed, and how.
pub(crate) struct Sealing<'a> {
    /// Whose call ends it; `None`: nobody's.
    pub(crate) writer: Option<&'a Writer>,
    /// What the store has of it.
    pub(crate) stored: &'a Stored,
    /// How it ends.
    pub(crate) state: RecordingState,
    /// All of its segments.
    pub(crate) segments: Vec<SegmentRef>,
    /// What is known to be missing.
    pub(crate) gaps: Vec<Gap>,
    /// What is known of the whole.
    pub(crate) end: End,
}

/// Seals a recording whose segments are durable and whose payload was checked.
///
/// # Errors
/// When the store fails; [`IngestError::Sealed`] when another process sealed it with something else;
/// [`IngestError::Superseded`] when another process gave it up in between: the caller may try again.
pub(crate) async fn seal(ingest: &Ingest, sealing: Sealing<'_>) -> Result<SignedManifest, IngestError> {
    let id = sealing.stored.begin.recording_id;
    let (state, end, committed) = (sealing.state, sealing.end, sealing.stored.committed);
    let revision = next_revision(&ingest.objects, sealing.stored).await?;
    let manifest = manifest(ingest, sealing, revision);
    let signed = sign(ingest.identity().ssh_key(), manifest)?;
    let object = encode_signed_manifest(&signed.document, &signed.signature)?;
    let signed = match ingest.objects.create_end(ObjectKey::Manifest(id, revision), object.into()).await? {
        Created::Durable => signed,
        Created::Taken(existing) => adopt(id, &existing, state, &end, committed)?,
    };
    ingest.objects.settle(id).await?;
    metrics::recording_sealed(state);
    let entry = signed.manifest.index_entry(&signed.document);
    ingest.catalog.put(entry.clone().into());
    if let Err(error) = publish(&ingest.objects, &entry, ingest.tells).await {
        tracing::warn!(%id, %error, "a sealed recording could not be put into the index");
    }
    Ok(signed)
}

/// One that no manifest of the recording ever had: what the cluster was told of one that was put aside is not of this one.
async fn next_revision(objects: &Objects, stored: &Stored) -> Result<u16, IngestError> {
    let aside = objects.list(&quarantine_prefix(stored.begin.recording_id)).await?;
    let aside = aside.iter().filter_map(|(key, _)| match key {
        ObjectKey::QuarantineManifest(_, revision) => Some(*revision),
        _ => None,
    });
    let newest = aside.chain(stored.manifest.as_ref().map(|signed| signed.manifest.revision)).max();
    let next = newest.map_or(0, |newest| newest.saturating_add(1));
    if next > MAX_REVISION {
        return Err(IngestError::Internal("a recording has too many revisions".to_owned()));
    }
    Ok(next)
}

/// Another process was first. Its manifest is as good when it says the same.
fn adopt(
    id: RecordingId,
    object: &[u8],
    state: RecordingState,
    end: &End,
    committed: u64,
) -> Result<SignedManifest, IngestError> {
    let existing = decode_signed_manifest(id, object)?;
    let sealed = existing.manifest.state.is_final();
    if end.is_of(&existing.manifest) && (sealed || !state.is_final()) {
        return Ok(existing);
    }
    Err(if sealed { IngestError::Sealed } else { IngestError::Superseded { committed } })
}

/// Does what is left to do of a recording that somebody sealed. The notice comes before the index: where that is, the
/// cluster was told, or will be.
pub(crate) async fn publish_again(
    objects: &Objects,
    entry: &IndexEntry,
    tells: bool,
) -> Result<(), StoreError> {
    let noticed = !tells || objects.has(entry.key()).await?;
    publish(objects, entry, !noticed).await
}

/// A notice for the cluster where it is to be told, index, then the marker's removal. All can be done twice.
async fn publish(objects: &Objects, entry: &IndexEntry, tells: bool) -> Result<(), StoreError> {
    if tells {
        let notice = ObjectKey::Audit(entry.recording_id, entry.revision);
        objects.create_end(notice, NOTICE.into()).await?;
    }
    let document = entry.encode().map_err(|error| StoreError::Failed(error.to_string()))?;
    objects.create_end(entry.key(), document.into()).await?;
    objects.delete(ObjectKey::Open(entry.recording_id)).await
}

fn manifest(ingest: &Ingest, sealing: Sealing<'_>, revision: u16) -> Manifest {
    let Sealing { writer, stored, state, segments, gaps, end } = sealing;
    let (identity, sealed_at_ms) = (ingest.identity(), clock::unix_ms());
    let mut metadata = stored.begin.metadata.clone();
    metadata.ended_at_ms = end.ended_at_ms.or(metadata.ended_at_ms);
    Manifest {
        kind: Manifest::KIND.to_owned(),
        version: FORMAT_VERSION,
        recording_id: stored.begin.recording_id,
        revision,
        state,
        agent_id: stored.begin.agent_id,
        metadata,
        codec: Codec::Identity,
        length: end.total,
        payload_sha256: end.payload_sha256,
        begin_sha256: stored.begin_sha256,
        segments,
        chain_head: stored.head,
        gaps,
        agent_certificate_sha256: writer.and_then(|writer| writer.certificate),
        relayed_by: writer.and_then(|writer| writer.relayed_by.clone()),
        ingest_id: identity.agent_id(),
        ingest_certificate_sha256: identity.certificate_sha256(),
        signing_key: identity.ssh_key().public_line().to_owned(),
        ingest_certificates: Some(identity.certificates()),
        sealed_at_ms,
        retain_until_ms: ingest.keep.map(|keep| sealed_at_ms.saturating_add(millis(keep))),
    }
}

fn sign(key: &SshKeyPair, manifest: Manifest) -> Result<SignedManifest, IngestError> {
    manifest.check()?;
    let document = manifest.encode()?;
    let signature = key
        .sign_sshsig(MANIFEST_NAMESPACE, &document)
        .map_err(|error| IngestError::Internal(format!("the manifest could not be signed: {error}")))?;
    Ok(SignedManifest { manifest, document, signature })
}
