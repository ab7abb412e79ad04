//! The roster: which agents are registered, for those who judge agents away from the auth nodes. First all of it, page
//! by page, then change by change. How it is carried, and when, is not decided here.

use store_txn::{Key, KeyRange, KeyReader, KeyWriter, Read, ReadExt, Row, TxError};

use crate::{
    CoreError,
    names::AgentId,
    tables::{NodeKey, NodeKind, NodeRow},
};

/// Most agents of a page.
pub const PAGE: usize = 1000;

/// A registered agent: an SSH node. Ingests write no recordings, and are not in the roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// First principal of its host certificate.
    pub hostname: String,
}

/// A part of the roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// By id; perhaps none.
    pub agents: Vec<Agent>,
    /// After which id the next page begins; `None`: this is the last one.
    pub next: Option<AgentId>,
}

/// What a change of a row comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose row it is: an agent's or an ingest's.
    pub id: AgentId,
    /// The agent as it is now; `None`: it is no registered agent.
    pub agent: Option<Agent>,
}

/// The rows in which the roster is.
pub fn range() -> KeyRange {
    KeyRange::prefix(&KeyWriter::table(NodeKey::TABLE).finish())
}

/// The agents after an id, or from the first.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn page(state: &mut (impl Read + ?Sized), after: Option<&AgentId>) -> Result<Page, CoreError> {
    let after = after.map(|id| NodeKey(id.clone()));
    let rows = state.scan(after.as_ref(), PAGE)?;
    let next = rows.last().filter(|_| rows.len() == PAGE).map(|(key, _)| key.0.clone());
    let agents = rows.into_iter().filter_map(|(key, stored)| agent(key.0, stored.row));
    Ok(Page { agents: agents.collect(), next })
}

fn agent(id: AgentId, row: NodeRow) -> Option<Agent> {
    (row.kind() == NodeKind::Ssh).then_some(Agent { id, hostname: row.hostname })
}

/// Reads a change of a row in [`range`]: its encoded key, and the row unless it was deleted.
///
/// # Errors
/// [`CoreError::Storage`] for what is no such row.
pub fn change(key: &[u8], row: Option<&[u8]>) -> Result<Change, CoreError> {
    let corrupt = |reason| TxError::Corrupt { table: NodeKey::TABLE.name, reason };
    let mut parts = KeyReader::table(NodeKey::TABLE, key);
    let read = parts.as_mut().and_then(|parts| NodeKey::read(parts).filter(|_| parts.is_at_end()));
    let NodeKey(id) = read.ok_or_else(|| corrupt("the key does not decode".into()))?;
    let row = row.map(NodeRow::decode_row).transpose().map_err(corrupt)?;
    let agent = row.and_then(|row| agent(id.clone(), row));
    Ok(Change { id, agent })
}

/// Of which moment each page of a listing is. Pages are read one after the other, while the state goes on; a change is
/// told only where the page that has its row was read before it, so that nobody is told of the past.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Where each page ends, and the revision that it was read at.
    pages: Vec<(Option<AgentId>, u64)>,
}

impl Listing {
    /// Takes note of the next page, read at a revision.
    pub fn read(&mut self, page: &Page, revision: u64) {
        self.pages.push((page.next.clone(), revision));
    }

    /// Whether a change of this id, committed at a revision, is in the listing already.
    pub fn holds(&self, id: &AgentId, revision: u64) -> bool {
        let page = self.pages.partition_point(|(end, _)| end.as_ref().is_some_and(|end| end < id));
        self.pages.get(page).is_some_and(|(_, read_at)| revision <= *read_at)
    }
}

#[cfg(test)]
mod tests {
    use store_txn::TransactionExt;

    use super::*;
    use crate::world::World;

    fn id(number: u32) -> AgentId {
        AgentId::parse("id", &format!("{number:08}-0000-4000-8000-000000000000")).unwrap()
    }

    fn row(kind: NodeKind, hostname: &str) -> NodeRow {
        NodeRow {
            kind: kind.into(),
            hostname: hostname.into(),
            expires_at_ms: u64::MAX,
            ..NodeRow::default()
        }
    }

    #[test]
    fn pages_have_every_agent_once_and_no_ingest() {
        let mut world = World::new();
        let count = 2 * u32::try_from(PAGE).unwrap() + 1;
        world
            .run(|tx, _| {
                for number in 0..count {
                    let kind = if number % 10 == 9 { NodeKind::Ingest } else { NodeKind::Ssh };
                    tx.put(&NodeKey(id(number)), &row(kind, &format!("web{number}")));
                }
                Ok(())
            })
            .unwrap();
        let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let next = world.run(|tx, _| page(tx, after.as_ref())).unwrap();
            assert!(next.agents.len() <= PAGE);
            found.extend(next.agents);
            pages += 1;
            after = next.next;
            if after.is_none() {
                break;
            }
        }
        let agents = (0..count).filter(|number| number % 10 != 9);
        let expected: Vec<_> =
            agents.map(|number| Agent { id: id(number), hostname: format!("web{number}") }).collect();
        assert_eq!((found, pages), (expected, 3));
    }

    #[test]
    fn a_change_is_read_as_the_row_was_written() {
        let key = NodeKey(id(7)).encode();
        assert!(range().contains(&key));
        let registered = change(&key, Some(&row(NodeKind::Ssh, "web7").encode_row())).unwrap();
        let agent = Agent { id: id(7), hostname: "web7".into() };
        assert_eq!(registered, Change { id: id(7), agent: Some(agent) });
        let nobody = Change { id: id(7), agent: None };
        assert_eq!(change(&key, Some(&row(NodeKind::Ingest, "i").encode_row())).unwrap(), nobody);
        assert_eq!(change(&key, None).unwrap(), nobody);
        for (key, row) in [(&key[1..], None), (&key[..9], None), (&key[..], Some(&b"\xff"[..]))] {
            assert!(matches!(change(key, row), Err(CoreError::Storage(_))));
        }
    }

    #[test]
    fn a_change_that_its_page_has_already_is_not_told_again() {
        let mut listing = Listing::default();
        let page = |next: Option<u32>| Page { agents: Vec::new(), next: next.map(id) };
        assert!(!listing.holds(&id(1), 1));
        listing.read(&page(Some(10)), 100);
        listing.read(&page(Some(20)), 110);
        listing.read(&page(None), 120);
        let held = |number, revision| listing.holds(&id(number), revision);
        assert_eq!([held(1, 100), held(10, 100), held(10, 101)], [true, true, false]);
        assert_eq!([held(11, 110), held(20, 110), held(20, 111)], [true, true, false]);
        assert_eq!([held(21, 120), held(9_999, 120), held(21, 121)], [true, true, false]);
    }
}
