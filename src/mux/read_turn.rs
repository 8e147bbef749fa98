use super::flood::{Inrush, Useless};

/// How much one read of a transport may take before other tunnels run.
///
/// If many tunnels of a budget have more to read than that, each turn is shorter, so that a round
/// of all turns takes some milliseconds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadTurn {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl ReadTurn {
    pub(super) const LONGEST: Self = Self {
        messages: 64,
        bytes: 128 << 10,
    };
    const SHORTEST: Self = Self {
        messages: 8,
        bytes: 16 << 10,
    };
    /// Bytes after which a read ends while memory is short, so that the tunnel notices in time that
    /// its streams hold almost their share.
    pub(super) const SHORT_BYTES: usize = 16 << 10;
    /// Bytes shared by all tunnels that have more to read.
    const ROUND: Self = Self {
        messages: 8192,
        bytes: 16 << 20,
    };

    /// A turn while that many tunnels have more to read.
    pub(super) fn among(busy: usize) -> Self {
        if busy <= 1 {
            return Self::LONGEST;
        }
        let share = |of: fn(Self) -> usize| {
            let share = of(Self::ROUND) / busy;
            share.clamp(of(Self::SHORTEST), of(Self::LONGEST))
        };
        Self {
            messages: share(|turn| turn.messages),
            bytes: share(|turn| turn.bytes),
        }
    }

    /// What a read was in which `skipped` messages of the transport itself, such as pings, and
    /// `useless` ones came. Honest peers ping every few seconds. `excess`: while memory is short,
    /// the tunnel holds more than its share.
    pub(super) fn inrush(self, skipped: usize, useless: Useless, excess: bool) -> Inrush {
        let many = self.messages as u64 / 2;
        let senseless = skipped as u64 + useless.senseless;
        if senseless >= many {
            Inrush::Senseless
        } else if senseless + useless.refused >= many
            || useless.stray >= self.bytes as u64 / 2
            || excess
        {
            Inrush::Excessive
        } else {
            Inrush::Fair
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_are_busy_the_shorter_a_turn() {
        for busy in [0, 1, 100] {
            assert_eq!(ReadTurn::among(busy), ReadTurn::LONGEST);
        }
        assert_eq!(ReadTurn::among(1_000_000), ReadTurn::SHORTEST);
        let turn = ReadTurn::among(256);
        assert_eq!((turn.messages, turn.bytes), (32, 64 << 10));
    }

    #[test]
    fn half_a_turn_without_use_is_a_flood() {
        let turn = ReadTurn::LONGEST;
        let useless = |senseless, refused| Useless {
            senseless,
            refused,
            stray: 0,
        };
        assert_eq!(turn.inrush(15, useless(16, 0), true), Inrush::Excessive);
        assert_eq!(turn.inrush(16, useless(16, 0), false), Inrush::Senseless);
        assert_eq!(turn.inrush(0, useless(15, 16), false), Inrush::Fair);
        assert_eq!(turn.inrush(0, useless(0, 32), false), Inrush::Excessive);
        for (stray, inrush) in [(65_535, Inrush::Fair), (65_536, Inrush::Excessive)] {
            let useless = Useless {
                stray,
                ..useless(0, 0)
            };
            assert_eq!(turn.inrush(0, useless, false), inrush);
        }
    }
}
