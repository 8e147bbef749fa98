//! Tasks that wait for an event of the tunnel: its end, a violation, another transport.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::mem;
use core::task::{Context, Poll, Waker};

use super::shared::{Shared, TunnelState};

#[derive(Debug, Default)]
pub(super) struct Watchers {
    tasks: BTreeMap<u64, Waker>,
    next: u64,
}

impl Watchers {
    /// Collects the wakers of all tasks.
    pub(super) fn wake(&mut self, wake: &mut Vec<Waker>) {
        wake.extend(mem::take(&mut self.tasks).into_values());
    }

    /// Keeps the waker of a task, which gets a key the first time. Returns the one that it
    /// replaces.
    fn register(&mut self, key: &mut Option<u64>, cx: &Context<'_>) -> Option<Waker> {
        let key = *key.get_or_insert_with(|| {
            self.next += 1;
            self.next
        });
        self.tasks.insert(key, cx.waker().clone())
    }
}

/// A task that waits for an event of the tunnel. Dropping the future removes its waker.
pub(super) struct Watch<'a> {
    shared: &'a Shared,
    key: Option<u64>,
}

impl<'a> Watch<'a> {
    pub(super) const fn new(shared: &'a Shared) -> Self {
        Self { shared, key: None }
    }

    pub(super) fn poll<R>(
        &mut self,
        cx: &Context<'_>,
        outcome: impl FnOnce(&TunnelState) -> Option<R>,
    ) -> Poll<R> {
        let mut state = self.shared.lock();
        if let Some(outcome) = outcome(&state) {
            return Poll::Ready(outcome);
        }
        let replaced = state.watchers.register(&mut self.key, cx);
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let watcher = self.shared.lock().watchers.tasks.remove(&key);
        // As with `register`.
        drop(watcher);
    }
}
