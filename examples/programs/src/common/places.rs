//! Places shared between holders: each may have a multiple of the number that is left free.
//!
//! With a multiple of 1, a single holder gets at most half, and two a third each; with 8 they get
//! eight ninths and eight seventeenths. A new holder always finds a place while any is free. A
//! fixed share would be too small for one holder of an idle program, or too large for a hundred.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Longest wait for the place of a holder that was evicted. Its thread may be busy.
const EVICTED_WITHIN: Duration = Duration::from_millis(100);

/// The places, for holders that `K` distinguishes.
#[derive(Debug, Clone)]
pub struct Places<K: Key>(Arc<Mutex<State<K>>>);

/// Identifies a holder: a session's number, an address.
pub trait Key: Copy + Ord + Hash + Debug {}

impl<K: Copy + Ord + Hash + Debug> Key for K {}

/// How many places there are, and how they are shared.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub places: usize,
    /// Most places of one holder, in addition to the rule.
    pub each: usize,
    /// The multiple of the free places that a holder may have.
    pub times_free: usize,
    /// Most waiters, shared by the same rule.
    pub queue: usize,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// All places are taken.
    All,
    /// This holder has its share.
    Share,
}

/// A place, returned when dropped.
#[derive(Debug)]
pub struct Place<K: Key> {
    key: K,
    /// `None` after it was returned.
    of: Option<Places<K>>,
}

impl Sizes {
    /// This many places, with a multiple of 1. Nobody waits for one.
    pub fn of(places: usize) -> Self {
        Self {
            places,
            each: usize::MAX,
            times_free: 1,
            queue: 0,
        }
    }
}

impl<K: Key> Places<K> {
    pub fn new(sizes: Sizes) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: sizes.places,
            sizes,
            turns: 0,
            waiting: 0,
            holders: HashMap::new(),
            next: BTreeSet::new(),
        })))
    }

    /// Takes a place now.
    ///
    /// # Errors
    /// There is no place for this holder.
    pub fn try_take(&self, key: K) -> Result<Place<K>, Full> {
        self.0.lock().take(key)?;
        Ok(self.place(key))
    }

    /// Takes a place now. If all are taken, and this holder may have the next one that is given
    /// back, `evict` may end another holder's use of one, which is then awaited for a moment.
    ///
    /// # Errors
    /// There is no place for this holder.
    pub async fn take_or(&self, key: K, evict: impl FnOnce() -> bool) -> Result<Place<K>, Full> {
        let full = match self.try_take(key) {
            Err(full) if self.may_have_next(key) && evict() => full,
            taken => return taken,
        };
        timeout(EVICTED_WITHIN, self.take(key))
            .await
            .unwrap_or(Err(full))
    }

    fn may_have_next(&self, key: K) -> bool {
        let state = self.0.lock();
        state.free == 0 && state.may_take(state.taken(key), 1)
    }

    /// A place as soon as it is this holder's turn. Holders with fewer places come first.
    ///
    /// # Errors
    /// Too many wait already, or too many of this holder.
    pub async fn take(&self, key: K) -> Result<Place<K>, Full> {
        let waiting = {
            // Under one lock: a place that is given back in between would be granted to nobody.
            let mut state = self.0.lock();
            if state.take(key).is_ok() {
                return Ok(self.place(key));
            }
            self.wait(&mut state, key)?
        };
        waiting.granted().await
    }

    fn wait(&self, state: &mut State<K>, key: K) -> Result<Waiting<'_, K>, Full> {
        let left = state.sizes.queue - state.waiting;
        if left == 0 {
            return Err(Full::All);
        }
        let holder = state.holders.get(&key);
        if holder.map_or(0, |holder| holder.waiting.len()) >= state.share_of(left) {
            return Err(Full::Share);
        }
        let (granting, place) = oneshot::channel();
        state.waiting += 1;
        state.turns += 1;
        let turn = state.turns;
        state.change(key, |holder| holder.waiting.insert(turn, granting));
        Ok(Waiting {
            key,
            turn,
            of: self,
            place,
        })
    }

    /// Takes a place back and grants those that are free now.
    fn give_back(&self, key: K) {
        let mut state = self.0.lock();
        state.returned(key);
        while let Some((key, granting)) = state.grant() {
            drop(state);
            let unwanted = granting.send(self.place(key)).err();
            state = self.0.lock();
            if let Some(mut unwanted) = unwanted {
                // If it were dropped, it would recurse here, once for each waiter that is gone.
                unwanted.of = None;
                state.returned(key);
            }
        }
    }

    fn place(&self, key: K) -> Place<K> {
        let of = Some(self.clone());
        Place { key, of }
    }
}

