//! Pages of lists: how many rows, and after which.

use crate::CoreError;

/// Rows on a page when the caller does not say.
const DEFAULT_SIZE: u32 = 100;
/// Most rows on a page.
const MAX_SIZE: u32 = 1000;
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
/// many and no more, so a page may be short though it is not the last.
///
/// # Errors
/// [`CoreError::Invalid`] for a page token of another list; [`CoreError::Storage`]; what `read` and `wanted` answer.
pub(crate) fn look_through<I: Clone + Into<String>, R, T>(
    page: &PageRequest,
    parse: impl Fn(&str) -> Option<I>,
    mut read: impl FnMut(Option<&I>, usize) -> Result<Vec<(I, R)>, CoreError>,
    mut wanted: impl FnMut(I, R) -> Option<T>,
) -> Result<Page<T>, CoreError> {
    let mut after = page.after(parse)?;
    let (mut items, mut looked_at) = (Vec::new(), 0);
    while looked_at < MAX_LOOKED_AT {
        let entries = read(after.as_ref(), CHUNK)?;
        if entries.is_empty() {
            return Ok(Page { items, next: None });
        }
        looked_at += entries.len();
        for (id, entry) in entries {
            if items.len() == page.size {
                return Ok(Page { items, next: after.map(Into::into) });
            }
            after = Some(id.clone());
            items.extend(wanted(id, entry));
        }
    }
    Ok(Page { items, next: after.map(Into::into) })
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
    /// Cuts one row more than the page holds down to the page. `cursor` tells a row's key.
    pub fn cut(mut items: Vec<T>, size: usize, cursor: impl Fn(&T) -> String) -> Self {
        let more = items.len() > size;
        items.truncate(size);
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
        let cut = |n: u32| Page::cut((1..=n).collect(), 2, |row| row.to_string());
        assert_eq!(cut(3), Page { items: vec![1, 2], next: Some("2".into()) });
        assert_eq!(cut(2), Page { items: vec![1, 2], next: None });
        assert_eq!(cut(0), Page { items: vec![], next: None });
    }
}
