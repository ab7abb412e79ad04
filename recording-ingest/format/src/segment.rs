//! A segment: a run of the payload, framed and checksummed, in one immutable object.
//!
//! Layout, numbers big-endian:
//!
//! ```text
//!  0  8  magic "MEZSEG\x1a\n"
//!  8  2  version
//! 10  2  codec
//! 12  4  number of frames
//! 16 16  recording id
//! 32  8  start: offset of the first payload byte in the recording
//! 40  8  length: payload bytes
//! 48 32  chain head before this segment
//! 80  4  CRC32C of bytes 0 to 79
//! 84     frames: length (4), CRC32C (4), that many payload bytes
//!    32  SHA-256 of everything before it
//! ```
//!
//! Header and trailer alone give the chain's head after the segment, so the end of a recording is known from two
//! short reads of its last segment.

use std::{fmt, ops::Range};

use bytes::Bytes;

use crate::{ChainHead, Codec, Digest, FORMAT_VERSION, FormatError, RecordingId};

const MAGIC: [u8; 8] = *b"MEZSEG\x1a\n";

/// Bytes before the first frame.
pub const HEADER_LEN: usize = 84;
/// Bytes before a frame's payload.
pub const FRAME_HEADER_LEN: usize = 8;
/// Bytes after the last frame.
pub const TRAILER_LEN: usize = 32;
/// The longest frame, and so the longest chunk that an agent may send: 1 MiB.
pub const MAX_CHUNK_LEN: usize = 1 << 20;
/// The most payload in one segment: 16 MiB. Writers flush well before.
pub const MAX_SEGMENT_PAYLOAD: usize = 16 << 20;

/// The most segments of one recording. So many make a manifest of less than 16 MiB, which a receipt carries in one
/// message; an agent that has something acknowledged each second for a whole day has fewer.
pub const MAX_SEGMENTS: usize = 100_000;

const DOCUMENT: &str = "segment";

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The recording.
    pub id: RecordingId,
    /// Offset of its first payload byte.
    pub start: u64,
    /// Payload bytes.
    pub length: u64,
    /// How the payload is coded.
    pub codec: Codec,
    /// Number of frames.
    pub frames: u32,
    /// The chain before it.
    pub previous: ChainHead,
}

impl SegmentHeader {
    /// From the first [`HEADER_LEN`] bytes of the object.
    ///
    /// # Errors
    /// When they are not a header of ours, are corrupt, or name an impossible length.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(FormatError::BadMagic)?;
        if header[..8] != MAGIC {
            return Err(FormatError::BadMagic);
        }
        let version = u16::from_be_bytes(field(header, 8));
        if version != FORMAT_VERSION {
            return Err(FormatError::UnknownVersion { document: DOCUMENT, version });
        }
        if crc32c::crc32c(&header[..80]) != u32::from_be_bytes(field(header, 80)) {
            return Err(FormatError::BadHeader);
        }
        let header = Self {
            id: RecordingId::from_bytes(field(header, 16)),
            start: u64::from_be_bytes(field(header, 32)),
            length: u64::from_be_bytes(field(header, 40)),
            codec: Codec::from_number(u16::from_be_bytes(field(header, 10)))?,
            frames: u32::from_be_bytes(field(header, 12)),
            previous: ChainHead::from_digest(Digest::from_bytes(field(header, 48))),
        };
        let possible = (1..=MAX_SEGMENT_PAYLOAD as u64).contains(&header.length)
            && (1..=header.length).contains(&u64::from(header.frames))
            && header.start.checked_add(header.length).is_some();
        if possible { Ok(header) } else { Err(FormatError::BadHeader) }
    }

    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        bytes[10..12].copy_from_slice(&self.codec.number().to_be_bytes());
        bytes[12..16].copy_from_slice(&self.frames.to_be_bytes());
        bytes[16..32].copy_from_slice(self.id.as_bytes());
        bytes[32..40].copy_from_slice(&self.start.to_be_bytes());
        bytes[40..48].copy_from_slice(&self.length.to_be_bytes());
        bytes[48..80].copy_from_slice(self.previous.as_bytes());
        let crc = crc32c::crc32c(&bytes[..80]);
        bytes[80..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Offset after its last payload byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.length
    }

    /// Length of the whole object, in bytes.
    #[must_use]
    pub fn object_len(&self) -> u64 {
        (HEADER_LEN + TRAILER_LEN) as u64 + u64::from(self.frames) * FRAME_HEADER_LEN as u64 + self.length
    }
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}

