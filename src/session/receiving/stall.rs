//! v1: one stream is full, so the transport is not read (PROTOCOL.md section 4.2, "A reader that pauses").

use core::time::Duration;

use super::super::endpoint::Session;
use super::super::stream::Stream;
use super::super::{Config, Instant, Reason, Role, StreamId};

/// A v1 tunnel that does not receive because one stream is full.
#[derive(Debug, Clone, Copy)]
pub(in crate::session) struct Stall {
    pub(in crate::session) slot: u32,
    since: Instant,
    /// When to look again at who waits.
    pub(in crate::session) until: Instant,
    /// Bytes read since the last look.
    progress: usize,
    /// The last look found no progress and nobody who waits: the first who shows up ends it.
    overdue: bool,
    /// Bytes to receive until the next look all the same, to reach what stands behind them.
    allowance: usize,
    /// Bytes left of [`Config::v1_reach`].
    reach: usize,
}

/// What a look at a stall decides.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// It goes on.
    Continue,
    /// The slow stream is given up.
    Reset,
}

/// A stall that ended because the application read on.
#[derive(Debug, Clone, Copy)]
pub(in crate::session) struct Pause {
    stream: StreamId,
    lasted: Duration,
    over: Instant,
}

/// Who spoke last on a stream.
#[derive(Debug, Default, Clone, Copy)]
pub(in crate::session) struct Conversation {
    /// When something last came for the stream.
    heard: Option<Instant>,
    /// This end has sent something since.
    asked: bool,
}

impl Conversation {
    pub(in crate::session) fn hear(&mut self, now: Instant) {
        self.heard = Some(now);
        self.asked = false;
    }

    pub(in crate::session) fn ask(&mut self) {
        self.asked = true;
    }
}

impl Stall {
    /// Bytes that must be read within [`Config::v1_stall`] to count as progress.
    pub(in crate::session) const PROGRESS: usize = 64 << 10;
    /// Bytes of the reach used up in one [`Config::v1_stall`]: the reach is to last for several pings of
    /// the peer, each of which stands behind all that its kernel and ours hold.
    const STEP: usize = 1 << 20;

    fn new(slot: u32, now: Instant, config: &Config) -> Self {
        Self {
            slot,
            since: now,
            until: now + config.v1_stall,
            progress: 0,
            overdue: false,
            allowance: 0,
            reach: config.v1_reach,
        }
    }

    /// Whether the transport may be read a little all the same.
    pub(in crate::session) fn may_receive(&self) -> bool {
        self.allowance > 0
    }

    fn look(&mut self, now: Instant, others_wait: bool, config: &Config, unread: usize) -> Look {
        self.until = now + config.v1_stall;
        self.allowance = 0;
        self.overdue = false;
        if core::mem::take(&mut self.progress) >= Self::PROGRESS {
            self.reach = config.v1_reach;
        } else if others_wait {
            return Look::Reset;
        } else {
            let room = (config.receive_budget / 2).saturating_sub(unread);
            self.allowance = Self::STEP.min(self.reach).min(room);
            self.reach -= self.allowance;
            self.overdue = true;
        }
        Look::Continue
    }
}

impl Session {
    /// A v1 stream has taken `len` bytes.
    pub(in crate::session) fn note_v1_data(&mut self, now: Instant, slot: u32, len: usize) {
        let full = self.streams.at(slot).is_some_and(|s| self.is_full(s));
        match &mut self.stall {
            Some(stall) if full => stall.allowance = stall.allowance.saturating_sub(len),
            Some(stall) if stall.overdue => self.give_up_stall(),
            None if full => self.stall = Some(Stall::new(slot, now, &self.config)),
            _ => {}
        }
    }

    /// A v1 stream that holds as much as it may. It waits for its reader and for nothing else.
    fn is_full(&self, s: &Stream) -> bool {
        s.unread.len() >= self.config.v1_stream_buffer || self.early.is_too_much(s)
    }

