use alloc::collections::BTreeMap;
use alloc::sync::Weak;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Budget;
use super::shared::Shared;
use crate::session::Role;

/// The tunnels of a budget that wait for a transport. They go when memory is short, one at a time:
/// each frees memory.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    all: BTreeMap<Rank, Weak<Shared>>,
    /// Was asked to end, and has not ended yet.
    ending: Option<Rank>,
}

/// The order in which they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Carries streams of many users.
    is_opener: bool,
    /// Otherwise it may be of nobody.
    confirmed: bool,
    number: u64,
}

/// A tunnel's place among those that wait.
#[derive(Debug)]
pub(super) struct Waits {
    budget: Budget,
    rank: Rank,
}

impl Waiting {
    /// Asks the first one to end, unless another was asked and is still there.
    pub(super) fn end_first(&self) {
        let mut state = self.lock();
        if state.ending.is_some() {
            return;
        }
        let first = state.all.first_key_value();
        let Some((rank, shared)) = first.map(|(rank, shared)| (*rank, Weak::clone(shared))) else {
            return;
        };
        state.ending = Some(rank);
        drop(state);
        if let Some(shared) = shared.upgrade() {
            shared.evict();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    /// `None` if the tunnel has no budget.
    pub(super) fn begin(shared: &Weak<Shared>, role: Role, confirmed: bool) -> Option<Self> {
        let tunnel = shared.upgrade()?;
        let budget = tunnel.lock().account.as_ref()?.budget().clone();
        let mut state = budget.waiting().lock();
        let rank = Rank {
            is_opener: role == Role::Opener,
            confirmed,
            number: state.next,
        };
        state.next += 1;
        state.all.insert(rank, Weak::clone(shared));
        drop(state);
        Some(Self { budget, rank })
    }
}

impl Drop for Waits {
    /// The tunnel has a transport, or has ended.
    fn drop(&mut self) {
        let mut state = self.budget.waiting().lock();
        state.all.remove(&self.rank);
        if state.ending == Some(self.rank) {
            state.ending = None;
        }
    }
}
