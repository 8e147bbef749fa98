use alloc::collections::VecDeque;

use super::ready::Place;
use super::stream::Stream;
use super::streams::Streams;
use super::{StreamId, Violation};
use crate::wire::Proto;

/// What happened. An event only says where to look; calls on the session return the details.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Event, Instant, Role, Session, Version};
/// use kohakuriver_tunnel::wire::{ClientId, Frame, Proto};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Acceptor, Version::V2, Config::default(), now);
/// let (proto, id) = (Proto::Tcp, ClientId(1));
/// let connect = Frame::<&[u8]>::Connect { proto, id, port: 80 };
/// session.handle_message(now, connect.to_bytes())?;
/// let Some(Event::Incoming { stream, port: 80, .. }) = session.poll_event() else { panic!() };
/// session.accept(stream, now).unwrap();
/// # Ok::<(), kohakuriver_tunnel::session::Violation>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The peer asks for a connection. Answer with [`accept`](super::Session::accept) or
    /// [`reject`](super::Session::reject).
    Incoming {
        /// The new stream.
        stream: StreamId,
        /// Byte stream or datagrams.
        proto: Proto,
        /// The requested port.
        port: u16,
    },
    /// The peer has accepted a stream opened here.
    Established(StreamId),
    /// There is data, the end of data, or a reset.
    Readable(StreamId),
    /// Sending, refused before or [asked for](super::Session::request_writable), is possible now or
    /// was ended by a reset.
    Writable(StreamId),
    /// The peer takes no new connections (GOAWAY). v2 only.
    GoAway,
    /// The peer was silent for two keepalive intervals. Every stream was reset, unless the session
    /// [outlives its transport](super::Session::set_outlives_transport).
    PeerDead,
    /// The peer broke the protocol at least once since the last event of this kind.
    /// [`last_violation`](super::Session::last_violation) says how,
    /// [`Stats::violations`](super::Stats::violations) how often. At most one such event is queued.
    Violation,
}

/// Events that wait for the application. Parts append to it and never read it.
#[derive(Debug, Default)]
pub(super) struct Events {
    queue: VecDeque<Event>,
    violation: Place,
    last_violation: Option<Violation>,
}

/// Which events of a stream are queued, and which the application waits for.
#[derive(Debug, Default)]
pub(super) struct Notice {
    readable: Place,
    writable: Place,
    wants_writable: bool,
}

impl Events {
    /// Adds an event that can be queued only once.
    #[inline]
    pub(super) fn push(&mut self, event: Event) {
        self.queue.push_back(event);
    }

    pub(super) fn readable(&mut self, s: &mut Stream) {
        if s.life.is_held() && s.notice.readable.take() {
            self.queue.push_back(Event::Readable(s.id()));
        }
    }

    /// Sending is possible again. Queued only if the application asked for it.
    pub(super) fn writable(&mut self, s: &mut Stream) {
        if s.notice.wants_writable && s.life.is_held() && s.notice.writable.take() {
            s.notice.wants_writable = false;
            self.queue.push_back(Event::Writable(s.id()));
        }
    }

    /// The stream has ended: notifies its reader, and its writer if that waits.
    pub(super) fn ended(&mut self, s: &mut Stream) {
        self.readable(s);
        self.writable(s);
    }

    /// Keeps the last violation and queues one event for all, so that a peer cannot make the queue
    /// grow.
    pub(super) fn violation(&mut self, violation: Violation) {
        self.last_violation = Some(violation);
        if self.violation.take() {
            self.queue.push_back(Event::Violation);
        }
    }

    /// The next event. Released streams have no events.
    pub(super) fn next(&mut self, streams: &mut Streams) -> Option<Event> {
        while let Some(event) = self.queue.pop_front() {
            let id = match event {
                Event::Incoming { stream, .. } => stream,
                Event::Established(id) | Event::Readable(id) | Event::Writable(id) => id,
                Event::Violation => {
                    self.violation.leave();
                    return Some(event);
                }
                Event::GoAway | Event::PeerDead => return Some(event),
            };
            let Some(s) = streams.get_mut(id) else {
                continue;
            };
            match event {
                Event::Readable(_) => s.notice.readable.leave(),
                Event::Writable(_) => s.notice.writable.leave(),
                _ => {}
            }
            if s.life.is_held() {
                return Some(event);
            }
        }
        None
    }

    pub(super) const fn last_violation(&self) -> Option<Violation> {
        self.last_violation
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// There were many more streams before.
    pub(super) fn shrink(&mut self) {
        self.queue.shrink_to_fit();
    }
}

impl Notice {
    pub(super) fn want_writable(&mut self, wanted: bool) {
        self.wants_writable = wanted;
    }

    pub(super) const fn wants_writable(&self) -> bool {
        self.wants_writable
    }
}
