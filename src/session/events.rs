use bytes::Bytes;

use crate::wire::Proto;

/// Names a stream or flow of one [`Session`](super::Session) from open or accept to release.
///
/// Unlike the client id on the wire it is never used again for another stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl StreamId {
    /// A small number, unique among the streams that live now: an index for the caller's own tables.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

/// What happened. Each says only that there is something to look at; a call on the session tells what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The peer wants to connect. Answer with [`accept`](super::Session::accept) or
    /// [`reject`](super::Session::reject).
    Incoming {
        /// The new stream.
        stream: StreamId,
        /// Byte stream or datagrams.
        proto: Proto,
        /// The port asked for.
        port: u16,
    },
    /// The peer has accepted a stream opened here.
    Established(StreamId),
    /// There is data, the end of data, or a reset.
    Readable(StreamId),
    /// Sending, refused before or asked for, is possible again or was ended by a reset.
    Writable(StreamId),
    /// The peer takes no new connections (GOAWAY). v2 only.
    GoAway,
    /// The peer has been silent for two keepalive intervals: every stream was reset.
    PeerDead,
}

/// What to hand to the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// One tunnel message.
    Message(Bytes),
    /// The transport's own ping, where it has one: v1 has no keepalive of its own.
    Probe,
}

/// What [`recv`](super::Session::recv) found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recv {
    /// Bytes of a stream, or exactly one datagram.
    Data(Bytes),
    /// Nothing now; [`Event::Readable`] follows.
    Blocked,
    /// The peer has finished this direction.
    Finished,
}

/// Counters since the session began. All only grow, but for the last three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Streams and flows opened here or asked for by the peer.
    pub opened: u64,
    /// Streams ended by a reset, of either side.
    pub resets: u64,
    /// Connections of the peer that this end refused because a bound was reached or it drains.
    pub refused: u64,
    /// Payload bytes transmitted.
    pub bytes_sent: u64,
    /// Payload bytes received for a known stream.
    pub bytes_received: u64,
    /// Breaches of the protocol by the peer, as [`Violation`](super::Violation).
    pub violations: u64,
    /// DATA for ids that were not, or no longer, known.
    pub stray_data: u64,
    /// Datagrams to the peer dropped because newer ones came, or because they were too long.
    pub datagrams_dropped_sending: u64,
    /// Datagrams from the peer dropped because they were not read, or because they were too long.
    pub datagrams_dropped_receiving: u64,
    /// Streams and flows now.
    pub streams: usize,
    /// Bytes received and not read now.
    pub unread: usize,
    /// Bytes accepted for sending and not transmitted now.
    pub unsent: usize,
}
