use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::waiting::Waiting;
use crate::session::Allowance;

/// A bound in bytes on what many tunnels, and other parts of a program that a peer can make grow,
/// hold together.
///
/// [`Config`](crate::session::Config) bounds each tunnel; a server of many tunnels needs a bound on
/// their sum. A tunnel joins by [`Builder::budget`](super::Builder::budget). Each has a share of
/// the last third. An opener's tunnel, such as the one to a container's agent, may carry streams of
/// many users. It has as many shares as streams, up to 64. A tunnel with a transport that holds
/// less than its share loses nothing because of others, and the sum of what counts stays within the
/// limit:
/// - While more than a sixteenth is held, all payloads are copied, and what is kept until it is
///   acknowledged may not grow beyond [`ring_min`](crate::resume::Config::ring_min). A payload that
///   was not copied can keep a buffer of its transport alive, which does not count: over
///   [`length_prefixed`](super::length_prefixed) at most eight times its length, so that half of
///   the limit may be held besides.
/// - While more than half is held, a tunnel whose streams cost more than its share, without what is
///   queued on them, refuses new connections and some of those that it has not accepted yet.
///   Tunnels of a [`Keeper`](super::Keeper) that have no transport end, one after the other: first
///   those whose client has not [answered](super::Tunnel::confirmed), then acceptors' tunnels
///   before openers', of these those without for longest. A resumable tunnel keeps no further data
///   while it keeps half a share or more until that is acknowledged. It ends if its peer
///   acknowledges hardly any of it (less than 192 KiB) in 30 s in which it is read, or in 120 s,
///   and at once if answers to the peer make it keep 512 KiB more meanwhile. A tunnel whose streams
///   hold almost its share does not read its transport for as long as its readers make room
///   ([`Allowance::Share`]).
/// - While more than two thirds are held, a tunnel above its share takes no new connections, and
///   its streams that hold most are reset with reason overflow.
///
/// ```
/// use kohakuriver_tunnel::mux::{self, Budget};
/// use kohakuriver_tunnel::transport::Plain;
///
/// let budget = Budget::new(256 << 20);
/// # let (first, second) = tokio::io::duplex(64);
/// for socket in [first, second] {
///     let builder = mux::builder().budget(&budget);
///     let (acceptor, driver) = builder.acceptor(mux::length_prefixed(socket), Plain);
///     # drop((acceptor, driver));
/// }
/// // Something else of the program's that a peer can make grow.
/// assert!(budget.take(4096));
/// budget.give_back(4096);
/// ```
#[derive(Debug, Clone)]
pub struct Budget {
    inner: Arc<Inner>,
    turns: Arc<Turns>,
}

#[derive(Debug)]
struct Inner {
    limit: usize,
    /// By tunnels.
    held: AtomicUsize,
    /// By everything else.
    taken: AtomicUsize,
    /// Shares of the last third.
    shares: AtomicUsize,
    waiting: Waiting,
}

/// What tunnels on one thread know of each other.
#[derive(Debug, Default)]
struct Turns {
    /// Tunnels whose peer floods.
    floods: AtomicUsize,
    /// Tunnels that had more to read than one turn allowed.
    busy: AtomicUsize,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let inner = Inner {
            limit,
            held: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            shares: AtomicUsize::new(0),
            waiting: Waiting::default(),
        };
        Self {
            inner: Arc::new(inner),
            turns: Arc::default(),
        }
    }

    /// The same budget, for tunnels whose drivers run on another thread.
    ///
    /// What tunnels hold is counted together. Turns are shared between the tunnels of a thread: the
    /// more of them have much to read, the less each reads at once.
    #[must_use]
    pub fn for_thread(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            turns: Arc::default(),
        }
    }

    /// Takes `bytes` for something other than a tunnel. Returns false, and takes nothing, if more
    /// than two thirds of the budget would be held. Tunnels have to keep to their shares then, so
    /// what peers can make grow is better [taken in parts](Self::take_part).
    #[must_use = "what was not taken must not be held"]
    pub fn take(&self, bytes: usize) -> bool {
        self.take_up_to(self.soft_limit(), bytes)
    }

    /// As [`take`](Self::take), for one of many holders, such as a partial message of a connection.
    /// It has taken `held` bytes before. Returns false if more than five sixteenths of the budget
    /// would be taken, by all holders together. Up to half of it, a holder gets more as long as it
    /// keeps to its share: a sixth of the budget, divided by the number of tunnels. Whoever holds
    /// little therefore finds some, and half of the budget is left to the tunnels.
    ///
    /// ```
    /// # use kohakuriver_tunnel::mux::Budget;
    /// let budget = Budget::new(48 << 20);
    /// assert!(budget.take_part(0, 15 << 20));
    /// assert!(!budget.take_part(15 << 20, 1));
    /// // Without tunnels the share is the whole sixth.
    /// assert!(budget.take_part(0, 8 << 20));
    /// ```
    #[must_use = "what was not taken must not be held"]
    pub fn take_part(&self, held: usize, bytes: usize) -> bool {
        let limit = self.inner.limit;
        let shares = self.inner.shares.load(Ordering::Relaxed);
        let most = match held.saturating_add(bytes) <= limit / 6 / shares.max(1) {
            true => limit / 2,
            // All shares fit above that, and a 48th for what callers keep for later.
            false => limit / 16 * 5,
        };
        self.take_up_to(most, bytes)
    }

    /// Takes `bytes`, if then at most `most` are taken, and two thirds of the budget held.
    fn take_up_to(&self, most: usize, bytes: usize) -> bool {
        let held = self.inner.held.load(Ordering::Relaxed);
        let fits = |taken: usize| {
            let taken = taken.checked_add(bytes)?;
            let all = held.checked_add(taken)?;
            (taken <= most && all <= self.soft_limit()).then_some(taken)
        };
        let taken = &self.inner.taken;
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok()
    }

    /// Returns bytes that were taken before. Returning more than was taken returns all of it.
    pub fn give_back(&self, bytes: usize) {
        let less = |taken: usize| Some(taken.saturating_sub(bytes));
        let taken = &self.inner.taken;
        let _ = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.inner.limit
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.inner.held.load(Ordering::Relaxed) + self.inner.taken.load(Ordering::Relaxed)
    }

    pub(super) fn waiting(&self) -> &Waiting {
        &self.inner.waiting
    }

    /// A tunnel without a transport ends.
    pub(super) fn relieve(&self) {
        self.inner.waiting.end_first();
    }

    /// Bytes that may be held before tunnels have to keep to their shares.
    fn soft_limit(&self) -> usize {
        self.inner.limit / 3 * 2
    }
}

