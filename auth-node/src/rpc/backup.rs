//! Backups, streamed while the node serves.

use std::time::Duration;

use auth_core::audit::{self, EventType};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use mezite_proto::v1;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::{OwnedSemaphorePermit, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Replies;
use crate::{authn::Call, error::ApiError, service::Service};

/// Bytes in one message.
const PIECE: usize = 1 << 20;
/// Messages that wait for the client.
const WAITING: usize = 2;
/// When to try again while another backup is streamed.
const BUSY: Duration = Duration::from_secs(5);

/// Takes a backup and streams it. It is audited before it is taken, so that it tells of itself.
pub(crate) async fn save(
    service: &Service,
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
    let backup = backup?;
    let head = v1::SaveBackupResponse {
        data: Bytes::new(),
        length: backup.length(),
        sha256: backup.sha256().to_vec().into(),
        revision: backup.revision(),
        applied_index: backup.applied_index(),
        cluster_id: service.settings.cluster_id.clone(),
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    let outlet = Outlet {
        sender,
        patience: service.settings.message_timeout,
        request_id: call.origin.request_id.clone(),
        _permit: permit,
    };
    tokio::spawn(outlet.send(head, backup.into_reader()));
    Ok(ReceiverStream::new(receiver).boxed())
}

/// Where the pieces go. A client that takes none for too long loses the rest, so that it does not hold the space.
struct Outlet {
    sender: mpsc::Sender<Result<v1::SaveBackupResponse, Status>>,
    patience: Duration,
    request_id: String,
    _permit: OwnedSemaphorePermit,
}

impl Outlet {
    async fn send(self, head: v1::SaveBackupResponse, mut file: impl AsyncRead + Unpin) {
        let mut next: std::io::Result<_> = Ok(Some(head));
        loop {
            let message = match next {
                Ok(Some(message)) => Ok(message),
                Ok(None) => return,
                Err(error) => {
                    let request_id = self.request_id.as_str();
                    tracing::error!(request_id, %error, "a backup cannot be read");
                    Err(ApiError::Internal(error.to_string()).into_status(request_id))
                }
            };
            let last = message.is_err();
            let sent = tokio::time::timeout(self.patience, self.sender.send(message)).await;
            if last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
            next = piece(&mut file).await;
        }
    }
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
    use crate::rpc::testing::{Node, with};

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
