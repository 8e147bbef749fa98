use core::time::Duration;

use super::super::config::MAX_PIECE;
use super::super::{INITIAL_WINDOW, Instant};

/// The credit granted on a stream, and how the window grows (PROTOCOL.md section 5.5).
///
/// The window aims at twice the bytes that arrive in one round trip. A stream limited by its window
/// doubles it each round trip; one limited by its sender, its reader or the link does not.
#[derive(Debug)]
pub(super) struct ReceiveWindow {
    /// Bytes that the peer may have in flight beyond those read.
    size: u32,
    /// The size without the extra, which follows the stream's neighbours.
    base: u32,
    /// Total bytes that the peer may send, as granted so far.
    limit: u64,
    received: u64,
    consumed: u64,
    epoch: Instant,
    epoch_bytes: u64,
    /// The round trip is shorter than an epoch.
    near: bool,
}

/// The other streams of the tunnel, as far as windows are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neighbours {
    /// None whose window has grown.
    None,
    Bulk,
    /// One that receives small pieces. They queue behind everything in flight.
    Interactive,
}

impl ReceiveWindow {
    /// Shortest interval of a measurement, because messages come in bursts.
    const SHORTEST_EPOCH: Duration = Duration::from_millis(2);
    /// The least window of a fast stream, however short the round trip: the reader reads one half
    /// while the other is in flight. With less, two ends on one machine wait for each other in
    /// turn. With more, round trips beside it take longer and little gets faster. A stream is fast
    /// if it fills the initial window within the shortest epoch.
    const FAST_WINDOW: u32 = 2 * INITIAL_WINDOW;
    /// The same for a near stream that is the only one. Credit is granted in halves of it: each
    /// WINDOW wakes both ends.
    const FAST_ALONE_WINDOW: u32 = 4 * INITIAL_WINDOW;
    /// The window of a stream over a long path that is the only one whose window has grown, once a
    /// quarter of the initial window has arrived and was read in one round trip: twice what 1
    /// Gbit/s has in flight, within these bounds. A transfer need not begin with small windows.
    const ALONE_WINDOW: (u32, u32) = (4 << 20, 16 << 20);
    /// The largest piece of a sender with the default configuration. A grant that is not a multiple
    /// of it would make the sender split a piece, and one of the parts may be tiny.
    const PIECE: u32 = MAX_PIECE as u32;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            size: INITIAL_WINDOW,
            base: INITIAL_WINDOW,
            limit: u64::from(INITIAL_WINDOW),
            received: 0,
            consumed: 0,
            epoch: now,
            epoch_bytes: 0,
            near: false,
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
    /// The window grows if the reader keeps up. What it has beyond the needs of the path is less
    /// when there are other streams.
    pub(super) fn wanted_size(
        &mut self,
        now: Instant,
        rtt: Duration,
        neighbours: Neighbours,
        max: u32,
    ) -> u32 {
        self.near = rtt < Self::SHORTEST_EPOCH;
        let elapsed = now - self.epoch;
        let unread = self.received - self.consumed;
        let keeps_up = unread <= u64::from(self.size) / 2;
        if elapsed < rtt.max(Self::SHORTEST_EPOCH) {
            // What has arrived and what was read of it.
            let least = self.epoch_bytes.min(self.consumed);
            let starting = least >= u64::from(INITIAL_WINDOW / 4) && keeps_up;
            return match neighbours {
                Neighbours::None if starting && !self.near => {
                    self.size.max(Self::alone(rtt).min(max))
                }
                _ => self.size,
            };
        }
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let per = |span| self.epoch_bytes.saturating_mul(micros(span)) / micros(elapsed).max(1);
        let per_trip = u32::try_from(per(rtt).saturating_mul(2)).unwrap_or(max);
        let per_trip = per_trip.min(self.size.saturating_mul(2)).min(max);
        let fast = per(Self::SHORTEST_EPOCH) >= u64::from(INITIAL_WINDOW);
        self.epoch = now;
        self.epoch_bytes = 0;
        let least = match (fast, neighbours) {
            (false, _) => 0,
            (true, Neighbours::None) if self.near => Self::FAST_ALONE_WINDOW.min(max),
            (true, _) => Self::FAST_WINDOW.min(max),
        };
        let extra = match neighbours {
            Neighbours::Interactive => 0,
            Neighbours::Bulk => least.max(self.size.min(Self::FAST_WINDOW)),
            Neighbours::None => least.max(self.size),
        };
        if !keeps_up {
            return self.size.min(extra.max(self.base));
        }
        // On a short path the extra makes more arrive than the path needs.
        if !self.near || self.size <= self.base {
            self.base = self.base.max(per_trip);
        }
        self.base.max(extra)
    }

