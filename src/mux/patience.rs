use core::time::Duration;

use super::budget::Account;
use crate::session::Instant;

/// How long a peer that floods is not read, so that other tasks get the processor.
///
/// Meanwhile TCP flow control makes the peer wait, and nothing is lost. A peer that sends data for
/// its streams is not slowed down unless memory is short.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Floods in a row.
    floods: u32,
    until: Option<Instant>,
}

impl Patience {
    /// The pause after the first flood. It doubles with each further one.
    const FIRST: Duration = Duration::from_millis(2);
    /// The longest pause if only one peer floods.
    const LONGEST: Duration = Duration::from_millis(64);
    /// The longest pause for each flooding tunnel of the budget: together they are read a thousand
    /// times a second, however many there are.
    const EACH: Duration = Duration::from_millis(1);

    /// Updates the pause after one read of the transport: by whether it was a flood of useless
    /// messages, or because the tunnel holds more than its share of an exhausted budget.
    pub(super) fn note(&mut self, now: Instant, flood: bool, account: Option<&mut Account>) {
        let all = account.map_or(1, |account| account.note_flood(flood));
        self.until = None;
        if flood {
            self.floods = (self.floods + 1).min(16);
            let factor = 1 << (self.floods - 1);
            let all = u32::try_from(all).unwrap_or(u32::MAX);
            let longest = Self::EACH.saturating_mul(all).max(Self::LONGEST);
            self.until = Some(now + (Self::FIRST * factor).min(longest));
        } else {
            self.floods = 0;
        }
    }

    /// When reading resumes, if it is paused.
    pub(super) fn pause(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::mux::Budget;

    #[test]
    fn pauses_grow_with_a_flood_and_end_with_it() {
        let now = Instant::from_micros(7_000_000);
        let mut patience = Patience::default();
        patience.note(now, false, None);
        assert_eq!(patience.pause(now), None);
        for millis in [2, 4, 8, 16, 32, 64, 64] {
            patience.note(now, true, None);
            let until = now + Duration::from_millis(millis);
            assert_eq!(patience.pause(now), Some(until));
            assert_eq!(patience.pause(until), None);
        }
        patience.note(now, false, None);
        assert_eq!(patience.pause(now), None);
    }

    #[test]
    fn the_more_flood_the_longer_each_waits() {
        let now = Instant::from_micros(7_000_000);
        let budget = Budget::new(1 << 30);
        let mut others: Vec<_> = (0..499).map(|_| Account::open(&budget)).collect();
        for other in &mut others {
            other.note_flood(true);
        }
        let mut account = Account::open(&budget);
        let mut patience = Patience::default();
        for millis in [2, 4, 8, 16, 32, 64, 128, 256, 500, 500] {
            patience.note(now, true, Some(&mut account));
            let until = now + Duration::from_millis(millis);
            assert_eq!(patience.pause(now), Some(until));
        }
        others[0].note_flood(false);
        others.truncate(100);
        patience.note(now, true, Some(&mut account));
        let until = now + Duration::from_millis(100);
        assert_eq!(patience.pause(now), Some(until));
    }
}
