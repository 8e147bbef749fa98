use alloc::string::{String, ToString};
use core::fmt::Display;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;

use super::TunnelError;
use super::shared::{Shared, State};
use super::stoppable::Now;
use crate::resume::EndReason;
use crate::session::{Instant, Session, Transmit, clean_text};
use crate::transport::{Carrier, Received};

/// How a tunnel's messages reach the peer, for the [`Engine`](super::engine::Engine).
///
/// The methods with a body are those of a tunnel that outlives its transports.
pub(super) trait Path {
    /// Looks for a better transport, and at the time, before the transport is read.
    #[inline]
    fn begin_round(&mut self, _: &mut Context<'_>, _: &Shared, _: Instant) -> Round {
        Round::Same
    }

    /// Received messages were handled. Exchanges with the handles what both need, under the lock.
    #[inline]
    fn exchange(&mut self, _: &mut State) {}

    /// As [`exchange`](Self::exchange), without the lock. `lost`: the transport is over.
    #[inline]
    fn end_of_inbox(&mut self, _: &Shared, _: Instant, lost: Option<TunnelError>) -> Round {
        lost.map_or(Round::Same, |error| Round::Over(Err(error)))
    }

    /// When to [begin a round](Self::begin_round) at the latest, by the timer's clock.
    #[inline]
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Nothing more will be sent: tells the peer. Call it again after further output.
    #[inline]
    fn finish(&mut self, _: EndReason) -> Finish {
        Finish::Done
    }

    /// Whether [`finish`](Self::finish) was called.
    #[inline]
    fn is_finishing(&self) -> bool {
        false
    }

    /// As [`finish`](Self::finish), without what was not sent.
    #[inline]
    fn give_up(&mut self, _: EndReason) {}

    /// Whether the next round will be the last.
    #[inline]
    fn has_failed(&self) -> bool {
        false
    }

    /// Whether the transport only carries what opens the tunnel.
    #[inline]
    fn is_opening(&self) -> bool {
        false
    }

    /// Whether there is a transport to close.
    #[inline]
    fn is_attached(&self) -> bool {
        true
    }

    /// The tunnel has ended, and nobody waits for another transport any more.
    fn over(&mut self, _: Instant, _: &Result<(), TunnelError>) {}

    /// Tells the peer of the end, before the transport is closed.
    fn poll_farewell(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// The next that the transport received.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Inward>;

    /// Passes a received message to the session.
    fn handle_message(&mut self, session: &mut Session, now: Now, message: Bytes);

    /// The next message for the transport.
    fn poll_transmit(&mut self, session: &mut Session, now: Instant) -> Option<Transmit>;

    /// Whether the transport accepts one more message.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>>;

    /// Sends a message, after [`poll_ready`](Self::poll_ready).
    fn send(&mut self, message: Bytes) -> Result<(), TunnelError>;

    /// As [`send`](Self::send), the transport's own ping. False if it has none.
    fn send_ping(&mut self) -> Result<bool, TunnelError>;

    /// As [`send`](Self::send), a code and a reason for the end, if the transport has such
    /// messages.
    fn send_close(&mut self, code: u16, why: &str);

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>>;

    /// Ready when this end of the transport is closed, or has failed.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// What became of the transport.
pub(super) enum Round {
    Same,
    /// It is lost, or another one took its place: what was to be written is obsolete.
    Changed,
    /// The tunnel has ended.
    Over(Result<(), TunnelError>),
}

/// Progress of telling the peer of the end.
pub(super) enum Finish {
    /// There is output now.
    Begun,
    Waiting,
    Done,
}

/// What a transport received.
pub(super) enum Inward {
    /// A message of the tunnel.
    Message(Bytes),
    /// A sign of life without content.
    Skip,
    /// The end of the transport, or something that ends its use.
    Over(TunnelError),
}

/// Whether this is the end of a transport: it must not be read again. A text is not the end.
pub(super) const fn is_end(error: &TunnelError) -> bool {
    !matches!(error, TunnelError::Unexpected(_))
}

/// One transport, whose end is the end of the tunnel.
#[derive(Debug)]
pub(super) struct Direct<T, C> {
    pub(super) transport: T,
    pub(super) carrier: C,
}

impl<T, C, E> Path for Direct<T, C>
where
    T: Stream<Item = Result<C::Message, E>> + Sink<C::Message, Error = E> + Unpin,
    C: Carrier,
    E: Display,
{
    #[inline]
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Inward> {
        let message = match ready!(Pin::new(&mut self.transport).poll_next(cx)) {
            None => return Poll::Ready(Inward::Over(TunnelError::Ended(None))),
            Some(Err(error)) => return Poll::Ready(Inward::Over(failed(&error))),
            Some(Ok(message)) => message,
        };
        Poll::Ready(match self.carrier.classify(message) {
            Received::Message(message) => Inward::Message(message),
            Received::Skip => Inward::Skip,
            Received::End(reason) => {
                // Stacks answer a closing handshake when they are polled again.
                let _ = Pin::new(&mut self.transport).poll_next(cx);
                Inward::Over(TunnelError::ended(reason))
            }
            Received::Text(text) => {
                let text = clean_text(text.as_bytes());
                Inward::Over(TunnelError::Unexpected(text))
            }
            Received::Other(_) => Inward::Over(TunnelError::Unexpected(String::new())),
        })
    }

    #[inline]
    fn handle_message(&mut self, session: &mut Session, now: Now, message: Bytes) {
        // The session has counted and handled a violation.
        let _ = session.handle_message(now.session, message);
    }

    #[inline]
    fn poll_transmit(&mut self, session: &mut Session, now: Instant) -> Option<Transmit> {
        session.poll_transmit(now)
    }

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let ready = Pin::new(&mut self.transport).poll_ready(cx);
        ready.map_err(|error| failed(&error))
    }

    #[inline]
    fn send(&mut self, message: Bytes) -> Result<(), TunnelError> {
        let message = self.carrier.binary(message);
        let sent = Pin::new(&mut self.transport).start_send(message);
        sent.map_err(|error| failed(&error))
    }

    fn send_ping(&mut self) -> Result<bool, TunnelError> {
        let Some(ping) = self.carrier.ping() else {
            return Ok(false);
        };
        let sent = Pin::new(&mut self.transport).start_send(ping);
        sent.map(|()| true).map_err(|error| failed(&error))
    }

    fn send_close(&mut self, code: u16, why: &str) {
        if let Some(close) = self.carrier.close(code, why) {
            // A transport that fails here is closed next anyway.
            let _ = Pin::new(&mut self.transport).start_send(close);
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let flushed = Pin::new(&mut self.transport).poll_flush(cx);
        flushed.map_err(|error| failed(&error))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.transport).poll_close(cx).map(|_| ())
    }
}

fn failed(error: &impl Display) -> TunnelError {
    TunnelError::Transport(error.to_string())
}
