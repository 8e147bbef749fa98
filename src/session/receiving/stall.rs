//! v1: one stream is full, so the transport is not read (PROTOCOL.md section 4.2, "A reader that
//! pauses").

use core::time::Duration;

use super::super::{Config, Instant, StreamId};

/// Whether a v1 tunnel receives, and if not, which stream it waits for.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    /// The current one, or the last one, which goes on if its stream is full again soon.
    stall: Option<Stall>,
    /// The last one that was long.
    last_pause: Option<Pause>,
}

/// A v1 tunnel that does not receive because one stream is full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stall {
    stream: StreamId,
    began: Instant,
    /// When it began, or the last check that found progress.
    since: Instant,
    /// When to check again whether other streams wait.
    until: Instant,
    /// Bytes read since the last check.
    progress: usize,
    /// The last check found no progress, and no stream that surely waits. The first data of another
    /// one ends the stall.
    overdue: bool,
    /// Bytes that may be received until the next check, to reach the peer's pings behind them.
    allowance: usize,
    /// When the stream had room again.
    over: Option<Instant>,
}

/// A stall that ended because the application has read enough, or with the tunnel.
#[derive(Debug, Clone, Copy)]
struct Pause {
    stream: StreamId,
    lasted: Duration,
    over: Instant,
}

/// Which end last sent something on a stream.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Conversation {
    heard: Heard,
    /// When that was; at first, when the stream was opened.
    heard_at: Instant,
    /// What was sent since data was last received.
    asked: Option<Asked>,
}

/// When this end has sent something that was not answered.
#[derive(Debug, Clone, Copy)]
struct Asked {
    first: Instant,
    last: Instant,
}

/// What a stream has received last.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Heard {
    #[default]
    Nothing,
    /// CONNECT or CONNECTED. More need not follow, and data that was sent is not answered.
    Opening,
    Data,
}

/// Whether streams wait for what stands in the transport. Without reading it this is a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waits {
    No,
    /// Something came shortly before the stall, or CONNECT or CONNECTED since. More may follow. Or
    /// something sent long before the stall is not answered, and nothing more is sent.
    Perhaps,
    /// Data has come since the stall began, or something sent since or shortly before is not
    /// answered.
    Surely,
}

impl Stalls {
    /// Bytes that must be read within [`Config::v1_stall`] to count as progress.
    pub(super) const PROGRESS: usize = 64 << 10;
    /// While others wait, it also takes this part of what the stream holds beyond its bound.
    /// Otherwise a reader that is far behind could hold them up for minutes.
    const PART: usize = 256;
    /// Bytes of [`Config::v1_reach`] used in one [`Config::v1_stall`]. The reach has to last for
    /// several pings of the peer, each of which is queued behind all data in both kernels.
    const STEP: usize = 1 << 20;
    /// The same while another stream may wait behind these bytes: a few seconds for what both
    /// kernels hold.
    const STEP_TO_OTHERS: usize = 4 << 20;

    /// A stream has received `len` bytes, may be `full` now, and may have waited for them. Returns
    /// a stream for which the others have waited long enough.
    pub(super) fn taken(
        &mut self,
        now: Instant,
        stream: StreamId,
        len: usize,
        full: bool,
        waits: bool,
        config: &Config,
    ) -> Option<StreamId> {
        match self.stall.as_mut().filter(|stall| stall.is_current()) {
            Some(stall) if !waits || stall.stream == stream => {
                stall.allowance = stall.allowance.saturating_sub(len);
            }
            Some(stall) if stall.overdue && stall.progress < Self::PROGRESS => {
                return Some(stall.stream);
            }
            None if full => self.begin(now, stream, config),
            _ => {}
        }
        None
    }

    /// The stream is full.
    fn begin(&mut self, now: Instant, stream: StreamId, config: &Config) {
        let last = self.stall.filter(|last| last.stream == stream);
        let last = last.filter(|last| last.goes_on(now, config));
        let stall = last.unwrap_or_else(|| Stall::new(stream, now, config));
        self.stall = Some(Stall {
            over: None,
            ..stall
        });
    }

    /// The application has read `len` bytes of a stream. Returns whether that is the stalled one.
    pub(super) fn read(&mut self, stream: StreamId, len: usize) -> bool {
        let stall = self.stall.as_mut().filter(|stall| stall.stream == stream);
        if let Some(stall) = stall {
            stall.progress = stall.progress.saturating_add(len);
            return stall.is_current();
        }
        false
    }

    /// The stream has room again.
    pub(super) fn end(&mut self, now: Instant, config: &Config) {
        self.last_pause = self.pause(now, config).or(self.last_pause);
        if let Some(stall) = &mut self.stall {
            stall.over = Some(now);
        }
    }

    /// The stream has ended, or its data was dropped.
    pub(super) fn forget(&mut self, stream: StreamId) {
        if self
            .stall
            .as_ref()
            .is_some_and(|stall| stall.stream == stream)
        {
            self.stall = None;
        }
        if self
            .last_pause
            .as_ref()
            .is_some_and(|pause| pause.stream == stream)
        {
            self.last_pause = None;
        }
    }

    /// The stall, if it is to be checked.
    pub(super) fn due(&self, now: Instant) -> Option<Stall> {
        self.current().filter(|stall| stall.until <= now).copied()
    }

