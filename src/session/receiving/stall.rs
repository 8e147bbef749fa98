//! v1: one stream is full, so the transport is not read (PROTOCOL.md section 4.2, "A reader that
//! pauses").

use core::time::Duration;

use super::super::{Config, Instant, StreamId};

/// Whether a v1 tunnel receives, and which stream it waits for if not.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    stall: Option<Stall>,
    last_pause: Option<Pause>,
}

/// A v1 tunnel does not receive because one stream is full.
#[derive(Debug, Clone, Copy)]
struct Stall {
    stream: StreamId,
    since: Instant,
    /// When to look again whether others wait.
    until: Instant,
    /// Bytes read since the last look.
    progress: usize,
    /// The last look found no progress and no other stream that waits: the first that shows up ends
    /// the stall.
    overdue: bool,
    /// Bytes to receive until the next look all the same, to reach what stands behind them.
    allowance: usize,
    /// Bytes left of [`Config::v1_reach`].
    reach: usize,
}

/// A stall that ended because the application read on, or with the tunnel.
#[derive(Debug, Clone, Copy)]
struct Pause {
    stream: StreamId,
    lasted: Duration,
    over: Instant,
}

/// Which end spoke last on a stream.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Conversation {
    /// When something last came for the stream, if anything has.
    heard_at: Instant,
    has_heard: bool,
    /// This end has sent something since.
    asked: bool,
}

impl Stalls {
    /// Bytes that must be read within [`Config::v1_stall`] to count as progress.
    pub(super) const PROGRESS: usize = 64 << 10;
    /// Bytes of the reach used up in one [`Config::v1_stall`]. The reach has to last for several
    /// pings of the peer, each of which stands behind all that its kernel and this end's hold.
    const STEP: usize = 1 << 20;

    /// A stream has taken `len` bytes, and is `full` now or not. Returns a stream that the others
    /// have waited for long enough.
    pub(super) fn taken(
        &mut self,
        now: Instant,
        stream: StreamId,
        full: bool,
        len: usize,
        config: &Config,
    ) -> Option<StreamId> {
        match &mut self.stall {
            Some(stall) if full => stall.allowance = stall.allowance.saturating_sub(len),
            Some(stall) if stall.overdue => return Some(stall.stream),
            None if full => self.stall = Some(Stall::new(stream, now, config)),
            _ => {}
        }
        None
    }

    /// The application has read `len` bytes of a stream. Says whether that is the one that stalls.
    pub(super) fn read(&mut self, stream: StreamId, len: usize) -> bool {
        let stall = self.stall.as_mut().filter(|stall| stall.stream == stream);
        if let Some(stall) = stall {
            stall.progress += len;
            return true;
        }
        false
    }

    /// The stream has room again.
    pub(super) fn end(&mut self, now: Instant) {
        self.last_pause = self.pause(now);
        self.stall = None;
    }

    /// The stream has ended, or what it held was dropped.
    pub(super) fn forget(&mut self, stream: StreamId) {
        if self.stalled() == Some(stream) {
            self.stall = None;
        }
    }

    /// Looks whether the stall goes on, when it is time to. Returns the stream to give up.
    pub(super) fn look(
        &mut self,
        now: Instant,
        others_wait: impl FnOnce(StreamId, Instant) -> bool,
        unread: usize,
        config: &Config,
    ) -> Option<StreamId> {
        let stall = self.stall.as_mut().filter(|stall| stall.until <= now)?;
        stall.until = now + config.v1_stall;
        stall.allowance = 0;
        stall.overdue = false;
        if core::mem::take(&mut stall.progress) >= Self::PROGRESS {
            stall.reach = config.v1_reach;
        } else if others_wait(stall.stream, stall.since) {
            return Some(stall.stream);
        } else {
            let room = (config.receive_budget / 2).saturating_sub(unread);
            stall.allowance = Self::STEP.min(stall.reach).min(room);
            stall.reach -= stall.allowance;
            stall.overdue = true;
        }
        None
    }

    /// The transport has ended. If a reader had paused until now, the peer may have given up over
    /// it: that stream, and for how long it paused.
    pub(super) fn blame(&mut self, now: Instant, config: &Config) -> Option<(StreamId, Duration)> {
        let pause = self.pause(now).or(self.last_pause.take());
        self.stall = None;
        let recent = |pause: &Pause| now - pause.over < config.linger;
        let long = |pause: &Pause| pause.lasted >= config.v1_stall;
        let pause = pause.filter(|pause| recent(pause) && long(pause))?;
        Some((pause.stream, pause.lasted))
    }

    /// Whether the transport may be read: there is no stall, or it may be read a little all the
    /// same.
    pub(super) fn may_receive(&self) -> bool {
        self.stall.as_ref().is_none_or(|stall| stall.allowance > 0)
    }

    /// The stream that stalls the tunnel.
    pub(super) fn stalled(&self) -> Option<StreamId> {
        self.stall.map(|stall| stall.stream)
    }

    /// When to [look](Self::look) again.
    pub(super) fn until(&self) -> Option<Instant> {
        self.stall.map(|stall| stall.until)
    }

    fn pause(&self, now: Instant) -> Option<Pause> {
        let stall = self.stall?;
        Some(Pause {
            stream: stall.stream,
            lasted: now - stall.since,
            over: now,
        })
    }
}

impl Stall {
    fn new(stream: StreamId, now: Instant, config: &Config) -> Self {
        Self {
            stream,
            since: now,
            until: now + config.v1_stall,
            progress: 0,
            overdue: false,
            allowance: 0,
            reach: config.v1_reach,
        }
    }
}

impl Conversation {
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard_at = now;
        self.has_heard = true;
        self.asked = false;
    }

    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// Whether something has come since `slack` before `since`.
    pub(super) fn heard_since(&self, since: Instant, slack: Duration) -> bool {
        self.has_heard && self.heard_at + slack >= since
    }

    /// Whether this end waits for an answer.
    pub(super) const fn is_unanswered(&self) -> bool {
        self.asked || !self.has_heard
    }
}
