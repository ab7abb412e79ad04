//! The manifest: the commit point of a recording.
//!
//! It is stored as one JSON object `{"manifest": …, "signature": "…"}`, so that the document and its signature appear
//! together or not at all. The signature is over the exact bytes of the inner document; those bytes are what a
//! receipt carries and what the audit log has the digest of.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    AgentId, ChainHead, Codec, Digest, FORMAT_VERSION, FormatError, IndexEntry, Metadata, RecordingId,
    begin::{decode_json, encode_json},
};

/// Namespace of the SSHSIG signature over a manifest.
pub const MANIFEST_NAMESPACE: &str = "manifest@mezite";

/// How a recording ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RecordingState {
    /// Its agent finished it.
    Complete,
    /// Its agent fell silent. If it returns, it goes on, and the next revision says so.
    Interrupted,
    /// It reached the size limit.
    Truncated,
}

impl RecordingState {
    /// Whether nothing can be added any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Complete | Self::Truncated => true,
            Self::Interrupted => false,
        }
    }
}

/// A segment, as a manifest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    /// Offset of its first payload byte.
    pub start: u64,
    /// Payload bytes.
    pub length: u64,
    /// Bytes of the object.
    pub object_length: u64,
    /// Its digest: of the object without its trailer.
    pub sha256: Digest,
}

/// A run of the payload that is known to be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Offset of the first missing byte.
    pub start: u64,
    /// Missing bytes.
    pub length: u64,
}

/// What the cluster certified an ingest with. Anybody can make a key and sign with it; these two say whose it is: the one ties
/// the key to an id, the other says that the id is an ingest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestCertificates {
    /// Of the signing key, by the cluster's host CA: one line, as OpenSSH writes it.
    pub ssh: String,
    /// Of the ingest's TLS key, by the cluster's TLS CA: PEM.
    pub tls: String,
}

/// What is known of a sealed recording. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`Manifest::KIND`].
    pub kind: String,
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// The recording.
    pub recording_id: RecordingId,
    /// From 0; a recording that goes on after an interruption gets another.
    pub revision: u16,
    /// How it ended.
    pub state: RecordingState,
    /// Its owner.
    pub agent_id: AgentId,
    /// What is known of the session.
    pub metadata: Metadata,
    /// How its payload is coded.
    pub codec: Codec,
    /// Payload bytes.
    pub length: u64,
    /// Digest of the payload.
    pub payload_sha256: Digest,
    /// Digest of `begin.json`.
    pub begin_sha256: Digest,
    /// All segments, in order, without a gap between them.
    pub segments: Vec<SegmentRef>,
    /// The chain after the last segment.
    pub chain_head: ChainHead,
    /// Runs that are known to be missing.
    pub gaps: Vec<Gap>,
    /// Digest of the client certificate that the agent finished with; absent when an auth node relayed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_certificate_sha256: Option<Digest>,
    /// The auth node that relayed the end of it, such as `auth:2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relayed_by: Option<String>,
    /// The ingest that sealed it.
    pub ingest_id: AgentId,
    /// Digest of its TLS certificate.
    pub ingest_certificate_sha256: Digest,
    /// The key that signs this document, OpenSSH one-line form.
    pub signing_key: String,
    /// What the ingest was certified with when it signed; absent in what releases before this field sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingest_certificates: Option<IngestCertificates>,
    /// When it was sealed.
    pub sealed_at_ms: u64,
    /// Until when it must be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_until_ms: Option<u64>,
}

impl Manifest {
    /// Marks the document.
    pub const KIND: &'static str = "mezite.recording.manifest";

