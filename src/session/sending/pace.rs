use core::time::Duration;

use super::super::Instant;

/// How fast the transport takes the data of streams.
#[derive(Debug, Default)]
pub(super) struct Pace {
    since: Instant,
    bytes: usize,
    fast: bool,
}

impl Pace {
    /// Shortest measurement, because messages leave in bursts.
    const SPAN: Duration = Duration::from_millis(2);
    /// 1 Gbit/s, in bytes per microsecond. The longest default piece then delays others by a
    /// millisecond.
    const FAST: u128 = 125;

    pub(super) fn sent(&mut self, len: usize, now: Instant) {
        self.bytes = self.bytes.saturating_add(len);
        let elapsed = now - self.since;
        if elapsed >= Self::SPAN {
            self.fast = self.bytes as u128 >= Self::FAST * elapsed.as_micros();
            (self.since, self.bytes) = (now, 0);
        }
    }

    /// Whether the last measurement found at least 1 Gbit/s.
    pub(super) const fn is_fast(&self) -> bool {
        self.fast
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_is_fast_while_it_takes_a_gigabit_per_second() {
        let mut pace = Pace::default();
        let mut now = Instant::from_micros(5_000_000);
        let mut send = |pace: &mut Pace, pieces: u32, every: Duration| {
            for _ in 0..pieces {
                now = now + every;
                pace.sent(65_536, now);
            }
        };
        // 1.1 Gbit/s, 0.9, and none in a pause that one piece ends.
        send(&mut pace, 20, Duration::from_micros(475));
        assert!(pace.is_fast());
        send(&mut pace, 20, Duration::from_micros(580));
        assert!(!pace.is_fast());
        send(&mut pace, 20, Duration::from_micros(100));
        assert!(pace.is_fast());
        send(&mut pace, 1, Duration::from_secs(60));
        assert!(!pace.is_fast());
    }
}
