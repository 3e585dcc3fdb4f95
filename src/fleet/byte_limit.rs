//! Limits the memory that data from the server can use. The client crate collects a whole reply before it returns it;
//! this stream closes the connection if more bytes arrive than the last request allows.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Join, ReadBuf, ReadHalf, WriteHalf, join, split};

/// Maximum number of bytes that may arrive for one request or one notice.
pub(super) const MAX_REPLY_LEN: usize = 4 << 20;

/// Number of bytes that may still arrive. Each request and each notice resets it.
#[derive(Clone, Default)]
pub(super) struct ByteLimit(Arc<State>);

#[derive(Default)]
struct State {
    left: AtomicUsize,
    is_exceeded: AtomicBool,
}

impl ByteLimit {
    /// Resets the number of bytes, after a notice was handled or before a request is sent.
    pub(super) fn renew(&self) {
        self.0.left.store(MAX_REPLY_LEN, Ordering::Relaxed);
    }

    pub(super) fn is_exceeded(&self) -> bool {
        self.0.is_exceeded.load(Ordering::Relaxed)
    }
}

/// The reading side of a stream. It fails when its limit is used up.
pub(super) struct Bounded<S> {
    stream: ReadHalf<S>,
    limit: ByteLimit,
}

/// Limits the bytes that can be read from `stream`.
pub(super) fn bounded<S: AsyncRead + AsyncWrite>(stream: S, limit: ByteLimit) -> Join<Bounded<S>, WriteHalf<S>> {
    limit.renew();
    let (stream, writer) = split(stream);
    join(Bounded { stream, limit }, writer)
}

impl<S: AsyncRead> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.limit.0.left.load(Ordering::Relaxed);
        if left == 0 {
            self.limit.0.is_exceeded.store(true, Ordering::Relaxed);
            let error = format!("the reply is longer than {MAX_REPLY_LEN} bytes");
            return Poll::Ready(Err(io::Error::other(error)));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        // One read may exceed the limit by at most the size of the buffer.
        let read = buffer.filled().len().saturating_sub(before);
        self.limit.0.left.store(left.saturating_sub(read), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}
