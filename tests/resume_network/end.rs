//! One end of a tunnel, driven as the mux drives it: a session, a link, and at most one transport.

use bytes::Bytes;
use kohakuriver_tunnel::resume::{
    Accepts, EndReason, Ended, Link, Message, Received, State, Stats,
};
use kohakuriver_tunnel::session::{Event, Instant, Reason, Session, Transmit};

use super::apps::App;
use super::rng::Rng;
use super::wire::{Party, Time, Transport};

#[derive(Debug)]
pub struct End {
    pub tunnel: usize,
    pub party: Party,
    pub session: Session,
    /// `None`: a peer without resumption.
    pub link: Option<Link>,
    pub transport: Option<usize>,
    /// The session's clock: how far it is behind, and since when it stands still.
    lag: Time,
    stopped: Option<Time>,
    /// Counted messages that went out first here, and how many of the peer's were handed up.
    pub sent: Vec<Bytes>,
    pub delivered: usize,
    /// Messages of the layer and of the session written since the start.
    pub written: u64,
    pub app: Option<App>,
    pub ended: Option<Ended>,
    /// Another tunnel took its place.
    pub orphan: bool,
    /// Its client is there, and the server has begun to use it.
    pub registered: bool,
    /// It does not come to reading before.
    pub deaf_until: Time,
    /// Messages that belong to no stream wait to be sent, to be counted like others.
    pub junk: Vec<Bytes>,
    /// As they were at the last check.
    last: Stats,
    /// How often the ring took control alone.
    pub was_full: u64,
}

/// The rule for what counts, written down a second time.
pub fn is_counted(message: &[u8]) -> bool {
    let datagram = message.len() >= 2 && message[0] == 3 && message[1] == 1;
    let layer = !message.is_empty() && (0x0a..=0x0d).contains(&message[0]);
    !datagram && !layer
}

/// What reading did to the transport.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    Moved,
    /// New: handed up for the first time.
    Fresh,
    /// The transport is to be dropped.
    Drop,
}

impl End {
    pub fn new(tunnel: usize, party: Party, session: Session, link: Option<Link>) -> Self {
        Self {
            tunnel,
            party,
            session,
            link,
            transport: None,
            lag: 0,
            stopped: None,
            sent: Vec::new(),
            delivered: 0,
            written: 0,
            app: None,
            ended: None,
            orphan: false,
            registered: false,
            deaf_until: 0,
            junk: Vec::new(),
            last: Stats::default(),
            was_full: 0,
        }
    }

    /// The session's time.
    pub fn at(&self, now: Time) -> Instant {
        Instant::from_micros(self.stopped.unwrap_or(now) - self.lag)
    }

    /// There is a transport again. What brought it counts as activity.
    pub fn resume(&mut self, now: Time) {
        self.follow_link(now);
        let at = self.at(now);
        self.session.handle_activity(at);
    }

    pub fn is_attached(&self) -> bool {
        let link = self.link.as_ref();
        link.is_none_or(|link| link.state() == State::Attached)
    }

    /// Whether messages of the session pass. Those of a new tunnel follow OPEN at once.
    fn is_running(&self) -> bool {
        self.link.as_ref().is_none_or(|link| match link.state() {
            State::Attached => true,
            State::Opening => link.identity().is_none(),
            _ => false,
        })
    }

    /// The clock runs while the link is attached, and only then.
    pub fn follow_link(&mut self, now: Time) {
        if self.is_running() {
            if let Some(since) = self.stopped.take() {
                self.lag += now - since;
            }
        } else if self.stopped.is_none() {
            self.stopped = Some(now);
        }
    }

    /// Whether it reads. A link that waits for OPENED does, whatever the session can take: answers
    /// that wait leave only afterwards.
    pub fn can_receive(&self) -> bool {
        let link = self.link.as_ref();
        let opening = link.is_some_and(|link| link.state() == State::Opening);
        opening || self.session.can_receive()
    }

    /// Writes while the transport has room. Returns whether something was written.
    pub fn write(&mut self, now: Time, transport: &mut Transport, rng: &mut Rng) -> bool {
        let mut moved = false;
        while transport.has_room(self.party) {
            let Some(message) = self.next_message(now) else {
                break;
            };
            self.written += 1;
            transport.write(self.party, now, message, rng);
            moved = true;
        }
        moved
    }

    fn next_message(&mut self, now: Time) -> Option<Bytes> {
        let at = self.at(now);
        let Some(link) = &mut self.link else {
            return match self.session.poll_transmit(at) {
                Some(Transmit::Message(message)) => Some(message),
                Some(other) => panic!("{other:?} with keepalive off"),
                None => None,
            };
        };
        if let Some(message) = link.poll_output() {
            self.check_output(&message);
            return Some(message);
        }
        let accepts = link.accepts();
        let message = match accepts {
            Accepts::Nothing => return None,
            Accepts::Control => {
                self.was_full += 1;
                self.session.hold_data(true);
                self.session.poll_transmit(at)
            }
            Accepts::All => {
                self.session.hold_data(false);
                match self.junk.pop() {
                    Some(junk) => Some(Transmit::Message(junk)),
                    None => self.session.poll_transmit(at),
                }
            }
            other => panic!("unknown: {other:?}"),
        };
        let message = match message? {
            Transmit::Message(message) => message,
            other => panic!("{other:?} in v2"),
        };
        let is_data = message.starts_with(&[3, 0]);
        assert!(
            !(is_data && accepts == Accepts::Control),
            "data in a full ring"
        );
        if is_counted(&message) {
            self.sent.push(message.clone());
        }
        if let Err(ended) = link.sent(&message) {
            panic!("a bound ended the tunnel: {ended}");
        }
        Some(message)
    }

