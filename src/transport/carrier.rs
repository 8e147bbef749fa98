use bytes::Bytes;

/// How tunnel messages travel in the messages of one WebSocket stack.
///
/// A foreign message type cannot implement a trait of this crate in a user's crate, so the strategy is a
/// type of its own, usually a zero-sized one.
pub trait Carrier {
    /// The stack's message type.
    type Message;

    /// Puts one tunnel message into one binary message.
    fn wrap(&mut self, message: Bytes) -> Self::Message;

    /// Says what a received message is.
    fn unwrap(&mut self, message: Self::Message) -> Received<Self::Message>;

    /// The stack's own keepalive (a WebSocket ping), sent where the tunnel protocol has none (v1).
    ///
    /// `None` when there is no such thing: then a silent v1 peer cannot be told from a dead one, and is kept.
    fn probe(&mut self) -> Option<Self::Message> {
        None
    }
}

/// What a message of the stack means to the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received<M> {
    /// One tunnel message.
    Message(Bytes),
    /// Nothing to the tunnel, but a sign of life: a WebSocket ping or pong.
    Skip,
    /// The other side ended the transport.
    End,
    /// Anything else, for instance the text of the handshake.
    Other(M),
}
