use core::time::Duration;
use std::time::Instant as Clock;

/// How long a peer that floods is not read, so that others get the processor.
///
/// TCP makes the peer wait meanwhile, and nothing is lost. A peer that sends data is never slowed down by
/// this while memory lasts.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Floods in a row.
    floods: u32,
    until: Option<Clock>,
}

impl Patience {
    /// Messages without content in one look at the transport that make it a flood. Honest peers ping
    /// every few seconds.
    const FLOOD: usize = 32;
    /// The pause after the first flood. It doubles with each that follows.
    const FIRST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_millis(64);
    /// The pause of a tunnel that holds more than its share of a budget that is used up.
    const PRESSED: Duration = Duration::from_millis(10);

    /// Notes what one look at the transport found: so many messages without content.
    pub(super) fn note(&mut self, now: impl Fn() -> Clock, empty: usize, pressed: bool) {
        let pause = if empty >= Self::FLOOD {
            self.floods = (self.floods + 1).min(16);
            let factor = 1 << (self.floods - 1);
            Some((Self::FIRST * factor).min(Self::LONGEST))
        } else {
            self.floods = 0;
            pressed.then_some(Self::PRESSED)
        };
        self.until = pause.map(|pause| now() + pause);
    }

    /// When reading goes on, if not now.
    pub(super) fn pause(&self, now: impl Fn() -> Clock) -> Option<Clock> {
        self.until.filter(|until| *until > now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_a_flood_and_end_with_it() {
        let now = Clock::now();
        let mut patience = Patience::default();
        patience.note(|| now, 3, false);
        assert_eq!(patience.pause(|| now), None);
        for millis in [2, 4, 8, 16, 32, 64, 64] {
            patience.note(|| now, 64, false);
            let until = now + Duration::from_millis(millis);
            assert_eq!(patience.pause(|| now), Some(until));
            assert_eq!(patience.pause(|| until), None);
        }
        patience.note(|| now, 0, true);
        assert_eq!(patience.pause(|| now), Some(now + Patience::PRESSED));
        patience.note(|| now, 0, false);
        assert_eq!(patience.pause(|| now), None);
    }
}