impl<K: Key> Drop for Place<K> {
    fn drop(&mut self) {
        if let Some(of) = self.of.take() {
            of.give_back(self.key);
        }
    }
}

/// A waiter. Dropping it ends the wait.
struct Waiting<'a, K: Key> {
    key: K,
    turn: u64,
    of: &'a Places<K>,
    place: oneshot::Receiver<Place<K>>,
}

impl<K: Key> Waiting<'_, K> {
    async fn granted(mut self) -> Result<Place<K>, Full> {
        (&mut self.place).await.map_err(|_| Full::All)
    }
}

impl<K: Key> Drop for Waiting<'_, K> {
    fn drop(&mut self) {
        let mut state = self.of.0.lock();
        let turn = self.turn;
        if state
            .change(self.key, |holder| holder.waiting.remove(&turn))
            .is_some()
        {
            state.waiting -= 1;
        }
    }
}

#[derive(Debug)]
struct State<K: Key> {
    sizes: Sizes,
    free: usize,
    waiting: usize,
    turns: u64,
    holders: HashMap<K, Holder<K>>,
    /// Waiting holders: fewest places first, then longest waiting.
    next: BTreeSet<(usize, u64, K)>,
}

#[derive(Debug)]
struct Holder<K: Key> {
    taken: usize,
    /// By turn.
    waiting: BTreeMap<u64, oneshot::Sender<Place<K>>>,
}

impl<K: Key> State<K> {
    fn taken(&self, key: K) -> usize {
        self.holders.get(&key).map_or(0, |holder| holder.taken)
    }

    fn may_take(&self, taken: usize, free: usize) -> bool {
        taken < self.share_of(free) && taken < self.sizes.each
    }

    fn share_of(&self, free: usize) -> usize {
        free.saturating_mul(self.sizes.times_free)
    }

    fn take(&mut self, key: K) -> Result<(), Full> {
        if self.free == 0 {
            return Err(Full::All);
        }
        if !self.may_take(self.taken(key), self.free) {
            return Err(Full::Share);
        }
        self.change(key, |holder| holder.taken += 1);
        self.free -= 1;
        Ok(())
    }

    fn returned(&mut self, key: K) {
        self.free += 1;
        self.change(key, |holder| holder.taken -= 1);
    }

    /// The waiter whose turn it is. Its place already counts as taken.
    fn grant(&mut self) -> Option<(K, oneshot::Sender<Place<K>>)> {
        let (taken, _, key) = *self.next.first()?;
        if !self.may_take(taken, self.free) {
            return None;
        }
        let (_, granting) = self.change(key, |holder| {
            holder.taken += 1;
            holder.waiting.pop_first()
        })?;
        self.free -= 1;
        self.waiting -= 1;
        Some((key, granting))
    }

