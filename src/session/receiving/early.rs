use super::super::EARLY_DATA;

/// Bytes beyond [`EARLY_DATA`] on streams that are not accepted yet (PROTOCOL.md section 4.2,
/// "Opening"), with those that have ended meanwhile.
///
/// Openers of the first release sent up to a whole window early, so a few such streams are
/// tolerated.
#[derive(Debug, Default)]
pub(super) struct Early {
    excess: usize,
}

/// A stream's part of [`Early`].
#[derive(Debug, Default)]
pub(super) struct Excess {
    bytes: u32,
}

impl Early {
    /// Bytes beyond [`EARLY_DATA`] over all streams before one of them is reset or stalls.
    const SLACK: usize = 1 << 20;

    /// A stream that is not accepted yet now holds `unread` bytes.
    pub(super) fn update(&mut self, stream: &mut Excess, unread: usize) {
        let unread = u32::try_from(unread).unwrap_or(u32::MAX);
        self.settle(stream);
        stream.bytes = unread.saturating_sub(EARLY_DATA);
        self.excess += stream.bytes as usize;
    }

    /// The stream holds only `unread` bytes now.
    #[inline]
    pub(super) fn shrink(&mut self, stream: &mut Excess, unread: usize) {
        if stream.bytes > 0 {
            self.update(stream, unread);
        }
    }

    /// The stream was accepted, or holds nothing any more.
    pub(super) fn settle(&mut self, stream: &mut Excess) {
        self.excess -= core::mem::take(&mut stream.bytes) as usize;
    }

    /// Whether the stream holds more early data than allowed.
    pub(super) const fn is_too_much(&self, stream: &Excess) -> bool {
        stream.bytes > 0 && self.excess > Self::SLACK
    }

    /// Whether the total matches the streams.
    pub(super) fn audit<'a>(&self, all: impl Iterator<Item = &'a Excess>) -> bool {
        all.map(|stream| stream.bytes as usize).sum::<usize>() == self.excess
    }
}
