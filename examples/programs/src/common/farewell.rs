//! The close frames of a tunnel's WebSocket. The mux ends its transport without a word of its own,
//! and takes any close frame for the end: here a program says which frame is sent, and reads which
//! one came.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tunnel_websocket::{CloseFrame, Message};

use super::ws::Socket;

/// To be kept by whoever ends the tunnel, or wants to know why it ended.
#[derive(Debug, Clone, Default)]
pub struct Farewell(Arc<Mutex<Frames>>);

#[derive(Debug, Default)]
struct Frames {
    ours: Option<CloseFrame>,
    theirs: Option<CloseFrame>,
}

impl Farewell {
    /// What is sent when this end closes the WebSocket: at most 123 bytes of reason.
    pub fn say(&self, code: u16, reason: &'static str) {
        self.lock().ours = Some(CloseFrame {
            code: code.into(),
            reason: reason.into(),
        });
    }

    /// The code with which the other end closed it.
    pub fn heard(&self) -> Option<u16> {
        let frames = self.lock();
        frames.theirs.as_ref().map(|frame| frame.code.into())
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A WebSocket that says and hears a [`Farewell`].
pub struct Parting {
    pub socket: Socket,
    pub farewell: Farewell,
}

type Error = <Socket as Sink<Message>>::Error;

impl Stream for Parting {
    type Item = Result<Message, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.socket.poll_next_unpin(cx);
        if let Poll::Ready(Some(Ok(Message::Close(frame)))) = &polled {
            self.farewell.lock().theirs.clone_from(frame);
        }
        polled
    }
}

impl Sink<Message> for Parting {
    type Error = Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.socket.poll_ready_unpin(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), Error> {
        self.socket.start_send_unpin(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.socket.poll_flush_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let ours = self.farewell.lock().ours.take();
        if let Some(frame) = ours {
            // After a close frame that was sent already this one goes nowhere.
            self.socket.start_send_unpin(Message::Close(Some(frame)))?;
        }
        self.socket.poll_close_unpin(cx)
    }
}
