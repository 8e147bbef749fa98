//! What a seed chooses.

use std::time::Duration;

use kohakuriver_tunnel::resume;
use kohakuriver_tunnel::session::{Config, Version};
use kohakuriver_tunnel::wire::Proto;

use super::apps::Plan;
use super::rng::Rng;
use super::wire::{Line, MILLI, Notice, Party, SECOND, Time};

pub const HOUR: Duration = Duration::from_secs(3600);

/// How the tunnels are put together. An arrow points from opener to acceptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A client and a runner that dials: client -> server.
    Direct,
    /// An agent alone: server -> client.
    Reversed,
    /// A client, a runner and an agent. Which of the two tunnels can be resumed; the version of the
    /// other one.
    Relay {
        front: bool,
        back: bool,
        plain: Version,
    },
    /// Two clients of one agent; the second client is a bystander without resumption.
    Bystander { back: bool, plain: Version },
}

#[derive(Debug, Clone)]
pub struct Scenario {
    pub shape: Shape,
    /// Cuts, refused OPENs and so on, until everything is calm.
    pub cuts: u64,
    /// Every transport is cut once it has delivered one new message.
    pub drip: bool,
    /// Transports stay away for about as long as a tunnel is kept.
    pub expires: bool,
    /// An end ends the tunnel in the middle.
    pub ends: bool,
    /// The first transport may be lost before the tunnel was opened.
    pub young: bool,
    /// The relay's memory for what its agent sends is short.
    pub pressed: bool,
    pub stalls: bool,
    pub junk: bool,
    /// Many requests at once, more than either end answers before it reads on.
    pub requests: bool,
    pub keepalive: Option<Duration>,
    pub resume: resume::Config,
    pub line: Line,
    pub piece: usize,
    pub streams: u64,
    pub largest: u64,
    /// Messages that a reader takes before others run.
    pub batch: usize,
}

impl Scenario {
    pub fn choose(rng: &mut Rng) -> Self {
        let plain = rng.pick(&[Version::V1, Version::V2]);
        let shape = match rng.below(12) {
            0..4 => Shape::Direct,
            4..6 => Shape::Reversed,
            6 => Shape::Relay {
                front: true,
                back: false,
                plain,
            },
            7 => Shape::Relay {
                front: false,
                back: true,
                plain,
            },
            8..10 => Shape::Relay {
                front: true,
                back: true,
                plain,
            },
            10 => Shape::Bystander { back: false, plain },
            _ => Shape::Bystander { back: true, plain },
        };
        let drip = rng.once_in(10);
        let bystander = matches!(shape, Shape::Bystander { .. });
        let expires = !drip && rng.once_in(8);
        let ends = !drip && rng.once_in(12);
        let young = rng.once_in(20);
        let keep = match expires || ends || young {
            true => Duration::from_secs(rng.between(2..40)),
            false => HOUR * 1000,
        };
        // Longer than any round trip, or not.
        let opening = rng.pick(&[if young { 50 } else { 1_000 }, 2_000, 10_000]);
        let requests = !drip && rng.once_in(8);
        let ring_min = match requests {
            true => rng.pick(&[0, 1_000]),
            false => rng.pick(&[0, 64 << 10, 200 << 10, 1 << 20]),
        };
        let resume = resume::Config::default()
            .with_keep(keep)
            .with_idle_keep(keep / rng.pick(&[1, 4]))
            .with_ring_min(ring_min)
            .with_ring_max(ring_min * rng.pick(&[1, 1, 4]))
            .with_opening_timeout(Duration::from_millis(opening));
        let pressed = bystander && !drip && rng.once_in(2);
        let (piece, largest) = match rng.below(6) {
            _ if drip => (2_000, 20_000),
            _ if pressed => (1_500, 200_000),
            0 => (64 << 10, 300_000),
            1 => (200, 60_000),
            _ => (1_500, rng.pick(&[3_000, 30_000, 100_000])),
        };
        Self {
            shape,
            cuts: match bystander {
                _ if drip => u64::MAX / 2,
                true => rng.between(1..8),
                false => rng.between(0..16),
            },
            drip,
            expires,
            ends,
            young,
            pressed,
            stalls: rng.once_in(2),
            junk: rng.once_in(4),
            requests,
            // Without it nobody learns that the other end has given up.
            keepalive: match rng.below(3) {
                0 if !(expires || ends || young) => None,
                0 | 1 => Some(Duration::from_secs(15)),
                _ => Some(Duration::from_secs(1)),
            },
            resume,
            line: Line {
                // A message must not take longer than a silence that is a loss.
                rate: rng.pick(&[if piece > 2_000 { 1_000 } else { 20 }, 1_000, 100_000]),
                delay: rng.below(100 * MILLI),
                capacity: rng.pick(&[1, 10_000, 128 << 10]),
            },
            piece,
            streams: if drip {
                rng.between(1..3)
            } else {
                rng.between(1..6)
            },
            largest,
            batch: usize::try_from(rng.pick(&[1, 3, 64])).unwrap(),
        }
    }

    /// Who asks more than the other answers at once. Not both: two ends that only ask stop each
    /// other, with and without the layer.
    pub fn asker(&self) -> Option<Party> {
        let asker = match self.cuts % 2 {
            0 => Party::Client,
            _ => Party::Server,
        };
        self.requests.then_some(asker)
    }

    /// The bounds of a link. Who asks has room for all that it asks.
    pub fn link(&self, party: Party) -> resume::Config {
        let config = self.resume.clone();
        match self.asker() == Some(party) {
            true => config.with_ring_min(50_000).with_ring_max(50_000),
            false => config,
        }
    }

    /// The session's bounds; at a peer without resumption only those that time does not touch.
    pub fn session(&self, resumable: bool) -> Config {
        let mut config = Config::default()
            .with_max_piece(self.piece)
            .with_contended_piece(self.piece)
            .with_keepalive(self.keepalive.filter(|_| resumable))
            .with_max_replies(if self.requests { 16 } else { 4_096 });
        if !resumable {
            // A neighbour may be paused for long, and v1 would give up then.
            config = config.with_linger(HOUR * 1000).with_v1_stall(HOUR * 1000);
        }
        config
    }

    pub fn plan(&self, largest: u64, rng: &mut Rng) -> Plan {
        if rng.once_in(5) {
            let lens = [rng.below(40), rng.below(40)];
            return Plan {
                proto: Proto::Udp,
                lens,
            };
        }
        let mut len = || match rng.below(4) {
            0 => rng.below(3),
            _ => rng.below(largest),
        };
        Plan {
            proto: Proto::Tcp,
            lens: [len(), len()],
        }
    }

    /// How long the client waits before it dials again.
    pub fn away(&self, rng: &mut Rng) -> Time {
        let keep = u64::try_from(self.resume.keep.as_micros()).unwrap();
        if self.expires && rng.once_in(3) {
            return keep / 2 + rng.below(keep * 3 / 2);
        }
        match rng.below(8) {
            0 | 1 => 0,
            2..5 => rng.below(20 * MILLI),
            5 | 6 => rng.below(2 * SECOND),
            _ if self.expires || self.ends => rng.below(5 * SECOND),
            _ => rng.below(100 * SECOND),
        }
    }

    pub fn notice(&self, rng: &mut Rng) -> Notice {
        match rng.below(10) {
            0..5 => Notice::Soon,
            5 => Notice::Late,
            6 | 7 => Notice::Never,
            8 => Notice::One(Party::Client),
            _ => Notice::One(Party::Server),
        }
    }
}
