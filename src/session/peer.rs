//! The effect of each message of the peer.

use bytes::Bytes;

use super::ending::Ending;
use super::endpoint::Session;
use super::receiving::{Taken, payload};
use super::state::Verdict;
use super::stream::Stream;
use super::streams::{OnWire, Streams};
use super::{Event, Instant, Reason, Reset, Role, State, Stats, Violation};
use crate::wire::{ClientId, Frame, Kind, Proto};

impl Session {
    /// What a DATA costs besides its bytes: as many fill a turn of a driver (`mux`).
    const DATA_COST: u64 = 2 << 10;

    /// Handles one message of the peer. Call it only while [`can_receive`](Self::can_receive) is
    /// true.
    ///
    /// # Errors
    /// [`Violation`] if the peer broke the protocol. The session has counted,
    /// [reported](super::Event) and handled it and continues; the caller need not do anything.
    pub fn handle_message(&mut self, now: Instant, message: Bytes) -> Result<(), Violation> {
        if self.is_closed() {
            return Ok(());
        }
        self.keepalive.heard(now);
        let outcome = self.handle_frame(now, message);
        if let Err(violation) = outcome {
            self.counters.violations += 1;
            self.events.violation(violation);
        }
        outcome
    }

    fn handle_frame(&mut self, now: Instant, message: Bytes) -> Result<(), Violation> {
        let frame = Frame::decode(&*message)?;
        let kind = frame.kind();
        if !self.dialect.knows(kind) {
            return Err(Violation::NotInVersion(kind));
        }
        match frame {
            Frame::Data { proto, id, .. } => self.handle_data(now, proto, id, message),
            Frame::Window { id, credit } => self.handle_window(id, credit),
            Frame::Connect { proto, id, port } => self.handle_connect(now, proto, id, port),
            Frame::Connected { id, .. } => self.handle_connected(now, id),
            Frame::Close { id, .. } => self.handle_close(now, id),
            Frame::Error { id, code, text, .. } => self.handle_error(id, code, text),
            Frame::Ping { id, payload } => self.handle_ping(id, payload),
            Frame::Pong { payload, .. } => {
                self.counters.empty += 1;
                self.keepalive.handle_pong(now, payload);
                Ok(())
            }
            Frame::GoAway => {
                self.counters.empty += 1;
                if self.draining.begin_at_peer() {
                    self.events.push(Event::GoAway);
                }
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
        let kind = Kind::Connect;
        if self.dialect.role() == Role::Opener {
            return Err(Violation::WrongRole(kind));
        }
        if let OnWire::Live(s) = self.streams.on_wire(id) {
            return self.dialect.verdict(s, kind).map(|_| ());
        }
        let refusal = if self.draining.has_begun() {
            Some((Reason::Gone, "no new connections"))
        } else if self.streams.len() >= self.config.max_streams
            || self.streams.pending() >= self.config.accept_backlog
        {
            Some((Reason::Limit, "too many connections"))
        } else if self.refuses {
            Some((Reason::Limit, "memory is short"))
        } else {
            None
        };
        self.counters.opened += 1;
        let stream = self.streams.admit(id, proto, self.dialect, now);
        if let Some((reason, text)) = refusal {
            self.counters.refused += 1;
            self.reject(
                stream,
                reason,
                &alloc::format!("{text} {}", self.config.place),
            );
        } else {
            self.events.push(Event::Incoming {
                stream,
                proto,
                port,
            });
        }
        Ok(())
    }

    fn handle_connected(&mut self, now: Instant, id: ClientId) -> Result<(), Violation> {
        let Some(s) = known(&mut self.streams, id, Kind::Connected, &mut self.counters)? else {
            return Ok(());
        };
        if let Verdict::Become(next) = self.dialect.verdict(s, Kind::Connected)? {
            s.life.advance(next);
            s.send.establish();
            s.recv.note_opening(now);
            self.events.push(Event::Established(s.id()));
            self.sending.line_up(s, &mut self.events);
            self.sending.wake(&mut self.streams, &mut self.events);
        }
        Ok(())
    }

    fn handle_data(
        &mut self,
        now: Instant,
        proto: Proto,
        id: ClientId,
        message: Bytes,
    ) -> Result<(), Violation> {
        let len = payload(&message).len();
        let s = match self.streams.on_wire(id) {
            OnWire::Live(s) => s,
            OnWire::Ended => return self.handle_late_data(proto, id, len),
            OnWire::Unknown => {
                self.counters.stray_excess += len as u64 + Self::DATA_COST;
                self.answer_late_data(proto, id);
                let kind = Kind::Data;
                return Err(Violation::UnknownStream { kind, id });
            }
        };
        let stream = s.id();
        self.counters.empty += u64::from(len == 0 && proto == Proto::Tcp);
        if s.proto() != proto {
            let kind = Kind::Data;
            return Err(Violation::WrongProto { kind, id });
        }
        match self.dialect.verdict(s, Kind::Data)? {
            Verdict::Take => {}
            Verdict::Reset => {
                let (kind, state) = (Kind::Data, s.life.state());
                self.reset(stream, Reason::Reset, "the protocol was broken");
                return Err(Violation::Unexpected { kind, id, state });
            }
            _ => return Ok(()),
        }
        if !s.life.is_held() {
            self.reset(stream, Reason::Gone, "nobody reads this any more");
            return Ok(());
        }
        if proto == Proto::Udp {
            if self.receiving.take_datagram(now, s, message) != Taken::Nothing {
                self.events.readable(s);
            }
            return Ok(());
        }
        match self.receiving.take(now, s, message, self.keepalive.rtt()) {
            Taken::Nothing => return Ok(()),
            Taken::Overrun(excess) => {
                self.reset(stream, Reason::Overflow, "more bytes than were granted");
                return Err(Violation::CreditOverrun { id, excess });
            }
            Taken::TooEarly => {
                let text = "more than 64 KiB came before the connection was made";
                self.overflow(stream, text);
            }
            Taken::Kept { give_up } => {
                self.events.readable(s);
                self.linger.progress(s, now);
                self.keepalive.want_sample(now);
                if let Some(stalled) = give_up {
                    self.give_up(stalled);
                }
            }
        }
        while let Some(victim) = self.receiving.bound(now, &self.streams) {
            let text = alloc::format!("too many bytes were not read {}", self.config.place);
            self.overflow(victim, &text);
        }
        Ok(())
    }

    /// DATA for a stream that ended recently.
    fn handle_late_data(
        &mut self,
        proto: Proto,
        id: ClientId,
        len: usize,
    ) -> Result<(), Violation> {
        self.counters.empty += u64::from(len == 0);
        let received = self.streams.receive_late(id, len);
        self.answer_late_data(proto, id);
        let Err(excess) = received else {
            return Ok(());
        };
        self.counters.stray_excess += excess + Self::DATA_COST;
        match self.dialect.has_credit() {
            true => Err(Violation::CreditOverrun { id, excess }),
            false => Ok(()),
        }
    }

    fn handle_close(&mut self, now: Instant, id: ClientId) -> Result<(), Violation> {
        let Some(s) = known(&mut self.streams, id, Kind::Close, &mut self.counters)? else {
            return Ok(());
        };
        let stream = s.id();
        match self.dialect.verdict(s, Kind::Close)? {
            Verdict::End => {
                let reset = match s.proto() {
                    Proto::Udp => None,
                    Proto::Tcp => Some(Reset::new(Reason::Gone, "closed by the other side")),
                };
                self.end(stream, Ending::ByPeer(reset));
            }
            Verdict::Become(State::Closed) => self.end(stream, Ending::Finished),
            Verdict::Become(next) => {
                s.life.advance(next);
                self.receiving.finish(s);
                if self.dialect.opener_may_forget() {
                    self.linger.start(s, now);
                }
                self.events.readable(s);
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_error(&mut self, id: ClientId, code: u16, text: &[u8]) -> Result<(), Violation> {
        let Some(s) = known(&mut self.streams, id, Kind::Error, &mut self.counters)? else {
            return Ok(());
        };
        if self.dialect.verdict(s, Kind::Error)? == Verdict::End {
            let reset = Reset::from_peer(self.dialect.reason(code), text);
            let stream = s.id();
            self.end(stream, Ending::ByPeer(Some(reset)));
        }
        Ok(())
    }

    fn handle_window(&mut self, id: ClientId, credit: u32) -> Result<(), Violation> {
        let Some(s) = known(&mut self.streams, id, Kind::Window, &mut self.counters)? else {
            return Ok(());
        };
        if self.dialect.verdict(s, Kind::Window)? != Verdict::Take {
            self.counters.empty += 1;
            return Ok(());
        }
        let Some(of_use) = s.send.grant(credit) else {
            let stream = s.id();
            self.reset(stream, Reason::Overflow, "more credit than can be counted");
            return Err(Violation::CreditOverflow { id });
        };
        self.counters.empty += u64::from(!of_use);
        self.sending.line_up(s, &mut self.events);
        self.sending.wake(&mut self.streams, &mut self.events);
        Ok(())
    }

    fn handle_ping(&mut self, id: ClientId, payload: &[u8]) -> Result<(), Violation> {
        self.counters.empty += 1;
        if self.control.is_congested() {
            return Err(Violation::TooManyRequests(self.config.max_replies));
        }
        self.control.reply(self.keepalive.answer(id, payload));
        Ok(())
    }

    /// DATA for an id that is not live. Answered once, so that a peer that can stop does.
    fn answer_late_data(&mut self, proto: Proto, id: ClientId) {
        self.counters.stray_data += 1;
        let congested = self.control.is_congested();
        if !congested && self.streams.answer_late(id, self.dialect) {
            self.control.reply(self.dialect.stray_answer(proto, id));
        }
    }
}

/// The live stream that a message without data is about; `None` if it ended recently, so that the
/// message has no effect.
fn known<'a>(
    streams: &'a mut Streams,
    id: ClientId,
    kind: Kind,
    counters: &mut Stats,
) -> Result<Option<&'a mut Stream>, Violation> {
    match streams.on_wire(id) {
        OnWire::Live(s) => Ok(Some(s)),
        OnWire::Ended => {
            counters.empty += 1;
            Ok(None)
        }
        OnWire::Unknown => Err(Violation::UnknownStream { kind, id }),
    }
}
