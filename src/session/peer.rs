//! What the peer's messages do.

use core::time::Duration;

use bytes::Bytes;

use super::control::Cause;
use super::endpoint::Session;
use super::life::Verdict;
use super::{
    Event, Instant, MAX_DATAGRAM, Reason, Reset, Role, State, StreamId, Version, Violation,
};
use crate::wire::{ClientId, Frame, Kind, Proto};

impl Session {
    /// Less than a TCP segment: what bulk leaves only at its end, and dialogue most of the time.
    const SMALL_DATA: usize = 1024;
    /// How long after such a piece the others leave room for the next.
    const INTERACTIVE_FOR: Duration = Duration::from_millis(100);

    /// Takes one message of the peer.
    ///
    /// # Errors
    /// [`Violation`] when the peer breaks the protocol. It was counted and dealt with; the session goes on,
    /// and the caller needs to do nothing about it.
    pub fn handle_message(&mut self, now: Instant, message: Bytes) -> Result<(), Violation> {
        if self.is_closed() {
            return Ok(());
        }
        self.keepalive.heard(now);
        let outcome = match Frame::decode(message) {
            Ok(frame) => self.handle_frame(now, frame),
            Err(error) => Err(error.into()),
        };
        self.stats.violations += u64::from(outcome.is_err());
        outcome
    }

    fn handle_frame(&mut self, now: Instant, frame: Frame<Bytes>) -> Result<(), Violation> {
        let kind = frame.kind();
        if self.version == Version::V1 && !kind.in_v1() {
            return Err(Violation::NotInVersion(kind));
        }
        match frame {
            Frame::Data { proto, id, payload } => self.handle_data(now, proto, id, payload),
            Frame::Window { id, credit } => self.handle_window(id, credit),
            Frame::Connect { proto, id, port } => self.handle_connect(now, proto, id, port),
            Frame::Connected { id, .. } => self.handle_connected(id),
            Frame::Close { id, .. } => self.handle_close(now, id),
            Frame::Error { id, code, text, .. } => self.handle_error(id, code, &text),
            Frame::Ping { id, payload } => self.handle_ping(id, payload),
            Frame::Pong { payload, .. } => {
                self.keepalive.handle_pong(now, &payload);
                Ok(())
            }
            Frame::GoAway => {
                self.handle_goaway();
                Ok(())
            }
        }
    }

    fn handle_connect(
        &mut self,
        now: Instant,
        proto: Proto,
        id: ClientId,
        port: u16,
    ) -> Result<(), Violation> {
        if self.role == Role::Opener {
            return Err(Violation::WrongRole(Kind::Connect));
        }
        if let Some(slot) = self.streams.find(id) {
            self.verdict(slot, Kind::Connect)?;
            return Ok(());
        }
        let refusal = if self.is_draining() {
            Some((Reason::Gone, "no new connections here"))
        } else if self.streams.len() >= self.config.max_streams
            || self.backlog >= self.config.accept_backlog
        {
            Some((Reason::Limit, "too many connections"))
        } else if self.pressed {
            Some((Reason::Limit, "memory is short here"))
        } else {
            None
        };
        self.graves.revive(id);
        self.stats.opened += 1;
        let stream = self.insert(id, proto, State::Pending, now);
        self.backlog += 1;
        if let Some((reason, text)) = refusal {
            self.stats.refused += 1;
            self.reject(stream, reason, text);
        } else {
            self.events.push_back(Event::Incoming {
                stream,
                proto,
                port,
            });
        }
        Ok(())
    }

    fn handle_connected(&mut self, id: ClientId) -> Result<(), Violation> {
        let Some(slot) = self.known(id, Kind::Connected)? else {
            return Ok(());
        };
        if let Verdict::Become(next) = self.verdict(slot, Kind::Connected)? {
            if let Some(s) = self.streams.slot_mut(slot) {
                s.state = next;
                s.queue.establish();
                let generation = s.generation;
                self.events
                    .push_back(Event::Established(StreamId { slot, generation }));
            }
            self.notify_writable(slot);
        }
        Ok(())
    }

