//! Backups, streamed while the node serves.

use std::{sync::Arc, time::Duration};

use auth_core::audit::{self, EventType};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use mezite_proto::v1;
use raft_store::Backup;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::OwnedSemaphorePermit,
};

use super::Replies;
use crate::{
    authn::Call,
    error::ApiError,
    outlet::{self, Pace},
    service::Service,
    standing,
};

/// Bytes in one message.
const PIECE: usize = 1 << 20;
/// A client that takes fewer bytes in a second, all in all, loses the rest: there is one backup at a time.
const LEAST_RATE: u64 = 1 << 20;
/// What it has beside.
const LATENCY: Duration = Duration::from_secs(60);
/// When to try again while another backup is streamed.
const BUSY: Duration = Duration::from_secs(5);

/// Takes a backup and streams it. It is audited before it is taken, so that it tells of itself.
pub(crate) async fn save(
    service: &Arc<Service>,
    call: &Call,
) -> Result<Replies<v1::SaveBackupResponse>, ApiError> {
    service.read(call, |_, _| Ok(())).await?;
    let permit = service.backups.clone().try_acquire_owned();
    let permit =
        permit.map_err(|_| ApiError::Busy { what: "this node streams another backup", retry_after: BUSY })?;
    let target = format!("cluster:{}", service.settings.cluster);
    let audited = service.write(call, move |tx, context| {
        audit::append(tx, context, EventType::ClusterBackup, target.clone(), &[]);
        Ok(())
    });
    audited.await?;
    let store = service.store(call);
    // It is written to its end, and takes its space, also when the client has given up meanwhile.
    let taken = tokio::spawn(async move { (store.backup().await, permit) });
    let (backup, permit) = taken.await.map_err(|error| ApiError::Internal(error.to_string()))?;
    stream_of(service, call, backup?, permit).await
}

/// Streams a backup that is written, if its caller may have it still: writing it may have taken long.
async fn stream_of(
    service: &Arc<Service>,
    call: &Call,
    backup: Backup,
    permit: OwnedSemaphorePermit,
) -> Result<Replies<v1::SaveBackupResponse>, ApiError> {
    service.readmit(call, |_| Ok(())).await?;
    let head = v1::SaveBackupResponse {
        data: Bytes::new(),
        length: backup.length(),
        sha256: backup.sha256().to_vec().into(),
        revision: backup.revision(),
        applied_index: backup.applied_index(),
        cluster_id: service.settings.cluster_id.clone(),
    };
    let pace = Pace { silence: service.settings.message_timeout, whole: Some(longest(head.length)) };
    let lost = standing::lost(Arc::clone(service), call.clone(), |_| Ok(()));
    let request_id = call.origin.request_id.clone();
    Ok(outlet::open(messages(head, backup.into_reader()), pace, lost, request_id, permit).boxed())
}

/// The longest that a client may take for so many bytes.
fn longest(length: u64) -> Duration {
    LATENCY + Duration::from_secs(length / LEAST_RATE)
}

/// The head, and then the file.
fn messages(
    head: v1::SaveBackupResponse,
    file: impl AsyncRead + Send + Unpin + 'static,
) -> impl Stream<Item = Result<v1::SaveBackupResponse, ApiError>> + Send + 'static {
    let pieces = stream::try_unfold(file, |mut file| async move {
        let next =
            piece(&mut file).await.map_err(|error| ApiError::Internal(format!("a backup: {error}")))?;
        Ok(next.map(|piece| (piece, file)))
    });
    stream::once(async { Ok(head) }).chain(pieces)
}