    /// Output of the link: its own messages, whose counts are true, or what was sent before.
    fn check_output(&self, message: &Bytes) {
        let received = match Message::decode(message) {
            Ok(Message::Open(open)) => Some(open.received),
            Ok(Message::Opened(opened)) => Some(opened.received),
            Ok(Message::Ack { received }) => Some(received),
            Ok(Message::End { .. }) => None,
            Ok(other) => panic!("{other:?} is of no known type"),
            Err(_) => {
                assert!(is_counted(message), "a datagram was kept");
                None
            }
        };
        if let Some(received) = received {
            let delivered = self.delivered as u64;
            assert_eq!(
                received, delivered,
                "{:?} tells of another count",
                self.party
            );
        }
    }

    /// Hands one received message up. `peer` is what the other end has sent.
    pub fn handle(&mut self, now: Time, message: Bytes, peer: &[Bytes]) -> Read {
        let at = self.at(now);
        let Some(link) = &mut self.link else {
            self.session.handle_message(at, message).unwrap();
            return Read::Moved;
        };
        let counted = is_counted(&message);
        let received = link.handle_message(Instant::from_micros(now), message);
        self.follow_link(now);
        let at = self.at(now);
        match received {
            Received::Deliver(message) => {
                assert_eq!(is_counted(&message), counted);
                if counted {
                    let next = peer.get(self.delivered);
                    assert_eq!(next, Some(&message), "another message than the next one");
                    self.delivered += 1;
                }
                // Junk is a violation of the session's rules, and none of the link's.
                let _ = self.session.handle_message(at, message);
                match counted {
                    true => Read::Fresh,
                    false => Read::Moved,
                }
            }
            Received::Handled => Read::Moved,
            Received::Attached => {
                self.session.handle_activity(at);
                Read::Moved
            }
            Received::Violation(violation) => {
                panic!("an honest peer broke the protocol: {violation}")
            }
            Received::Retry => Read::Drop,
            Received::Ended(ended) => {
                if matches!(ended.reason, EndReason::Closed | EndReason::Gone) {
                    // In good order: END follows all that was sent.
                    assert_eq!(self.delivered, peer.len(), "END came early");
                }
                self.follow_end(now);
                Read::Moved
            }
            other => panic!("unknown: {other:?}"),
        }
    }

    /// If the link has ended, so does the session.
    pub fn follow_end(&mut self, now: Time) {
        let ended = self.link.as_ref().and_then(Link::ended);
        if let (Some(ended), None) = (ended, &self.ended) {
            let ended = ended.clone();
            self.end(now, ended);
        }
    }

    /// The tunnel has ended: nothing of it remains but what was not read.
    fn end(&mut self, now: Time, ended: Ended) {
        assert!(self.ended.is_none(), "ended twice");
        let at = self.at(now);
        let reason = match ended.reason {
            EndReason::Expired => Reason::TimedOut,
            _ => Reason::Gone,
        };
        self.session.handle_closed(at, reason, &ended.text);
        self.ended = Some(ended);
    }

    /// A tunnel without connections is kept for a shorter time.
    pub fn tell_whether_idle(&mut self) {
        if let Some(link) = &mut self.link {
            link.set_idle(self.session.is_idle() && !self.session.has_transmit());
        }
    }

    /// Handles deadlines that are due. Returns whether one was.
    pub fn timeout(&mut self, now: Time) -> bool {
        let at = self.at(now);
        let mut moved = false;
        if self.is_running() && self.session.poll_timeout().is_some_and(|due| due <= at) {
            self.session.handle_timeout(at);
            let again = self.session.poll_timeout().filter(|due| *due <= at);
            assert_eq!(again, None, "still due after handle_timeout");
            moved = true;
        }
        moved
    }

    /// The next deadline of session and link, in real time.
    pub fn next_timeout(&self) -> Option<Time> {
        let session = self.session.poll_timeout().filter(|_| self.is_running());
        let session = session.map(|due| due.as_micros() + self.lag);
        let link = self.link.as_ref().and_then(Link::poll_timeout);
        let link = link.map(|due| due.as_micros());
        [session, link].into_iter().flatten().min()
    }

    pub fn poll_events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    /// What holds at any time. `peer`: the other end.
    pub fn check(&mut self, peer: Option<&Self>, most: usize) {
        assert!(self.session.audit(), "what is counted is not what is there");
        let Some(link) = &self.link else {
            return;
        };
        assert!(link.audit(), "the parts of the link do not fit together");
        assert!(
            link.ring_bytes() <= most,
            "{} bytes are kept",
            link.ring_bytes()
        );
        let (now, last) = (link.stats(), self.last);
        assert!(now.sent >= last.sent && now.acked >= last.acked && now.received >= last.received);
        self.last = now;
        assert_eq!(now.received, self.delivered as u64);
        if link.state() != State::Ended {
            assert_eq!(now.sent, self.sent.len() as u64);
            if let Some(peer) = peer {
                let delivered = peer.delivered as u64;
                assert!(now.acked <= delivered && delivered <= now.sent);
            }
        }
    }
}
