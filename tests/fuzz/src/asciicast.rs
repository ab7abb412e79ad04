//! What a payload that was recorded elsewhere may be.

use recording_format::asciicast::{AsciicastError, EventKind, Item, Reader, Sanitizer};

/// All items of a recording that comes in pieces of this size.
fn read(bytes: &[u8], piece: usize) -> Result<Vec<Item>, AsciicastError> {
    let (mut reader, mut items) = (Reader::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        reader.push(piece);
        while let Some(item) = reader.next_item()? {
            items.push(item);
        }
    }
    items.extend(reader.finish()?);
    Ok(items)
}

/// Bytes are an asciicast: in whatever pieces it comes it is the same, its times never go back, and what is let through to a
/// terminal holds nothing that would not be.
pub(crate) fn asciicast(bytes: &[u8]) -> bool {
    let items = read(bytes, 4096);
    assert_eq!(items, read(bytes, 7));
    let Ok(items) = items else { return false };
    let (mut last, mut screen) = (std::time::Duration::ZERO, Sanitizer::screen());
    for item in items {
        let Item::Event(event) = item else { continue };
        assert!(event.at >= last);
        last = event.at;
        if let EventKind::Output(text) = event.kind {
            let (mut once, mut twice) = (String::new(), String::new());
            screen.feed(&text, &mut once);
            Sanitizer::screen().feed(&once, &mut twice);
            assert_eq!(once, twice);
        }
    }
    true
}
