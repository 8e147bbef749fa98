use core::time::Duration;

use super::super::{INITIAL_WINDOW, Instant};

/// The credit granted on a stream, and how the window grows (PROTOCOL.md section 5.5).
///
/// The window aims at twice the bytes that arrive in one round trip. A stream limited by its window
/// doubles it each round trip; one limited by its sender, its reader or the link does not.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    /// Bytes that the peer may have in flight beyond those read.
    size: u32,
    /// Total bytes that the peer may send, as granted so far.
    limit: u64,
    received: u64,
    consumed: u64,
    epoch: Instant,
    epoch_bytes: u64,
}

impl ReceiveWindow {
    /// Shortest interval of a measurement, because messages come in bursts.
    const SHORTEST_EPOCH: Duration = Duration::from_millis(2);
    /// The window of a stream that fills the initial window within the shortest epoch, however
    /// short the round trip: the reader reads one half while the other is in flight. With less, two
    /// ends on one machine wait for each other in turn. With more, round trips beside it take
    /// longer and nothing gets faster.
    const FAST_WINDOW: u32 = 2 * INITIAL_WINDOW;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            size: INITIAL_WINDOW,
            limit: u64::from(INITIAL_WINDOW),
            received: 0,
            consumed: 0,
            epoch: now,
            epoch_bytes: 0,
        }
    }

    /// Counts bytes that arrived. The error is by how much they exceed the credit.
    pub(super) fn receive(&mut self, len: usize) -> Result<(), u64> {
        let received = self.received.saturating_add(len as u64);
        if received > self.limit {
            return Err(received - self.limit);
        }
        self.received = received;
        self.epoch_bytes += len as u64;
        Ok(())
    }

    /// Counts bytes that arrived without credit (v1).
    pub(super) fn count(&mut self, len: usize) {
        self.received = self.received.saturating_add(len as u64);
    }

    /// Total bytes that arrived.
    pub(super) const fn received(&self) -> u64 {
        self.received
    }

    /// Bytes the peer may still send.
    pub(super) fn credit(&self) -> u64 {
        self.limit - self.received
    }

    /// The new size of the window, given the round trip.
    ///
    /// The window grows if the reader keeps up. The extra of [`FAST_WINDOW`](Self::FAST_WINDOW) is
    /// withdrawn while another stream is `interactive`, which would queue behind it.
    pub(super) fn wanted_size(
        &mut self,
        now: Instant,
        rtt: Duration,
        interactive: bool,
        max: u32,
    ) -> u32 {
        let elapsed = now - self.epoch;
        if elapsed < rtt.max(Self::SHORTEST_EPOCH) {
            return self.size;
        }
        let unread = self.received - self.consumed;
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let per = |span| self.epoch_bytes.saturating_mul(micros(span)) / micros(elapsed).max(1);
        let per_trip = u32::try_from(per(rtt).saturating_mul(2)).unwrap_or(max);
        let per_trip = per_trip.min(self.size.saturating_mul(2)).min(max);
        let fast = per(Self::SHORTEST_EPOCH) >= u64::from(INITIAL_WINDOW);
        self.epoch = now;
        self.epoch_bytes = 0;
        let least = match (interactive, fast) {
            (true, _) if self.size <= Self::FAST_WINDOW => INITIAL_WINDOW,
            (false, true) => self.size.max(Self::FAST_WINDOW.min(max)),
            _ => self.size,
        };
        if unread > u64::from(self.size) / 2 {
            return least.min(self.size);
        }
        least.max(per_trip)
    }

    /// Bytes that the peer may have in flight beyond those read.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// A smaller size revokes no credit. New credit is withheld until the bytes in flight fit the
    /// new size.
    pub(super) fn resize(&mut self, size: u32) {
        self.size = size;
    }

    pub(super) fn consume(&mut self, len: usize) {
        self.consumed += len as u64;
    }

    /// Whether enough was read since the last grant for a WINDOW.
    pub(super) fn grant_is_due(&self) -> bool {
        self.grant() >= self.size / 4
    }

    /// Takes the credit for the next WINDOW.
    pub(super) fn take_grant(&mut self) -> u32 {
        let grant = self.grant();
        self.limit += u64::from(grant);
        grant
    }

    /// Bytes of this window beyond the initial window.
    pub(super) fn grown(&self) -> usize {
        (self.size - INITIAL_WINDOW) as usize
    }

    fn grant(&self) -> u32 {
        let wanted = self.consumed + u64::from(self.size);
        u32::try_from(wanted.saturating_sub(self.limit)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(100);

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    #[test]
    fn a_window_that_holds_the_sender_back_doubles_each_round_trip() {
        for interactive in [false, true] {
            doubles_each_round_trip(interactive);
        }
    }

    fn doubles_each_round_trip(interactive: bool) {
        let mut window = ReceiveWindow::new(at(0));
        for trip in 1..=4 {
            let size = window.size;
            window
                .receive((window.limit - window.received) as usize)
                .unwrap();
            window.consume((window.received - window.consumed) as usize);
            let wanted = window.wanted_size(at(trip * 100), RTT, interactive, u32::MAX);
            assert_eq!(wanted, 2 * size);
            window.resize(wanted);
            assert!(window.grant_is_due());
            window.take_grant();
            assert_eq!(window.limit - window.consumed, u64::from(window.size));
        }
    }

    #[test]
    fn a_fast_stream_gets_two_windows_and_no_more() {
        let short = Duration::from_micros(50);
        let mut window = ReceiveWindow::new(at(0));
        let mut fill = |millis, interactive| {
            for _ in 0..4 {
                let len = window.limit - window.received;
                window.receive(len as usize).unwrap();
                window.consume(len as usize);
                window.take_grant();
            }
            let wanted = window.wanted_size(at(millis), short, interactive, u32::MAX);
            window.resize(wanted);
            wanted
        };
        assert_eq!(fill(2, false), ReceiveWindow::FAST_WINDOW);
        assert_eq!(fill(4, false), ReceiveWindow::FAST_WINDOW);
        assert_eq!(fill(6, true), INITIAL_WINDOW);
        assert_eq!(fill(8, true), INITIAL_WINDOW);
        assert_eq!(fill(10, false), ReceiveWindow::FAST_WINDOW);
    }

    #[test]
    fn a_slow_sender_or_reader_does_not_grow_it() {
        let mut window = ReceiveWindow::new(at(0));
        window.receive(1000).unwrap();
        window.consume(1000);
        let wanted = window.wanted_size(at(100), RTT, false, u32::MAX);
        assert_eq!(wanted, INITIAL_WINDOW);
        window.receive(INITIAL_WINDOW as usize - 1000).unwrap();
        let wanted = window.wanted_size(at(200), RTT, false, u32::MAX);
        assert_eq!(wanted, INITIAL_WINDOW, "unread");
    }

    #[test]
    fn an_overrun_is_told_and_not_counted() {
        let mut window = ReceiveWindow::new(at(0));
        assert_eq!(window.receive(INITIAL_WINDOW as usize + 5), Err(5));
        assert_eq!(window.receive(INITIAL_WINDOW as usize), Ok(()));
    }
}
