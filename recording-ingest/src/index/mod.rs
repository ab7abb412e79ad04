//! The index of recordings that lists are answered from.
//!
//! `catalog` is the index itself, in memory; `page` cuts pages from it; `tail` fills it from the objects and keeps
//! up with what other replicas write. Nothing in it is true by itself: it can be thrown away and built again.

mod catalog;
mod page;
mod tail;

pub use catalog::{Catalog, Row, RowState};
pub use page::{Cursor, Filter};
pub use tail::{Tail, row_of};

#[cfg(test)]
pub(crate) use catalog::tests::row;
