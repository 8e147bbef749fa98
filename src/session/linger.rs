use alloc::collections::BTreeSet;
use core::time::Duration;

use super::stream::Stream;
use super::{Instant, State, StreamId};

/// Streams with one direction ended whose peer may never end the other. Each is given up after a
/// while (PROTOCOL.md section 4.2, "Linger").
#[derive(Debug)]
pub(super) struct Linger {
    span: Duration,
    deadlines: BTreeSet<(Instant, StreamId)>,
}

/// When a stream is given up, if it is.
#[derive(Debug, Default)]
pub(super) struct Deadline {
    at: Option<Instant>,
}

impl Linger {
    pub(super) const fn new(span: Duration) -> Self {
        Self {
            span,
            deadlines: BTreeSet::new(),
        }
    }

    /// Restarts the linger time of the stream.
    pub(super) fn start(&mut self, s: &mut Stream, now: Instant) {
        self.set(s, now + self.span);
    }

    /// As [`start`](Self::start), unless the time already runs.
    pub(super) fn start_once(&mut self, s: &mut Stream, now: Instant) {
        if s.linger.at.is_none() {
            self.start(s, now);
        }
    }

    /// The stream has received something. Its end is awaited while the reply makes progress.
    pub(super) fn progress(&mut self, s: &mut Stream, now: Instant) {
        if s.linger.at.is_some() && s.life.state() == State::LocalFinished {
            self.start(s, now);
        }
    }

    /// The stream ended in another way.
    pub(super) fn cancel(&mut self, s: &mut Stream) {
        if let Some(at) = s.linger.at.take() {
            self.deadlines.remove(&(at, s.id()));
        }
    }

    /// Postpones deadlines while the transport is not read, because the peer's CLOSE may be in it:
    /// they are a linger time after it may be read again.
    pub(super) fn outlast(&mut self, s: &mut Stream, next_look: Instant, now: Instant) -> bool {
        let later = next_look + self.span;
        if later > now {
            self.set(s, later);
        }
        later > now
    }

    /// A stream whose linger time has expired.
    pub(super) fn due(&self, now: Instant) -> Option<StreamId> {
        let (at, id) = self.deadlines.first()?;
        (*at <= now).then_some(*id)
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn set(&mut self, s: &mut Stream, at: Instant) {
        if let Some(old) = s.linger.at.replace(at) {
            self.deadlines.remove(&(old, s.id()));
        }
        self.deadlines.insert((at, s.id()));
    }
}
