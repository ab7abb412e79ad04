//! The roster: which agents are registered, for those who judge agents away from the auth nodes. First all of it, page
//! by page, then change by change. How it is carried, and when, is not decided here.

use store_txn::{Key, KeyRange, KeyReader, Read, ReadExt, TxError};

use crate::{
    CoreError, lock,
    names::AgentId,
    tables::{LockTargetKey, NodeKey, NodeKind, NodeRow, TargetKind},
};

/// Most agents of a page.
pub const PAGE: usize = 1000;

/// A registered agent that is not locked: an SSH node. Ingests write no recordings, and are not in the roster.
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

/// The rows in which the roster is: registered agents, and locks on nodes.
pub fn ranges() -> [KeyRange; 2] {
    let locks = LockTargetKey::kind_front(TargetKind::Node);
    [KeyRange::table(NodeKey::TABLE), KeyRange::prefix(&locks.finish())]
}

/// The agents after an id, or from the first.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn page(state: &mut (impl Read + ?Sized), after: Option<&AgentId>) -> Result<Page, CoreError> {
    let after = after.map(|id| NodeKey(id.clone()));
    let rows = state.scan(after.as_ref(), PAGE)?;
    let next = rows.last().filter(|_| rows.len() == PAGE).map(|(key, _)| key.0.clone());
    let locked = lock::all_on(state, TargetKind::Node)?;
    let good = rows.into_iter().filter(|(key, _)| !locked.contains(key.0.as_str()));
    let agents = good.filter_map(|(key, stored)| agent(key.0, stored.row));
    Ok(Page { agents: agents.collect(), next })
}

fn agent(id: AgentId, row: NodeRow) -> Option<Agent> {
    (row.kind() == NodeKind::Ssh).then_some(Agent { id, hostname: row.hostname })
}

/// Whose row in [`ranges`] this is, by its encoded key.
///
/// # Errors
/// [`CoreError::Storage`] for what is no such row.
pub fn whose(key: &[u8]) -> Result<AgentId, CoreError> {
    let of_node = key_of::<NodeKey>(key).map(|key| key.0);
    let of_lock = || key_of::<LockTargetKey>(key).and_then(|key| AgentId::parse("lock", &key.name).ok());
    of_node.or_else(of_lock).ok_or_else(|| {
        TxError::Corrupt { table: NodeKey::TABLE.name, reason: "the key does not decode".into() }.into()
    })
}

fn key_of<K: Key>(key: &[u8]) -> Option<K> {
    let mut parts = KeyReader::table(K::TABLE, key)?;
    K::read(&mut parts).filter(|_| parts.is_at_end())
}

/// An agent as it is now; `None`: it is none that is registered, or it is locked.
///
/// # Errors
/// [`CoreError::Storage`].
pub fn find(state: &mut (impl Read + ?Sized), id: &AgentId) -> Result<Option<Agent>, CoreError> {
    let Some(node) = state.get(&NodeKey(id.clone()))? else { return Ok(None) };
    let locked = lock::on(state, TargetKind::Node, id.as_str())?.is_some();
    Ok(agent(id.clone(), node.row).filter(|_| !locked))
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
    use crate::{
        lock::{NewLock, Target},
        names::LockId,
        world::World,
    };

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
    fn an_agent_is_in_the_roster_while_it_is_registered_and_not_locked() {
        let mut world = World::new();
        let host = world.joined(NodeKind::Ssh, "web7", &[]);
        let find = |world: &mut World, id: &AgentId| world.run(|tx, _| super::find(tx, id)).unwrap();
        let listed = |world: &mut World| world.run(|tx, _| page(tx, None)).unwrap().agents;
        let agent = Agent { id: host.id(), hostname: "web7".into() };
        assert_eq!(
            (find(&mut world, &host.id()), listed(&mut world)),
            (Some(agent.clone()), vec![agent.clone()])
        );
        let lock = NewLock {
            id: LockId::from_random([1; 16]),
            target: Target::Node(host.id()),
            message: String::new(),
            ttl: None,
        };
        world.admin(|tx, context| lock::create(tx, context, lock)).unwrap();
        assert_eq!((find(&mut world, &host.id()), listed(&mut world)), (None, Vec::new()));
        world.admin(|tx, context| lock::delete(tx, context, &LockId::from_random([1; 16]))).unwrap();
        assert_eq!(find(&mut world, &host.id()), Some(agent));
        assert_eq!(find(&mut world, &id(9)), None);
        let ingest = world.joined(NodeKind::Ingest, "ingest1", &[]);
        assert_eq!(find(&mut world, &ingest.id()), None);
    }

    #[test]
    fn a_row_tells_whose_it_is() {
        let on = |kind| LockTargetKey { kind, name: id(7).to_string(), id: LockId::from_random([1; 16]) };
        for key in [NodeKey(id(7)).encode(), on(TargetKind::Node).encode()] {
            assert!(ranges().iter().any(|range| range.contains(&key)));
            assert_eq!(whose(&key).unwrap(), id(7));
            assert!(whose(&key[1..]).is_err() && whose(&key[..9]).is_err());
        }
        assert!(!ranges().iter().any(|range| range.contains(&on(TargetKind::User).encode())));
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
