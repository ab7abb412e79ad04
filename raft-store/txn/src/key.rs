//! Typed keys: a table's number, then parts that sort as their values do.

use crate::Row;

/// A table: a number that is stored in keys, and a name for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Stored, big-endian, at the front of each key; never used for another table again.
    pub id: u16,
    /// For messages.
    pub name: &'static str,
}

/// The key of a row.
pub trait Key: Sized {
    /// What is stored under it.
    type Row: Row;
    /// Where.
    const TABLE: Table;

    /// Writes the parts of the key, in order.
    fn write(&self, out: &mut KeyWriter);

    /// Reads them back. `None`: these are not the bytes of such a key.
    fn read(parts: &mut KeyReader<'_>) -> Option<Self>;

    /// The whole key.
    fn encode(&self) -> Vec<u8> {
        let mut out = KeyWriter::table(Self::TABLE);
        self.write(&mut out);
        out.finish()
    }
}

/// Byte that ends a text part; a zero byte inside the text is written as `0x00 0xff`.
const END: [u8; 2] = [0x00, 0x01];
const ESCAPED_ZERO: [u8; 2] = [0x00, 0xff];

/// Builds a key, or the common front of several.
#[derive(Debug, Clone)]
pub struct KeyWriter(Vec<u8>);

impl KeyWriter {
    /// The front of all keys of a table.
    pub fn table(table: Table) -> Self {
        Self(table.id.to_be_bytes().to_vec())
    }

    /// Adds text. A shorter text sorts before a longer one that begins with it.
    pub fn text(&mut self, text: &str) -> &mut Self {
        for byte in text.bytes() {
            match byte {
                0 => self.0.extend(ESCAPED_ZERO),
                other => self.0.push(other),
            }
        }
        self.0.extend(END);
        self
    }

    /// Adds a number, big-endian.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    /// Adds bytes of a length that the table fixes.
    pub fn fixed<const N: usize>(&mut self, bytes: &[u8; N]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    /// The bytes so far.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes a key apart.
#[derive(Debug)]
pub struct KeyReader<'a>(&'a [u8]);

impl<'a> KeyReader<'a> {
    /// Reads a key of a table. `None`: it is of another table.
    pub fn table(table: Table, key: &'a [u8]) -> Option<Self> {
        key.strip_prefix(&table.id.to_be_bytes()).map(Self)
    }

    /// Reads text.
    pub fn text(&mut self) -> Option<String> {
        let mut out = Vec::new();
        loop {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            if byte != 0 {
                out.push(byte);
                continue;
            }
            let (&mark, rest) = self.0.split_first()?;
            self.0 = rest;
            match [0, mark] {
                ESCAPED_ZERO => out.push(0),
                END => return String::from_utf8(out).ok(),
                _ => return None,
            }
        }
    }

    /// Reads a number.
    pub fn number(&mut self) -> Option<u64> {
        self.fixed().map(u64::from_be_bytes)
    }

    /// Reads bytes of a fixed length.
    pub fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    /// Whether nothing is left.
    pub fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Table = Table { id: 7, name: "t" };

    fn key(a: &str, n: u64) -> Vec<u8> {
        let mut out = KeyWriter::table(TABLE);
        out.text(a).number(n);
        out.finish()
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(key("a\0b", 258), b"\x00\x07a\x00\xffb\x00\x01\x00\x00\x00\x00\x00\x00\x01\x02");
    }

    #[test]
    fn keys_sort_as_their_parts_do() {
        let parts = [
            ("", 0),
            ("", 9),
            ("a", 1),
            ("a", 256),
            ("a\0", 0),
            ("a\0b", 0),
            ("a\u{1}", 0),
            ("aa", 0),
            ("b", 0),
        ];
        let keys: Vec<_> = parts.iter().map(|(a, n)| key(a, *n)).collect();
        let mut sorted = keys.clone();
        sorted.sort();
        assert_eq!(keys, sorted);
    }

    #[test]
    fn what_is_written_is_read_back_and_rubbish_is_not() {
        let bytes = key("x\0y", 42);
        let mut reader = KeyReader::table(TABLE, &bytes).unwrap();
        assert_eq!(reader.text().as_deref(), Some("x\0y"));
        assert_eq!(reader.number(), Some(42));
        assert!(reader.is_at_end());
        assert!(KeyReader::table(Table { id: 8, name: "u" }, &bytes).is_none());
        assert_eq!(KeyReader(b"abc").text(), None);
        assert_eq!(KeyReader(b"a\x00\x02").text(), None);
        assert_eq!(KeyReader(b"1234567").number(), None);
    }
}
