//! Many small answers, one write: bytes that are to be flushed wait until the other tasks that are ready had a turn.
//!
//! When one commit answers twenty requests, twenty tasks become ready at once, and the runtime polls the connection's task right after the first of
//! them: each answer would be a system call of its own. No timer is involved: with nothing else to do, the turn comes at once.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are gathered at most; more than that goes out as it comes.
const GATHERED_MAX: usize = 8 << 10;
/// A buffer that grew beyond this is given back when it is empty: there are thousands of connections.
const KEPT_MAX: usize = 1 << 10;

/// A byte stream whose flush lets the other ready tasks write first.
#[derive(Debug)]
pub(crate) struct Gather<S> {
    stream: S,
    buffer: Vec<u8>,
    /// Of the buffer, written already.
    written: usize,
    /// The others had their turn since the buffer was empty.
    yielded: bool,
}

impl<S> Gather<S> {
    /// Wraps a stream; what reaches it is the same, later by one turn of the tasks.
    pub(crate) fn new(stream: S) -> Gather<S> {
        Gather { stream, buffer: Vec::new(), written: 0, yielded: false }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.buffer[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_MAX);
        (self.written, self.yielded) = (0, false);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.buffer.len() + buf.len() > GATHERED_MAX {
            ready!(self.poll_empty(cx))?;
            if buf.len() > GATHERED_MAX {
                return Pin::new(&mut self.stream).poll_write(cx, buf);
            }
        }
        self.buffer.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.buffer.is_empty() && !self.yielded {
            self.yielded = true;
            // To the end of this worker's queue.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Takes a few bytes at a time, and counts.
    #[derive(Debug, Default)]
    struct Sink {
        bytes: Vec<u8>,
        writes: usize,
        at_once: usize,
        shut: bool,
    }

    impl AsyncWrite for Sink {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.writes += 1;
            // Every other time there is no room.
            if self.at_once < usize::MAX && self.writes.is_multiple_of(2) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let n = buf.len().min(self.at_once);
            self.bytes.extend_from_slice(&buf[..n]);
            Poll::Ready(Ok(n))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_written_while_a_flush_waits_its_turn_goes_with_it() {
        let mut gather = Gather::new(Sink { at_once: usize::MAX, ..Sink::default() });
        gather.write_all(b"one").await.expect("written");
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut gather).poll_flush(cx))).await;
        assert!(first.is_pending() && gather.stream.writes == 0);
        gather.write_all(b"two").await.expect("written");
        gather.flush().await.expect("flushed");
        assert_eq!((gather.stream.bytes.as_slice(), gather.stream.writes), (&b"onetwo"[..], 1));
        // And again.
        gather.write_all(b"three").await.expect("written");
        gather.flush().await.expect("flushed");
        assert_eq!((gather.stream.bytes.len(), gather.stream.writes), (11, 2));
    }

    #[tokio::test]
    async fn nothing_is_lost_or_turned_round_whatever_the_sizes() {
        for at_once in [1, 7, 5_000, usize::MAX] {
            let mut gather = Gather::new(Sink { at_once, ..Sink::default() });
            let mut wanted = Vec::new();
            for (i, size) in [1, 100, GATHERED_MAX - 101, 1, GATHERED_MAX, GATHERED_MAX + 1, 3, 20_000, 5].into_iter().enumerate() {
                let part: Vec<u8> = (0..size).map(|n| (n + i) as u8).collect();
                gather.write_all(&part).await.expect("written");
                wanted.extend(part);
                if i % 3 == 1 {
                    gather.flush().await.expect("flushed");
                    assert_eq!(gather.stream.bytes, wanted);
                }
            }
            // The end takes what is left with it.
            gather.shutdown().await.expect("shut down");
            assert!(gather.stream.shut && gather.stream.bytes == wanted);
            assert!(gather.buffer.capacity() <= KEPT_MAX);
        }
    }

    #[tokio::test]
    async fn reads_do_not_wait_for_writes() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = Gather::new(near);
        far.write_all(b"ping").await.expect("written");
        near.write_all(b"pong").await.expect("gathered");
        let mut got = [0; 4];
        near.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"ping");
        near.flush().await.expect("flushed");
        far.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"pong");
    }
}
