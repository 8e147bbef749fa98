use alloc::vec::Vec;
use core::task::Waker;
use core::time::Duration;

use super::budget::Account;
use super::shared::TunnelState;
use crate::session::Instant;

/// How long a peer that floods is not read, so that other tasks get the processor.
///
/// Meanwhile TCP flow control makes the peer wait, and nothing is lost. A peer that sends data for
/// its streams is not slowed down unless memory is short. One that sends nothing of use for long
/// loses its tunnel: what is unread could take minutes, also after it has left.
#[derive(Debug, Default)]
pub(super) struct FloodControl {
    /// Floods, less the reads of use between them.
    floods: u32,
    until: Option<Instant>,
    /// Since when the peer has sent hardly anything but what no honest peer sends.
    senseless: Option<Instant>,
    /// When the peer was last probed.
    probed: Instant,
    /// The tunnel is shut down because of it.
    ended_tunnel: bool,
}

/// How much the peer sent that had no use.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Useless {
    /// Messages that no honest peer sends often.
    pub(super) senseless: u64,
    /// Requests for connections beyond a bound.
    pub(super) refused: u64,
    /// Bytes of data for connections that do not exist ([`Stats::stray_excess`]).
    ///
    /// [`Stats::stray_excess`]: crate::session::Stats::stray_excess
    pub(super) stray: u64,
}

/// What one read of the transport was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inrush {
    /// It had a use.
    Fair,
    /// Many connections that were refused, much data for connections that do not exist, or more
    /// than a tunnel may hold while memory is short.
    Excessive,
    /// Pings, violations, credit that nobody needs.
    Senseless,
}

impl Useless {
    /// Those that came after `before`.
    pub(super) const fn since(self, before: Self) -> Self {
        Self {
            senseless: self.senseless - before.senseless,
            refused: self.refused - before.refused,
            stray: self.stray - before.stray,
        }
    }
}

impl FloodControl {
    /// The pause after the first flood. It doubles with each further one.
    const FIRST: Duration = Duration::from_millis(2);
    /// The longest pause if only one peer floods.
    const LONGEST: Duration = Duration::from_millis(64);
    /// The longest pause for each flooding tunnel of the thread: together they are read 500
    /// times a second, however many there are.
    const EACH: Duration = Duration::from_millis(2);
    /// How long a senseless flood may last.
    const ENOUGH: Duration = Duration::from_secs(30);
    /// How often a peer is probed whose end may stand behind a senseless flood.
    const PROBE_EVERY: Duration = Duration::from_secs(2);
    /// After a longer gap, a flood is a new one.
    const LULL: Duration = Duration::from_secs(5);

