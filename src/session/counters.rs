use super::State;

/// Counters of a [`Session`](super::Session) since it began. All but the last three only grow.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, Role, Session, Version};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
/// session.open_tcp(80, now)?;
/// assert_eq!((session.stats().opened, session.stats().streams), (1, 1));
/// # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Streams and flows opened here or requested by the peer.
    pub opened: u64,
    /// Streams reset by either side.
    pub resets: u64,
    /// Connections of the peer that this end refused because a bound was reached or it drains.
    pub refused: u64,
    /// Payload bytes transmitted.
    pub bytes_sent: u64,
    /// Payload bytes received for a known stream.
    pub bytes_received: u64,
    /// Violations by the peer ([`Violation`](super::Violation)).
    pub violations: u64,
    /// Messages of the peer without content: PING, PONG, GOAWAY, DATA of a byte stream without a
    /// payload, anything but DATA for a stream that has ended, WINDOW for a direction that has
    /// ended, and every WINDOW after the sixteenth while a stream has sent nothing. In `mux` also
    /// acknowledgements of a resumed tunnel (PROTOCOL.md section 5.10) that say nothing new.
    pub empty: u64,
    /// DATA for ids that are not live.
    pub stray_data: u64,
    /// The part of it that the peer had no reason to send: for ids that never were, or more than
    /// may be under way for one that has ended (PROTOCOL.md sections 4.2 and 5.3). In bytes, each
    /// DATA with 2 KiB more than its payload.
    pub stray_excess: u64,
    /// Datagrams to the peer that were dropped: newer ones came, or they were too long.
    pub datagrams_dropped_sending: u64,
    /// Datagrams from the peer that were dropped: they were not read, or were too long.
    pub datagrams_dropped_receiving: u64,
    /// Streams and flows now, with those that have ended and were not released.
    pub streams: usize,
    /// Bytes received and not read now.
    pub unread: usize,
    /// Bytes accepted for sending and not transmitted now.
    pub unsent: usize,
}

/// Counters of one stream or flow, from [`Session::stream_stats`](super::Session::stream_stats).
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, Role, Session, State, Version};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
/// let stream = session.open_tcp(80, now)?;
/// session.send_slice(stream, b"hello").unwrap();
/// let stats = session.stream_stats(stream).unwrap();
/// assert_eq!((stats.state, stats.unsent, stats.bytes_sent), (State::Connecting, 5, 0));
/// # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamStats {
    /// The state on the wire.
    pub state: State,
    /// Payload bytes transmitted.
    pub bytes_sent: u64,
    /// Payload bytes received, including discarded ones.
    pub bytes_received: u64,
    /// Bytes received and not read now.
    pub unread: usize,
    /// Bytes accepted for sending and not transmitted now.
    pub unsent: usize,
}