/// The end of a recording, from the first [`HEADER_LEN`] and the last [`TRAILER_LEN`] bytes of its last segment:
/// the header, the segment's digest and the chain's head after it. The payload itself is not checked.
///
/// # Errors
/// When the header is not one, or the trailer has another length.
pub fn read_tail(header: &[u8], trailer: &[u8]) -> Result<(SegmentHeader, Digest, ChainHead), FormatError> {
    let header = SegmentHeader::decode(header)?;
    let sha256 = Digest::try_from(trailer)?;
    Ok((header, sha256, header.previous.extend(header.start, header.length, sha256)))
}

/// A segment as it is stored.
#[derive(Clone)]
pub struct EncodedSegment {
    /// The object, in pieces.
    pub object: Vec<Bytes>,
    /// What it says of itself.
    pub header: SegmentHeader,
    /// Its digest: what the chain takes in.
    pub sha256: Digest,
    /// The chain after it.
    pub head: ChainHead,
}

impl EncodedSegment {
    /// Length of the object, in bytes.
    #[must_use]
    pub fn object_len(&self) -> u64 {
        self.header.object_len()
    }

    /// The object in one piece.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.object.concat().into()
    }
}

impl fmt::Debug for EncodedSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncodedSegment").field("header", &self.header).field("sha256", &self.sha256).finish()
    }
}

/// Bytes of a piece of an object that grows, at most: what is there is never copied to make room, and little room is made ahead.
const PIECE: usize = 64 << 10;

/// Collects chunks into a segment.
pub struct SegmentBuilder {
    header: SegmentHeader,
    pieces: Vec<Vec<u8>>,
    object_len: usize,
}

impl SegmentBuilder {
    /// An empty segment at `start`, linked to `previous`.
    #[must_use]
    pub fn new(id: RecordingId, start: u64, codec: Codec, previous: ChainHead) -> Self {
        let header = SegmentHeader { id, start, length: 0, codec, frames: 0, previous };
        Self { header, pieces: Vec::new(), object_len: 0 }
    }

    /// Payload bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.object_len.saturating_sub(HEADER_LEN + self.header.frames as usize * FRAME_HEADER_LEN)
    }

    /// Bytes that the object has so far: more than the payload, much more where chunks are small.
    #[must_use]
    pub fn object_len(&self) -> usize {
        self.object_len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.header.frames == 0
    }

    /// Offset after the last payload byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.header.end()
    }

    /// Adds a chunk whose CRC32C was already computed. Nothing is added for an empty one.
    ///
    /// # Errors
    /// [`FormatError::ChunkTooLong`] above [`MAX_CHUNK_LEN`], or when the segment would hold more than
    /// [`MAX_SEGMENT_PAYLOAD`].
    pub fn push(&mut self, chunk: &[u8], crc32c: u32) -> Result<(), FormatError> {
        if chunk.is_empty() {
            return Ok(());
        }
        let too_long = FormatError::ChunkTooLong { len: chunk.len() };
        if chunk.len() > MAX_CHUNK_LEN || self.len() + chunk.len() > MAX_SEGMENT_PAYLOAD {
            return Err(too_long);
        }
        let length = u32::try_from(chunk.len()).map_err(|_| too_long)?;
        if self.pieces.is_empty() {
            self.make_room(HEADER_LEN + FRAME_HEADER_LEN + chunk.len());
            // Written at the end, when it is known.
            self.put(&[0; HEADER_LEN]);
        }
        self.put(&length.to_be_bytes());
        self.put(&crc32c.to_be_bytes());
        self.put(chunk);
        self.header.length += u64::from(length);
        self.header.frames += 1;
        Ok(())
    }

    fn put(&mut self, mut bytes: &[u8]) {
        self.object_len += bytes.len();
        while !bytes.is_empty() {
            let Some(piece) = self.pieces.last_mut().filter(|piece| piece.len() < piece.capacity()) else {
                self.make_room(bytes.len());
                continue;
            };
            let (fits, rest) = bytes.split_at(bytes.len().min(piece.capacity() - piece.len()));
            piece.extend_from_slice(fits);
            bytes = rest;
        }
    }

    /// For so many bytes, or more: as much as there is already.
    fn make_room(&mut self, bytes: usize) {
        self.pieces.push(Vec::with_capacity(bytes.max(self.object_len).clamp(HEADER_LEN, PIECE)));
    }

    /// The finished segment. `None` when nothing was pushed: an empty segment is never written.
    #[must_use]
    pub fn finish(mut self) -> Option<EncodedSegment> {
        self.pieces.first_mut()?[..HEADER_LEN].copy_from_slice(&self.header.encode());
        let parts: Vec<&[u8]> = self.pieces.iter().map(Vec::as_slice).collect();
        let sha256 = Digest::of_parts(&parts);
        self.put(sha256.as_bytes());
        let head = self.header.previous.extend(self.header.start, self.header.length, sha256);
        let object = self.pieces.into_iter().map(Bytes::from).collect();
        Some(EncodedSegment { object, header: self.header, sha256, head })
    }
}

