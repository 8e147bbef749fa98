//! What comes on streams before they are accepted (PROTOCOL.md section 4.2, "Opening").

use super::super::EARLY_DATA;
use super::super::stream::Stream;

/// Bytes beyond [`EARLY_DATA`] on streams that are not accepted yet.
///
/// Openers of the first release sent up to a whole window early, so a few such streams are let through.
#[derive(Debug, Default)]
pub(in crate::session) struct Early {
    excess: usize,
}

impl Early {
    /// Bytes beyond [`EARLY_DATA`] over all streams before one of them has to pay.
    const SLACK: usize = 1 << 20;

    /// The stream, not accepted yet, has taken data.
    pub(in crate::session) fn take(&mut self, s: &mut Stream) {
        let excess = s.unread.len().saturating_sub(EARLY_DATA as usize);
        self.excess = self.excess - s.early + excess;
        s.early = excess;
    }

    /// The stream is accepted or ends.
    pub(in crate::session) fn settle(&mut self, s: &mut Stream) {
        self.excess -= core::mem::take(&mut s.early);
    }

    /// Whether the stream holds more than it may.
    pub(in crate::session) fn is_too_much(&self, s: &Stream) -> bool {
        s.early > 0 && self.excess > Self::SLACK
    }
}