/// One tunnel's part of a [`Budget`].
#[derive(Debug)]
pub(super) struct Account {
    budget: Budget,
    charged: usize,
    shares: usize,
    flooded: bool,
    busy: bool,
}

impl Account {
    /// Smaller changes are not worth an atomic operation each.
    const GRAIN: usize = 16 << 10;
    /// A payload may pin a transport buffer of eight times its size, or more if the transport is
    /// not of this crate. Payloads kept before memory counts as scarce can thus cost half of the
    /// limit.
    const PINNED_SHARE: usize = 16;
    /// Enough for the users of one container. More would leave little for other tunnels.
    const MOST_SHARES: usize = 64;

    pub(super) fn open(budget: &Budget) -> Self {
        let mut account = Self {
            budget: budget.clone(),
            charged: 0,
            shares: 0,
            flooded: false,
            busy: false,
        };
        account.share(1);
        account
    }

    /// Updates what the tunnel holds, what it keeps besides until the peer acknowledges it, and for
    /// how many parties. Resetting streams frees nothing of what is kept.
    pub(super) fn settle(&mut self, held: usize, kept: usize, parties: usize) -> Allowance {
        let shares = parties.min(Self::MOST_SHARES);
        self.share(shares);
        if (held + kept).abs_diff(self.charged) >= Self::GRAIN {
            self.charge(held + kept);
        }
        if !self.is_scarce() {
            return Allowance::Ample;
        }
        if self.tight().is_none() {
            return Allowance::Scarce;
        }
        let share = self.part();
        match self.budget.held() > self.budget.soft_limit() && held > share {
            true => Allowance::Exceeded(share),
            false => Allowance::Share(share),
        }
    }

    /// Whether memory is ample, and what the tunnel holds, and for how many, is as it was when it
    /// was updated last.
    pub(super) fn stays_ample(&self, held: usize, parties: usize) -> bool {
        held.abs_diff(self.charged) < Self::GRAIN
            && parties.min(Self::MOST_SHARES) == self.shares
            && !self.is_scarce()
    }

    /// Whether so much is held in total that payloads must not pin buffers larger than themselves.
    pub(super) fn is_scarce(&self) -> bool {
        self.budget.held() > self.budget.inner.limit / Self::PINNED_SHARE
    }

    /// The budget, if so much is held in total that tunnels without a transport have to go, before
    /// others have to keep to their shares.
    pub(super) fn tight(&self) -> Option<&Budget> {
        (self.budget.held() > self.budget.inner.limit / 2).then_some(&self.budget)
    }

    /// Most bytes that the tunnel may keep until they are acknowledged, once tunnels without a
    /// transport have to go.
    pub(super) fn kept_max(&self) -> Option<usize> {
        /// The longest control messages have to fit.
        const LEAST: usize = 4 << 10;
        self.tight()?;
        Some((self.part() / 2).max(LEAST))
    }

    /// The tunnel's part of the last third.
    fn part(&self) -> usize {
        let all = self.budget.inner.shares.load(Ordering::Relaxed);
        self.budget.inner.limit / 3 / all.max(1) * self.shares
    }

    pub(super) const fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Updates whether the peer floods; returns how many peers do.
    pub(super) fn note_flood(&mut self, flooded: bool) -> usize {
        count(&self.budget.turns.floods, &mut self.flooded, flooded)
    }

    /// Updates whether there is more to read than one turn allows.
    pub(super) fn note_busy(&mut self, busy: bool) {
        count(&self.budget.turns.busy, &mut self.busy, busy);
    }

