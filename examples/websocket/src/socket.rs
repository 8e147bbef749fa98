//! The WebSocket itself: reading and writing on one socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;
use tokio::io::{AsyncRead, AsyncWrite};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tungstenite::protocol::{CloseFrame, Role};

use crate::budget::{Account, Charge};
use crate::error::Error;
use crate::inbound::{Found, Inbound, poll_discard};
use crate::limits::{CONTROL_MAX, DISCARDED_MAX};
use crate::outbound::Outbound;

/// A WebSocket after its handshake: a `Stream` and `Sink` of messages, for one task.
///
/// It answers pings and completes the closing handshake while it is polled: before it reads more,
/// and before it sends more.
#[derive(Debug)]
pub struct WebSocket<S> {
    socket: S,
    inbound: Inbound,
    outbound: Outbound,
    state: State,
}

/// `Open -> Ended`, or `Open -> Failed` after an error that the peer is informed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing more is read.
    Ended,
    /// Bytes discarded since then.
    Failed(usize),
}

impl<S> WebSocket<S> {
    /// Continues where the handshake left `socket`. `read` holds bytes that were already read from
    /// it. A longer message than `message_max` bytes from the peer ends the connection.
    pub fn new(socket: S, read: Bytes, role: Role, message_max: usize) -> Self {
        Self {
            socket,
            inbound: Inbound::new(read, role, message_max),
            outbound: Outbound::new(role),
            state: State::Open,
        }
    }

    /// Lowers or raises the limit of [`new`](Self::new) for messages that are not complete yet.
    pub fn set_message_max(&mut self, message_max: usize) {
        self.inbound.set_message_max(message_max);
    }

    /// Charges the memory of partial messages, and of what waits to be written, to `account` from
    /// now on. Until then nothing counts it.
    pub fn charge_to(&mut self, account: Arc<dyn Account>) {
        self.outbound.charge_to(Charge::to(Arc::clone(&account)));
        self.inbound.charge_to(Charge::for_messages(account));
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.poll_drain(cx, &mut self.socket)
    }

    /// Sends the reason to the peer as far as the socket accepts it now, and ends.
    fn fail(&mut self, cx: &mut Context<'_>, error: Error) -> Error {
        self.inbound.clear();
        self.state = State::Ended;
        if let Some(code) = error.close_code() {
            self.state = State::Failed(0);
            self.outbound.close(Some(&CloseFrame {
                code: code.into(),
                reason: "".into(),
            }));
            // `poll_close` writes the rest.
            let _ = self.poll_drain(cx);
        }
        error
    }

    fn take(&mut self, found: Found) -> Option<Message> {
        match found {
            Found::Data(message) => Some(message),
            Found::Ping(payload) => {
                self.outbound.answer(payload.clone());
                Some(Message::Ping(payload))
            }
            Found::Pong(payload) => Some(Message::Pong(payload)),
            Found::Close(frame) => {
                self.state = State::Ended;
                self.inbound.clear();
                self.outbound.close(frame.as_ref());
                Some(Message::Close(frame))
            }
            Found::Missing(_) | Found::Short | Found::Enough => None,
        }
    }

    /// Writes answers as far as the socket accepts them now. Those to all that one read brought
    /// take one write.
    fn write_answers(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.outbound.owes() {
            return Ok(());
        }
        match self.poll_drain(cx) {
            Poll::Ready(written) => written,
            Poll::Pending => Ok(()),
        }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Error>> {
        loop {
            let missing = match self.inbound.next()? {
                Found::Missing(missing) => missing,
                Found::Short => {
                    self.write_answers(cx)?;
                    ready!(self.inbound.poll_memory(cx))?;
                    continue;
                }
                Found::Enough => {
                    self.write_answers(cx)?;
                    self.inbound.rest();
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                found => return Poll::Ready(Ok(self.take(found))),
            };
            self.write_answers(cx)?;
            let len = ready!(self.inbound.poll_read(cx, &mut self.socket, missing))?;
            if len == 0 {
                if !self.inbound.is_between_messages() {
                    return Poll::Ready(Err(Error::Cut));
                }
                self.state = State::Ended;
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Gives the peer time to read the close code. Dropping a TCP socket with unread input sends
    /// RST, which can discard data in flight.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let State::Failed(discarded) = self.state {
            let left = DISCARDED_MAX.saturating_sub(discarded);
            if left == 0 {
                break;
            }
            match ready!(poll_discard(cx, &mut self.socket, left)) {
                Ok(len) if len > 0 => self.state = State::Failed(discarded + len),
                _ => break,
            }
        }
        self.state = State::Ended;
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for WebSocket<S> {
    type Item = Result<Message, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.state != State::Open {
            if this.outbound.owes() {
                let owed = this.poll_drain(cx);
                if this.state == State::Ended {
                    // This answers a close frame.
                    let _ = ready!(owed);
                }
            }
            return Poll::Ready(None);
        }
        match ready!(this.poll_message(cx)) {
            Ok(message) => Poll::Ready(message.map(Ok)),
            Err(error) => Poll::Ready(Some(Err(this.fail(cx, error)))),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<Message> for WebSocket<S> {
    type Error = Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.outbound.owes() || self.outbound.is_full() {
            let drained = self.poll_drain(cx)?;
            if drained.is_pending() && self.outbound.is_full() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), Error> {
        let (opcode, payload) = match message {
            Message::Binary(payload) => (OpCode::Data(Data::Binary), payload),
            Message::Text(text) => (OpCode::Data(Data::Text), text.into()),
            Message::Ping(payload) => (OpCode::Control(Control::Ping), short(payload)?),
            Message::Pong(payload) => (OpCode::Control(Control::Pong), short(payload)?),
            Message::Close(frame) => {
                let len = frame.as_ref().map_or(0, |frame| 2 + frame.reason.len());
                if len > CONTROL_MAX {
                    return Err(Error::ControlTooLong(len));
                }
                self.outbound.close(frame.as_ref());
                return Ok(());
            }
            Message::Frame(_) => return Err(Error::BareFrame),
        };
        self.outbound.push(opcode, payload);
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_drain(cx).map_err(Error::Io)
    }

    /// Sends a close frame (1001, going away) if none was sent, and does not wait for the peer's.
    /// After an error it waits for the peer to end the connection, and discards a bounded amount of
    /// input until then.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.outbound.close(Some(&CloseFrame {
            code: CloseCode::Away,
            reason: "".into(),
        }));
        ready!(self.poll_drain(cx))?;
        if let State::Failed(_) = self.state {
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
            ready!(self.poll_discard(cx));
        }
        Poll::Ready(Ok(()))
    }
}

fn short(payload: Bytes) -> Result<Bytes, Error> {
    if payload.len() > CONTROL_MAX {
        return Err(Error::ControlTooLong(payload.len()));
    }
    Ok(payload)
}
