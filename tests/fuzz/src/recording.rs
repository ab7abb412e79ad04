//! What an ingest reads from its store, to which others may write: segments, documents and keys.

use std::str;

use recording_format::{
    Begin, FRAME_HEADER_LEN, HEADER_LEN, IndexEntry, MAX_CHUNK_LEN, ObjectKey, RecordingId, Segment,
    SegmentBuilder, SegmentHeader, SignedManifest, TRAILER_LEN, decode_signed_manifest,
    encode_signed_manifest, read_tail,
};

/// When the session of the documents of the corpus began.
const START_MS: u64 = 1_700_000_000_123;

/// The recording that they are of.
fn id() -> RecordingId {
    RecordingId::from_bytes([1; 16])
}

/// A segment, a document or a key is taken; and then there is one way to write it, or it is read as the same again.
pub(crate) fn recording(bytes: &[u8]) -> bool {
    let taken = [segment(bytes), begin(bytes), manifest(bytes), index(bytes), key(bytes)];
    taken.contains(&true)
}

fn segment(bytes: &[u8]) -> bool {
    let Ok(header) = SegmentHeader::decode(bytes) else { return false };
    let Ok(segment) = Segment::decode(header.id, bytes.to_vec().into()) else { return false };
    let mut again = SegmentBuilder::new(header.id, header.start, header.codec, header.previous);
    for frame in segment.payload() {
        assert!((1..=MAX_CHUNK_LEN).contains(&frame.len()), "a frame of {} bytes", frame.len());
        assert_eq!(again.push(frame, crc32c::crc32c(frame)), Ok(()));
    }
    let again = again.finish().map(|segment| (segment.to_bytes(), segment.head));
    assert!(again.as_ref().is_some_and(|(again, _)| again == bytes), "there is more than one form");
    let ends = bytes.get(..HEADER_LEN).zip(bytes.last_chunk::<{ TRAILER_LEN }>());
    let ends = ends.and_then(|(header, trailer)| read_tail(header, trailer).ok());
    assert_eq!(ends.map(|(_, _, head)| head), again.map(|(_, head)| head), "its ends tell another chain");
    // Each byte is given out once, whatever range is asked for.
    for cut in
        [0, 1, header.length / 2, header.length.saturating_sub(1), header.length, u64::MAX - header.start]
    {
        let at = header.start + cut;
        let before: usize = segment.slices(header.start..at).map(|slice| slice.len()).sum();
        let after: usize = segment.slices(at..u64::MAX).map(|slice| slice.len()).sum();
        assert_eq!((before + after) as u64, header.length, "cut at {cut}");
    }
    assert_eq!(header.object_len(), bytes.len() as u64);
    assert!(bytes.len() as u64 >= header.length + u64::from(header.frames) * FRAME_HEADER_LEN as u64);
    true
}

fn begin(bytes: &[u8]) -> bool {
    let Ok(begin) = Begin::decode(id(), bytes) else { return false };
    let again = begin.encode().and_then(|written| Begin::decode(id(), &written));
    assert_eq!(again, Ok(begin));
    true
}

fn manifest(bytes: &[u8]) -> bool {
    let Ok(SignedManifest { manifest, document, signature }) = decode_signed_manifest(id(), bytes) else {
        return false;
    };
    assert_eq!(manifest.check(), Ok(()));
    let again = encode_signed_manifest(&document, &signature)
        .and_then(|object| decode_signed_manifest(id(), &object));
    // The signed bytes, too, are the same.
    assert_eq!(again, Ok(SignedManifest { manifest, document, signature }));
    true
}

fn index(bytes: &[u8]) -> bool {
    let key = ObjectKey::Index { start_ms: START_MS, id: id(), revision: 0 };
    let Ok(entry) = IndexEntry::decode(key, bytes) else { return false };
    assert_eq!(entry.key(), key);
    let again = entry.encode().and_then(|written| IndexEntry::decode(key, &written));
    assert_eq!(again, Ok(entry));
    true
}

fn key(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let Ok(key) = text.parse::<ObjectKey>() else { return false };
    assert_eq!(key.to_string(), text, "there is more than one form");
    // No path is made of input.
    assert!(
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-.".contains(&byte))
            && !text.contains("..")
    );
    true
}
