use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Weak;
use alloc::vec::Vec;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::shared::Shared;
use super::{Budget, KeeperLimits};
use crate::session::Role;

/// Tunnels without a transport, in the order in which they have to go.
#[derive(Debug)]
pub(super) struct Line<T> {
    next: u64,
    all: BTreeMap<Rank, T>,
}

/// A place in the order: first those that may be of nobody, last those that carry streams of many
/// users, otherwise as they lost their transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    confirmed: bool,
    is_opener: bool,
    number: u64,
}

/// The tunnels of a keeper without a transport, also by group and by peer.
#[derive(Debug, Default)]
pub(super) struct Detached {
    all: Line<Place>,
    groups: BTreeMap<String, BTreeSet<Rank>>,
    peers: BTreeMap<String, BTreeSet<Rank>>,
}

#[derive(Debug)]
struct Place {
    tunnel: u64,
    group: String,
    peer: String,
}

/// The tunnels of a budget that wait for a transport. They go when memory is short, one at a time:
/// each frees memory.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    line: Line<Weak<Shared>>,
    /// Was asked to end, and has not ended yet.
    ending: Option<Rank>,
}

/// A tunnel's place among those that wait.
#[derive(Debug)]
pub(super) struct Waiter {
    budget: Budget,
    rank: Rank,
}

impl<T> Line<T> {
    pub(super) fn join(&mut self, role: Role, confirmed: bool, tunnel: T) -> Rank {
        let rank = Rank {
            confirmed,
            is_opener: role == Role::Opener,
            number: self.next,
        };
        self.next += 1;
        self.all.insert(rank, tunnel);
        rank
    }

    pub(super) fn leave(&mut self, rank: Rank) -> Option<T> {
        self.all.remove(&rank)
    }

    pub(super) fn first(&self) -> Option<(Rank, &T)> {
        let first = self.all.first_key_value();
        first.map(|(rank, tunnel)| (*rank, tunnel))
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            next: 0,
            all: BTreeMap::new(),
        }
    }
}

impl Detached {
    /// The tunnel has lost its transport. Takes the tunnels that have to end for it, and returns
    /// them.
    pub(super) fn join(
        &mut self,
        tunnel: u64,
        group: &str,
        peer: &str,
        role: Role,
        confirmed: bool,
        limits: KeeperLimits,
    ) -> (Rank, Vec<u64>) {
        let place = Place {
            tunnel,
            group: group.into(),
            peer: peer.into(),
        };
        let rank = self.all.join(role, confirmed, place);
        let ranks = self.groups.entry(group.into()).or_default();
        ranks.insert(rank);
        let of_group = first_beyond(ranks, limits.per_group);
        let ranks = self.peers.entry(peer.into()).or_default();
        ranks.insert(rank);
        let of_peer = first_beyond(ranks, limits.per_peer);
        let mut victims = Vec::new();
        for rank in [of_group, of_peer].into_iter().flatten() {
            victims.extend(self.leave(rank));
        }
        while self.len() > limits.detached {
            victims.extend(self.pop_first());
        }
        (rank, victims)
    }

    /// Takes a tunnel, if it is still there.
    pub(super) fn leave(&mut self, rank: Rank) -> Option<u64> {
        let place = self.all.leave(rank)?;
        remove(&mut self.groups, &place.group, rank);
        remove(&mut self.peers, &place.peer, rank);
        Some(place.tunnel)
    }

    pub(super) fn pop_first(&mut self) -> Option<u64> {
        let (rank, _) = self.all.first()?;
        self.leave(rank)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

/// The first of more than `limit` ranks.
fn first_beyond(ranks: &BTreeSet<Rank>, limit: usize) -> Option<Rank> {
    let first = ranks.first().copied();
    first.filter(|_| ranks.len() > limit)
}

fn remove(of: &mut BTreeMap<String, BTreeSet<Rank>>, name: &str, rank: Rank) {
    if let Some(ranks) = of.get_mut(name) {
        ranks.remove(&rank);
        if ranks.is_empty() {
            of.remove(name);
        }
    }
}

impl Waiting {
    /// Asks the first one to end, unless another was asked and is still there.
    pub(super) fn end_first(&self) {
        let mut state = self.lock();
        if state.ending.is_some() {
            return;
        }
        let first = state.line.first();
        let Some((rank, shared)) = first.map(|(rank, shared)| (rank, Weak::clone(shared))) else {
            return;
        };
        state.ending = Some(rank);
        drop(state);
        if let Some(shared) = shared.upgrade() {
            shared.evict();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// `None` if the tunnel has no budget.
    pub(super) fn begin(shared: &Weak<Shared>, role: Role, confirmed: bool) -> Option<Self> {
        let tunnel = shared.upgrade()?;
        let budget = tunnel.lock().account.as_ref()?.budget().clone();
        let mut state = budget.waiting().lock();
        let rank = state.line.join(role, confirmed, Weak::clone(shared));
        drop(state);
        Some(Self { budget, rank })
    }
}

impl Drop for Waiter {
    /// The tunnel has a transport, or has ended.
    fn drop(&mut self) {
        let mut state = self.budget.waiting().lock();
        state.line.leave(self.rank);
        if state.ending == Some(self.rank) {
            state.ending = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_nobody_go_first_and_those_of_many_last() {
        let mut line = Line::default();
        for (role, confirmed) in [
            (Role::Opener, true),
            (Role::Acceptor, true),
            (Role::Opener, false),
            (Role::Acceptor, false),
            (Role::Acceptor, true),
        ] {
            let number = line.len();
            line.join(role, confirmed, number);
        }
        let mut order = Vec::new();
        while let Some((rank, _)) = line.first() {
            order.extend(line.leave(rank));
        }
        assert_eq!(order, [3, 2, 1, 4, 0]);
    }
}
