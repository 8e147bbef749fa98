use core::time::Duration;

use super::super::{Config, Instant, StreamId};
use super::window::{Neighbours, ReceiveWindow};

/// Credit lent to windows beyond the initial window, and the stream for which others leave room.
#[derive(Debug, Default)]
pub(super) struct Lending {
    /// Bytes.
    lent: usize,
    /// The stream that last received a small piece, and when. A stream with small pieces is
    /// interactive.
    interactive: Option<(StreamId, Instant)>,
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
        if len < Self::SMALL_DATA {
            self.interactive = Some((stream, now));
        } else if len >= Self::LARGE_DATA {
            self.interactive = self.interactive.filter(|(other, _)| *other != stream);
        }
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
        let interactive = self
            .interactive
            .is_some_and(|(other, at)| other != stream && now - at < Self::INTERACTIVE_FOR);
        let neighbours = match interactive {
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