    /// Ends the stall if its stream has room now.
    pub(in crate::session) fn reconsider_stall(&mut self, now: Instant) {
        let Some(stall) = &self.stall else {
            return;
        };
        // With less room the next message would begin a new stall, and a new time to wait for progress.
        let limit = self.config.v1_stream_buffer;
        let limit = limit.saturating_sub(Stall::PROGRESS);
        let has_room = |s: &Stream| s.unread.len() <= limit && !self.early.is_too_much(s);
        if self.streams.at(stall.slot).is_none_or(has_room) {
            self.end_stall(now);
        }
    }

    /// The application has read `len` bytes: a full v1 stream may be full no longer.
    pub(in crate::session) fn note_progress(&mut self, slot: u32, len: usize, now: Instant) {
        let Some(stall) = self.stall.as_mut().filter(|stall| stall.slot == slot) else {
            return;
        };
        stall.progress += len;
        self.reconsider_stall(now);
    }

    /// Looks whether the stall goes on, when it is time to.
    pub(in crate::session) fn handle_stall_timeout(&mut self, now: Instant) {
        self.reconsider_stall(now);
        let Some(mut stall) = self.stall.filter(|stall| stall.until <= now) else {
            return;
        };
        let others_wait = self.others_wait(&stall);
        match stall.look(now, others_wait, &self.config, self.stats.unread) {
            Look::Continue => self.stall = Some(stall),
            Look::Reset => self.give_up_stall(),
        }
    }

    fn give_up_stall(&mut self) {
        let Some(stall) = self.stall.take() else {
            return;
        };
        let text = match self.role {
            Role::Opener => "the application does not read what the service sends",
            Role::Acceptor => "the service does not read what the application sends",
        };
        self.reset_slot(stall.slot, Reason::Overflow, text);
    }

    /// Whether a stream besides the full one has something to receive, as far as can be told without
    /// reading: it was in the middle of a conversation when the stall began, or something has come for it
    /// since, or it was not answered yet.
    fn others_wait(&self, stall: &Stall) -> bool {
        let lately = |s: &Stream| {
            let heard = s.conversation.heard;
            heard.is_some_and(|heard| heard + self.config.v1_stall >= stall.since)
        };
        // At an acceptor it is the peer that asks, and the answers go out all the same.
        let asked = |s: &Stream| {
            let talk = s.conversation;
            self.role == Role::Opener && (talk.asked || talk.heard.is_none())
        };
        self.streams.iter().any(|(slot, s)| {
            let open = slot != stall.slot && s.state.can_receive() && !self.is_full(s);
            open && (lately(s) || asked(s))
        })
    }

    fn end_stall(&mut self, now: Instant) {
        self.last_pause = self.pause_of_stall(now);
        self.stall = None;
    }

    fn pause_of_stall(&self, now: Instant) -> Option<Pause> {
        let stall = self.stall?;
        let generation = self.streams.at(stall.slot)?.generation;
        Some(Pause {
            stream: StreamId {
                slot: stall.slot,
                generation,
            },
            lasted: now - stall.since,
            over: now,
        })
    }

    /// The transport has ended. If a reader had paused until now, its stream is reset with words that say so: the
    /// peer may have given up over it.
    pub(in crate::session) fn blame_pause(&mut self, now: Instant, reason: Reason, text: &str) {
        let pause = self.pause_of_stall(now).or(self.last_pause.take());
        self.stall = None;
        let Some(pause) = pause else { return };
        let recent = now - pause.over < self.config.linger;
        if recent
            && pause.lasted >= self.config.v1_stall
            && self.streams.get(pause.stream).is_some()
        {
            let reader = match self.role {
                Role::Opener => "the application",
                Role::Acceptor => "the service",
            };
            let seconds = pause.lasted.as_secs();
            let text = alloc::format!("{text}, after {reader} had not read for {seconds} s");
            self.reset_slot(pause.stream.slot, reason, &text);
        }
    }
}