/// The next bytes of the file; `None` at its end.
async fn piece(file: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<v1::SaveBackupResponse>> {
    let mut data = BytesMut::with_capacity(PIECE);
    while data.len() < PIECE && file.read_buf(&mut data).await? > 0 {}
    let message = |data: BytesMut| v1::SaveBackupResponse { data: data.freeze(), ..Default::default() };
    Ok((!data.is_empty()).then(|| message(data)))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};
    use store_txn::{Transaction as _, TxError};
    use tonic::Code;

    use super::*;
    use crate::{
        outlet::WAITING,
        rpc::testing::{Node, with},
    };

    async fn fetch(mut pieces: Replies<v1::SaveBackupResponse>) -> (v1::SaveBackupResponse, Vec<u8>) {
        let head = pieces.next().await.unwrap().unwrap();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend(piece.unwrap().data);
        }
        (head, bytes)
    }

    #[tokio::test]
    async fn what_is_streamed_is_whole_and_audited() {
        let node = Node::start().await;
        let boss = node.boss().await;
        let call = with(&boss, "SaveBackup");
        // More than waits for a client that takes nothing.
        for key in 0..=WAITING as u8 {
            let put = node.service.store.transact(move |tx| {
                tx.put_raw(vec![0xff, 0xff, key], vec![key; PIECE], None);
                Ok::<_, TxError>(())
            });
            put.await.unwrap();
        }
        let first = save(&node.service, &call).await.unwrap();
        let busy = save(&node.service, &call).await.err().unwrap();
        assert_eq!(busy.code(), Code::ResourceExhausted);
        let (head, bytes) = fetch(first).await;
        assert_eq!(head.length, bytes.len() as u64);
        assert_eq!(head.sha256[..], Sha256::digest(&bytes)[..]);
        assert!(bytes.starts_with(b"MZSTSNAP") && head.revision > 0);
        let told = node.audited("cluster.backup").await;
        assert_eq!((told.len(), told[0].actor.as_str()), (1, "user:boss"));
        // The next one has the file's place.
        let begun = std::time::Instant::now();
        while let Err(error) = save(&node.service, &call).await {
            assert!(begun.elapsed() < Duration::from_secs(10), "{error}");
            tokio::task::yield_now().await;
        }
    }

    /// Waits until a backup's place is free, though its client takes nothing.
    async fn given_up(node: &Node) {
        let begun = std::time::Instant::now();
        while node.service.backups.available_permits() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "it is still held");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_backup_ends_when_its_caller_may_not_have_it_any_more() {
        use auth_core::{context, session, tables};
        use store_txn::TransactionExt as _;

        let node = Node::start().await;
        let boss = node.boss().await;
        // More than waits for a client that takes nothing.
        for key in 0..=WAITING as u8 {
            let put = node.service.store.transact(move |tx| {
                tx.put_raw(vec![0xff, 0xff, key], vec![key; PIECE], None);
                Ok::<_, TxError>(())
            });
            put.await.unwrap();
        }
        let call = with(&boss, "SaveBackup");
        let mut pieces = save(&node.service, &call).await.unwrap();
        assert!(pieces.next().await.unwrap().is_ok());
        let credential = call.credential.clone();
        let ended = node.service.store.transact(move |tx| {
            let caller = context::authenticate(tx, &credential)?;
            let context = auth_core::Context { caller, origin: auth_core::Origin::default() };
            session::logout(tx, &context)
        });
        ended.await.map_err(ApiError::from).unwrap();
        given_up(&node).await;
        let rest: Vec<_> = pieces.collect().await;
        let (last, before) = rest.split_last().unwrap();
        assert_eq!(last.as_ref().unwrap_err().code(), Code::Unauthenticated);
        assert!(before.len() <= WAITING && before.iter().all(Result::is_ok));

        // Of one that was written meanwhile nothing is streamed at all.
        let backup = node.service.store.backup().await.unwrap();
        let permit = node.service.backups.clone().try_acquire_owned().unwrap();
        let late = stream_of(&node.service, &call, backup, permit).await.err().unwrap();
        assert_eq!(late.code(), Code::Unauthenticated);
        assert_eq!(node.service.backups.available_permits(), 1);

        // A lock does as much, and the audit log has it.
        let boss = node.boss().await;
        let call = with(&boss, "SaveBackup");
        let pieces = save(&node.service, &call).await.unwrap();
        let locked = node.service.store.transact(|tx| {
            let id = auth_core::names::LockId::from_random([1; 16]);
            let row = tables::LockRow {
                kind: tables::TargetKind::User.into(),
                name: "boss".into(),
                ..Default::default()
            };
            tx.put(&tables::LockKey(id.clone()), &row);
            let on = tables::LockTargetKey { kind: tables::TargetKind::User, name: "boss".into(), id };
            tx.put(&on, &tables::LockTargetRow::default());
            Ok::<_, TxError>(())
        });
        locked.await.unwrap();
        given_up(&node).await;
        let taken: Vec<_> = pieces.collect().await;
        assert_eq!(taken.last().unwrap().as_ref().unwrap_err().code(), Code::PermissionDenied);
        let denied = node.audited("access.denied").await;
        assert_eq!(denied.last().unwrap().target, "method:SaveBackup");
    }

    #[test]
    fn the_time_for_a_backup_goes_by_its_size() {
        assert_eq!(longest(0), Duration::from_secs(60));
        assert_eq!(longest(8 << 30), Duration::from_secs(60 + 8192));
    }

    #[tokio::test]
    async fn a_piece_is_bounded_and_the_pieces_are_the_file() {
        let file = vec![7; 2 * PIECE + 5];
        let mut rest = file.as_slice();
        let mut lengths = Vec::new();
        while let Some(piece) = piece(&mut rest).await.unwrap() {
            lengths.push(piece.data.len());
        }
        assert!(lengths.iter().all(|length| *length <= PIECE), "{lengths:?}");
        assert_eq!(lengths.iter().sum::<usize>(), file.len());
    }
}
