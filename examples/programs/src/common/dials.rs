//! How many connections to services there may be, shared between the sessions that ask for them.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::{Instant, timeout_at};

use super::ceilings::ServingCeilings;
use super::metrics::Counter;
use super::places::{Place, Places, Sizes};

/// How many times as many lasting connections as are left free a session may have: a user alone gets
/// eight ninths. Dials come and go, so there half is enough for everybody.
pub const LASTING: usize = 8;

/// A session, or whatever else has a share of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Party(u64);

#[derive(Debug)]
pub struct Dials {
    /// For connections in the making.
    turns: Places<Party>,
    /// For connections, made or in the making.
    sockets: Places<Party>,
    parties: AtomicU64,
    pub refused: Refused,
}

/// Connections that were not made because others were.
#[derive(Debug, Default)]
pub struct Refused {
    /// Their turn did not come in time.
    pub turn: Counter,
    /// Their session has its share of the sockets, or all are taken.
    pub socket: Counter,
}

/// Why a connection may not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoDial {
    Turn,
    Socket,
}

impl Dials {
    pub fn new(ceilings: ServingCeilings) -> Self {
        let sizes = |places, times_free| Sizes {
            places,
            each: usize::MAX,
            times_free,
            // Who waits is bounded by the streams of its session.
            queue: usize::MAX,
        };
        Self {
            turns: Places::new(sizes(ceilings.dials, 1)),
            sockets: Places::new(sizes(ceilings.connections, LASTING)),
            parties: AtomicU64::new(0),
            refused: Refused::default(),
        }
    }

    /// Somebody new, with a share of its own.
    pub fn party(&self) -> Party {
        Party(self.parties.fetch_add(1, Ordering::Relaxed))
    }

    /// A turn to connect, and the place of the connection, which outlives the turn.
    ///
    /// # Errors
    /// There was none until then.
    pub async fn turn(
        &self,
        party: Party,
        until: Instant,
    ) -> Result<(Place<Party>, Place<Party>), NoDial> {
        let Ok(Ok(turn)) = timeout_at(until, self.turns.take(party)).await else {
            self.refused.turn.add(1);
            return Err(NoDial::Turn);
        };
        let Ok(socket) = self.sockets.try_take(party) else {
            self.refused.socket.add(1);
            return Err(NoDial::Socket);
        };
        Ok((turn, socket))
    }
}

impl NoDial {
    pub fn text(self) -> &'static str {
        match self {
            Self::Turn => "too many connections are being made here",
            Self::Socket => "this session has its share of the connections that may be here",
        }
    }
}
