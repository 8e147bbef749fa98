//! Data that the application queues, and messages for the transport.

use bytes::Bytes;

use super::ending::Ending;
use super::endpoint::Session;
use super::sending::Outgoing;
use super::stream::Stream;
use super::{Instant, MAX_DATAGRAM, SendError, StreamId};
use crate::wire::{Chunk, ClientId, Frame, Proto};

/// Output for the transport.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, Role, Session, Transmit, Version};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Acceptor, Version::V2, Config::default(), now);
/// session.drain();
/// let goaway = [9, 0, 0, 0, 0, 0, 0, 0];
/// assert_eq!(session.poll_transmit(now), Some(Transmit::Message(goaway.to_vec().into())));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transmit {
    /// One tunnel message.
    Message(Bytes),
    /// A ping of the transport, as v1 has no keepalive of its own. Where the transport has none,
    /// call [`Session::handle_activity`] instead, or set
    /// [`Config::keepalive`](super::Config::keepalive) to `None`: the session takes silence after
    /// its ping for the peer's death.
    Ping,
}

impl Session {
    /// Bytes that [`send`](Self::send) accepts on the stream now: the right amount for one message.
    ///
    /// At most [`Config::max_piece`](super::Config::max_piece), less while many streams wait to
    /// send or the transport is slower than 1 Gbit/s. Zero when there is no credit or no room;
    /// [`request_writable`](Self::request_writable) then requests an event.
    ///
    /// # Errors
    /// [`SendError`], never `Blocked`.
    pub fn send_capacity(&self, stream: StreamId) -> Result<usize, SendError> {
        let s = self.streams.get(stream).ok_or(SendError::Unknown)?;
        check(s, Proto::Tcp)?;
        Ok(self.sending.capacity(&s.send))
    }

    /// Requests one [`Event::Writable`](super::Event::Writable) as soon as
    /// [`send_capacity`](Self::send_capacity) is above zero; immediately if it is now.
    ///
    /// Streams that wait for [`Config::send_budget`](super::Config::send_budget) get the event in
    /// the order in which they asked, as many as there is room for. The room is kept until the
    /// stream sends, ends, or [cancels](Self::cancel_writable); or until
    /// [`poll_transmit`](Self::poll_transmit) has nothing to send, all events having been taken.
    ///
    /// [`send`](Self::send) does this when it returns [`SendError::Blocked`], and
    /// [`send_slice`](Self::send_slice) when it accepts nothing. Has no effect on a stream that has
    /// ended.
    pub fn request_writable(&mut self, stream: StreamId) {
        let s = self.streams.get_mut(stream);
        if let Some(s) = s.filter(|s| check(s, Proto::Tcp).is_ok()) {
            s.notice.want_writable(true);
            if self.sending.capacity(&s.send) > 0 {
                self.events.writable(s);
            } else {
                self.line_up(stream);
            }
        }
    }

    /// The stream waits for what it needs to send.
    fn line_up(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(stream) {
            s.notice.want_writable(true);
            if self.sending.capacity(&s.send) == 0 {
                self.sending.line_up(s, &mut self.events);
                self.sending.wake(&mut self.streams, &mut self.events);
            }
        }
    }

    /// Withdraws [`request_writable`](Self::request_writable), and passes on room that was kept for
    /// the stream: its writer was told to send, and has nothing to send now.
    pub fn cancel_writable(&mut self, stream: StreamId) {
        if let Some(s) = self.streams.get_mut(stream) {
            self.sending.pass(s);
            self.sending.wake(&mut self.streams, &mut self.events);
        }
    }

    /// Queues bytes of a stream without a copy.
    ///
    /// A chunk that was read behind headroom and has at most [`send_capacity`](Self::send_capacity)
    /// bytes becomes one message without a copy. Small chunks that wait are joined.
    ///
    /// # Errors
    /// [`SendError::Blocked`] returns the chunk when it exceeds the credit or there is no room. One
    /// with more than [`send_capacity`](Self::send_capacity) bytes has to be cut: credit for all of
    /// it may never come.
    pub fn send(&mut self, stream: StreamId, chunk: Chunk) -> Result<(), SendError> {
        let s = self.streams.get_mut(stream).ok_or(SendError::Unknown)?;
        if chunk.is_empty() {
            return check(s, s.proto());
        }
        check(s, Proto::Tcp)?;
        self.sending.push(s, chunk).map_err(|chunk| {
            // There may be room for a part of it now.
            self.request_writable(stream);
            SendError::Blocked(chunk)
        })
    }

    /// Queues a copy of as many bytes as there is room for. Returns how many.
    ///
    /// Small writes that wait are joined into one message. `Ok(0)` means that there is no credit or
    /// no room; [`Event::Writable`](super::Event::Writable) follows.
    ///
    /// # Errors
    /// [`SendError`], never `Blocked`.
    pub fn send_slice(&mut self, stream: StreamId, bytes: &[u8]) -> Result<usize, SendError> {
        let s = self.streams.get_mut(stream).ok_or(SendError::Unknown)?;
        check(s, Proto::Tcp)?;
        let taken = self.sending.push_slice(s, bytes);
        if taken == 0 && !bytes.is_empty() {
            self.line_up(stream);
        }
        Ok(taken)
    }

