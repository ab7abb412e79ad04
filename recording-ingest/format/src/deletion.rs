//! A decision to delete a recording, and what is to be told of it when nothing else is left.

use serde::{Deserialize, Serialize};

use crate::{
    AgentId, Digest, FORMAT_VERSION, FormatError, Metadata, RecordingId, SignedManifest,
    begin::{decode_json, encode_json},
};

/// `gone/v1/{id}.json`: the recording is being deleted. Removed once that is done and told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// [`Deletion::KIND`].
    pub kind: String,
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// The recording.
    pub recording_id: RecordingId,
    /// Revision of its newest manifest.
    pub revision: u16,
    /// Its owner.
    pub agent_id: AgentId,
    /// What is known of the session.
    pub metadata: Metadata,
    /// Payload bytes.
    pub length: u64,
    /// Digest of the manifest's document.
    pub manifest_sha256: Digest,
    /// When it was decided, Unix milliseconds.
    pub decided_at_ms: u64,
    /// The ingest that decided it.
    pub ingest_id: AgentId,
}

impl Deletion {
    /// Marks the document.
    pub const KIND: &'static str = "mezite.recording.deletion";

    /// A document of the current version.
    #[must_use]
    pub fn new(signed: &SignedManifest, decided_at_ms: u64, ingest_id: AgentId) -> Self {
        let manifest = &signed.manifest;
        Self {
            kind: Self::KIND.to_owned(),
            version: FORMAT_VERSION,
            recording_id: manifest.recording_id,
            revision: manifest.revision,
            agent_id: manifest.agent_id,
            metadata: manifest.metadata.clone(),
            length: manifest.length,
            manifest_sha256: Digest::of(&signed.document),
            decided_at_ms,
            ingest_id,
        }
    }

    /// The document's bytes.
    ///
    /// # Errors
    /// [`FormatError::BadDocument`] when it cannot be written as JSON.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        encode_json(Self::KIND, self)
    }

    /// From the document's bytes.
    ///
    /// # Errors
    /// When it is not such a document, or is of another recording.
    pub fn decode(id: RecordingId, bytes: &[u8]) -> Result<Self, FormatError> {
        let deletion: Self = decode_json(Self::KIND, bytes)?;
        if deletion.recording_id == id { Ok(deletion) } else { Err(FormatError::WrongRecording) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;

    #[test]
    fn a_decision_is_golden() {
        let manifest = manifest();
        let (document, signature) = (manifest.encode().unwrap(), String::new());
        let signed = SignedManifest { manifest, document, signature };
        let deletion = Deletion::new(&signed, 1_800_000_000_000, AgentId::from_bytes([3; 16]));
        let golden = include_str!("../golden/deletion.json").trim_end();
        assert_eq!(String::from_utf8(deletion.encode().unwrap()).unwrap(), golden);
        let id = deletion.recording_id;
        assert_eq!(Deletion::decode(id, golden.as_bytes()).unwrap(), deletion);
        let other = RecordingId::from_bytes([9; 16]);
        assert_eq!(Deletion::decode(other, golden.as_bytes()), Err(FormatError::WrongRecording));
    }
}