    fn handle_data(
        &mut self,
        now: Instant,
        proto: Proto,
        id: ClientId,
        payload: Bytes,
    ) -> Result<(), Violation> {
        let Some(slot) = self.streams.find(id) else {
            return self.handle_stray_data(proto, id, payload.len());
        };
        let wrong = |s: &mut super::stream::Stream| s.proto != proto;
        if self.streams.slot_mut(slot).is_some_and(wrong) {
            let kind = Kind::Data;
            return Err(Violation::WrongProto { kind, id });
        }
        if self.verdict(slot, Kind::Data)? != Verdict::Take {
            return Ok(());
        }
        let Some(s) = self.streams.slot_mut(slot) else {
            return Ok(());
        };
        if s.flags.released {
            self.reset_slot(slot, Reason::Gone, "nobody reads this any more");
            return Ok(());
        }
        s.conversation.hear(now);
        let len = payload.len();
        self.stats.bytes_received += len as u64;
        if proto == Proto::Udp {
            if !s.flags.deaf {
                self.take_datagram(slot, payload);
            }
            return Ok(());
        }
        if len == 0 {
            return Ok(());
        }
        if self.version == Version::V2 {
            if let Err(excess) = s.window.receive(len) {
                self.reset_slot(slot, Reason::Overflow, "more bytes than were granted");
                return Err(Violation::CreditOverrun { id, excess });
            }
        }
        if s.flags.deaf {
            s.window.consume(len);
            self.queue_grant(slot);
            return Ok(());
        }
        let generation = s.generation;
        s.unread.push(match self.thrifty {
            true => Bytes::copy_from_slice(&payload),
            false => payload,
        });
        self.stats.unread += len;
        if s.state.is_pending() {
            self.early.take(s);
        }
        let too_early = self.early.is_too_much(s);
        if len < Self::SMALL_DATA {
            self.small_data = Some((StreamId { slot, generation }, now));
        }
        self.notify_readable(slot);
        match self.version {
            Version::V1 => self.after_v1_data(now, slot, len),
            Version::V2 if too_early => {
                let text = "more than 64 KiB came before the connection was made";
                self.overflow(slot, text);
            }
            Version::V2 => self.resize_window(now, slot),
        }
        if self.stats.unread - self.datagrams_unread.bytes() > self.config.receive_budget {
            self.reset_greediest();
        }
        Ok(())
    }

    /// A datagram that is not read in time makes room for a newer one.
    fn take_datagram(&mut self, slot: u32, payload: Bytes) {
        let Some(s) = self.streams.slot_mut(slot) else {
            return;
        };
        let len = payload.len();
        if len > MAX_DATAGRAM {
            self.stats.datagrams_dropped_receiving += 1;
            return;
        }
        let mut dropped = 0;
        while s.unread.datagrams() >= self.config.datagram_queue
            || (!s.unread.is_empty() && s.unread.len() + len > self.config.datagram_buffer)
        {
            let Some(oldest) = s.unread.pop() else { break };
            self.stats.unread -= oldest.len();
            self.datagrams_unread.remove(1, oldest.len());
            dropped += 1;
        }
        if self.datagrams_unread.cost_with(len) > self.config.datagram_budget {
            dropped += 1;
        } else {
            s.unread.push_datagram(payload);
            self.stats.unread += len;
            self.datagrams_unread.add(len);
        }
        self.stats.datagrams_dropped_receiving += dropped;
        self.notify_readable(slot);
    }