    fn alone(rtt: Duration) -> u32 {
        const BYTES_PER_MICROSECOND: u128 = 2 * 125;
        let (least, most) = Self::ALONE_WINDOW;
        let in_flight = rtt.as_micros().saturating_mul(BYTES_PER_MICROSECOND);
        u32::try_from(in_flight).unwrap_or(most).clamp(least, most)
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
        let large = self.near && self.size >= Self::FAST_ALONE_WINDOW;
        let part = if large { 2 } else { 4 };
        self.grant() >= Self::in_pieces(self.size / part)
    }

    /// Takes the credit for the next WINDOW.
    pub(super) fn take_grant(&mut self) -> u32 {
        let grant = Self::in_pieces(self.grant());
        self.limit += u64::from(grant);
        grant
    }

    /// Bytes of this window beyond the initial window.
    pub(super) fn grown(&self) -> usize {
        (self.size - INITIAL_WINDOW) as usize
    }

    /// As much of it as is whole pieces, unless it is less than one.
    const fn in_pieces(bytes: u32) -> u32 {
        match bytes / Self::PIECE {
            0 => bytes,
            pieces => pieces * Self::PIECE,
        }
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
        for neighbours in [Neighbours::None, Neighbours::Bulk, Neighbours::Interactive] {
            doubles_each_round_trip(neighbours);
        }
    }

    fn doubles_each_round_trip(neighbours: Neighbours) {
        let mut window = ReceiveWindow::new(at(0));
        for trip in 1..=4 {
            let credit = window.credit();
            assert!(credit + u64::from(ReceiveWindow::PIECE) > u64::from(window.size));
            window.receive(credit as usize).unwrap();
            window.consume((window.received - window.consumed) as usize);
            let wanted = window.wanted_size(at(trip * 100), RTT, neighbours, u32::MAX);
            assert_eq!(u64::from(wanted), 2 * credit);
            window.resize(wanted);
            assert!(window.grant_is_due());
            window.take_grant();
        }
    }

    #[test]
    fn a_sender_of_the_largest_pieces_has_to_split_none() {
        let piece = u64::from(ReceiveWindow::PIECE);
        for size in [INITIAL_WINDOW, ReceiveWindow::FAST_WINDOW, 1 << 20, 4 << 20] {
            let mut window = ReceiveWindow::new(at(0));
            window.resize(size);
            let (mut short, mut grants) = (0, 0);
            for _ in 0..1000 {
                while window.credit() > 0 {
                    let len = window.credit().min(piece);
                    short += u32::from(len < u64::from(INITIAL_WINDOW / 4));
                    window.receive(len as usize).unwrap();
                }
                // The reader reads one piece after the other.
                let unread = window.received - window.consumed;
                window.consume(unread.min(piece) as usize);
                if window.grant_is_due() {
                    assert!(window.take_grant() > 0);
                    grants += 1;
                }
            }
            // What is left of the initial window.
            assert!(short <= 1, "{short} with {size}");
            assert!(grants > 0);
        }
    }

    #[test]
    fn a_near_stream_alone_gets_credit_in_halves_of_its_window() {
        let mut window = ReceiveWindow::new(at(0));
        let size = fill(&mut window, 2, Neighbours::None);
        assert_eq!(size, ReceiveWindow::FAST_ALONE_WINDOW);
        window.take_grant();
        let piece = ReceiveWindow::PIECE as usize;
        for _ in 0..4 {
            assert!(!window.grant_is_due());
            window.receive(piece).unwrap();
            window.consume(piece);
        }
        assert!(window.grant_is_due());
    }

    #[test]
    fn there_is_credit_whenever_all_was_read() {
        for size in (0..200).map(|step| INITIAL_WINDOW + step * 4_321) {
            let mut window = ReceiveWindow::new(at(0));
            window.resize(size);
            for _ in 0..20 {
                let all = window.credit();
                assert!(all > 0, "{size}");
                window.receive(all as usize).unwrap();
                window.consume(all as usize);
                assert!(window.grant_is_due());
                window.take_grant();
            }
        }
    }

    /// Fills the window several times within the shortest epoch, then sets it to its new size.
    fn fill(window: &mut ReceiveWindow, millis: u64, neighbours: Neighbours) -> u32 {
        for _ in 0..4 {
            let len = window.limit.saturating_sub(window.received);
            window.receive(len as usize).unwrap();
            window.consume(len as usize);
            window.take_grant();
        }
        let short = Duration::from_micros(50);
        let wanted = window.wanted_size(at(millis), short, neighbours, u32::MAX);
        window.resize(wanted);
        wanted
    }

    #[test]
    fn the_extra_of_a_fast_stream_is_withdrawn_beside_an_interactive_one() {
        let fast = ReceiveWindow::FAST_WINDOW;
        let mut window = ReceiveWindow::new(at(0));
        let alone = ReceiveWindow::FAST_ALONE_WINDOW;
        assert_eq!(fill(&mut window, 2, Neighbours::None), alone);
        assert_eq!(fill(&mut window, 4, Neighbours::Bulk), fast);
        assert_eq!(
            fill(&mut window, 6, Neighbours::Interactive),
            INITIAL_WINDOW
        );
        assert_eq!(
            fill(&mut window, 8, Neighbours::Interactive),
            INITIAL_WINDOW
        );
        assert_eq!(fill(&mut window, 10, Neighbours::Bulk), fast);
    }

