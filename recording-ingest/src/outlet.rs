//! Replies that are streamed at the pace of their client, and not for longer than it takes them.
//!
//! The transport asks for a message only when the client has taken what was sent, so whatever waits inside the stream
//! waits as long as the client pleases. Hence a task of its own brings the messages, holds what they need, and gives
//! both up when the client takes nothing for too long. What is streamed is not known here.

use std::{future::Future, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use crate::error::IngestError;

/// Messages that wait for the client.
const WAITING: usize = 2;

/// Sends `messages` to a client, and keeps `held` until the last is on its way, the stream has failed, the client has
/// taken nothing for as long as `patience`, or `leaving` resolves. A stream that is not whole ends with an error, and
/// never like one that is.
pub(crate) fn open<T: Send + 'static>(
    messages: impl Stream<Item = Result<T, IngestError>> + Send + 'static,
    patience: Duration,
    leaving: impl Future<Output = ()> + Send + 'static,
    held: impl Send + 'static,
) -> impl Stream<Item = Result<T, IngestError>> + Send + 'static {
    let (sender, mut receiver) = mpsc::channel(WAITING);
    let (ended, ending) = oneshot::channel();
    let sending = async move {
        let end = tokio::select! {
            biased;
            () = leaving => Err(IngestError::Leaving),
            end = send(messages, patience, &sender) => end,
        };
        drop(held);
        // Nobody listens any more when the client has gone.
        let _ = ended.send(end);
    };
    tokio::spawn(sending.in_current_span());
    let ending = stream::once(ending).filter_map(|end| async move {
        let lost = |_| Err(IngestError::Internal("a reply broke off".into()));
        end.unwrap_or_else(lost).err().map(Err)
    });
    stream::poll_fn(move |context| receiver.poll_recv(context)).map(Ok).chain(ending)
}

/// Sends until the end, or until the client has gone, which is no error of ours.
async fn send<T>(
    messages: impl Stream<Item = Result<T, IngestError>>,
    patience: Duration,
    sender: &mpsc::Sender<T>,
) -> Result<(), IngestError> {
    let mut messages = std::pin::pin!(messages);
    loop {
        let next = tokio::select! {
            biased;
            () = sender.closed() => return Ok(()),
            next = messages.next() => next,
        };
        let Some(message) = next else { return Ok(()) };
        let sent = tokio::time::timeout(patience, sender.send(message?)).await;
        if sent.map_err(|_| IngestError::Idle)?.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::Arc,
    };

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    fn numbers() -> impl Stream<Item = Result<u32, IngestError>> + Send + 'static {
        stream::iter((0..9).map(Ok))
    }

    /// Waits until what was held is held no more.
    async fn given_up(held: &Arc<()>) {
        let begun = tokio::time::Instant::now();
        while Arc::strong_count(held) > 1 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is held");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn what_a_client_that_takes_nothing_holds_is_given_up_and_its_reply_does_not_look_whole() {
        let held = Arc::new(());
        let replies = open(numbers(), SHORT, pending(), Arc::clone(&held));
        given_up(&held).await;
        let mut taken: Vec<_> = replies.collect().await;
        assert!(matches!(taken.pop(), Some(Err(IngestError::Idle))));
        assert_eq!(taken.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [0, 1]);
    }

    #[tokio::test]
    async fn a_slow_client_gets_all_of_it() {
        let held = Arc::new(());
        let mut replies = Box::pin(open(numbers(), LONG, pending(), Arc::clone(&held)));
        for number in 0..9 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert_eq!(replies.next().await.unwrap().unwrap(), number);
        }
        assert!(replies.next().await.is_none());
        given_up(&held).await;
    }

    #[tokio::test]
    async fn a_client_that_goes_holds_nothing_and_nobody_is_served_by_one_that_leaves() {
        let held = Arc::new(());
        let endless = || stream::pending::<Result<u32, IngestError>>();
        drop(open(endless(), LONG, pending(), Arc::clone(&held)));
        given_up(&held).await;
        let taken: Vec<_> = open(endless(), LONG, ready(()), Arc::clone(&held)).collect().await;
        assert!(matches!(taken[..], [Err(IngestError::Leaving)]));
        given_up(&held).await;
    }
}
