use alloc::string::{String, ToString};
use core::fmt::Display;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use bytes::Bytes;

use super::TunnelError;
use crate::session::clean_text;
use crate::transport::{Carrier, Received, Transport, poll_received};

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

/// How messages reach the peer.
#[derive(Debug)]
pub(super) struct Path<T, C> {
    /// `None` while the tunnel waits for its next transport.
    pub(super) transport: Option<T>,
    carrier: C,
}

impl<T, C> Path<T, C> {
    pub(super) const fn new(transport: T, carrier: C) -> Self {
        let transport = Some(transport);
        Self { transport, carrier }
    }
}

impl<T, C> Path<T, C>
where
    C: Carrier,
    T: Transport<C::Message>,
{
    /// The next that the transport received.
    #[inline]
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Inward> {
        let Some(transport) = &mut self.transport else {
            return Poll::Pending;
        };
        let received = ready!(poll_received(cx, transport, &mut self.carrier));
        Poll::Ready(match received {
            Some(Ok(Received::Message(message))) => Inward::Message(message),
            Some(Ok(Received::Skip)) => Inward::Skip,
            Some(Ok(Received::End(reason))) => Inward::Over(TunnelError::ended(reason)),
            Some(Ok(Received::Text(text))) => {
                let text = clean_text(text.as_bytes());
                Inward::Over(TunnelError::Unexpected(text))
            }
            Some(Ok(Received::Other(_))) => Inward::Over(TunnelError::Unexpected(String::new())),
            Some(Err(error)) => Inward::Over(failed(&error)),
            None => Inward::Over(TunnelError::Ended(None)),
        })
    }

    /// Whether the transport accepts one more message.
    #[inline]
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let Some(transport) = &mut self.transport else {
            return Poll::Pending;
        };
        let ready = Pin::new(transport).poll_ready(cx);
        ready.map_err(|error| failed(&error))
    }

    /// Sends a message, after [`poll_ready`](Self::poll_ready).
    #[inline]
    pub(super) fn send(&mut self, message: Bytes) -> Result<(), TunnelError> {
        let message = self.carrier.binary(message);
        self.start_send(message)
    }

    /// As [`send`](Self::send), the transport's own ping. False if it has none.
    pub(super) fn send_ping(&mut self) -> Result<bool, TunnelError> {
        match self.carrier.ping() {
            Some(ping) => self.start_send(ping).map(|()| true),
            None => Ok(false),
        }
    }

    /// As [`send`](Self::send), a code and a reason for the end, if the transport has such
    /// messages.
    pub(super) fn send_close(&mut self, code: u16, why: &str) {
        if let Some(close) = self.carrier.close(code, why) {
            // A transport that fails here is closed next anyway.
            let _ = self.start_send(close);
        }
    }

    #[inline]
    fn start_send(&mut self, message: C::Message) -> Result<(), TunnelError> {
        let Some(transport) = &mut self.transport else {
            // Unreachable: `poll_ready` was not ready.
            return Ok(());
        };
        let sent = Pin::new(transport).start_send(message);
        sent.map_err(|error| failed(&error))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let Some(transport) = &mut self.transport else {
            return Poll::Ready(Ok(()));
        };
        let flushed = Pin::new(transport).poll_flush(cx);
        flushed.map_err(|error| failed(&error))
    }

    /// Ready when this end of the transport is closed, or has failed.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(transport) = &mut self.transport else {
            return Poll::Ready(());
        };
        Pin::new(transport).poll_close(cx).map(|_| ())
    }
}

fn failed(error: &impl Display) -> TunnelError {
    TunnelError::Transport(error.to_string())
}
