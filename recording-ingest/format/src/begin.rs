//! What is written before the first segment: the open marker and `begin.json`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{AgentId, ChainHead, Digest, FORMAT_VERSION, FormatError, Metadata, RecordingId};

/// How a payload is coded. Agents compress and encrypt on their own account; the metadata's `format` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// As the agent sent it.
    Identity,
}

impl Codec {
    /// Its number in a segment's header.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Identity => 0,
        }
    }

    /// From its number in a segment's header.
    ///
    /// # Errors
    /// [`FormatError::BadHeader`] for a number that this release does not know.
    pub fn from_number(number: u16) -> Result<Self, FormatError> {
        match number {
            0 => Ok(Self::Identity),
            _ => Err(FormatError::BadHeader),
        }
    }
}

/// `begin.json`: whose recording it is and what it is of. It never changes, and the chain hangs on its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// [`Begin::KIND`].
    pub kind: String,
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// The recording.
    pub recording_id: RecordingId,
    /// Its owner: the one agent that may write it.
    pub agent_id: AgentId,
    /// How its payload is coded.
    pub codec: Codec,
    /// What the agent told at the start.
    pub metadata: Metadata,
    /// When it was written, Unix milliseconds.
    pub created_at_ms: u64,
    /// The ingest that wrote it.
    pub ingest_id: AgentId,
}

impl Begin {
    /// Marks the document.
    pub const KIND: &'static str = "mezite.recording.begin";

    /// A document of the current version.
    #[must_use]
    pub fn new(
        recording_id: RecordingId,
        agent_id: AgentId,
        metadata: Metadata,
        created_at_ms: u64,
        ingest_id: AgentId,
    ) -> Self {
        let (kind, version) = (Self::KIND.to_owned(), FORMAT_VERSION);
        Self {
            kind,
            version,
            recording_id,
            agent_id,
            codec: Codec::Identity,
            metadata,
            created_at_ms,
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
        let begin: Self = decode_json(Self::KIND, bytes)?;
        if begin.recording_id == id { Ok(begin) } else { Err(FormatError::WrongRecording) }
    }

    /// The chain's head before the first segment, for a document of these bytes.
    #[must_use]
    pub fn chain(id: RecordingId, document: &[u8]) -> ChainHead {
        ChainHead::begin(id, Digest::of(document))
    }
}

/// `open/v1/{id}`: a hint, for whoever looks after abandoned recordings. Nothing is decided by its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenMarker {
    /// [`OpenMarker::KIND`].
    pub kind: String,
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// When it was written, Unix milliseconds.
    pub created_at_ms: u64,
    /// The ingest that wrote it.
    pub ingest_id: AgentId,
}

impl OpenMarker {
    /// Marks the document.
    pub const KIND: &'static str = "mezite.recording.open";

    /// A document of the current version.
    #[must_use]
    pub fn new(created_at_ms: u64, ingest_id: AgentId) -> Self {
        Self { kind: Self::KIND.to_owned(), version: FORMAT_VERSION, created_at_ms, ingest_id }
    }

    /// The document's bytes.
    ///
    /// # Errors
    /// [`FormatError::BadDocument`] when it cannot be written as JSON.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        encode_json(Self::KIND, self)
    }
}

/// What every document of ours begins with.
#[derive(Deserialize)]
struct Envelope {
    kind: String,
    version: u16,
}

pub(crate) fn encode_json<T: Serialize>(kind: &'static str, document: &T) -> Result<Vec<u8>, FormatError> {
    serde_json::to_vec(document)
        .map_err(|error| FormatError::BadDocument { document: kind, reason: error.to_string() })
}

/// Checks kind and version before the rest. Fields that this release does not know are ignored: a later release
/// may add some.
pub(crate) fn decode_json<T: DeserializeOwned>(kind: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    let bad = |reason: String| FormatError::BadDocument { document: kind, reason };
    // Only where the error is: its text could carry some of the document.
    let position = |error: serde_json::Error| {
        bad(format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()))
    };
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(position)?;
    if envelope.kind != kind {
        return Err(bad("is another kind of document".to_owned()));
    }
    if envelope.version != FORMAT_VERSION {
        return Err(FormatError::UnknownVersion { document: kind, version: envelope.version });
    }
    serde_json::from_slice(bytes).map_err(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn metadata() -> Metadata {
        Metadata {
            user: "alice".into(),
            login: "root".into(),
            node: "web-1.example.com".into(),
            started_at_ms: 1_700_000_000_123,
            ended_at_ms: None,
            format: "asciicast-v3".into(),
            labels: [("env".to_owned(), "prod".to_owned())].into(),
        }
    }

    fn begin() -> Begin {
        let (id, agent, ingest) = ([1; 16], [2; 16], [3; 16]);
        Begin::new(
            RecordingId::from_bytes(id),
            AgentId::from_bytes(agent),
            metadata(),
            1_700_000_000_456,
            AgentId::from_bytes(ingest),
        )
    }

    #[test]
    fn begin_is_golden() {
        let golden = concat!(
            r#"{"kind":"mezite.recording.begin","version":1,"#,
            r#""recording_id":"01010101-0101-0101-0101-010101010101","#,
            r#""agent_id":"02020202-0202-0202-0202-020202020202","codec":"identity","#,
            r#""metadata":{"user":"alice","login":"root","node":"web-1.example.com","started_at_ms":1700000000123,"#,
            r#""format":"asciicast-v3","labels":{"env":"prod"}},"created_at_ms":1700000000456,"#,
            r#""ingest_id":"03030303-0303-0303-0303-030303030303"}"#,
        );
        assert_eq!(String::from_utf8(begin().encode().unwrap()).unwrap(), golden);
        assert_eq!(Begin::decode(begin().recording_id, golden.as_bytes()).unwrap(), begin());
    }

    #[test]
    fn marker_is_golden() {
        let marker = OpenMarker::new(5, AgentId::from_bytes([3; 16])).encode().unwrap();
        let golden = concat!(
            r#"{"kind":"mezite.recording.open","version":1,"created_at_ms":5,"#,
            r#""ingest_id":"03030303-0303-0303-0303-030303030303"}"#,
        );
        assert_eq!(String::from_utf8(marker).unwrap(), golden);
    }

    #[test]
    fn another_document_version_or_recording_is_refused() {
        let id = begin().recording_id;
        let text = String::from_utf8(begin().encode().unwrap()).unwrap();
        let decode = |text: String| Begin::decode(id, text.as_bytes()).unwrap_err();
        assert!(matches!(
            decode(text.replace(r#""version":1"#, r#""version":2"#)),
            FormatError::UnknownVersion { version: 2, .. }
        ));
        assert!(matches!(
            decode(text.replace("recording.begin", "recording.open")),
            FormatError::BadDocument { .. }
        ));
        assert!(matches!(decode(text.replace("0202-0202", "0202/0202")), FormatError::BadDocument { .. }));
        assert!(matches!(decode(text[..40].to_owned()), FormatError::BadDocument { .. }));
        assert_eq!(decode(text.replace("01010101-", "11010101-")), FormatError::WrongRecording);
    }

    #[test]
    fn a_field_of_a_later_release_is_ignored() {
        let text = String::from_utf8(begin().encode().unwrap()).unwrap();
        let text = text.replace(r#""version":1"#, r#""version":1,"colour":"green""#);
        assert_eq!(Begin::decode(begin().recording_id, text.as_bytes()).unwrap(), begin());
    }
}
