//! Typed access over the raw interface.

use crate::{Key, KeyRange, KeyReader, KeyWriter, RawRow, Read, Transaction, TxError, UnixMillis};

/// What is stored under a key. The encoding is the row's own; it must stay readable by later releases.
pub trait Row: Sized {
    /// Encodes the row.
    fn encode_row(&self) -> Vec<u8>;

    /// Decodes the row, or says what is wrong with it.
    fn decode_row(bytes: &[u8]) -> Result<Self, String>;

    /// When the row ends; `None`: never.
    fn expires_at(&self) -> Option<UnixMillis> {
        None
    }
}

/// A row and the revision of the commit that wrote it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<R> {
    /// Revision; 0 for a write of this same transaction.
    pub revision: u64,
    /// The row.
    pub row: R,
}

fn decode<K: Key>(raw: RawRow) -> Result<Versioned<K::Row>, TxError> {
    let row =
        K::Row::decode_row(&raw.value).map_err(|reason| TxError::Corrupt { table: K::TABLE.name, reason })?;
    Ok(Versioned { revision: raw.revision, row })
}

/// Rows of a table, by their keys.
pub type Rows<K> = Vec<(K, Versioned<<K as Key>::Row>)>;

/// Typed reads.
pub trait ReadExt: Read {
    /// The row under a key.
    fn get<K: Key>(&mut self, key: &K) -> Result<Option<Versioned<K::Row>>, TxError> {
        self.get_raw(&key.encode())?.map(decode::<K>).transpose()
    }

    /// The first `limit` rows of a table, in key order, after `after`.
    fn scan<K: Key>(&mut self, after: Option<&K>, limit: usize) -> Result<Rows<K>, TxError> {
        self.scan_under(KeyWriter::table(K::TABLE), after, limit)
    }

    /// The same among the keys that begin with `front`.
    fn scan_under<K: Key>(
        &mut self,
        front: KeyWriter,
        after: Option<&K>,
        limit: usize,
    ) -> Result<Rows<K>, TxError> {
        let mut range = KeyRange::prefix(&front.finish());
        if let Some(after) = after {
            range.start = range.start.max(next_after(after));
        }
        self.scan_range(&range, limit)
    }

    /// All rows of a table after `after`, up to `last` and with it, in key order.
    fn scan_through<K: Key>(&mut self, after: Option<&K>, last: &K) -> Result<Rows<K>, TxError> {
        let mut range = KeyRange::table(K::TABLE);
        if let Some(after) = after {
            range.start = next_after(after);
        }
        range.end = next_after(last);
        self.scan_range(&range, usize::MAX)
    }

    /// The first `limit` rows of a range of a table's keys.
    fn scan_range<K: Key>(&mut self, range: &KeyRange, limit: usize) -> Result<Rows<K>, TxError> {
        let rows = self.scan_raw(range, limit)?;
        rows.into_iter()
            .map(|(bytes, raw)| {
                let corrupt =
                    || TxError::Corrupt { table: K::TABLE.name, reason: "the key does not decode".into() };
                let mut parts = KeyReader::table(K::TABLE, &bytes).ok_or_else(corrupt)?;
                let key = K::read(&mut parts).filter(|_| parts.is_at_end()).ok_or_else(corrupt)?;
                Ok((key, decode::<K>(raw)?))
            })
            .collect()
    }
}

/// The first key that comes after this one.
fn next_after<K: Key>(key: &K) -> Vec<u8> {
    let mut next = key.encode();
    next.push(0);
    next
}

impl<T: Read + ?Sized> ReadExt for T {}

/// Typed writes.
pub trait TransactionExt: Transaction {
    /// Writes a row.
    fn put<K: Key>(&mut self, key: &K, row: &K::Row) {
        self.put_raw(key.encode(), row.encode_row(), row.expires_at());
    }

    /// Deletes a row.
    fn delete<K: Key>(&mut self, key: &K) {
        self.delete_raw(key.encode());
    }
}

impl<T: Transaction + ?Sized> TransactionExt for T {}
