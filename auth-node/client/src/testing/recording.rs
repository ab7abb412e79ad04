//! Recordings as an ingest seals them.

use mezite_pki::ssh::SshKeyPair;
use mezite_proto::v1::RecordingReceipt;
use recording_format::{
    AgentId, ChainHead, Codec, Digest, FORMAT_VERSION, MANIFEST_NAMESPACE, Manifest, Metadata, RecordingId,
    RecordingState, SegmentRef,
};

/// The manifest of a complete recording of one segment, or of none where there is no payload, by an ingest with this key.
pub fn manifest(id: RecordingId, agent_id: AgentId, payload: &[u8], key: &SshKeyPair) -> Manifest {
    let (length, begin) = (payload.len() as u64, Digest::of(b"begin"));
    let whole = SegmentRef { start: 0, length, object_length: length + 100, sha256: Digest::of(b"segment") };
    let segments: Vec<_> = (length > 0).then_some(whole).into_iter().collect();
    let head = ChainHead::begin(id, begin);
    Manifest {
        kind: Manifest::KIND.into(),
        version: FORMAT_VERSION,
        recording_id: id,
        revision: 0,
        state: RecordingState::Complete,
        agent_id,
        metadata: Metadata::default(),
        codec: Codec::Identity,
        length,
        payload_sha256: Digest::of(payload),
        begin_sha256: begin,
        chain_head: segments.iter().fold(head, |head, s| head.extend(s.start, s.length, s.sha256)),
        segments,
        gaps: Vec::new(),
        agent_certificate_sha256: None,
        relayed_by: None,
        ingest_id: AgentId::from_bytes([3; 16]),
        ingest_certificate_sha256: Digest::of(b"ingest"),
        signing_key: key.public_line(),
        ingest_certificates: None,
        sealed_at_ms: 1,
        retain_until_ms: None,
    }
}

/// A manifest, signed.
pub fn sign(manifest: &Manifest, key: &SshKeyPair) -> RecordingReceipt {
    let document = manifest.encode().unwrap();
    let signature = key.sign_sshsig(MANIFEST_NAMESPACE, &document).unwrap();
    RecordingReceipt { manifest: document.into(), signature }
}

/// The receipt for a complete recording, by an ingest with a key of its own.
pub fn receipt(id: RecordingId, agent_id: AgentId, payload: &[u8]) -> RecordingReceipt {
    let key = SshKeyPair::generate_ed25519("").unwrap();
    sign(&manifest(id, agent_id, payload, &key), &key)
}
