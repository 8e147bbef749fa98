//! What a link tells its driver.

use core::fmt;
use core::time::Duration;

use bytes::Bytes;

use super::{Ended, Violation};

/// What names a tunnel: neither is secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Names the server's process. At random.
    pub instance: u64,
    /// Names the tunnel at the server. Not 0.
    pub tunnel: u64,
}

/// The state of a [`Link`](super::Link) (PROTOCOL.md section 5.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Client: OPEN was sent, and is not answered.
    Opening,
    /// The tunnel has a transport.
    Attached,
    /// The tunnel waits for one. A client's is new, or lost its transport.
    Detached,
    /// The tunnel is over.
    Ended,
}

/// What became of a received message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// Hand it to the session. It counts as received.
    Deliver(Bytes),
    /// It was for the link, which may have output.
    Handled,
    /// Client: it was OPENED. The tunnel is attached.
    Attached,
    /// Drop the transport and call [`Link::detach`](super::Link::detach).
    Violation(Violation),
    /// Client: this attempt was refused as too old. The link is detached; drop the transport and
    /// dial again.
    Retry,
    /// The tunnel is over. Send what is left of the output, and close the transport.
    Ended(Ended),
}

/// What may be taken from the session now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Accepts {
    /// Nothing: there is no transport, or older messages go first.
    Nothing,
    /// Messages that carry no data of streams: the ring is full. See
    /// [`Session::hold_data`](crate::session::Session::hold_data).
    Control,
    /// Everything.
    All,
}

/// What [`Link::handle_timeout`](super::Link::handle_timeout) found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Due {
    /// OPEN was not answered. The link is detached; drop the transport and dial again.
    NotOpened,
    /// The tunnel is over.
    Ended(Ended),
}

/// How a tunnel went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resumption {
    /// Messages to send again.
    pub messages: u64,
    /// Bytes to send again.
    pub bytes: u64,
    /// Time without a transport.
    pub detached: Duration,
}

/// Counters of a [`Link`](super::Link).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Counted messages sent.
    pub sent: u64,
    /// Counted messages that the peer has acknowledged.
    pub acked: u64,
    /// Counted messages received.
    pub received: u64,
    /// How often the tunnel went on with another transport.
    pub resumed: u64,
    /// Messages sent again.
    pub replayed: u64,
    /// Bytes sent again.
    pub replayed_bytes: u64,
    /// Acknowledgements sent.
    pub acks: u64,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "Opening",
            Self::Attached => "Attached",
            Self::Detached => "Detached",
            Self::Ended => "Ended",
        })
    }
}
