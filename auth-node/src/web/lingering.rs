//! A connection that is closed in such a way that its last answer arrives.
//!
//! Whoever closes a socket with bytes in it that nobody read resets it (RFC 1122, section 4.2.2.13), and a reset takes with it
//! what the other side has not read yet: a request that is refused before all of it was read would lose its answer.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Bytes that are read at a time, only to be forgotten.
const PIECE: usize = 4 << 10;

/// A connection that, when it is closed, says so and then reads what its client still sends, until the client closes it too:
/// at most for some time, and so many bytes.
pub(super) struct Lingering<C> {
    connection: C,
    time: Duration,
    /// Bytes that are still read.
    room: usize,
    /// Since it was said that the connection ends.
    closing: Option<Pin<Box<Sleep>>>,
}

impl<C> Lingering<C> {
    pub(super) fn new(connection: C, time: Duration, room: usize) -> Self {
        Self { connection, time, room, closing: None }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Lingering<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let time = this.time;
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.connection).poll_shutdown(cx))?;
        }
        let closing = this.closing.get_or_insert_with(|| Box::pin(sleep(time)));
        while this.room > 0 && closing.as_mut().poll(cx).is_pending() {
            let mut piece = [0; PIECE];
            let mut buf = ReadBuf::new(&mut piece);
            // Whatever breaks the connection now ends it as well as its client does.
            let read = ready!(Pin::new(&mut this.connection).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                break;
            }
            this.room = this.room.saturating_sub(buf.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::Instant,
    };

    use super::*;

    const TIME: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn what_its_client_sends_is_read_until_the_client_closes_it() {
        let (ours, mut theirs) = duplex(64);
        let mut ours = Lingering::new(ours, TIME, 1 << 20);
        ours.write_all(b"answer").await.unwrap();
        let client = async {
            theirs.write_all(&[0; 100_000]).await.unwrap();
            let mut answer = Vec::new();
            theirs.read_to_end(&mut answer).await.unwrap();
            drop(theirs);
            answer
        };
        let (closed, answer) = tokio::join!(ours.shutdown(), client);
        closed.unwrap();
        assert_eq!(answer, b"answer");
        assert_eq!(ours.room, (1 << 20) - 100_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_close_it_is_not_waited_for_longer_than_said() {
        let (ours, _theirs) = duplex(64);
        let began = Instant::now();
        Lingering::new(ours, TIME, 1 << 20).shutdown().await.unwrap();
        assert!((TIME..TIME + Duration::from_millis(10)).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_stop_is_not_read_for_ever() {
        let (ours, mut theirs) = duplex(PIECE);
        let mut ours = Lingering::new(ours, TIME, 10_000);
        let client = async { while theirs.write_all(&[0; 100]).await.is_ok() {} };
        let server = async {
            ours.shutdown().await.unwrap();
            assert!(
                ours.closing.as_ref().unwrap().deadline() > Instant::now(),
                "by the bytes, not by the time"
            );
            drop(ours);
        };
        tokio::join!(client, server);
    }
}