    /// Checks at the deadline whether the stall continues. Returns the stream to reset, if any. It
    /// holds bytes `beyond` its bound, and all streams have `room` for that many more.
    pub(super) fn look(
        &mut self,
        now: Instant,
        waits: Waits,
        beyond: usize,
        room: usize,
        config: &Config,
    ) -> Option<StreamId> {
        let stall = self.stall.as_mut()?;
        let progress = core::mem::take(&mut stall.progress);
        let reads = progress >= Self::PROGRESS;
        let enough = match waits {
            Waits::Surely => reads && progress >= beyond / Self::PART,
            // Otherwise nothing more can be read to find out.
            Waits::Perhaps => reads || room > progress,
            Waits::No => true,
        };
        if !enough {
            return Some(stall.stream);
        }
        let step = match waits {
            Waits::Surely | Waits::Perhaps => Self::STEP_TO_OTHERS,
            Waits::No => Self::STEP,
        };
        stall.until = now + config.v1_stall;
        stall.allowance = step.min(room);
        stall.overdue = !reads;
        if reads {
            stall.since = now;
        }
        None
    }

    /// The transport has ended. Returns the stream whose reader was paused or too slow until now,
    /// and for how long: that may be why the peer gave up.
    pub(super) fn blame(&mut self, now: Instant, config: &Config) -> Option<(StreamId, Duration)> {
        let last = self.last_pause.take();
        let last = last.filter(|last| now - last.over < config.linger);
        let pauses = last.into_iter().chain(self.pause(now, config));
        self.stall = None;
        let pause = pauses.max_by_key(|pause| pause.lasted)?;
        Some((pause.stream, pause.lasted))
    }

    /// Whether the transport may be read: there is no stall, or its allowance is not used up.
    pub(super) fn may_receive(&self) -> bool {
        self.current().is_none_or(|stall| stall.allowance > 0)
    }

    /// The stream that stalls the tunnel.
    pub(super) fn stalled(&self) -> Option<StreamId> {
        self.current().map(|stall| stall.stream)
    }

    /// When to [check](Self::look) again.
    pub(super) fn until(&self) -> Option<Instant> {
        self.current().map(|stall| stall.until)
    }

    fn current(&self) -> Option<&Stall> {
        self.stall.as_ref().filter(|stall| stall.is_current())
    }

    /// The stall until now, if it is long.
    fn pause(&self, now: Instant, config: &Config) -> Option<Pause> {
        let stall = self.current()?;
        let pause = Pause {
            stream: stall.stream,
            lasted: now - stall.began,
            over: now,
        };
        (pause.lasted >= config.v1_stall).then_some(pause)
    }
}

impl Stall {
    fn new(stream: StreamId, now: Instant, config: &Config) -> Self {
        Self {
            stream,
            began: now,
            since: now,
            until: now + config.v1_stall,
            progress: 0,
            overdue: false,
            allowance: 0,
            over: None,
        }
    }

    pub(super) const fn stream(&self) -> StreamId {
        self.stream
    }

    fn is_current(&self) -> bool {
        self.over.is_none()
    }

    /// Whether it goes on when its stream is full again: a slow reader has made room for a moment.
    /// In many short stalls nothing would ever be received to reach the peer's pings.
    fn goes_on(&self, now: Instant, config: &Config) -> bool {
        let is_slow = (Stalls::PROGRESS..Stalls::STEP).contains(&self.progress);
        is_slow && self.over.is_some_and(|over| now - over < config.v1_stall)
    }
}

impl Conversation {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            heard_at: now,
            ..Self::default()
        }
    }

    /// CONNECT or CONNECTED has come.
    pub(super) fn begin(&mut self, now: Instant) {
        self.heard = Heard::Opening;
        self.heard_at = now;
    }

    /// DATA has come.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = Heard::Data;
        self.heard_at = now;
        self.asked = None;
    }

    pub(super) fn ask(&mut self, now: Instant) {
        let first = self.asked.map_or(now, |asked| asked.first);
        self.asked = Some(Asked { first, last: now });
    }

    /// Whether the stream waits in the stall. Whether it `asks`, and this end waits for the
    /// answers, or the peer.
    ///
    /// For `slack` before the stall the transport was read. What had no answer by then may never
    /// have one: a long poll, a log, an upload. While more is sent, nobody waits for an answer.
    pub(super) fn waits(&self, now: Instant, stall: &Stall, slack: Duration, asks: bool) -> Waits {
        let asked = self.unanswered().filter(|_| asks);
        let asked_late = asked.is_some_and(|asked| asked.first + slack >= stall.began);
        let has_asked = asked.is_some_and(|asked| asked.last + slack <= now);
        let is_heard = self.heard != Heard::Nothing;
        let heard_since = self.heard == Heard::Data && self.heard_at > stall.since;
        let heard_late = is_heard && self.heard_at + slack >= stall.since;
        if asked_late || heard_since {
            Waits::Surely
        } else if has_asked || heard_late {
            Waits::Perhaps
        } else {
            Waits::No
        }
    }

    fn unanswered(&self) -> Option<Asked> {
        match self.heard {
            // CONNECT was sent.
            Heard::Nothing => Some(Asked {
                first: self.heard_at,
                last: self.heard_at,
            }),
            Heard::Opening | Heard::Data => self.asked,
        }
    }
}
