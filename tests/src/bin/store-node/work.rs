//! What each question does to the store. Nothing here knows how it was asked.

use mezite_e2e::control::{Answer, NodeStatus, Request};
use raft_store::{Committed, MembershipError, Store, StoreError, StoreTransaction, TransactError, View};
use store_txn::{KeyRange, RawRow, Read, Transaction, TxError};

/// No range here has more rows.
const ALL: usize = 10_000_000;

/// Why a transaction writes nothing.
enum Refusal {
    /// The state is not what was asked for.
    Mismatch,
    Storage(TxError),
}

impl From<TxError> for Refusal {
    fn from(error: TxError) -> Self {
        Self::Storage(error)
    }
}

/// Answers a question.
pub(crate) async fn answer(store: &Store, request: Request, stale_reads: bool) -> Answer {
    match request {
        Request::Get { key } => read(store, stale_reads, move |view| get(view, &key)).await,
        Request::Scan { prefix } => read(store, stale_reads, move |view| scan(view, &prefix)).await,
        Request::Status => Answer::Status(status(store)),
        Request::Hash => hash(store).await,
        Request::Initialize => done(store.initialize().await),
        Request::Remove { node_id } => match store.remove(node_id, false).await {
            Ok(()) => Answer::Done,
            Err(MembershipError::Store(error)) => failure(&error),
            Err(error) => Answer::Failed { reason: error.to_string() },
        },
        Request::StepDown => done(store.step_down().await),
        Request::Snapshot => done(store.trigger_snapshot().await),
        write => written(store.transact(move |tx| apply(tx, &write)).await),
    }
}

/// A row's value: eight bytes, big-endian, and what pads them.
fn encode(value: u64, padding: usize) -> Vec<u8> {
    let mut out = value.to_be_bytes().to_vec();
    out.resize(8 + padding, b'.');
    out
}

fn decode(row: &RawRow) -> Result<u64, TxError> {
    let value = row.value.first_chunk().copied();
    value.map(u64::from_be_bytes).ok_or_else(|| TxError::Storage("a row is too short".into()))
}

fn range(prefix: &str) -> KeyRange {
    KeyRange::prefix(prefix.as_bytes())
}

/// The part of a transaction that writes. Answers the place of what was appended.
fn apply(tx: &mut StoreTransaction<'_>, request: &Request) -> Result<Option<u64>, Refusal> {
    let put = |tx: &mut StoreTransaction<'_>, key: &str, value, padding| {
        tx.put_raw(key.as_bytes().to_vec(), encode(value, padding), None);
    };
    let value_of = |tx: &mut StoreTransaction<'_>, key: &str| -> Result<Option<u64>, TxError> {
        tx.get_raw(key.as_bytes())?.as_ref().map(decode).transpose()
    };
    match request {
        Request::Put { key, value, padding } => put(tx, key, *value, *padding),
        Request::Cas { key, expected, value } => {
            if value_of(tx, key)? != *expected {
                return Err(Refusal::Mismatch);
            }
            put(tx, key, *value, 0);
        }
        Request::Transfer { from, to, amount } => {
            let (Some(giver), Some(taker)) = (value_of(tx, from)?, value_of(tx, to)?) else {
                return Err(Refusal::Mismatch);
            };
            if giver < *amount || from == to {
                return Err(Refusal::Mismatch);
            }
            put(tx, from, giver - amount, 0);
            put(tx, to, taker + amount, 0);
        }
        Request::Append { list, element } => {
            let index = tx.scan_raw(&range(list), ALL)?.len() as u64;
            put(tx, &format!("{list}{index:06}"), *element, 0);
            return Ok(Some(index));
        }
        Request::Fill { rows } => rows.iter().for_each(|(key, value)| put(tx, key, *value, 0)),
        _ => return Err(Refusal::Mismatch),
    }
    Ok(None)
}

fn written(result: Result<Committed<Option<u64>>, TransactError<Refusal>>) -> Answer {
    match result {
        Ok(Committed { value, revision }) => Answer::Written { revision, index: value },
        Err(TransactError::Refused(Refusal::Mismatch)) => Answer::Refused,
        Err(TransactError::Refused(Refusal::Storage(error))) => Answer::Failed { reason: error.to_string() },
        Err(TransactError::Store(error)) => failure(&error),
    }
}

type Rows = Vec<(String, u64)>;

fn get(view: &mut View<'_>, key: &str) -> Result<Rows, TxError> {
    let row = view.get_raw(key.as_bytes())?;
    row.iter().map(|row| Ok((key.to_owned(), decode(row)?))).collect()
}

fn scan(view: &mut View<'_>, prefix: &str) -> Result<Rows, TxError> {
    let rows = view.scan_raw(&range(prefix), ALL)?;
    rows.iter().map(|(key, row)| Ok((String::from_utf8_lossy(key).into_owned(), decode(row)?))).collect()
}

async fn read(
    store: &Store,
    stale: bool,
    work: impl FnOnce(&mut View<'_>) -> Result<Rows, TxError> + Send + 'static,
) -> Answer {
    let work = move |view: &mut View<'_>| Ok::<_, TxError>((work(view)?, view.revision()));
    let result = if stale { store.read_local(work).await } else { store.read(work).await };
    match result {
        Ok((rows, revision)) => Answer::Rows { rows, revision },
        Err(error) => Answer::Failed { reason: error.to_string() },
    }
}

async fn hash(store: &Store) -> Answer {
    let work = |view: &mut View<'_>| Ok::<_, TxError>((view.applied_index(), view.state_hash()?));
    match store.read(work).await {
        Ok((applied_index, hash)) => Answer::Hash { applied_index, hash: hex::encode(hash) },
        Err(error) => Answer::Failed { reason: error.to_string() },
    }
}

fn status(store: &Store) -> NodeStatus {
    let status = store.status();
    NodeStatus {
        leader_id: status.leader_id,
        term: status.term,
        last_log_index: status.last_log_index,
        applied_index: status.applied_index,
        snapshot_index: status.snapshot_index,
        database_size: status.database_size,
        members: status.members.iter().map(|member| (member.node_id, member.voter)).collect(),
        joint: status.joint,
    }
}

fn done(result: Result<(), StoreError>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(error) => failure(&error),
    }
}

/// The store's promise: nothing was written unless it says that it does not know.
fn failure(error: &StoreError) -> Answer {
    let reason = error.to_string();
    match error {
        StoreError::OutcomeUnknown => Answer::Unknown { reason },
        _ => Answer::Failed { reason },
    }
}