    /// Queues as much of the chunk as there is room for, without a copy. Returns how many bytes, 0
    /// as [`send_slice`](Self::send_slice). The chunk keeps the rest.
    #[cfg(feature = "mux")]
    pub(crate) fn send_part(
        &mut self,
        stream: StreamId,
        chunk: &mut Chunk,
    ) -> Result<usize, SendError> {
        let s = self.streams.get_mut(stream).ok_or(SendError::Unknown)?;
        check(s, Proto::Tcp)?;
        let taken = self.sending.push_part(s, chunk);
        if taken == 0 && !chunk.is_empty() {
            self.line_up(stream);
        }
        Ok(taken)
    }

    /// Queues one datagram of a flow. Never blocks: when a bound of the flow is reached, its oldest
    /// datagrams are dropped and counted; when
    /// [`Config::datagram_budget`](super::Config::datagram_budget) is, this one is.
    ///
    /// # Errors
    /// [`SendError`], never `Blocked`.
    pub fn send_datagram(&mut self, flow: StreamId, datagram: Chunk) -> Result<(), SendError> {
        let s = self.streams.get_mut(flow).ok_or(SendError::Unknown)?;
        check(s, Proto::Udp)?;
        let len = datagram.len();
        if len > MAX_DATAGRAM {
            self.sending.drop_datagram();
            return Err(SendError::TooLong(len));
        }
        self.sending.push_datagram(s, datagram);
        Ok(())
    }

    /// The next message for the transport: control, then datagrams, then streams in turn
    /// (PROTOCOL.md section 5.6).
    ///
    /// Call it while the transport has room, until it returns `None`. Returned messages count as
    /// sent.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if self.is_closed() {
            return None;
        }
        if let Some(frame) = self.next_control(now) {
            return Some(Transmit::Message(frame.to_bytes()));
        }
        if self.keepalive.take_probe() {
            return Some(Transmit::Ping);
        }
        let next = self
            .sending
            .next(&mut self.streams, &mut self.events, now)?;
        let message = match next {
            Outgoing::Data(message) => message,
            Outgoing::Close(stream) => self.close(stream, now)?,
        };
        Some(Transmit::Message(message))
    }

    /// As [`poll_transmit`](Self::poll_transmit) after the last data of the only stream. Returns
    /// whether this was it: there is nothing more.
    #[cfg(feature = "mux")]
    pub(crate) fn rest(&mut self) -> bool {
        !self.is_closed()
            && self.control.is_empty()
            && !self.receiving.has_grant()
            && !self.keepalive.has_output()
            && self.sending.rest(&mut self.streams, &mut self.events)
    }

    /// While `hold` is set, [`poll_transmit`](Self::poll_transmit) gives control messages and
    /// datagrams, but neither data nor CLOSE of streams.
    ///
    /// For a transport that keeps what it carries, while its room for that is full
    /// ([`resume::Accepts::Control`](crate::resume::Accepts::Control)). Queues fill up meanwhile,
    /// and senders wait.
    pub fn hold_data(&mut self, hold: bool) {
        self.sending.set_held(hold);
    }

    /// While `keep` is set, no room is given to others that was kept for a writer: those that were
    /// told to send have not run yet.
    #[cfg(feature = "mux")]
    pub(crate) fn keep_room(&mut self, keep: bool) {
        self.sending.set_keeping(keep);
    }

    fn next_control(&mut self, now: Instant) -> Option<Frame> {
        if let Some(frame) = self.control.pop() {
            return Some(frame);
        }
        if let Some(payload) = self.keepalive.take_ping(now) {
            let id = ClientId::KEEPALIVE;
            return Some(Frame::Ping { id, payload });
        }
        self.receiving.next_grant(&mut self.streams)
    }

    /// The CLOSE of a stream whose queue is empty.
    fn close(&mut self, stream: StreamId, now: Instant) -> Option<Bytes> {
        let s = self.streams.get_mut(stream)?;
        let (proto, id) = (s.proto(), s.wire_id());
        if s.life.finish(proto) {
            self.end(stream, Ending::Finished);
        } else if self.dialect.peer_may_forget() || !s.life.is_held() {
            // The peer may never send CLOSE, or nobody here would notice it.
            self.linger.start(s, now);
        }
        Some(Frame::<Bytes>::Close { proto, id }.to_bytes())
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) may have something.
    #[must_use]
    pub fn has_transmit(&self) -> bool {
        !self.is_closed()
            && (!self.control.is_empty()
                || self.receiving.has_grant()
                || self.sending.has_output()
                || self.keepalive.has_output())
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) would return nothing and change nothing, also
    /// if data were not [held](Self::hold_data).
    #[cfg(feature = "mux")]
    pub(crate) fn is_at_rest(&self) -> bool {
        !self.has_transmit() && self.sending.is_at_rest()
    }
}

/// Whether the application may send on the stream, which must be of this kind.
fn check(s: &Stream, proto: Proto) -> Result<(), SendError> {
    if let Some(reset) = s.life.reset() {
        return Err(SendError::Reset(reset.clone()));
    }
    if s.life.state().is_pending() && !s.send.is_finishing() {
        return Err(SendError::NotAccepted);
    }
    if !s.life.state().can_send() || s.send.is_finishing() {
        return Err(SendError::Finished);
    }
    match s.proto() == proto {
        true => Ok(()),
        false => Err(SendError::Unknown),
    }
}
