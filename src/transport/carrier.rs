use alloc::string::String;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;

/// Most messages that one poll skips before the task yields.
pub(crate) const SKIP_MAX: usize = 32;

/// How the messages of a WebSocket stack carry tunnel messages.
///
/// A user's crate cannot implement a trait of this crate for another crate's message type. The
/// carrier is therefore a type of its own, usually zero-sized. The macro
/// [`carrier!`](crate::carrier!) writes it for tungstenite, axum and tokio-websockets. For another
/// stack implement the trait: [`binary`](Self::binary) and [`classify`](Self::classify) carry the
/// tunnel, and each other method adds what its documentation says.
///
/// ```
/// use bytes::Bytes;
/// use kohakuriver_tunnel::transport::{Carrier, Received};
///
/// /// A message of some stack.
/// enum Packet {
///     Binary(Vec<u8>),
///     Text(String),
///     Heartbeat,
///     Bye,
/// }
///
/// struct InPackets;
///
/// impl Carrier for InPackets {
///     type Message = Packet;
///
///     fn binary(&mut self, message: Bytes) -> Packet {
///         Packet::Binary(message.into())
///     }
///
///     fn classify(&mut self, packet: Packet) -> Received<Packet> {
///         match packet {
///             Packet::Binary(message) => Received::Message(message.into()),
///             Packet::Text(text) => Received::Text(text),
///             Packet::Heartbeat => Received::Skip,
///             Packet::Bye => Received::End(None),
///         }
///     }
///
///     fn ping(&mut self) -> Option<Packet> {
///         Some(Packet::Heartbeat)
///     }
///
///     fn text(&mut self, text: String) -> Option<Packet> {
///         Some(Packet::Text(text))
///     }
/// }
/// ```
pub trait Carrier {
    /// The stack's message type.
    type Message;

    /// Wraps one tunnel message, at most 1 MiB, in one binary message.
    fn binary(&mut self, message: Bytes) -> Self::Message;

    /// Classifies a received message.
    fn classify(&mut self, message: Self::Message) -> Received<Self::Message>;

    /// The stack's own keepalive (a WebSocket ping). Used where the tunnel protocol has none (v1),
    /// and to find out whether a peer that floods has left.
    ///
    /// `None`, the default, if there is no such message. A silent v1 peer then cannot be
    /// distinguished from a dead one, and is kept.
    fn ping(&mut self) -> Option<Self::Message> {
        None
    }

    /// A text message: the greeting of a session (PROTOCOL.md section 4.1).
    ///
    /// `None`, the default, if the stack has no texts. There is no greeting then.
    fn text(&mut self, text: String) -> Option<Self::Message> {
        let _ = text;
        None
    }

    /// A message that closes the transport with a code and a reason for a person. A WebSocket
    /// carries at most 123 bytes of the reason ([`CloseReason::cut`]).
    ///
    /// `None`, the default, if the stack has no such message. The transport is then closed without
    /// a reason.
    fn close(&mut self, code: u16, why: &str) -> Option<Self::Message> {
        let _ = (code, why);
        None
    }
}

/// The meaning of a stack's message for the tunnel.
///
/// ```
/// use kohakuriver_tunnel::carrier;
/// use kohakuriver_tunnel::transport::{Carrier, Received};
/// use tokio_tungstenite::tungstenite;
///
/// carrier!(Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame);
///
/// let ping = tungstenite::Message::Ping("?".into());
/// assert_eq!(Ws.classify(ping), Received::Skip);
/// let text = tungstenite::Message::text("CONNECTED");
/// assert_eq!(Ws.classify(text), Received::Text("CONNECTED".into()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received<M> {
    /// One tunnel message.
    Message(Bytes),
    /// A text, unchanged: the greeting of a session, or a violation after it. Pass it through
    /// [`clean_text`](crate::session::clean_text) before showing it.
    Text(String),
    /// A sign of life without content: a WebSocket ping or pong.
    Skip,
    /// The peer ended the transport, with a code and a reason if it gave one.
    End(Option<CloseReason>),
    /// Anything else.
    Other(M),
}

/// The next message of a transport.
#[inline]
pub(crate) fn poll_received<T, C, E>(
    cx: &mut Context<'_>,
    transport: &mut T,
    carrier: &mut C,
) -> Poll<Option<Result<Received<C::Message>, E>>>
where
    T: Stream<Item = Result<C::Message, E>> + Unpin,
    C: Carrier,
{
    let message = ready!(Pin::new(&mut *transport).poll_next(cx));
    let received = message.map(|message| message.map(|message| carrier.classify(message)));
    if let Some(Ok(Received::End(_))) = received {
        // Stacks answer a closing handshake when they are polled again.
        let _ = Pin::new(transport).poll_next(cx);
    }
    Poll::Ready(received)
}

/// Code and reason of a closed WebSocket (RFC 6455 section 7.4, PROTOCOL.md section 4.1).
///
/// ```
/// use kohakuriver_tunnel::transport::CloseReason;
///
/// let refused = CloseReason::new(1008, "unknown task");
/// assert_eq!(refused.to_string(), "unknown task (1008)");
/// assert_eq!(CloseReason::cut(&"é".repeat(100)).len(), 122);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReason {
    /// 1000 is a normal end, 1008 a refusal, 1011 a failure.
    pub code: u16,
    /// For a person to read; may be empty. Unchanged if it came from a peer.
    pub text: String,
}

impl CloseReason {
    /// Longest text in a WebSocket's close frame, in bytes.
    pub const MAX_TEXT: usize = 123;

    /// A code and a text, unchanged.
    #[must_use]
    pub fn new(code: u16, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { code, text }
    }

    /// As much of `text` as fits a close frame, in whole characters.
    #[must_use]
    pub fn cut(text: &str) -> &str {
        let fits = |end: &usize| text.is_char_boundary(*end);
        let end = (0..=Self::MAX_TEXT.min(text.len())).rev().find(fits);
        end.and_then(|end| text.get(..end)).unwrap_or_default()
    }
}

impl core::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.text.as_str() {
            "" => write!(f, "code {}", self.code),
            text => write!(f, "{text} ({})", self.code),
        }
    }
}

/// The carrier of a transport whose messages are [`Bytes`] and nothing else: a channel, a data
/// channel of a browser, or a byte stream with a length before each message.
///
/// It has no pings, texts or close codes.
///
/// ```
/// use kohakuriver_tunnel::transport::{Carrier, Plain, Received};
///
/// assert_eq!(Plain.classify(Plain.binary("hi".into())), Received::Message("hi".into()));
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Carrier for Plain {
    type Message = Bytes;

    fn binary(&mut self, message: Bytes) -> Bytes {
        message
    }

    fn classify(&mut self, message: Bytes) -> Received<Bytes> {
        Received::Message(message)
    }
}