    /// The document's bytes: what is signed.
    ///
    /// # Errors
    /// [`FormatError::BadDocument`] when it cannot be written as JSON.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        encode_json(Self::KIND, self)
    }

    /// From the document's bytes.
    ///
    /// # Errors
    /// When it is not such a document, is of another recording, or its segments and chain contradict each other.
    pub fn decode(id: RecordingId, bytes: &[u8]) -> Result<Self, FormatError> {
        let manifest: Self = decode_json(Self::KIND, bytes)?;
        if manifest.recording_id != id {
            return Err(FormatError::WrongRecording);
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks that the segments are contiguous, add up to the length, and give the chain's head.
    ///
    /// # Errors
    /// [`FormatError::ManifestMismatch`] with the field that is wrong.
    pub fn check(&self) -> Result<(), FormatError> {
        let mut head = ChainHead::begin(self.recording_id, self.begin_sha256);
        let mut end = 0_u64;
        for segment in &self.segments {
            if segment.start != end || segment.length == 0 {
                return Err(FormatError::ManifestMismatch { what: "segments" });
            }
            end =
                end.checked_add(segment.length).ok_or(FormatError::ManifestMismatch { what: "segments" })?;
            head = head.extend(segment.start, segment.length, segment.sha256);
        }
        if end != self.length {
            return Err(FormatError::ManifestMismatch { what: "length" });
        }
        if head != self.chain_head {
            return Err(FormatError::ManifestMismatch { what: "chain_head" });
        }
        Ok(())
    }

    /// What the index says of it. `document` is the encoded manifest.
    #[must_use]
    pub fn index_entry(&self, document: &[u8]) -> IndexEntry {
        IndexEntry {
            kind: IndexEntry::KIND.to_owned(),
            version: FORMAT_VERSION,
            recording_id: self.recording_id,
            revision: self.revision,
            state: self.state,
            agent_id: self.agent_id,
            metadata: self.metadata.clone(),
            length: self.length,
            payload_sha256: self.payload_sha256,
            manifest_sha256: Digest::of(document),
            retain_until_ms: self.retain_until_ms,
        }
    }
}

/// A manifest with the bytes that were signed and the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedManifest {
    /// What it says.
    pub manifest: Manifest,
    /// Its exact bytes.
    pub document: Vec<u8>,
    /// SSHSIG over them, PEM, namespace [`MANIFEST_NAMESPACE`].
    pub signature: String,
}

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    manifest: &'a RawValue,
    signature: String,
}

/// The object that holds a signed manifest. `document` is what [`Manifest::encode`] gave.
///
/// # Errors
/// [`FormatError::BadDocument`] when `document` is not JSON.
pub fn encode_signed_manifest(document: &[u8], signature: &str) -> Result<Vec<u8>, FormatError> {
    let bad = |reason: &str| FormatError::BadDocument { document: Manifest::KIND, reason: reason.to_owned() };
    let manifest: &RawValue = serde_json::from_slice(document).map_err(|_| bad("is not JSON"))?;
    encode_json(Manifest::KIND, &Stored { manifest, signature: signature.to_owned() })
}