    /// As [`note`](Self::note), and ends the tunnel of a peer that floods without end.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        inrush: Inrush,
        state: &mut TunnelState,
        wake: &mut Vec<Waker>,
    ) {
        self.note(now, inrush, state.account.as_mut());
        if self.is_endless(now) && !state.shutdown {
            let goodbye = Some((1008, "a flood of messages without use".into()));
            state.shut_down(goodbye, wake);
            self.ended_tunnel = true;
        }
    }

    /// Whether the tunnel is shut down because of a flood.
    pub(super) const fn has_ended_tunnel(&self) -> bool {
        self.ended_tunnel
    }

    /// Updates the pause after one read of the transport.
    fn note(&mut self, now: Instant, inrush: Inrush, account: Option<&mut Account>) {
        let flood = inrush != Inrush::Fair;
        let all = account.map_or(1, |account| account.note_flood(flood));
        let goes_on = self.until.take().is_some_and(|it| now - it < Self::LULL);
        let since = self.senseless.filter(|_| goes_on).unwrap_or(now);
        self.senseless = (inrush == Inrush::Senseless).then_some(since);
        if flood {
            self.floods = (self.floods + 1).min(16);
            let factor = 1 << (self.floods - 1);
            let all = u32::try_from(all).unwrap_or(u32::MAX);
            let longest = Self::EACH.saturating_mul(all).max(Self::LONGEST);
            self.until = Some(now + (Self::FIRST * factor).min(longest));
        } else {
            // Among many requests for connections some are in order now and then.
            self.floods = self.floods.saturating_sub(1);
        }
    }

    /// Whether the tunnel has to end, `now` that the peer has flooded again.
    fn is_endless(&self, now: Instant) -> bool {
        self.senseless
            .is_some_and(|since| now - since >= Self::ENOUGH)
    }

    /// Whether to send a ping of the transport. If the peer's process has gone, its kernel answers
    /// that something was sent with RST, whereas a FIN stands behind all that is unread.
    pub(super) fn take_probe(&mut self, now: Instant) -> bool {
        let Some(since) = self.senseless else {
            return false;
        };
        let due = self.probed.max(since) + Self::PROBE_EVERY <= now;
        if due {
            self.probed = now;
        }
        due
    }

    /// When reading resumes, if it is paused.
    pub(super) fn pause(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mux::Budget;

    #[test]
    fn pauses_grow_with_a_flood_and_end_with_it() {
        let now = Instant::from_micros(7_000_000);
        let mut control = FloodControl::default();
        control.note(now, Inrush::Fair, None);
        assert_eq!(control.pause(now), None);
        for millis in [2, 4, 8, 16, 32, 64, 64] {
            control.note(now, Inrush::Excessive, None);
            let until = now + Duration::from_millis(millis);
            assert_eq!(control.pause(now), Some(until));
            assert_eq!(control.pause(until), None);
        }
        control.note(now, Inrush::Fair, None);
        assert_eq!(control.pause(now), None);
        // One read of use makes up for one flood.
        control.note(now, Inrush::Excessive, None);
        let until = now + Duration::from_millis(64);
        assert_eq!(control.pause(now), Some(until));
        for _ in 0..7 {
            control.note(now, Inrush::Fair, None);
        }
        control.note(now, Inrush::Excessive, None);
        let until = now + Duration::from_millis(2);
        assert_eq!(control.pause(now), Some(until));
    }

    #[test]
    fn it_is_endless_if_nothing_of_use_comes_between() {
        let at = |seconds: u64| Instant::from_micros(seconds * 1_000_000);
        let mut control = FloodControl::default();
        for second in 0..200 {
            let inrush = match second {
                20 => Inrush::Fair,
                40 => Inrush::Excessive,
                // Each is a flood of its own.
                60..125 if second % 6 != 0 => continue,
                _ => Inrush::Senseless,
            };
            control.note(at(second), inrush, None);
            let endless = second >= 120 + 30;
            assert_eq!(control.is_endless(at(second)), endless, "{second}");
        }
    }

    #[test]
    fn the_peer_is_probed_while_it_floods() {
        let at = |millis: u64| Instant::from_micros(millis * 1_000);
        let mut control = FloodControl::default();
        let mut probes = Vec::new();
        for millis in (5_000..17_000).step_by(100) {
            let inrush = match millis {
                10_000 => Inrush::Fair,
                _ => Inrush::Senseless,
            };
            control.note(at(millis), inrush, None);
            if control.take_probe(at(millis)) {
                probes.push(millis);
            }
        }
        assert_eq!(probes, [7_000, 9_000, 12_100, 14_100, 16_100]);
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
        let mut control = FloodControl::default();
        for millis in [2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000] {
            control.note(now, Inrush::Senseless, Some(&mut account));
            let until = now + Duration::from_millis(millis);
            assert_eq!(control.pause(now), Some(until));
        }
        others[0].note_flood(false);
        others.truncate(100);
        control.note(now, Inrush::Senseless, Some(&mut account));
        let until = now + Duration::from_millis(200);
        assert_eq!(control.pause(now), Some(until));
    }
}
