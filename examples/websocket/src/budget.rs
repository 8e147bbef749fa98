//! The memory one connection holds each way, charged to an account of the process.

use std::fmt;
use std::sync::Arc;

use crate::limits::FREE_ALLOWANCE;

/// Counts the memory of many connections against one budget.
pub trait Account: Send + Sync {
    /// Takes `bytes`. Returns `false`, and takes nothing, if fewer are left.
    fn take(&self, bytes: usize) -> bool;

    /// As [`take`](Self::take), for a message that is not complete. Its connection has taken `held`
    /// bytes for it before. If there is none for the message, the connection waits, and ends in the
    /// end; so there should be some for who holds little.
    fn take_for_message(&self, held: usize, bytes: usize) -> bool {
        let _ = held;
        self.take(bytes)
    }

    /// Returns bytes that were taken.
    fn give_back(&self, bytes: usize);
}

/// Bytes held beyond [`FREE_ALLOWANCE`]; returned when dropped.
#[derive(Default)]
pub(crate) struct Charge {
    account: Option<Arc<dyn Account>>,
    is_for_messages: bool,
    taken: usize,
}

impl Charge {
    pub(crate) fn to(account: Arc<dyn Account>) -> Self {
        let mut charge = Self::default();
        charge.account = Some(account);
        charge
    }

    pub(crate) fn for_messages(account: Arc<dyn Account>) -> Self {
        let mut charge = Self::to(account);
        charge.is_for_messages = true;
        charge
    }

    /// Sets how much is held. Returns `false`, and changes nothing, if the account has not enough.
    pub(crate) fn hold(&mut self, bytes: usize) -> bool {
        let Some(account) = &self.account else {
            return true;
        };
        let due = bytes.saturating_sub(FREE_ALLOWANCE);
        if due > self.taken && !self.take(&**account, due - self.taken) {
            return false;
        }
        if due < self.taken {
            account.give_back(self.taken - due);
        }
        self.taken = due;
        true
    }

    fn take(&self, account: &dyn Account, bytes: usize) -> bool {
        match self.is_for_messages {
            true => account.take_for_message(self.taken, bytes),
            false => account.take(bytes),
        }
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
        let has_room = self.take(&**account, FREE_ALLOWANCE);
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
