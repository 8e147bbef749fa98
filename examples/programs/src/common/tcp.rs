//! TCP sockets on several threads.
//!
//! A socket of tokio is watched by the runtime that it was made on. If another thread polls it,
//! that thread sleeps until the first one has seen what happened and wakes it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::threads;

/// A TCP socket that follows its task: whichever thread of the program polls it, that thread's
/// runtime watches it.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    /// Position of the thread whose runtime watches it.
    watched_by: usize,
}

impl From<TcpStream> for Tcp {
    /// For a stream that was made on the calling thread.
    fn from(stream: TcpStream) -> Self {
        let watched_by = threads::position();
        Self { stream, watched_by }
    }
}

impl Tcp {
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn here(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if self.watched_by != threads::position() {
            self.follow()?;
        }
        Ok(Pin::new(&mut self.stream))
    }

    /// Has the socket watched by the calling thread's runtime.
    #[cold]
    fn follow(&mut self) -> io::Result<()> {
        // By a second descriptor, as nothing else could be in the stream's place meanwhile.
        let socket = SockRef::from(&self.stream).try_clone()?;
        *self = TcpStream::from_std(socket.into())?.into();
        Ok(())
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().here()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().here()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().here()?.poll_shutdown(cx)
    }
}