    fn handle_close(&mut self, now: Instant, id: ClientId) -> Result<(), Violation> {
        let Some(slot) = self.known(id, Kind::Close)? else {
            return Ok(());
        };
        match self.verdict(slot, Kind::Close)? {
            Verdict::Abort => {
                let udp = self
                    .streams
                    .slot_mut(slot)
                    .is_some_and(|s| s.proto == Proto::Udp);
                let reset = Reset::new(Reason::Gone, "closed by the other side");
                self.end_stream(slot, (!udp).then_some(reset), true);
            }
            Verdict::Become(State::Closed) => self.end_stream(slot, None, false),
            Verdict::Become(next) => {
                if let Some(s) = self.streams.slot_mut(slot) {
                    s.state = next;
                }
                if self.version == Version::V1 && self.role == Role::Acceptor {
                    // A deployed opener closes and forgets: this direction may go nowhere.
                    self.set_deadline(slot, now + self.config.linger);
                }
                self.notify_readable(slot);
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_error(&mut self, id: ClientId, code: u16, text: &[u8]) -> Result<(), Violation> {
        let Some(slot) = self.known(id, Kind::Error)? else {
            return Ok(());
        };
        if self.verdict(slot, Kind::Error)? == Verdict::Abort {
            let reason = match self.version {
                // The deployed runner puts the target port there.
                Version::V1 => Reason::Unspecified,
                Version::V2 => Reason::from_code(code),
            };
            self.end_stream(slot, Some(Reset::from_peer(reason, text)), true);
        }
        Ok(())
    }

    fn handle_window(&mut self, id: ClientId, credit: u32) -> Result<(), Violation> {
        let Some(slot) = self.known(id, Kind::Window)? else {
            return Ok(());
        };
        if self.verdict(slot, Kind::Window)? != Verdict::Take {
            return Ok(());
        }
        let granted = self
            .streams
            .slot_mut(slot)
            .and_then(|s| s.queue.grant(credit));
        if granted.is_none() {
            self.reset_slot(slot, Reason::Overflow, "more credit than can be counted");
            return Err(Violation::CreditOverflow { id });
        }
        self.notify_writable(slot);
        Ok(())
    }

    fn handle_ping(&mut self, id: ClientId, payload: Bytes) -> Result<(), Violation> {
        if self.control.replies() >= self.config.max_replies {
            return Err(Violation::TooManyRequests(self.config.max_replies));
        }
        // The deployed peers' PONG is empty; ours need the payload back, of a size not worth an attack.
        const ECHO_MAX: usize = 125;
        let payload = match self.version {
            Version::V1 => Bytes::new(),
            Version::V2 => Bytes::copy_from_slice(payload.get(..ECHO_MAX).unwrap_or(&payload)),
        };
        self.control.push(Frame::Pong { id, payload }, Cause::Reply);
        Ok(())
    }

    /// Bytes for nobody: answered once, so that a peer that can stop does.
    fn handle_stray_data(
        &mut self,
        proto: Proto,
        id: ClientId,
        len: usize,
    ) -> Result<(), Violation> {
        self.stats.stray_data += 1;
        let known = self.graves.contains(id);
        let received = self.graves.receive(id, len);
        if self.graves.answer(id) && self.control.replies() < self.config.max_replies {
            let frame = match self.version {
                Version::V1 => Frame::Close { proto, id },
                Version::V2 => Frame::Error {
                    proto,
                    id,
                    code: Reason::Gone.code(),
                    text: Bytes::from_static(b"no such connection"),
                },
            };
            self.control.push(frame, Cause::Reply);
        }
        match received {
            Ok(()) if known => Ok(()),
            Ok(()) => Err(Violation::UnknownStream {
                kind: Kind::Data,
                id,
            }),
            Err(excess) => Err(Violation::CreditOverrun { id, excess }),
        }
    }

    /// The slot of a live stream; nothing for one that ended a while ago.
    fn known(&self, id: ClientId, kind: Kind) -> Result<Option<u32>, Violation> {
        match self.streams.find(id) {
            Some(slot) => Ok(Some(slot)),
            None if self.graves.contains(id) => Ok(None),
            None => Err(Violation::UnknownStream { kind, id }),
        }
    }

    /// What the stream's state makes of a message; a violation is an error, a fatal one ends the stream.
    fn verdict(&mut self, slot: u32, kind: Kind) -> Result<Verdict, Violation> {
        let Some(s) = self.streams.slot_mut(slot) else {
            return Ok(Verdict::Ignore);
        };
        let (id, state) = (s.id, s.state);
        let verdict = state.on_message(kind, s.proto, self.version);
        match verdict {
            Verdict::Violation => {}
            Verdict::Fatal => self.reset_slot(slot, Reason::Reset, "the protocol was broken"),
            _ => return Ok(verdict),
        }
        Err(Violation::Unexpected { kind, id, state })
    }

    fn resize_window(&mut self, now: Instant, slot: u32) {
        self.keepalive.want_sample(now);
        let Some(rtt) = self.keepalive.rtt() else {
            return;
        };
        let Some(s) = self.streams.slot_mut(slot) else {
            return;
        };
        let generation = s.generation;
        let stream = StreamId { slot, generation };
        let interactive = self
            .small_data
            .is_some_and(|(other, at)| other != stream && now - at < Self::INTERACTIVE_FOR);
        let before = s.window.size();
        let max = self.config.max_window;
        let wanted = s.window.wanted_size(now, rtt, interactive, max);
        if wanted <= before {
            s.window.resize(wanted);
            self.lent -= (before - wanted) as usize;
            return;
        }
        let lendable = match self.pressed {
            true => 0,
            false => self.config.receive_budget / 2,
        };
        let spare = lendable.saturating_sub(self.lent);
        let growth = (wanted - before).min(u32::try_from(spare).unwrap_or(u32::MAX));
        s.window.resize(before + growth);
        self.lent += growth as usize;
        self.queue_grant(slot);
    }

    /// Stands the stream in the queue for a WINDOW if one is due.
    pub(super) fn queue_grant(&mut self, slot: u32) {
        if self.version == Version::V1 {
            return;
        }
        if let Some(s) = self.streams.slot_mut(slot) {
            let open = s.state.can_receive() && s.proto == Proto::Tcp && !s.flags.released;
            if open && !s.window_queued && s.window.grant_is_due() {
                s.window_queued = true;
                let generation = s.generation;
                self.grants.push_back(StreamId { slot, generation });
            }
        }
    }

    fn after_v1_data(&mut self, now: Instant, slot: u32, len: usize) {
        let Some(s) = self.streams.slot_mut(slot) else {
            return;
        };
        if s.deadline.is_some() && s.state == State::LocalFinished {
            // The reply comes: as long as it does, wait for its end.
            self.set_deadline(slot, now + self.config.linger);
        }
        self.note_v1_data(now, slot, len);
    }

    /// The budget is overrun: the stream that holds most pays, with all it holds.
    fn reset_greediest(&mut self) {
        let streams = self.streams.iter();
        let bytes = streams.filter(|(_, s)| s.proto == Proto::Tcp);
        let greediest = bytes.max_by_key(|(_, s)| s.unread.len());
        if let Some((slot, _)) = greediest {
            self.overflow(slot, "too many bytes were not read");
        }
    }

    pub(super) fn discard_unread(&mut self, slot: u32) {
        if let Some(s) = self.streams.slot_mut(slot) {
            let len = s.unread.len();
            if s.proto == Proto::Udp {
                self.datagrams_unread.remove(s.unread.datagrams(), len);
            }
            s.unread.clear();
            self.stats.unread -= len;
            if self.stall.is_some_and(|stall| stall.slot == slot) {
                self.stall = None;
            }
        }
    }
}
