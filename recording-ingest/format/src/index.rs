//! An index entry: what a list shows of a sealed recording. It is derived from the manifest and can be rebuilt.

use serde::{Deserialize, Serialize};

use crate::{
    AgentId, Digest, FormatError, MAX_TIME_MS, Metadata, ObjectKey, RecordingId, RecordingState,
    begin::{decode_json, encode_json},
};

/// What a list shows of a sealed recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// [`IndexEntry::KIND`].
    pub kind: String,
    /// [`crate::FORMAT_VERSION`].
    pub version: u16,
    /// The recording.
    pub recording_id: RecordingId,
    /// Revision of the manifest that it was made from.
    pub revision: u16,
    /// How it ended.
    pub state: RecordingState,
    /// Its owner.
    pub agent_id: AgentId,
    /// What is known of the session.
    pub metadata: Metadata,
    /// Payload bytes.
    pub length: u64,
    /// Digest of the payload.
    pub payload_sha256: Digest,
    /// Digest of the manifest's document.
    pub manifest_sha256: Digest,
    /// Until when it must be kept, Unix milliseconds; absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_until_ms: Option<u64>,
}

impl IndexEntry {
    /// Marks the document.
    pub const KIND: &'static str = "mezite.recording.index";

    /// Where it is stored.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::Index {
            start_ms: self.metadata.started_at_ms.min(MAX_TIME_MS),
            id: self.recording_id,
            revision: self.revision,
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
    /// When it is not such a document, or belongs under another key.
    pub fn decode(key: ObjectKey, bytes: &[u8]) -> Result<Self, FormatError> {
        let entry: Self = decode_json(Self::KIND, bytes)?;
        if entry.key() == key { Ok(entry) } else { Err(FormatError::WrongRecording) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;

    #[test]
    fn entry_is_golden() {
        let document = manifest().encode().unwrap();
        let entry = manifest().index_entry(&document);
        let golden = include_str!("../golden/index.json").trim_end();
        assert_eq!(String::from_utf8(entry.encode().unwrap()).unwrap(), golden);
        assert_eq!(IndexEntry::decode(entry.key(), golden.as_bytes()).unwrap(), entry);
        assert_eq!(
            entry.key().to_string(),
            "idx/v1/2023/11/14/22/1700000000123-01010101-0101-0101-0101-010101010101-0000.json"
        );
    }

    #[test]
    fn an_entry_under_another_key_is_refused() {
        let entry = manifest().index_entry(b"");
        let other = ObjectKey::Index { start_ms: 5, id: entry.recording_id, revision: 0 };
        assert_eq!(IndexEntry::decode(other, &entry.encode().unwrap()), Err(FormatError::WrongRecording));
    }
}