impl fmt::Debug for SegmentBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentBuilder").field("header", &self.header).finish_non_exhaustive()
    }
}

/// A segment whose every byte was checked against its checksums and digest.
#[derive(Clone)]
pub struct Segment {
    header: SegmentHeader,
    sha256: Digest,
    object: Bytes,
    /// Where each frame's payload is in the object, and its payload offset in the recording.
    frames: Vec<(u64, Range<usize>)>,
}

impl Segment {
    /// Checks and opens a segment object.
    ///
    /// # Errors
    /// When it is not a segment, is of another recording, or any checksum, length or its digest fails.
    pub fn decode(id: RecordingId, object: Bytes) -> Result<Self, FormatError> {
        let header = SegmentHeader::decode(&object)?;
        if header.id != id {
            return Err(FormatError::WrongRecording);
        }
        let found = object.len() as u64;
        if header.object_len() != found {
            return Err(FormatError::BadLength { expected: header.object_len(), found });
        }
        let body_end = object.len() - TRAILER_LEN;
        let sha256 = Digest::of(&object[..body_end]);
        if object[body_end..] != *sha256.as_bytes() {
            return Err(FormatError::BadHash);
        }
        let frames = frames(&header, &object[..body_end])?;
        Ok(Self { header, sha256, object, frames })
    }

    /// What it says of itself.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Its digest.
    #[must_use]
    pub fn sha256(&self) -> Digest {
        self.sha256
    }

    /// The chain after it.
    #[must_use]
    pub fn head(&self) -> ChainHead {
        self.header.previous.extend(self.header.start, self.header.length, self.sha256)
    }

    /// Length of the object, in bytes.
    #[must_use]
    pub fn object_len(&self) -> u64 {
        self.object.len() as u64
    }

    /// Its payload, frame by frame.
    pub fn payload(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(|(_, range)| &self.object[range.clone()])
    }

    /// The part of the payload in `range` (offsets in the recording), in pieces; what is outside is left out.
    pub fn slices(&self, range: Range<u64>) -> impl Iterator<Item = Bytes> {
        let first = self.frames.partition_point(|(offset, frame)| offset + frame.len() as u64 <= range.start);
        let Range { start, end } = range;
        self.frames[first..].iter().take_while(move |(offset, _)| *offset < end).map(
            move |(offset, frame)| {
                let skip =
                    usize::try_from(start.saturating_sub(*offset)).unwrap_or(usize::MAX).min(frame.len());
                let keep =
                    usize::try_from(end - offset).unwrap_or(usize::MAX).clamp(skip, frame.len().max(skip));
                self.object.slice(frame.start + skip..frame.start + keep)
            },
        )
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("header", &self.header).field("sha256", &self.sha256).finish()
    }
}

