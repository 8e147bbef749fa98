/// How much one read of a transport may take before other tunnels run.
///
/// If many tunnels of a budget have more to read than that, each turn is shorter, so that a round
/// of all turns takes some milliseconds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Turn {
    pub(super) const LONGEST: Self = Self {
        messages: 64,
        bytes: 128 << 10,
    };
    const SHORTEST: Self = Self {
        messages: 8,
        bytes: 16 << 10,
    };
    /// Bytes shared by all tunnels that have more to read.
    const ROUND: Self = Self {
        messages: 8192,
        bytes: 16 << 20,
    };

    /// A turn while that many tunnels have more to read.
    pub(super) fn among(busy: usize) -> Self {
        let share = |of: fn(Self) -> usize| {
            let share = of(Self::ROUND) / busy.max(1);
            share.clamp(of(Self::SHORTEST), of(Self::LONGEST))
        };
        Self {
            messages: share(|turn| turn.messages),
            bytes: share(|turn| turn.bytes),
        }
    }

    /// Whether that many useless messages are a flood: pings and pongs, violations, connections
    /// beyond a bound. Honest peers ping every few seconds.
    pub(super) const fn is_flood(self, useless: usize) -> bool {
        useless >= self.messages / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_are_busy_the_shorter_a_turn() {
        for busy in [0, 1, 100] {
            assert_eq!(Turn::among(busy), Turn::LONGEST);
        }
        assert_eq!(Turn::among(1_000_000), Turn::SHORTEST);
        let turn = Turn::among(256);
        assert_eq!((turn.messages, turn.bytes), (32, 64 << 10));
        assert!(turn.is_flood(16) && !turn.is_flood(15));
    }
}
