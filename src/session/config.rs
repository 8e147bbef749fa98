use core::time::Duration;

/// Default of [`Config::max_piece`].
pub(super) const MAX_PIECE: usize = 130_900;

/// Bounds and times of a [`Session`](super::Session). Every queue is bounded here.
///
/// The two ends need not use the same values. Each field has a setter with the prefix `with_`:
///
/// ```
/// use std::time::Duration;
///
/// use kohakuriver_tunnel::session::{Config, Instant, OpenError, Role, Session, Version};
///
/// let config = Config::default()
///     .with_max_streams(1)
///     .with_keepalive(Some(Duration::from_secs(5)));
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, config, now);
/// session.open_tcp(80, now)?;
/// assert_eq!(session.open_tcp(80, now), Err(OpenError::Limit(1)));
/// # Ok::<(), OpenError>(())
/// ```
///
/// A session clamps values that are out of range.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Most streams and flows at a time, including those not yet accepted. Default 16,384.
    ///
    /// Bounds the memory for connections that a peer opens: a few hundred bytes each. A further
    /// CONNECT is answered with ERROR (limit). The session also remembers this many ids of ended
    /// streams, and at least 1,024.
    pub max_streams: usize,
    /// Most connections that are not answered yet. Default 1,024.
    ///
    /// Bounds the connections that a peer can queue, those that the program dials for included. One
    /// that the peer ends meanwhile counts until the program answers.
    pub accept_backlog: usize,
    /// Most bytes received and not yet read, over all streams. Default 64 MiB.
    ///
    /// Bounds what a peer can make this end hold. From seven eighths of it on (or all but 128 KiB,
    /// if that is less, but at least a half), the transport is not read until readers have made
    /// room, or for 2 s in which they make hardly any (PROTOCOL.md section 5.5). When it is
    /// exceeded, the stream that holds most is reset with reason overflow. Growing windows may
    /// borrow half of it.
    ///
    /// What the transport's buffers have besides is not counted. A payload of 4 KiB or more keeps
    /// the one alive that it was read into; once a 64th of the budget is held, only those of 64 KiB
    /// or more do. Over `mux::length_prefixed` this end holds at most 8 times the budget. Over
    /// another transport it is about as many times as its largest buffer has 64 KiB, and once more.
    pub receive_budget: usize,
    /// Largest window of one stream in bytes, from 256 KiB to 2^31 - 1. Default 32 MiB.
    ///
    /// With the default a stream reaches 1 Gbit/s over a round trip of about 200 ms. Bounds what
    /// one stalled reader can hold.
    pub max_window: u32,
    /// v1: most bytes received and not yet read on one stream before the tunnel stalls. Default 4
    /// MiB.
    ///
    /// v1 has no credit, so this is what one paused reader can hold.
    pub v1_stream_buffer: usize,
    /// v1: longest stall of the tunnel by a full stream that reads less than 64 KiB, or less than a
    /// 256th of what it holds beyond `v1_stream_buffer`, while other streams wait. Then the stream
    /// is reset with reason overflow. Default 2 s.
    ///
    /// Bounds how long one paused reader stops all others. While no other stream waits, the stall
    /// lasts until the reader reads or the peer ends the transport. One that only may wait waits
    /// until `v1_reach` is used up: something came for it just before the stall, or what was sent
    /// on it more than `v1_stall` before the stall is not answered, and no more is sent.
    pub v1_stall: Duration,
    /// v1: most bytes that streams that still receive hold beyond `v1_stream_buffer` while one of
    /// them stalls the tunnel, except for one message. Received 1 MiB each `v1_stall`, or 4 MiB if
    /// others may wait. Default 32 MiB.
    ///
    /// The peer's transport pings are queued behind these bytes, and the peer ends the transport
    /// when they are not answered. No more is received for this once all streams, ended ones
    /// included, hold half of `receive_budget`.
    pub v1_reach: usize,
    /// Most bytes accepted for sending and not yet transmitted, over all streams. Default 512 KiB.
    ///
    /// If the peer does not read its transport, this end holds at most this, one piece or whatever
    /// longer chunk was sent at once, and 4 KiB a stream. With more, a stream waits longer behind
    /// what others have queued, and payload falls out of the processor's caches; with less, the
    /// transport runs dry.
    pub send_budget: usize,
    /// Most bytes accepted for sending and not yet transmitted on one stream. Default 256 KiB.
    pub stream_send_buffer: usize,
    /// Largest payload of one DATA message on a stream in bytes, at most 1 MiB - 8. Default
    /// 130,900: with the headers of a WebSocket it fills two segments of a loopback interface.
    pub max_piece: usize,
    /// Most that a stream is offered at once while more than four streams wait to send or the
    /// transport takes less than 1 Gbit/s, and always in v1, where the receiver judges a reader by
    /// the pieces that it takes (PROTOCOL.md section 4.2). Default 64 KiB.
    ///
    /// Otherwise a round is short, and a stream that was idle goes first anyway.
    pub contended_piece: usize,
    /// Most datagrams queued on one flow in each direction; a further one drops the oldest. Default
    /// 256.
    pub datagram_queue: usize,
    /// Most bytes of datagrams queued on one flow in each direction; more drop the oldest. Received
    /// ones have [`EARLY_DATA`](super::EARLY_DATA) at most until the flow is accepted. Default
    /// 1 MiB.
    pub datagram_buffer: usize,
    /// Most bytes of datagrams queued over all flows in each direction, where each datagram counts
    /// 64 bytes more than its length. A further datagram is dropped, and so is each that is longer
    /// than this allows. Default 16 MiB.
    pub datagram_budget: usize,
    /// Silence after which the peer is probed. After twice this time the peer counts as dead.
    /// `None` or zero disables both. At least 1 ms. Default 15 s.
    pub keepalive: Option<Duration>,
    /// How long one direction may outlive the other when the peer may never end it: in v1 after
    /// this end's CLOSE, and at an acceptor after the peer's; in v2 after the handle is released.
    /// Data received after this end's CLOSE begins the time anew. Default 10 s.
    ///
    /// Bounds how long streams last whose peer sent CLOSE and forgot them, as deployed peers do.
    pub linger: Duration,
    /// Client id of the first connection opened here; later ones count up from it. Default `None`:
    /// 1, or a random id in `mux`.
    ///
    /// Deployed runners pass ids through, so the ids of two clients of one container must differ
    /// (PROTOCOL.md section 2.3). A program with a source of randomness should set it. 0 counts as
    /// 1.
    pub first_id: Option<u32>,
    /// Most answers to the peer's PING, CONNECT or stray DATA that wait to be transmitted before
    /// receiving stops. Default 4,096.
    ///
    /// Bounds the answers for a peer that asks and does not read. At least 16, so that two ends
    /// that only measure the round trip never wait for each other.
    pub max_replies: usize,
    /// Where this end is, in the texts of refusals and resets for want of room: "memory is short
    /// here". Default "here".
    ///
    /// Such a text may reach a person over several tunnels, who cannot know where "here" is.
    pub place: &'static str,
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Config {
    const DEFAULT: Self = Self {
        max_streams: 16_384,
        accept_backlog: 1_024,
        receive_budget: 64 << 20,
        max_window: 32 << 20,
        v1_stream_buffer: 4 << 20,
        v1_stall: Duration::from_secs(2),
        v1_reach: 32 << 20,
        send_budget: 512 << 10,
        stream_send_buffer: 256 << 10,
        max_piece: MAX_PIECE,
        contended_piece: 64 << 10,
        datagram_queue: 256,
        datagram_buffer: 1 << 20,
        datagram_budget: 16 << 20,
        keepalive: Some(Duration::from_secs(15)),
        linger: Duration::from_secs(10),
        first_id: None,
        max_replies: 4_096,
        place: "here",
    };

    /// Bounds for a small device: a session holds less than 512 KiB, whatever the peer sends and
    /// does not read.
    ///
    /// At most 16 streams, 256 KiB received and not read over all of them, 32 KiB queued for
    /// sending and 4 KiB more a stream, 32 KiB of datagrams in each direction, pieces of 4 KiB, and
    /// 1,024 ids of ended streams. Windows do not grow, so a stream carries at most 256 KiB in a
    /// round trip.
    ///
    /// In v2 a stream may send 256 KiB before the first WINDOW (PROTOCOL.md section 5.5), which is
    /// all that may be unread. From 128 KiB on the transport is not read for 2 s. If the readers
    /// stay paused, more is accepted, and the first byte beyond 256 KiB on any stream resets the
    /// one that holds most with reason overflow.
    ///
    /// The memory of the transport is not included: bound its messages and its buffers too. The
    /// longest message comes from the peer, whose [`max_piece`](Self::max_piece) and header are
    /// 130,908 bytes by default. A transport with a lower bound needs a lower `max_piece` at the
    /// peer.
    ///
    /// ```
    /// use kohakuriver_tunnel::session::{Config, Instant, Role, Session, Version};
    ///
    /// let config = Config::small().with_max_streams(4);
    /// let session = Session::new(Role::Acceptor, Version::V2, config, Instant::default());
    /// # assert!(session.is_idle());
    /// ```
    #[must_use]
    pub const fn small() -> Self {
        Self {
            max_streams: 16,
            accept_backlog: 4,
            receive_budget: 256 << 10,
            max_window: super::INITIAL_WINDOW,
            v1_stream_buffer: 32 << 10,
            v1_reach: 0,
            send_budget: 32 << 10,
            stream_send_buffer: 8 << 10,
            max_piece: 4 << 10,
            contended_piece: 4 << 10,
            datagram_queue: 8,
            datagram_buffer: 16 << 10,
            datagram_budget: 32 << 10,
            max_replies: 64,
            ..Self::DEFAULT
        }
    }

    setters! {
        with_max_streams => max_streams: usize,
        with_accept_backlog => accept_backlog: usize,
        with_receive_budget => receive_budget: usize,
        with_max_window => max_window: u32,
        with_v1_stream_buffer => v1_stream_buffer: usize,
        with_v1_stall => v1_stall: Duration,
        with_v1_reach => v1_reach: usize,
        with_send_budget => send_budget: usize,
        with_stream_send_buffer => stream_send_buffer: usize,
        with_max_piece => max_piece: usize,
        with_contended_piece => contended_piece: usize,
        with_datagram_queue => datagram_queue: usize,
        with_datagram_buffer => datagram_buffer: usize,
        with_datagram_budget => datagram_budget: usize,
        with_keepalive => keepalive: Option<Duration>,
        with_linger => linger: Duration,
        with_first_id => first_id: Option<u32>,
        with_max_replies => max_replies: usize,
        with_place => place: &'static str,
    }

    /// The same configuration, with values clamped to the range the protocol allows.
    pub(super) fn clamped(mut self) -> Self {
        const MAX_MESSAGE_PAYLOAD: usize = (1 << 20) - crate::wire::HEADER_LEN;
        self.max_piece = self.max_piece.clamp(1, MAX_MESSAGE_PAYLOAD);
        self.contended_piece = self.contended_piece.clamp(1, self.max_piece);
        self.max_window = self
            .max_window
            .clamp(super::INITIAL_WINDOW, i32::MAX as u32);
        self.stream_send_buffer = self.stream_send_buffer.max(1);
        let keepalive = self.keepalive.filter(|silence| !silence.is_zero());
        self.keepalive = keepalive.map(|silence| silence.max(Duration::from_millis(1)));
        self.datagram_queue = self.datagram_queue.max(1);
        self.v1_stream_buffer = self.v1_stream_buffer.max(1);
        self.v1_stall = self.v1_stall.max(Duration::from_millis(1));
        self.max_replies = self.max_replies.max(16);
        self
    }
}