fn frames(header: &SegmentHeader, body: &[u8]) -> Result<Vec<(u64, Range<usize>)>, FormatError> {
    let mut frames = Vec::with_capacity(header.frames as usize);
    let (mut at, mut offset) = (HEADER_LEN, header.start);
    for _ in 0..header.frames {
        let malformed = FormatError::BadFrame { at: at as u64 };
        let Some((length, crc)) = body.get(at..).and_then(frame_header) else { return Err(malformed) };
        let range = at + FRAME_HEADER_LEN..at + FRAME_HEADER_LEN + length;
        let Some(payload) = body.get(range.clone()) else { return Err(malformed) };
        if length == 0 || length > MAX_CHUNK_LEN {
            return Err(malformed);
        }
        if crc32c::crc32c(payload) != crc {
            return Err(FormatError::BadCrc { offset });
        }
        at = range.end;
        frames.push((offset, range));
        offset += length as u64;
    }
    if at == body.len() && offset == header.end() {
        Ok(frames)
    } else {
        Err(FormatError::BadLength { expected: header.length, found: offset - header.start })
    }
}

fn frame_header(bytes: &[u8]) -> Option<(usize, u32)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let crc = rest.first_chunk::<4>()?;
    Some((usize::try_from(u32::from_be_bytes(*length)).ok()?, u32::from_be_bytes(*crc)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> RecordingId {
        RecordingId::from_bytes([0xab; 16])
    }

    fn head() -> ChainHead {
        ChainHead::begin(id(), Digest::of(b"{}"))
    }

    fn build(start: u64, chunks: &[&[u8]]) -> EncodedSegment {
        let mut builder = SegmentBuilder::new(id(), start, Codec::Identity, head());
        for chunk in chunks {
            builder.push(chunk, crc32c::crc32c(chunk)).unwrap();
        }
        builder.finish().unwrap()
    }

    #[test]
    fn segment_is_golden() {
        let segment = build(7, &[b"hello ", b"world"]);
        let golden = concat!(
            "4d455a5345471a0a0001000000000002abababababababababababababababab0000000000000007000000000000000b",
            "6675296842a6536f0997e6b074c80881be46c579edc09045cbd2bd74d430d8eb97c95bdc000000067e627e5868656c6c",
            "6f200000000531aa814e776f726c64c4ac791aef0ca956de698713a365034f68c741aa7626e4f1bf017a6a2fd2d6f6",
        );
        assert_eq!(hex::encode(segment.to_bytes()), golden);
        assert_eq!(
            segment.head.to_string(),
            "8ed06102db9bd0119bbe10ac3af37b767a0db44e5919c75f6015d9ef81338811"
        );
    }

    #[test]
    fn an_empty_segment_is_not_written() {
        let mut builder = SegmentBuilder::new(id(), 0, Codec::Identity, head());
        builder.push(b"", 0).unwrap();
        assert!(builder.is_empty());
        assert!(builder.finish().is_none());
    }

    #[test]
    fn too_long_a_chunk_or_segment_is_refused() {
        let mut builder = SegmentBuilder::new(id(), 0, Codec::Identity, head());
        let long = vec![0; MAX_CHUNK_LEN + 1];
        assert!(matches!(builder.push(&long, 0), Err(FormatError::ChunkTooLong { .. })));
        for _ in 0..MAX_SEGMENT_PAYLOAD / MAX_CHUNK_LEN {
            builder.push(&long[1..], 0).unwrap();
        }
        assert!(matches!(builder.push(b"x", 0), Err(FormatError::ChunkTooLong { .. })));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let segment = build(0, &[b"some payload", b"more"]);
        for at in 0..segment.to_bytes().len() {
            for bit in 0..8 {
                let mut bytes = segment.to_bytes().to_vec();
                bytes[at] ^= 1 << bit;
                assert!(Segment::decode(id(), bytes.into()).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let segment = build(0, &[b"some payload", b"more"]);
        for len in 0..segment.to_bytes().len() {
            assert!(Segment::decode(id(), segment.to_bytes().slice(..len)).is_err(), "{len}");
        }
        let mut longer = segment.to_bytes().to_vec();
        longer.push(0);
        assert!(Segment::decode(id(), longer.into()).is_err());
    }

    #[test]
    fn what_is_long_is_in_pieces_and_little_room_is_made_ahead() {
        let chunks = [vec![1; 10], vec![2; 3 * PIECE], vec![3; 70], vec![4; PIECE - 8], vec![5; 1]];
        let mut builder =
            SegmentBuilder::new(id(), 0, Codec::Identity, ChainHead::begin(id(), Digest::of(b"")));
        for chunk in &chunks {
            builder.push(chunk, crc32c::crc32c(chunk)).unwrap();
            let room: usize = builder.pieces.iter().map(Vec::capacity).sum();
            assert!(room <= builder.object_len() + PIECE && room <= 2 * builder.object_len(), "{room}");
        }
        let encoded = builder.finish().unwrap();
        assert!(encoded.object.len() >= 4 && encoded.object.iter().all(|piece| piece.len() <= PIECE));
        let segment = Segment::decode(id(), encoded.to_bytes()).unwrap();
        assert!(segment.payload().eq(chunks.iter().map(Vec::as_slice)));
    }

    #[test]
    fn a_segment_of_another_recording_is_refused() {
        let segment = build(0, &[b"x"]);
        let other = RecordingId::from_bytes([0; 16]);
        assert_eq!(Segment::decode(other, segment.to_bytes()).unwrap_err(), FormatError::WrongRecording);
    }

    #[test]
    fn a_later_version_is_named() {
        let mut bytes = build(0, &[b"x"]).to_bytes().to_vec();
        bytes[9] = 2;
        assert_eq!(
            Segment::decode(id(), bytes.into()).unwrap_err(),
            FormatError::UnknownVersion { document: "segment", version: 2 }
        );
    }

    #[test]
    fn a_frame_cannot_lie_about_its_length() {
        // Rewrites the trailer too: the lie is consistent with the digest, and still refused.
        for lie in [0_u32, 3, 5, 6, u32::MAX] {
            let mut bytes = build(0, &[b"four", b"five5"]).to_bytes().to_vec();
            bytes[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&lie.to_be_bytes());
            let end = bytes.len() - TRAILER_LEN;
            let sha256 = Digest::of(&bytes[..end]);
            bytes[end..].copy_from_slice(sha256.as_bytes());
            assert!(Segment::decode(id(), bytes.into()).is_err(), "{lie}");
        }
    }

    #[test]
    fn tail_gives_the_head() {
        let segment = build(100, &[b"abc"]);
        let bytes = segment.to_bytes();
        let (header, sha256, after) =
            read_tail(&bytes[..HEADER_LEN], &bytes[bytes.len() - TRAILER_LEN..]).unwrap();
        assert_eq!((header, sha256, after), (segment.header, segment.sha256, segment.head));
    }

    proptest! {
        #[test]
        fn what_is_built_is_read(
            start in 0..u64::MAX / 2,
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..20),
            from in 0..4_000_u64,
            len in 0..4_000_u64,
        ) {
            let slices: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let encoded = build(start, &slices);
            let segment = Segment::decode(id(), encoded.to_bytes()).unwrap();
            let payload = chunks.concat();
            prop_assert_eq!(segment.header(), &encoded.header);
            prop_assert_eq!(segment.head(), encoded.head);
            prop_assert_eq!(segment.payload().collect::<Vec<_>>().concat(), &payload[..]);
            let part: Vec<u8> = segment.slices(start + from..start + from + len).flatten().collect();
            let cut = |at: u64| usize::try_from(at).unwrap().min(payload.len());
            prop_assert_eq!(part, &payload[cut(from)..cut(from + len)]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            prop_assert!(Segment::decode(id(), bytes.into()).is_err());
        }
    }
}