    /// Number of tunnels with more to read than one turn allows.
    pub(super) fn busy(&self) -> usize {
        self.budget.turns.busy.load(Ordering::Relaxed)
    }

    pub(super) fn charge(&mut self, held: usize) {
        let sum = &self.budget.inner.held;
        if held >= self.charged {
            sum.fetch_add(held - self.charged, Ordering::Relaxed);
        } else {
            sum.fetch_sub(self.charged - held, Ordering::Relaxed);
        }
        self.charged = held;
    }

    fn share(&mut self, shares: usize) {
        if shares == self.shares {
            return;
        }
        let all = &self.budget.inner.shares;
        all.fetch_add(shares, Ordering::Relaxed);
        all.fetch_sub(self.shares, Ordering::Relaxed);
        self.shares = shares;
    }
}

/// Adds a tunnel to `all` or removes it, by `now`; returns the count.
fn count(all: &AtomicUsize, counted: &mut bool, now: bool) -> usize {
    match (core::mem::replace(counted, now), now) {
        (false, true) => all.fetch_add(1, Ordering::Relaxed) + 1,
        (true, false) => all.fetch_sub(1, Ordering::Relaxed) - 1,
        _ => all.load(Ordering::Relaxed),
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.charge(0);
        self.share(0);
        self.note_flood(false);
        self.note_busy(false);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn a_small_member_never_pays_and_the_sum_stays_within_the_limit() {
        let budget = Budget::new(3 << 20);
        let mut greedy = Account::open(&budget);
        let mut modest = Account::open(&budget);
        assert_eq!(greedy.settle(64 << 10, 0, 1), Allowance::Ample);
        assert_eq!(greedy.settle(1 << 20, 0, 1), Allowance::Scarce);
        assert_eq!(greedy.settle(2 << 20, 0, 1), Allowance::Share(512 << 10));
        assert_eq!(modest.settle(512 << 10, 0, 1), Allowance::Share(512 << 10));
        // Both tunnels share the last third.
        assert_eq!(
            modest.settle((512 << 10) + 1, 0, 1),
            Allowance::Exceeded(512 << 10)
        );
        assert_eq!(greedy.settle(2 << 20, 0, 1), Allowance::Exceeded(512 << 10));
        greedy.charge(512 << 10);
        assert_eq!(modest.settle(1 << 20, 0, 1), Allowance::Scarce);
        assert!(!budget.take(1 << 20));
        assert!(budget.take(512 << 10));
        budget.give_back(512 << 10);
        drop((greedy, modest));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn whoever_holds_little_finds_some_and_tunnels_keep_half() {
        let budget = Budget::new(48 << 20);
        let mut tunnels: Vec<_> = (0..8).map(|_| Account::open(&budget)).collect();
        // Greedy holders, one after the other.
        let taken: usize = (0..6)
            .map(|_| {
                (0..48 << 10)
                    .take_while(|at| budget.take_part(at << 10, 1 << 10))
                    .count()
            })
            .sum();
        assert_eq!(taken, (15 + 5) << 10);
        for _ in 0..2 {
            assert!(budget.take_part(0, 1 << 20));
            assert!(!budget.take_part(1 << 20, 1));
        }
        assert!(budget.held() < 24 << 20);
        let allowance = tunnels.first_mut().unwrap().settle(2 << 20, 0, 1);
        assert_eq!(allowance, Allowance::Scarce);
    }

    #[test]
    fn what_was_not_taken_cannot_be_given_back() {
        let budget = Budget::new(3 << 20);
        let mut tunnel = Account::open(&budget);
        tunnel.charge(1 << 20);
        assert!(budget.take(1 << 10));
        budget.give_back(1 << 20);
        assert_eq!(budget.held(), 1 << 20);
        drop(tunnel);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn threads_share_what_is_held_and_not_turns() {
        let budget = Budget::new(3 << 20);
        let mut here = Account::open(&budget);
        let mut there = Account::open(&budget.for_thread());
        here.note_busy(true);
        assert_eq!((here.busy(), there.busy()), (1, 0));
        assert_eq!((here.note_flood(true), there.note_flood(true)), (1, 1));
        there.charge(1 << 20);
        assert_eq!(budget.held(), 1 << 20);
        assert_eq!(here.settle(2 << 20, 0, 1), Allowance::Exceeded(512 << 10));
    }

    #[test]
    fn a_tunnel_for_many_has_a_share_for_each() {
        let budget = Budget::new(30 << 20);
        let mut shared = Account::open(&budget);
        let mut greedy = Account::open(&budget);
        assert_eq!(shared.settle(4 << 20, 0, 4), Allowance::Scarce);
        assert_eq!(greedy.settle(24 << 20, 0, 1), Allowance::Exceeded(2 << 20));
        assert_eq!(shared.settle(8 << 20, 0, 4), Allowance::Share(8 << 20));
        assert_eq!(
            shared.settle((8 << 20) + 1, 0, 4),
            Allowance::Exceeded(8 << 20)
        );
        drop(shared);
        assert_eq!(greedy.settle(24 << 20, 0, 1), Allowance::Exceeded(10 << 20));
    }
}
