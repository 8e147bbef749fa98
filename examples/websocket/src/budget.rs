//! What one connection holds each way, charged to whoever counts for the process.

use std::fmt;
use std::sync::Arc;

use crate::limits::FREE_ALLOWANCE;

/// Counts the memory of many connections against one budget.
pub trait Account: Send + Sync {
    /// Takes so many bytes; `false`, and nothing taken, when there are not as many left.
    fn take(&self, bytes: usize) -> bool;

    /// Gives back what was taken.
    fn give_back(&self, bytes: usize);
}

/// What is held beyond [`FREE_ALLOWANCE`]; given back when dropped.
pub(crate) struct Charge {
    account: Option<Arc<dyn Account>>,
    taken: usize,
}

impl Charge {
    pub(crate) fn new(account: Option<Arc<dyn Account>>) -> Self {
        Self { account, taken: 0 }
    }

    /// Says how much is held now; `false` when that is more than can be had, and nothing changes.
    pub(crate) fn hold(&mut self, bytes: usize) -> bool {
        let Some(account) = &self.account else {
            return true;
        };
        let due = bytes.saturating_sub(FREE_ALLOWANCE);
        if due > self.taken && !account.take(due - self.taken) {
            return false;
        }
        if due < self.taken {
            account.give_back(self.taken - due);
        }
        self.taken = due;
        true
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Charge({})", self.taken)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.hold(0);
    }
}