/// Opens the object that holds a signed manifest. The signature is not checked here.
///
/// # Errors
/// When it is not such an object, or the manifest is not one of this recording.
pub fn decode_signed_manifest(id: RecordingId, object: &[u8]) -> Result<SignedManifest, FormatError> {
    let stored: Stored<'_> = serde_json::from_slice(object).map_err(|error| FormatError::BadDocument {
        document: Manifest::KIND,
        reason: format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()),
    })?;
    let document = stored.manifest.get().as_bytes().to_vec();
    Ok(SignedManifest { manifest: Manifest::decode(id, &document)?, document, signature: stored.signature })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn manifest() -> Manifest {
        let id = RecordingId::from_bytes([1; 16]);
        let begin_sha256 = Digest::of(b"begin");
        let segments = vec![
            SegmentRef { start: 0, length: 10, object_length: 134, sha256: Digest::of(b"0") },
            SegmentRef { start: 10, length: 5, object_length: 129, sha256: Digest::of(b"1") },
        ];
        let chain_head = segments
            .iter()
            .fold(ChainHead::begin(id, begin_sha256), |head, s| head.extend(s.start, s.length, s.sha256));
        Manifest {
            kind: Manifest::KIND.into(),
            version: FORMAT_VERSION,
            recording_id: id,
            revision: 0,
            state: RecordingState::Complete,
            agent_id: AgentId::from_bytes([2; 16]),
            metadata: Metadata {
                user: "alice".into(),
                login: "root".into(),
                node: "web-1".into(),
                started_at_ms: 1_700_000_000_123,
                ended_at_ms: Some(1_700_000_060_000),
                format: "asciicast-v3".into(),
                labels: Default::default(),
            },
            codec: Codec::Identity,
            length: 15,
            payload_sha256: Digest::of(b"payload"),
            begin_sha256,
            segments,
            chain_head,
            gaps: vec![],
            agent_certificate_sha256: Some(Digest::of(b"agent")),
            relayed_by: None,
            ingest_id: AgentId::from_bytes([3; 16]),
            ingest_certificate_sha256: Digest::of(b"ingest"),
            signing_key: "ssh-ed25519 AAAA".into(),
            ingest_certificates: None,
            sealed_at_ms: 1_700_000_061_000,
            retain_until_ms: None,
        }
    }

    #[test]
    fn manifest_is_golden() {
        let document = manifest().encode().unwrap();
        let golden = include_str!("../golden/manifest.json").trim_end();
        assert_eq!(String::from_utf8(document.clone()).unwrap(), golden);
        let object = encode_signed_manifest(&document, "PEM\n").unwrap();
        assert_eq!(
            String::from_utf8(object).unwrap(),
            format!(r#"{{"manifest":{golden},"signature":"PEM\n"}}"#)
        );
    }

    #[test]
    fn certificates_are_golden_where_there_are_some() {
        let certificates = IngestCertificates { ssh: "ssh-cert AAAA".into(), tls: "PEM\n".into() };
        let certified = Manifest { ingest_certificates: Some(certificates), ..manifest() };
        let golden = include_str!("../golden/manifest.json").trim_end().replace(
            r#""signing_key":"ssh-ed25519 AAAA","#,
            r#""signing_key":"ssh-ed25519 AAAA","ingest_certificates":{"ssh":"ssh-cert AAAA","tls":"PEM\n"},"#,
        );
        assert_eq!(String::from_utf8(certified.encode().unwrap()).unwrap(), golden);
        assert_eq!(Manifest::decode(certified.recording_id, golden.as_bytes()), Ok(certified));
    }

    #[test]
    fn the_signed_bytes_survive_as_they_are() {
        // Spaces and order of a later writer are kept: the signature is over bytes, not over meaning.
        let document = String::from_utf8(manifest().encode().unwrap()).unwrap().replace(r#"":"#, r#"" : "#);
        let object = encode_signed_manifest(document.as_bytes(), "sig").unwrap();
        let signed = decode_signed_manifest(manifest().recording_id, &object).unwrap();
        assert_eq!(signed.document, document.as_bytes());
        assert_eq!(signed.manifest, manifest());
        assert_eq!(signed.signature, "sig");
    }

    #[test]
    fn contradictions_are_refused() {
        let id = manifest().recording_id;
        type Change = fn(&mut Manifest);
        let cases: [(&str, Change); 6] = [
            ("segments", |m| m.segments[1].start = 11),
            ("segments", |m| m.segments[0].length = 0),
            ("segments", |m| m.segments[1].length = u64::MAX),
            ("length", |m| m.length = 16),
            ("chain_head", |m| m.segments[0].sha256 = Digest::of(b"other")),
            ("chain_head", |m| m.begin_sha256 = Digest::of(b"other")),
        ];
        for (what, change) in cases {
            let mut changed = manifest();
            change(&mut changed);
            let decoded = Manifest::decode(id, &changed.encode().unwrap());
            assert_eq!(decoded, Err(FormatError::ManifestMismatch { what }));
        }
        let other = RecordingId::from_bytes([9; 16]);
        assert_eq!(Manifest::decode(other, &manifest().encode().unwrap()), Err(FormatError::WrongRecording));
    }

    #[test]
    fn only_an_interruption_can_be_extended() {
        assert!(RecordingState::Complete.is_final());
        assert!(RecordingState::Truncated.is_final());
        assert!(!RecordingState::Interrupted.is_final());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            prop_assert!(decode_signed_manifest(manifest().recording_id, &bytes).is_err());
        }

        #[test]
        fn manifests_survive_the_round_trip(user: String, label: String, ended: Option<u64>, signature: String) {
            let mut manifest = manifest();
            manifest.metadata.user = user;
            manifest.metadata.labels.insert(label.clone(), label);
            manifest.metadata.ended_at_ms = ended;
            let document = manifest.encode().unwrap();
            let object = encode_signed_manifest(&document, &signature).unwrap();
            let signed = decode_signed_manifest(manifest.recording_id, &object).unwrap();
            prop_assert_eq!(signed, SignedManifest { manifest, document, signature });
        }
    }
}
