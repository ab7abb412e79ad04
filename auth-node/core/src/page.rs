//! Pages of lists: how many rows, and after which.

use crate::CoreError;

/// Rows on a page when the caller does not say.
const DEFAULT_SIZE: u32 = 100;
/// Most rows on a page.
const MAX_SIZE: u32 = 1000;
/// Most bytes of the rows of a page, as they are stored, of which a reply may hold each twice: clients of gRPC take messages
/// of 4 MiB unless they are told otherwise. A row that is larger is on a page of its own.
const MAX_BYTES: usize = 1 << 20;
/// Rows that are read at a time where a page is filled by what is wanted.
const CHUNK: usize = 256;
/// Rows that are looked at for one such page: a filter that matches few must not read all of them in one call.
pub(crate) const MAX_LOOKED_AT: usize = 4096;

/// Which part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// Rows, 1 to 1000.
    pub size: usize,
    /// Text of the key of the last row of the page before; `None`: from the start.
    pub after: Option<String>,
}

impl PageRequest {
    /// From a request's `page_size` (0: 100; above 1000: 1000) and the cursor in its page token.
    pub fn new(page_size: u32, after: Option<String>) -> Self {
        let size = if page_size == 0 { DEFAULT_SIZE } else { page_size.min(MAX_SIZE) };
        Self { size: usize::try_from(size).unwrap_or(usize::MAX), after }
    }

    /// The key after which the page begins, as `parse` reads it.
    ///
    /// # Errors
    /// [`CoreError::Invalid`] for `page_token` when it is of another list.
    pub fn after<T>(&self, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, CoreError> {
        let refused = || CoreError::invalid("page_token", "this is not a token of this list");
        self.after.as_deref().map(|text| parse(text).ok_or_else(refused)).transpose()
    }
}

/// Fills a page with what is wanted of a list, by id. `read` answers so many of its entries after an id at most. It looks at so
/// many and no more, so a page may be short though it is not the last. `bytes` tells how large a row is.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token of another list; [`CoreError::Storage`]; what `read` and `wanted` answer.
pub(crate) fn look_through<I: Clone + Into<String>, R, T>(
    page: &PageRequest,
    parse: impl Fn(&str) -> Option<I>,
    mut read: impl FnMut(Option<&I>, usize) -> Result<Vec<(I, R)>, CoreError>,
    mut wanted: impl FnMut(I, R) -> Option<T>,
    bytes: impl Fn(&T) -> usize,
) -> Result<Page<T>, CoreError> {
    let mut after = page.after(parse)?;
    let (mut items, mut room, mut looked_at) = (Vec::new(), Room::new(page.size), 0);
    while looked_at < MAX_LOOKED_AT {
        let entries = read(after.as_ref(), CHUNK)?;
        if entries.is_empty() {
            return Ok(Page { items, next: None });
        }
        looked_at += entries.len();
        for (id, entry) in entries {
            let (cursor, item) = (id.clone(), wanted(id, entry));
            if room.is_full() || item.as_ref().is_some_and(|item| !room.takes(bytes(item))) {
                return Ok(Page { items, next: after.map(Into::into) });
            }
            after = Some(cursor);
            items.extend(item);
        }
    }
    Ok(Page { items, next: after.map(Into::into) })
}

/// What is left of a page.
pub(crate) struct Room {
    rows: usize,
    bytes: usize,
    is_empty: bool,
}

impl Room {
    /// On a page of so many rows.
    pub(crate) const fn new(rows: usize) -> Self {
        Self { rows, bytes: MAX_BYTES, is_empty: true }
    }

    /// Whether no row fits any more.
    pub(crate) const fn is_full(&self) -> bool {
        self.rows == 0
    }

    /// Puts a row of so many bytes on the page, unless it does not fit; the first does.
    pub(crate) fn takes(&mut self, bytes: usize) -> bool {
        let fits = self.rows > 0 && (self.is_empty || bytes <= self.bytes);
        if fits {
            self.rows -= 1;
            self.bytes = self.bytes.saturating_sub(bytes);
            self.is_empty = false;
        }
        fits
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Where the next page begins: text of the last row's key; `None`: that was the last page.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// Cuts one row more than the page holds down to the page. `bytes` tells how large a row is, `cursor` its key.
    pub fn cut(
        mut items: Vec<T>,
        size: usize,
        bytes: impl Fn(&T) -> usize,
        cursor: impl Fn(&T) -> String,
    ) -> Self {
        let mut room = Room::new(size);
        let fit = items.iter().take_while(|item| room.takes(bytes(item))).count();
        let more = items.len() > fit;
        items.truncate(fit);
        let next = items.last().filter(|_| more).map(cursor);
        Self { items, next }
    }

    /// The same page of something else.
    pub fn map<U>(self, convert: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(convert).collect(), next: self.next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(PageRequest::new(0, None).size, 100);
        assert_eq!(PageRequest::new(7, None).size, 7);
        assert_eq!(PageRequest::new(5000, None).size, 1000);
    }

    #[test]
    fn the_last_page_has_no_next() {
        let cut = |n: u32| Page::cut((1..=n).collect(), 2, |_| 1, |row| row.to_string());
        assert_eq!(cut(3), Page { items: vec![1, 2], next: Some("2".into()) });
        assert_eq!(cut(2), Page { items: vec![1, 2], next: None });
        assert_eq!(cut(0), Page { items: vec![], next: None });
    }

    #[test]
    fn a_page_holds_no_more_bytes_than_a_message_and_at_least_one_row() {
        let cut = |sizes: &[usize]| {
            Page::cut(sizes.to_vec(), 10, |size| *size, |size| size.to_string()).items.len()
        };
        assert_eq!(cut(&[MAX_BYTES, 1]), 1);
        assert_eq!(cut(&[MAX_BYTES - 1, 1, 1]), 2);
        assert_eq!(cut(&[MAX_BYTES + 1, 1]), 1);
        assert_eq!(cut(&[1, MAX_BYTES, 1]), 1);

        // Read on from page to page, each row is there once.
        let rows: Vec<(String, usize)> = (0..9).map(|n| (n.to_string(), MAX_BYTES / 2)).collect();
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let read = |after: Option<&String>, most: usize| {
                let rows = rows.iter().filter(|(id, _)| after.is_none_or(|after| id > after));
                Ok(rows.take(most).cloned().collect())
            };
            let page = PageRequest::new(0, after);
            let parse = |text: &str| Some(text.to_owned());
            let wanted = |id: String, size| (id != "4").then_some((id, size));
            let page = look_through(&page, parse, read, wanted, |(_, size)| *size).unwrap();
            assert!(page.items.len() <= 2);
            seen.extend(page.items.into_iter().map(|(id, _)| id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, ["0", "1", "2", "3", "5", "6", "7", "8"]);
    }
}