    /// Changes a holder and updates its place in the queue.
    fn change<T>(&mut self, key: K, change: impl FnOnce(&mut Holder<K>) -> T) -> T {
        let holder = self.holders.entry(key).or_insert_with(|| Holder {
            taken: 0,
            waiting: BTreeMap::new(),
        });
        if let Some((turn, _)) = holder.waiting.first_key_value() {
            self.next.remove(&(holder.taken, *turn, key));
        }
        let changed = change(holder);
        if let Some((turn, _)) = holder.waiting.first_key_value() {
            self.next.insert((holder.taken, *turn, key));
        } else if holder.taken == 0 {
            self.holders.remove(&key);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn places(count: usize, each: usize) -> Places<u8> {
        Places::new(Sizes {
            places: count,
            each,
            times_free: 1,
            queue: 100,
        })
    }

    #[test]
    fn one_holder_leaves_as_many_as_it_has_and_a_new_one_always_finds_a_place() {
        let places = places(100, usize::MAX);
        let mut taken = Vec::new();
        for holder in 0..5 {
            let before = taken.len();
            while let Ok(place) = places.try_take(holder) {
                taken.push(place);
            }
            assert!(taken.len() > before, "holder {holder}");
        }
        assert_eq!(taken.iter().filter(|place| place.key == 0).count(), 50);
        assert_eq!(places.try_take(0).err(), Some(Full::Share));
        taken.clear();
        assert_eq!(places.0.lock().free, 100);
        assert!(places.0.lock().holders.is_empty());
    }

    #[test]
    fn a_larger_multiple_leaves_less() {
        let places = Places::new(Sizes {
            places: 90,
            each: usize::MAX,
            times_free: 8,
            queue: 0,
        });
        let mut taken: Vec<_> = (0..90).filter_map(|_| places.try_take(1).ok()).collect();
        assert_eq!(taken.len(), 80);
        taken.extend((0..90).filter_map(|_| places.try_take(2).ok()));
        assert_eq!(taken.len(), 89);
    }

    #[test]
    fn a_fixed_share_goes_before() {
        let places = places(100, 3);
        let taken: Vec<_> = (0..9).filter_map(|_| places.try_take(1).ok()).collect();
        assert_eq!(taken.len(), 3);
    }

    #[tokio::test]
    async fn who_has_least_comes_first_and_who_has_gone_is_passed_over() {
        let places = places(4, usize::MAX);
        let greedy = [places.try_take(1).unwrap(), places.try_take(1).unwrap()];
        let others = [places.try_take(2).unwrap(), places.try_take(3).unwrap()];
        let gone: Vec<_> = (0..40)
            .map(|_| places.wait(&mut places.0.lock(), 5).unwrap())
            .collect();
        let again = places.wait(&mut places.0.lock(), 1).unwrap();
        let newcomer = places.wait(&mut places.0.lock(), 4).unwrap();
        drop(gone);
        drop(others);
        let newcomer = newcomer.granted().await.unwrap();
        assert_eq!(newcomer.key, 4);
        drop(greedy);
        let again = again.granted().await.unwrap();
        drop((again, newcomer));
        let state = places.0.lock();
        assert_eq!((state.free, state.waiting), (4, 0));
        assert!(state.holders.is_empty() && state.next.is_empty());
    }

    #[tokio::test]
    async fn a_place_that_was_granted_to_somebody_who_left_comes_back() {
        let places = places(2, usize::MAX);
        let taken = [places.try_take(1).unwrap(), places.try_take(2).unwrap()];
        let waiting: Vec<_> = (3..50)
            .map(|key| places.wait(&mut places.0.lock(), key).unwrap())
            .collect();
        drop(taken);
        drop(waiting);
        assert_eq!(places.0.lock().free, 2);
    }

    #[tokio::test]
    async fn the_queue_has_an_end() {
        let places = places(1, usize::MAX);
        let _taken = places.try_take(1).unwrap();
        let mut waiting: Vec<_> = (0..50)
            .map(|_| places.wait(&mut places.0.lock(), 2).unwrap())
            .collect();
        assert_eq!(places.take(2).await.err(), Some(Full::Share));
        waiting.extend((3..=52).map(|key| places.wait(&mut places.0.lock(), key).unwrap()));
        assert_eq!(places.take(99).await.err(), Some(Full::All));
    }

    #[test]
    fn nobody_waits_for_a_place_that_was_given_back_meanwhile() {
        const ROUNDS: usize = 20_000;
        let places = places(1, usize::MAX);
        let (begin, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let taker = places.clone();
        let taking = thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().build().unwrap();
            for () in begun {
                // One that is passed over would wait forever.
                runtime.block_on(async {
                    let place = tokio::time::timeout(Duration::from_secs(10), taker.take(1));
                    place.await.unwrap().unwrap()
                });
                end.send(()).unwrap();
            }
        });
        for round in 0..ROUNDS {
            let place = places.try_take(2).unwrap();
            begin.send(()).unwrap();
            // The two meet at another moment each time.
            for _ in 0..round % 500 {
                std::hint::spin_loop();
            }
            drop(place);
            ended.recv().unwrap();
        }
        drop(begin);
        taking.join().unwrap();
    }
}
