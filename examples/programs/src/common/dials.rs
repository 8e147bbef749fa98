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
use super::places::{Full, Place, Places, Sizes};

/// A session may have this many times as many lasting connections as are left free. A single user
/// gets eight ninths of them. Of the attempts, which end soon, half is enough.
pub const LASTING: usize = 8;

/// How long an attempt that failed or was given up keeps its turn. A port that refuses answers at
/// once, so without this a flood of attempts would be as fast as the processor.
const REST: Duration = Duration::from_millis(400);

/// A session, a container, or whatever else has a share.
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
    /// If these are one container's: those of all, and its party there.
    all: Option<Arc<(Self, Party)>>,
    pub refused: Arc<Refused>,
}

/// A turn to connect. Unless the attempt succeeded, it is given back after a while: also if the
/// client gave the attempt up, which is as fast as a port that refuses.
#[derive(Debug)]
pub struct Turn {
    places: Option<(Place<Party>, Option<Place<Party>>)>,
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
        let places = self.places.take();
        // Without a runtime the program ends.
        let runtime = Handle::try_current().ok().filter(|_| self.rests);
        if let Some(runtime) = runtime {
            runtime.spawn(async move {
                sleep(REST).await;
                drop(places);
            });
        }
    }
}

/// The place of a connection.
#[derive(Debug)]
pub struct Socket {
    _socket: Place<Party>,
    _flow: Option<Place<Party>>,
    _all: Option<Box<Self>>,
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
            flows: Places::new(sizes(ceilings.flows, LASTING)),
            rests,
            all: None,
            refused,
        }
    }

    /// The share of one container, for its sessions: as many as it may have while no other has any.
    /// What they get counts as the container's among all of them.
    #[must_use]
    pub fn of_container(&self, ceilings: ServingCeilings, container: Party) -> Self {
        let each = ServingCeilings {
            dials: ceilings.dials.div_ceil(2),
            connections: (ceilings.connections * LASTING).div_ceil(LASTING + 1),
            flows: (ceilings.flows * LASTING).div_ceil(LASTING + 1),
        };
        Self {
            all: Some(Arc::new((self.clone(), container))),
            ..Self::new(each, self.rests, Arc::clone(&self.refused))
        }
    }

    /// A turn to connect.
    ///
    /// # Errors
    /// There was no turn before `deadline`.
    pub async fn turn(&self, party: Party, until: Instant) -> Result<Turn, Reset> {
        let places = async {
            let own = self.turns.take(party).await?;
            let of_all = match self.all.as_deref() {
                Some((all, container)) => Some(all.turns.take(*container).await?),
                None => None,
            };
            Ok::<_, Full>((own, of_all))
        };
        let Ok(Ok(places)) = timeout_at(until, places).await else {
            self.refused.turn.add(1);
            let text = "too many connections are being made there";
            return Err(Reset::new(Reason::Limit, text));
        };
        Ok(Turn {
            places: Some(places),
            rests: self.rests,
        })
    }

    /// The place of a connection.
    ///
    /// # Errors
    /// There is no place.
    pub fn socket(&self, party: Party, proto: Proto) -> Result<Socket, Reset> {
        self.place(party, proto).map_err(|_| {
            self.refused.socket.add(1);
            let text = "this session has its share of the connections there";
            Reset::new(Reason::Limit, text)
        })
    }

    fn place(&self, party: Party, proto: Proto) -> Result<Socket, Full> {
        let is_flow = proto == Proto::Udp;
        let of_all = |all: &(Self, Party)| all.0.place(all.1, proto).map(Box::new);
        Ok(Socket {
            _socket: self.sockets.try_take(party)?,
            _flow: is_flow.then(|| self.flows.try_take(party)).transpose()?,
            _all: self.all.as_deref().map(of_all).transpose()?,
        })
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
            flows: 100,
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
    async fn the_sessions_of_one_container_leave_turns_and_sockets_to_others() {
        let ceilings = ServingCeilings {
            dials: 9,
            connections: 90,
            flows: 90,
        };
        let all = Dials::new(ceilings, true, Arc::default());
        let [flooded, other] = [1, 2].map(|party| all.of_container(ceilings, Party(party)));
        let until = Instant::now() + Duration::from_secs(60);
        let at_once = |dials: &Dials, party| {
            let turn = dials.turn(Party(party), until).now_or_never();
            turn.transpose().unwrap()
        };
        let turns: Vec<_> = (0..50)
            .filter_map(|party| at_once(&flooded, party))
            .collect();
        assert_eq!(turns.len(), 5);
        assert!(at_once(&other, 50).is_some());
        let socket = |dials: &Dials, party| dials.socket(Party(party), Proto::Tcp).ok();
        let sockets: Vec<_> = (0..200).filter_map(|_| socket(&flooded, 0)).collect();
        let more: Vec<_> = (0..200)
            .filter_map(|party| socket(&flooded, party))
            .collect();
        assert_eq!((sockets.len(), sockets.len() + more.len()), (72, 80));
        assert!(socket(&other, 50).is_some());
    }

    #[tokio::test]
    async fn refusals_are_counted_by_what_there_was_too_little_of() {
        let ceilings = ServingCeilings {
            dials: 1,
            connections: 1,
            flows: 1,
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