    #[test]
    fn the_extra_of_a_stream_alone_follows_its_neighbours() {
        for (neighbours, expected) in [
            (Neighbours::None, ReceiveWindow::alone(RTT)),
            (Neighbours::Bulk, ReceiveWindow::FAST_WINDOW),
            (Neighbours::Interactive, INITIAL_WINDOW),
        ] {
            let mut window = ReceiveWindow::new(at(0));
            let quarter = INITIAL_WINDOW as usize / 4;
            window.receive(quarter).unwrap();
            window.consume(quarter);
            let alone = window.wanted_size(at(1), RTT, Neighbours::None, u32::MAX);
            assert_eq!(alone, ReceiveWindow::alone(RTT));
            window.resize(alone);
            let later = window.wanted_size(at(100), RTT, neighbours, u32::MAX);
            assert_eq!(later, expected, "{neighbours:?}");
        }
    }

    #[test]
    fn a_stream_that_begins_alone_need_not_wait_for_its_round_trip() {
        let begin_over = |rtt, received: usize, read: usize, neighbours| {
            let mut window = ReceiveWindow::new(at(0));
            window.receive(received).unwrap();
            window.consume(read);
            window.wanted_size(at(1), rtt, neighbours, u32::MAX)
        };
        let begin = |received, read, neighbours| begin_over(RTT, received, read, neighbours);
        let (alone, quarter) = (ReceiveWindow::alone(RTT), INITIAL_WINDOW as usize / 4);
        assert_eq!(begin(quarter, quarter, Neighbours::None), alone);
        assert_eq!(begin(3 * quarter, quarter, Neighbours::None), alone);
        assert_eq!(begin(quarter, quarter, Neighbours::Bulk), INITIAL_WINDOW);
        assert_eq!(
            begin(quarter, quarter, Neighbours::Interactive),
            INITIAL_WINDOW
        );
        let short = Duration::from_micros(1900);
        let near = begin_over(short, quarter, quarter, Neighbours::None);
        assert_eq!(near, INITIAL_WINDOW);
        let less = quarter - 1;
        assert_eq!(begin(less, less, Neighbours::None), INITIAL_WINDOW);
        // The reader does not keep up.
        assert_eq!(begin(quarter, less, Neighbours::None), INITIAL_WINDOW);
        assert_eq!(
            begin(4 * quarter, quarter, Neighbours::None),
            INITIAL_WINDOW
        );
    }

    #[test]
    fn a_stream_alone_begins_with_what_its_path_needs() {
        let alone = |millis| ReceiveWindow::alone(Duration::from_millis(millis));
        assert_eq!(alone(2), 4 << 20);
        assert_eq!(alone(50), 12_500_000);
        assert_eq!(alone(160), 16 << 20);
        assert_eq!(ReceiveWindow::alone(Duration::MAX), 16 << 20);
    }

    #[test]
    fn what_a_long_path_needs_is_not_withdrawn() {
        let mut window = ReceiveWindow::new(at(0));
        let mut size = window.size;
        for trip in 1..=7 {
            window
                .receive((window.limit - window.received) as usize)
                .unwrap();
            window.consume((window.received - window.consumed) as usize);
            size = window.wanted_size(at(trip * 100), RTT, Neighbours::None, u32::MAX);
            window.resize(size);
            window.take_grant();
        }
        assert!(size > ReceiveWindow::alone(RTT));
        window.receive(1000).unwrap();
        window.consume(1000);
        let wanted = window.wanted_size(at(900), RTT, Neighbours::Interactive, u32::MAX);
        assert_eq!(wanted, size);
    }

    #[test]
    fn a_slow_sender_or_reader_does_not_grow_it() {
        let mut window = ReceiveWindow::new(at(0));
        window.receive(1000).unwrap();
        window.consume(1000);
        let wanted = window.wanted_size(at(100), RTT, Neighbours::None, u32::MAX);
        assert_eq!(wanted, INITIAL_WINDOW);
        window.receive(INITIAL_WINDOW as usize - 1000).unwrap();
        let wanted = window.wanted_size(at(200), RTT, Neighbours::None, u32::MAX);
        assert_eq!(wanted, INITIAL_WINDOW, "unread");
    }

    #[test]
    fn an_overrun_is_told_and_not_counted() {
        let mut window = ReceiveWindow::new(at(0));
        assert_eq!(window.receive(INITIAL_WINDOW as usize + 5), Err(5));
        assert_eq!(window.receive(INITIAL_WINDOW as usize), Ok(()));
    }
}
