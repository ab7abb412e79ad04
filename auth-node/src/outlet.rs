//! Replies that are streamed at the pace of their client, and not for longer than it takes them.
//!
//! The transport asks for a message only when the client has taken what was sent, so whatever waits inside the stream
//! waits as long as the client pleases. Hence a task of its own brings the messages, holds what they need, and gives
//! both up when the client takes nothing for too long. What is streamed is not known here.

use std::{future::Future, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::error::ApiError;

/// Messages that wait for the client.
pub(crate) const WAITING: usize = 2;

/// How long a stream may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The longest that the client may take nothing, or nothing may come to be sent.
    pub(crate) silence: Duration,
    /// The longest that all of it may take; `None`: as long as messages flow.
    pub(crate) whole: Option<Duration>,
}

/// Sends `messages` to a client, and keeps `held` until the last is on its way or the stream has failed. A stream that
/// is not whole ends with a status, and never like one that is; so does one of which `lost` says why nothing more of it is
/// the client's. `request_id` is under what the log has more of it.
pub(crate) fn open<T: Send + 'static>(
    messages: impl Stream<Item = Result<T, ApiError>> + Send + 'static,
    pace: Pace,
    lost: impl Future<Output = ApiError> + Send + 'static,
    request_id: String,
    held: impl Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(WAITING);
    let (ended, ending) = oneshot::channel();
    tokio::spawn(async move {
        let sent = tokio::select! {
            biased;
            error = lost => Err(error),
            sent = send(messages, pace, &sender) => sent,
        };
        let end = sent.map_err(|error| {
            if error.is_ours() {
                tracing::error!(request_id, %error, "a reply broke off");
            } else {
                tracing::debug!(request_id, %error, "a reply broke off");
            }
            error.into_status(&request_id)
        });
        drop(held);
        // Nobody listens any more when the client has gone.
        let _ = ended.send(end);
    });
    let ending = stream::once(ending).filter_map(|end| async move {
        let lost = |_| Err(Status::internal("the reply broke off"));
        end.unwrap_or_else(lost).err().map(Err)
    });
    ReceiverStream::new(receiver).map(Ok).chain(ending)
}

/// Sends until the end, or until the client has gone, which is none of our errors.
async fn send<T>(
    messages: impl Stream<Item = Result<T, ApiError>>,
    pace: Pace,
    sender: &mpsc::Sender<T>,
) -> Result<(), ApiError> {
    let last = pace.whole.map(|whole| Instant::now() + whole);
    let mut messages = std::pin::pin!(messages);
    loop {
        let next = tokio::select! {
            biased;
            () = sender.closed() => return Ok(()),
            next = within(pace.silence, last, messages.next()) => next?,
        };
        let Some(message) = next else { return Ok(()) };
        if within(pace.silence, last, sender.send(message?)).await?.is_err() {
            return Ok(());
        }
    }
}

async fn within<T>(
    silence: Duration,
    last: Option<Instant>,
    work: impl Future<Output = T>,
) -> Result<T, ApiError> {
    let silent = Instant::now() + silence;
    match last {
        Some(last) if last < silent => timeout_at(last, work).await.map_err(|_| ApiError::TooSlow),
        _ => timeout_at(silent, work).await.map_err(|_| ApiError::Idle),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic::Code;

    use super::*;

    const SHORT: Pace = Pace { silence: Duration::from_millis(50), whole: None };
    const LONG: Pace = Pace { silence: Duration::from_secs(60), whole: None };

    fn numbers(count: u32) -> impl Stream<Item = Result<u32, ApiError>> + Send + 'static {
        stream::iter((0..count).map(Ok))
    }

    /// What is the client's to the end.
    fn kept() -> std::future::Pending<ApiError> {
        std::future::pending()
    }

    /// Waits until what was held is held no more.
    async fn given_up(held: &Arc<()>) {
        let begun = Instant::now();
        while Arc::strong_count(held) > 1 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is held");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn what_a_client_that_takes_nothing_holds_is_given_up_and_its_reply_does_not_look_whole() {
        let held = Arc::new(());
        let replies = open(numbers(9), SHORT, kept(), "r".into(), Arc::clone(&held));
        given_up(&held).await;
        let mut taken: Vec<_> = replies.collect().await;
        assert_eq!(taken.pop().unwrap().unwrap_err().code(), Code::DeadlineExceeded);
        assert_eq!(taken.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [0, 1]);
    }

    #[tokio::test]
    async fn one_that_takes_a_little_now_and_then_has_an_end_too() {
        let held = Arc::new(());
        let pace = Pace { whole: Some(Duration::from_millis(200)), ..LONG };
        let mut replies = Box::pin(open(numbers(1000), pace, kept(), "r".into(), Arc::clone(&held)));
        let refused = loop {
            match replies.next().await.unwrap() {
                Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(refused) => break refused,
            }
        };
        given_up(&held).await;
        assert_eq!(refused.code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_slow_client_and_a_fast_one_get_all_of_it() {
        for pause in [Duration::ZERO, Duration::from_millis(10)] {
            let held = Arc::new(());
            let mut replies = Box::pin(open(numbers(9), LONG, kept(), "r".into(), Arc::clone(&held)));
            for number in 0..9 {
                tokio::time::sleep(pause).await;
                assert_eq!(replies.next().await.unwrap().unwrap(), number);
            }
            assert!(replies.next().await.is_none());
            given_up(&held).await;
        }
    }

    #[tokio::test]
    async fn a_client_that_goes_and_a_source_that_fails_hold_nothing() {
        let held = Arc::new(());
        drop(open(stream::pending::<Result<u32, ApiError>>(), LONG, kept(), "r".into(), Arc::clone(&held)));
        given_up(&held).await;
        let broken = numbers(1).chain(stream::iter([Err(ApiError::RelayBroken)]));
        let taken: Vec<_> = open(broken, LONG, kept(), "r".into(), Arc::clone(&held)).collect().await;
        given_up(&held).await;
        assert_eq!(taken.len(), 2);
        assert_eq!(taken[1].as_ref().unwrap_err().code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn what_is_not_the_clients_any_more_ends_whether_it_takes_anything_or_not() {
        for takes in [true, false] {
            let held = Arc::new(());
            let (tell, told) = oneshot::channel::<()>();
            let lost = async move {
                let _ = told.await;
                ApiError::Core(auth_core::CoreError::Unauthenticated("it was revoked"))
            };
            let endless = stream::repeat_with(|| Ok::<_, ApiError>(7));
            let mut replies = Box::pin(open(endless, LONG, lost, "r".into(), Arc::clone(&held)));
            assert_eq!(replies.next().await.unwrap().unwrap(), 7);
            tell.send(()).unwrap();
            if !takes {
                given_up(&held).await;
            }
            let rest: Vec<_> = replies.collect().await;
            let (last, before) = rest.split_last().unwrap();
            assert_eq!(last.as_ref().unwrap_err().code(), Code::Unauthenticated);
            assert!(before.iter().all(Result::is_ok));
            given_up(&held).await;
        }
    }
}
