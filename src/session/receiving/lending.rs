use core::time::Duration;

use super::super::{Config, Instant, StreamId};
use super::window::{Neighbours, ReceiveWindow};

/// Credit lent to windows beyond the initial window, and the stream for which others leave room.
#[derive(Debug, Default)]
pub(super) struct Lending {
    /// Bytes.
    lent: usize,
    /// The two streams that last received small pieces, and when, the latest first. A stream with
    /// small pieces is interactive. The small pieces of one stream hide no other.
    interactive: [Option<(StreamId, Instant)>; 2],
    /// While pressed, nothing more is lent.
    stopped: bool,
}

impl Lending {
    /// Shorter than a TCP segment. Bulk data has such pieces only at its end, interactive streams
    /// mostly.
    const SMALL_DATA: usize = 1024;
    /// How long the other streams leave room for the next such piece.
    const INTERACTIVE_FOR: Duration = Duration::from_millis(100);
    /// A longer piece than interactive streams have: a stream that began with a small one, as most
    /// do, is bulk.
    const LARGE_DATA: usize = 16 << 10;

    /// A stream has received a piece of `len` bytes.
    pub(super) fn note_piece(&mut self, now: Instant, stream: StreamId, len: usize) {
        let [last, before] = &mut self.interactive;
        let is_last = last.is_some_and(|(other, _)| other == stream);
        if len < Self::SMALL_DATA {
            if !is_last {
                *before = *last;
            }
            *last = Some((stream, now));
        } else if len >= Self::LARGE_DATA && last.is_some() {
            if is_last {
                *last = before.take();
            }
            *before = before.filter(|(other, _)| *other != stream);
        }
    }

    /// Whether a stream other than this one is interactive.
    fn is_beside_interactive(&self, now: Instant, stream: StreamId) -> bool {
        // Where there is no latest one, there is no other.
        let mut interactive = self.interactive.iter().map_while(Option::as_ref);
        interactive.any(|(other, at)| *other != stream && now - *at < Self::INTERACTIVE_FOR)
    }

    /// Sets the window to its new size, as far as there is credit to lend. Returns whether the
    /// window may have grown.
    #[inline]
    pub(super) fn resize(
        &mut self,
        now: Instant,
        stream: StreamId,
        window: &mut ReceiveWindow,
        rtt: Duration,
        config: &Config,
    ) -> bool {
        let neighbours = match self.is_beside_interactive(now, stream) {
            true => Neighbours::Interactive,
            false if self.lent > window.grown() => Neighbours::Bulk,
            false => Neighbours::None,
        };
        let before = window.size();
        let wanted = window.wanted_size(now, rtt, neighbours, config.max_window);
        if wanted <= before {
            window.resize(wanted);
            self.lent -= (before - wanted) as usize;
            return false;
        }
        let lendable = match self.stopped {
            true => 0,
            false => config.receive_budget / 2,
        };
        let spare = lendable.saturating_sub(self.lent);
        let growth = (wanted - before).min(u32::try_from(spare).unwrap_or(u32::MAX));
        window.resize(before + growth);
        self.lent += growth as usize;
        true
    }

    /// The stream has ended.
    pub(super) fn give_back(&mut self, window: &ReceiveWindow) {
        self.lent -= window.grown();
    }

    /// Whether more may be lent.
    pub(super) fn stop(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    /// Whether the total matches the windows.
    pub(super) fn audit<'a>(&self, windows: impl Iterator<Item = &'a ReceiveWindow>) -> bool {
        windows.map(ReceiveWindow::grown).sum::<usize>() == self.lent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_of_a_bulk_stream_hide_no_interactive_one() {
        let [bulk, other, third] = [0, 1, 2].map(StreamId::of_slot);
        let at = |millis: u64| Instant::from_micros(millis * 1000);
        // The bulk stream's pieces around the small one of the other stream, at 10 ms.
        let (small, middle, large) = (100, 8 << 10, 64 << 10);
        for (before, after) in [
            (&[][..], &[small, large][..]),
            (&[small], &[large]),
            (&[large, small], &[small, middle, small]),
            (&[small, middle], &[large, small, large, small]),
        ] {
            let mut lending = Lending::default();
            for len in before {
                lending.note_piece(at(5), bulk, *len);
            }
            lending.note_piece(at(10), other, small);
            for len in after {
                lending.note_piece(at(15), bulk, *len);
            }
            assert!(lending.is_beside_interactive(at(109), bulk), "{after:?}");
            assert!(!lending.is_beside_interactive(at(110), bulk));
            let last = after.last() == Some(&small);
            assert_eq!(lending.is_beside_interactive(at(20), other), last);
            // It turns out to be bulk.
            lending.note_piece(at(20), other, large);
            assert!(!lending.is_beside_interactive(at(20), bulk));
            assert_eq!(lending.is_beside_interactive(at(20), third), last);
        }
    }
}
