//! Bounds the connections that have no session yet.
//!
//! A new connection always gets a place. When all are taken, the source with most of them loses its
//! oldest connection; among equals the oldest of all goes. A flood therefore displaces itself, and
//! a client that sends its request at once is done before its turn comes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::addresses::Source;
use super::turns::Turns;

#[derive(Debug)]
pub struct Handshakes {
    most: usize,
    /// Most connections of one source.
    each: usize,
    state: Mutex<State>,
    /// A displaced connection is closed.
    left: Notify,
}

#[derive(Debug, Default)]
struct State {
    begun: u64,
    count: usize,
    /// Displaced connections that are not closed yet, and have no place of another kind.
    leaving: HashSet<u64>,
    /// By source, in the order in which they began.
    unfinished: HashMap<Source, BTreeMap<u64, CancellationToken>>,
}

/// A connection's place, until it is dropped or a newer connection displaces it.
#[derive(Debug)]
pub struct Handshake {
    number: u64,
    source: Source,
    displaced: CancellationToken,
    of: Arc<Handshakes>,
}

impl Handshakes {
    pub fn new(most: usize, each: usize) -> Self {
        Self {
            // With no place at all nobody could connect.
            most: most.max(1),
            each: each.max(1),
            state: Mutex::default(),
            left: Notify::new(),
        }
    }

    /// Waits until fewer than `most` displaced connections are still to be closed. They may be on
    /// other threads.
    pub async fn leaving_below(&self, most: usize) {
        loop {
            let left = self.left.notified();
            if self.state.lock().leaving.len() < most {
                return;
            }
            left.await;
        }
    }

    /// A place for a new connection.
    pub fn begin(self: &Arc<Self>, source: Source) -> Handshake {
        let mut state = self.state.lock();
        let own = state.unfinished.get(&source).map_or(0, BTreeMap::len);
        let victim = match own >= self.each {
            true => Some(source),
            false if state.count >= self.most => state.greediest(),
            false => None,
        };
        if let Some(victim) = victim {
            state.displace_oldest_of(victim);
        }
        state.begun += 1;
        let number = state.begun;
        let displaced = CancellationToken::new();
        let begun = state.unfinished.entry(source).or_default();
        begun.insert(number, displaced.clone());
        state.count += 1;
        Handshake {
            number,
            source,
            displaced,
            of: Arc::clone(self),
        }
    }
}

impl State {
    /// The source with most connections; among equals, the one with the oldest.
    fn greediest(&self) -> Option<Source> {
        let sources = self.unfinished.iter();
        let greediest = sources.max_by_key(|(_, begun)| {
            let oldest = begun.first_key_value().map(|(number, _)| *number);
            (begun.len(), Reverse(oldest))
        });
        greediest.map(|(source, _)| *source)
    }

    fn displace_oldest_of(&mut self, source: Source) {
        let oldest = self
            .unfinished
            .get(&source)
            .and_then(|begun| begun.keys().next().copied());
        let Some(oldest) = oldest else { return };
        if let Some(displaced) = self.remove(source, oldest) {
            displaced.cancel();
            self.leaving.insert(oldest);
        }
    }

    fn remove(&mut self, source: Source, number: u64) -> Option<CancellationToken> {
        let begun = self.unfinished.get_mut(&source)?;
        let removed = begun.remove(&number)?;
        if begun.is_empty() {
            self.unfinished.remove(&source);
        }
        self.count -= 1;
        Some(removed)
    }
}

impl Handshake {
    /// Gives the place back: the connection has a place of another kind now.
    pub fn settle(&self) {
        let mut state = self.of.state.lock();
        state.remove(self.source, self.number);
        if state.leaving.remove(&self.number) {
            self.of.left.notify_waiters();
        }
    }

    /// Does `work` in turn with others, unless a newer connection needs the place; `None` then.
    pub async fn unless_displaced<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let work = pin!(work);
        tokio::select! {
            done = Turns::newcomer().run(work) => Some(done),
            () = self.displaced.cancelled() => None,
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures_util::FutureExt;

    use super::*;

    fn source(last: u8) -> Source {
        Source::Address(IpAddr::from([10, 0, 0, last]))
    }

    fn is_displaced(handshake: &Handshake) -> bool {
        handshake.displaced.is_cancelled()
    }

    #[test]
    fn a_flood_displaces_its_own_oldest() {
        let handshakes = Arc::new(Handshakes::new(10, usize::MAX));
        let patient = handshakes.begin(source(1));
        let flood: Vec<_> = (0..100).map(|_| handshakes.begin(source(2))).collect();
        assert!(!is_displaced(&patient));
        assert_eq!(flood.iter().filter(|one| !is_displaced(one)).count(), 9);
        assert!(!is_displaced(&flood[99]) && is_displaced(&flood[0]));
        drop(flood);
        drop(patient);
        let state = handshakes.state.lock();
        assert!(state.count == 0 && state.unfinished.is_empty());
    }

    #[test]
    fn among_equals_the_oldest_goes() {
        let handshakes = Arc::new(Handshakes::new(3, usize::MAX));
        let begun: Vec<_> = (0..5).map(|last| handshakes.begin(source(last))).collect();
        let displaced: Vec<_> = begun.iter().map(is_displaced).collect();
        assert_eq!(displaced, [true, true, false, false, false]);
    }

    #[test]
    fn one_source_has_its_share_even_while_there_is_room() {
        let handshakes = Arc::new(Handshakes::new(10, 2));
        let begun: Vec<_> = (0..5).map(|_| handshakes.begin(source(1))).collect();
        assert_eq!(begun.iter().filter(|one| !is_displaced(one)).count(), 2);
        assert!(!is_displaced(&begun[4]));
    }

    #[test]
    fn nobody_waits_for_a_displaced_connection_that_has_another_place() {
        let handshakes = Arc::new(Handshakes::new(1, usize::MAX));
        let displaced = handshakes.begin(source(1));
        let newer = handshakes.begin(source(2));
        let all_left = || handshakes.leaving_below(1).now_or_never().is_some();
        assert!(is_displaced(&displaced) && !all_left());
        displaced.settle();
        assert!(all_left());
        let newest = handshakes.begin(source(3));
        drop(displaced);
        assert!(!all_left());
        drop(newer);
        assert!(all_left());
        drop(newest);
    }
}
