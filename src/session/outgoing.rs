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

#[cfg(feature = "mux")]
#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use super::super::{Config, Role, Version};
    use super::*;

    /// Polls both sessions, but one of them not when it says that it has nothing. Returns how often
    /// that was.
    fn poll(polled: &mut Session, rested: &mut Session, now: Instant, most: usize) -> usize {
        let (mut rests, mut count) = (false, 0);
        for _ in 0..most {
            let (at_rest, before) = (polled.is_at_rest(), format!("{polled:?}"));
            let next = polled.poll_transmit(now);
            if at_rest || rests {
                assert_eq!(next, None);
            }
            if at_rest {
                assert_eq!(format!("{polled:?}"), before);
            }
            if !rests {
                assert_eq!(rested.poll_transmit(now), next);
                let (has_sent, before) = (next.is_some(), format!("{rested:?}"));
                rests = has_sent && rested.rest();
                if rests {
                    count += 1;
                    continue;
                }
                assert_eq!(format!("{rested:?}"), before);
            }
            rests = false;
            assert_eq!(format!("{polled:?}"), format!("{rested:?}"));
        }
        if rests {
            assert_eq!(polled.poll_transmit(now), None);
        }
        assert_eq!(format!("{polled:?}"), format!("{rested:?}"));
        count
    }

    #[test]
    fn a_session_that_rests_is_as_if_it_had_been_polled() {
        let (mut at_rest, mut rests) = (0, 0);
        for seed in 0..30 {
            let mut random = fastrand::Rng::with_seed(seed);
            let config = Config {
                send_budget: 32 << 10,
                ..Config::default()
            };
            let mut ends = [(); 2].map(|()| {
                let now = Instant::default();
                Session::new(Role::Opener, Version::V2, config.clone(), now)
            });
            let mut streams = Vec::new();
            for count in 0..random.usize(1..4) {
                for end in &mut ends {
                    let stream = end.open_tcp(80, Instant::default()).unwrap();
                    if streams.len() == count {
                        streams.push(stream);
                    }
                }
            }
            let flow = ends.each_mut().map(|end| {
                let flow = end.open_udp(53, Instant::default());
                flow.unwrap()
            })[0];
            let mut micros = 0;
            for _ in 0..200 {
                micros += random.u64(1..1_000_000);
                let now = Instant::from_micros(micros);
                let stream = streams[random.usize(..streams.len())];
                let len = random.choice([1, 64, 5_000, 40_000]).unwrap();
                let (what, flag) = (random.u8(..12), random.bool());
                for end in &mut ends {
                    let id = end.client_id(stream).unwrap();
                    match what {
                        0..4 => drop(end.send_slice(stream, &alloc::vec![7; len])),
                        4 => end.request_writable(stream),
                        5 => end.cancel_writable(stream),
                        6 => end.hold_data(flag),
                        7 => end.keep_room(flag),
                        8 => drop(end.send_datagram(flow, (&[7; 99]).into())),
                        9 => end.ping(),
                        10 => while end.poll_event().is_some() {},
                        _ => {
                            let credit = 50_000;
                            let grant = Frame::<Bytes>::Window { id, credit };
                            end.handle_message(now, grant.to_bytes()).unwrap();
                        }
                    }
                }
                let [polled, other] = &mut ends;
                at_rest += usize::from(polled.is_at_rest());
                rests += poll(polled, other, now, random.usize(..6));
            }
        }
        assert!(at_rest > 100 && rests > 100, "{at_rest}, {rests}");
    }
}
