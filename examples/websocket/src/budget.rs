//! The memory one connection holds each way, charged to an account of the process.

use std::fmt;
use std::sync::Arc;

use crate::limits::FREE_ALLOWANCE;

/// Counts the memory of many connections against one budget.
pub trait Account: Send + Sync {
    /// Takes `bytes`. Returns `false`, and takes nothing, if fewer are left.
    fn take(&self, bytes: usize) -> bool;

    /// Returns bytes that were taken.
    fn give_back(&self, bytes: usize);
}

/// Bytes held beyond [`FREE_ALLOWANCE`]; returned when dropped.
#[derive(Default)]
pub(crate) struct Charge {
    account: Option<Arc<dyn Account>>,
    taken: usize,
}

impl Charge {
    pub(crate) fn to(account: Arc<dyn Account>) -> Self {
        let account = Some(account);
        Self { account, taken: 0 }
    }

    /// Sets how much is held. Returns `false`, and changes nothing, if the account has not enough.
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

    /// Whether bytes are held that the account counts.
    pub(crate) const fn is_due(&self) -> bool {
        self.taken > 0
    }

    /// Whether the account has not even a little left.
    pub(crate) fn is_exhausted(&self) -> bool {
        let Some(account) = &self.account else {
            return false;
        };
        let has_room = account.take(FREE_ALLOWANCE);
        if has_room {
            account.give_back(FREE_ALLOWANCE);
        }
        !has_room
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
