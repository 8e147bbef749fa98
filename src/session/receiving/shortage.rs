//! The streams hold almost as much as they may together, so the transport is not read for a while
//! (PROTOCOL.md section 5.5, "Budget").

use core::time::Duration;

use super::super::Instant;

/// A pause before [`Config::receive_budget`](super::Config::receive_budget) is exceeded and a
/// stream has to be reset: readers that are only slow make room meanwhile.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    /// Bytes that all streams may hold.
    budget: usize,
    /// The same, for the sake of other sessions.
    share: Option<usize>,
    phase: Phase,
}

#[derive(Debug, Default, Clone, Copy)]
enum Phase {
    #[default]
    Ample,
    /// The transport is not read.
    Pausing {
        until: Instant,
        /// Bytes held when that was set.
        held: usize,
    },
    /// The readers were too slow. Others must not wait for them again and again, so until then the
    /// budget decides.
    Lapsed { until: Instant },
}

impl Shortage {
    /// How long the readers may take for the least progress. A peer that may wait for this end to
    /// read, because both relay to each other, waits no longer either.
    const PATIENCE: Duration = Duration::from_secs(2);
    const NEXT_AFTER: Duration = Duration::from_secs(60);
    /// The longest message of ours. What remains of a budget has room for one.
    const MESSAGE: usize = 128 << 10;
    /// What remains of a share has room for a read: such a message behind 16 KiB of shorter ones.
    const READ: usize = Self::MESSAGE + (16 << 10);

    pub(super) fn new(budget: usize) -> Self {
        Self {
            budget,
            ..Self::default()
        }
    }

    /// The streams hold `held` bytes, and from now on may hold `share`.
    pub(super) fn set_share(&mut self, share: Option<usize>, held: usize) {
        self.share = share;
        self.shrink(held);
    }

    /// Received data makes the streams hold `held` bytes. No pause `helps` if a reader cannot read.
    pub(super) fn grow(&mut self, now: Instant, held: usize, helps: impl FnOnce() -> bool) {
        match self.phase {
            Phase::Lapsed { until } if until <= now && self.is_ample(held) => {
                self.phase = Phase::Ample;
            }
            Phase::Ample if held > self.high() => {
                self.phase = match helps() {
                    true => Self::pause(now, held),
                    false => Self::lapse(now),
                };
            }
            // The rest of the read that began the pause.
            Phase::Pausing {
                until,
                held: before,
            } if held > before => self.phase = Phase::Pausing { until, held },
            _ => {}
        }
    }

    /// The streams hold only `held` bytes now.
    pub(super) fn shrink(&mut self, held: usize) {
        if !self.may_receive() && self.is_ample(held) {
            self.phase = Phase::Ample;
        }
    }

    /// Checks at the deadline whether the pause continues.
    pub(super) fn look(&mut self, now: Instant, held_now: usize) {
        if let Phase::Pausing { until, held } = self.phase {
            if until <= now {
                let progress = held.saturating_sub(held_now);
                self.phase = match progress > held / 64 {
                    true => Self::pause(now, held_now),
                    false => Self::lapse(now),
                };
            }
        }
    }

    pub(super) const fn may_receive(&self) -> bool {
        !matches!(self.phase, Phase::Pausing { .. })
    }

    /// When to [check](Self::look) again.
    pub(super) const fn until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Pausing { until, .. } => Some(until),
            Phase::Ample | Phase::Lapsed { .. } => None,
        }
    }

    /// Bytes from which on the transport is not read.
    fn high(&self) -> usize {
        let (limit, rest) = match self.share {
            Some(share) if share < self.budget => (share, Self::READ),
            _ => (self.budget, Self::MESSAGE),
        };
        limit - (limit / 8).max(rest.min(limit / 2))
    }

    /// A pause ends well below where it begins, so that the transport is not read in single
    /// messages.
    fn is_ample(&self, held: usize) -> bool {
        held <= self.high() / 7 * 6
    }

    fn pause(now: Instant, held: usize) -> Phase {
        let until = now + Self::PATIENCE;
        Phase::Pausing { until, held }
    }

    fn lapse(now: Instant) -> Phase {
        let until = now + Self::NEXT_AFTER;
        Phase::Lapsed { until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: usize = 64 << 20;

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    /// More than seven eighths are held since second 0.
    fn short() -> Shortage {
        let mut shortage = Shortage::new(BUDGET);
        shortage.grow(at(0), 56 << 20, || true);
        assert!(shortage.may_receive());
        shortage.grow(at(0), 57 << 20, || true);
        assert!(!shortage.may_receive());
        shortage
    }

    #[test]
    fn readers_that_make_room_end_the_pause() {
        let mut shortage = short();
        shortage.shrink(49 << 20);
        assert!(!shortage.may_receive());
        shortage.shrink(48 << 20);
        assert!(shortage.may_receive() && shortage.until().is_none());
    }

    #[test]
    fn progress_counts_from_all_that_the_last_read_brought() {
        let mut shortage = short();
        shortage.grow(at(0), 59 << 20, || true);
        shortage.look(at(2), 58 << 20);
        assert!(!shortage.may_receive());
    }

    #[test]
    fn slow_readers_prolong_the_pause_and_paused_ones_do_not() {
        let mut shortage = short();
        assert_eq!(shortage.until(), Some(at(2)));
        shortage.look(at(1), 57 << 20);
        assert!(!shortage.may_receive());
        shortage.look(at(2), 56 << 20);
        assert_eq!(shortage.until(), Some(at(4)));
        shortage.look(at(4), (55 << 20) + (128 << 10));
        assert!(shortage.may_receive() && shortage.until().is_none());
        // No other one for a minute, and before they have made room.
        shortage.shrink(40 << 20);
        shortage.grow(at(63), 60 << 20, || true);
        shortage.grow(at(64), 60 << 20, || true);
        assert!(shortage.may_receive());
        shortage.grow(at(65), 48 << 20, || true);
        shortage.grow(at(66), 60 << 20, || true);
        assert_eq!(shortage.until(), Some(at(68)));
    }

    #[test]
    fn nobody_waits_for_a_reader_that_cannot_read() {
        let mut shortage = Shortage::new(BUDGET);
        shortage.grow(at(0), 60 << 20, || false);
        assert!(shortage.may_receive());
    }

    #[test]
    fn a_share_is_a_smaller_budget() {
        let mut shortage = Shortage::new(BUDGET);
        shortage.set_share(Some(32 << 20), 30 << 20);
        assert!(shortage.may_receive());
        shortage.grow(at(0), 30 << 20, || true);
        assert!(!shortage.may_receive());
        shortage.set_share(None, 30 << 20);
        assert!(shortage.may_receive());
    }
}
