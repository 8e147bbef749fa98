//! Bounds the connections to services, and shares them between the sessions that ask for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kohakuriver_tunnel::session::{Reason, Reset};
use kohakuriver_tunnel::wire::Proto;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout_at};

use super::ceilings::ServingCeilings;
use super::metrics::Counter;
use super::places::{Place, Places, Sizes};

/// A session may have this many times as many lasting connections as are left free. A single user
/// gets eight ninths of them. Of the attempts, which end soon, half is enough.
pub const LASTING: usize = 8;

/// Most flows, of which each takes a UDP port of the machine. Linux gives 28,232 of them to sockets
/// that name none, name look-ups included.
pub const FLOWS: usize = 7_000;

/// How long an attempt that failed or was given up keeps its turn. A port that refuses answers at
/// once, so without this a flood of attempts would be as fast as the processor.
const REST: Duration = Duration::from_millis(400);

/// A session, or whatever else has a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Party(u64);

/// Creates parties.
#[derive(Debug, Default)]
pub struct Parties(AtomicU64);

impl Parties {
    /// A new party with its own share.
    pub fn party(&self) -> Party {
        Party(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// The connections that this process, or a container's agent, makes.
#[derive(Debug, Clone)]
pub struct Dials {
    /// For connection attempts.
    turns: Places<Party>,
    /// For connections and attempts.
    sockets: Places<Party>,
    /// For those that are flows.
    flows: Places<Party>,
    /// Attempts that fail keep their turns for a while.
    rests: bool,
    pub refused: Arc<Refused>,
}

/// A turn to connect. Unless the attempt succeeded, it is given back after a while: also if the
/// client gave the attempt up, which is as fast as a port that refuses.
#[derive(Debug)]
pub struct Turn {
    place: Option<Place<Party>>,
    rests: bool,
}

impl Turn {
    /// The attempt has succeeded.
    pub fn succeeded(mut self) {
        self.rests = false;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let place = self.place.take();
        // Without a runtime the program ends.
        let runtime = Handle::try_current().ok().filter(|_| self.rests);
        if let Some(runtime) = runtime {
            runtime.spawn(async move {
                sleep(REST).await;
                drop(place);
            });
        }
    }
}

/// The place of a connection.
#[derive(Debug)]
pub struct Socket {
    _socket: Place<Party>,
    _flow: Option<Place<Party>>,
}

/// Connections that were refused because of others.
#[derive(Debug, Default)]
pub struct Refused {
    /// The turn of the attempt did not come in time.
    pub turn: Counter,
    /// The session has its share of the sockets, or all are taken.
    pub socket: Counter,
}

impl Dials {
    /// Counts refusals in `refused`. With `rests` an attempt that fails keeps its turn for a while.
    pub fn new(ceilings: ServingCeilings, rests: bool, refused: Arc<Refused>) -> Self {
        // The number that waits is bounded by the streams of the session.
        let sizes = |places, times_free| Sizes {
            times_free,
            queue: usize::MAX,
            ..Sizes::of(places)
        };
        Self {
            turns: Places::new(sizes(ceilings.dials, 1)),
            sockets: Places::new(sizes(ceilings.connections, LASTING)),
            flows: Places::new(sizes(FLOWS, LASTING)),
            rests,
            refused,
        }
    }

    /// A turn to connect.
    ///
    /// # Errors
    /// There was no turn before `deadline`.
    pub async fn turn(&self, party: Party, until: Instant) -> Result<Turn, Reset> {
        let Ok(Ok(place)) = timeout_at(until, self.turns.take(party)).await else {
            self.refused.turn.add(1);
            let text = "too many connections are being made there";
            return Err(Reset::new(Reason::Limit, text));
        };
        Ok(Turn {
            place: Some(place),
            rests: self.rests,
        })
    }

    /// The place of a connection.
    ///
    /// # Errors
    /// There is no place.
    pub fn socket(&self, party: Party, proto: Proto) -> Result<Socket, Reset> {
        let is_flow = proto == Proto::Udp;
        let flow = is_flow.then(|| self.flows.try_take(party)).transpose();
        let places = flow.and_then(|flow| Ok((flow, self.sockets.try_take(party)?)));
        let (_flow, _socket) = places.map_err(|_| {
            self.refused.socket.add(1);
            let text = "this session has its share of the connections there";
            Reset::new(Reason::Limit, text)
        })?;
        Ok(Socket { _socket, _flow })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn attempts_that_fail_at_once_are_limited() {
        let ceilings = ServingCeilings {
            dials: 9,
            connections: 100,
        };
        let dials = Dials::new(ceilings, true, Arc::default());
        let (flood, other) = (Party(1), Party(2));
        let until = Instant::now() + Duration::from_secs(60);
        let at_once = |party| dials.turn(party, until).now_or_never().transpose().unwrap();
        let mut failed = 0;
        while let Some(turn) = at_once(flood) {
            drop(turn);
            failed += 1;
        }
        assert_eq!(failed, 5, "a party that is alone gets half of them");
        assert!(at_once(other).is_some());
        for _ in 0..20 {
            dials.turn(flood, until).await.unwrap().succeeded();
        }
    }

    #[tokio::test]
    async fn refusals_are_counted_by_what_there_was_too_little_of() {
        let ceilings = ServingCeilings {
            dials: 1,
            connections: 1,
        };
        let dials = Dials::new(ceilings, false, Arc::default());
        let counts = || (dials.refused.turn.value(), dials.refused.socket.value());
        let soon = Instant::now() + Duration::from_millis(20);
        let _turn = dials.turn(Party(1), soon).await.unwrap();
        let _socket = dials.socket(Party(1), Proto::Tcp).unwrap();
        assert_eq!(counts(), (0, 0));
        assert!(dials.turn(Party(2), soon).await.is_err());
        assert_eq!(counts(), (1, 0));
        assert!(dials.socket(Party(2), Proto::Tcp).is_err());
        assert_eq!(counts(), (1, 1));
    }
}
