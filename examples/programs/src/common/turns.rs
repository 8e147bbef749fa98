//! Turns for busy connections, so that the others do not wait for all of them.
//!
//! An event loop polls ready tasks in order. If thousands always have more to do, each of the
//! others waits for thousands of polls. The tasks of a busy connection therefore wait in line, and
//! one task of that line at a time is in the event loop's queue. A connection that sleeps between
//! short pieces of work never waits. Without busy connections there is no line, and a few of them
//! need none. Sessions that came together with many others wait in line as busy ones do, so that a
//! flood of thousands, each quiet by itself, holds up nobody who was there before or comes later.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Bound::{Excluded, Unbounded};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

/// Since the program's first look at the clock.
type Nanos = u64;

/// Time of work that a connection may do without waiting in line, after it has slept long enough.
const BURST: Nanos = micros(200);

/// A quiet connection sleeps this many times as long as it works. Waiting for a turn with work to
/// do is not sleep, so a flood does not become quiet because many others flood too.
const SLEEPS: u64 = 10;

/// A busy connection is quiet again once it has slept this long.
const REST: Nanos = micros(1_000);

/// A session that has been busy for less than this waits only for others like it. A browser's burst
/// is over by then.
const FRESH: Nanos = micros(20_000);

/// Sessions that came within this time of the first of them are a generation.
const GENERATION: Nanos = micros(10_000_000);

/// Sessions of a larger generation are a crowd: they wait in line also while they are quiet, but
/// hardly for others than themselves.
const CROWD: usize = 32;

/// A session whose generation is older than this leaves it at its first quiet moment. Whoever came
/// back after an outage, with all others, then waits no more than anybody else.
const CROWD_FOR: Nanos = micros(60_000_000);

/// Most that one poll counts for. Beyond it, the system has probably run another process meanwhile.
const POLL_MAX: Nanos = micros(100);

/// So many busy connections take turns without a line: the others wait for these few only. An
/// agent's and a client's, which every message between them needs, are two.
const FEW: usize = 4;

/// A task that need not wait is measured once in so many polls, which count as that one. The next
/// rest of the connection ends what this gets wrong.
const SAMPLE: u64 = 8;

const fn micros(count: u64) -> Nanos {
    count * 1000
}

fn now() -> Nanos {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    let since = BEGAN.elapsed();
    since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
}

thread_local! {
    /// A task stays on the thread of its event loop.
    static LINE: RefCell<Line> = RefCell::default();

    /// The generation of sessions that come now.
    static LATEST: RefCell<Option<Arc<Generation>>> = const { RefCell::new(None) };
}

/// Sessions of a thread that came within a short time.
#[derive(Debug)]
struct Generation {
    began: Nanos,
    /// Those that exist.
    sessions: AtomicUsize,
    /// Round of the session that queued last. See [`Line::round`].
    round: AtomicU64,
}

/// One session's part of a generation.
#[derive(Debug)]
struct Joined(Arc<Generation>);

impl Joined {
    fn new(now: Nanos) -> Self {
        let latest = LATEST.with_borrow_mut(|latest| {
            latest.take_if(|latest| now >= latest.began + GENERATION);
            let new = || {
                Arc::new(Generation {
                    began: now,
                    sessions: AtomicUsize::new(0),
                    round: AtomicU64::new(0),
                })
            };
            Arc::clone(latest.get_or_insert_with(new))
        });
        latest.sessions.fetch_add(1, Ordering::Relaxed);
        Self(latest)
    }

    fn is_crowd(&self) -> bool {
        self.0.sessions.load(Ordering::Relaxed) > CROWD
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The turns of one connection, for all of its tasks.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Mutex<Member>>);

/// A task of a connection.
#[derive(Debug)]
pub struct InTurn<F> {
    work: F,
    turns: Turns,
    ticket: Option<u64>,
    /// Polls since the last one that was measured.
    unmeasured: u64,
    /// One of them left nothing to do.
    has_slept: bool,
    alarm: Arc<Alarm>,
    /// Wakes this task through the alarm.
    waker: Waker,
}

/// The waker of a task, which notices that it is used.
#[derive(Debug, Default)]
struct Alarm {
    task: AtomicWaker,
    rang: AtomicBool,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rang.store(true, Ordering::Relaxed);
        self.task.wake();
    }
}

impl Turns {
    /// For a connection that has no session.
    pub fn newcomer() -> Self {
        Self::new(now(), false)
    }

    /// For a connection with a session.
    pub fn session() -> Self {
        Self::new(now(), true)
    }

    fn new(now: Nanos, is_session: bool) -> Self {
        let member = Member {
            is_session,
            generation: is_session.then(|| Joined::new(now)),
            effort: Effort::new(now),
            waiting: BTreeMap::new(),
            position: None,
            is_called: false,
        };
        Self(Arc::new(Mutex::new(member)))
    }

    /// Does `work` in turns with that of others, while this connection is busy. It must not be part
    /// of other work in turns: each would wait for the other.
    pub fn run<F: Future + Unpin>(&self, work: F) -> InTurn<F> {
        let alarm = Arc::<Alarm>::default();
        InTurn {
            work,
            turns: self.clone(),
            ticket: None,
            unmeasured: 0,
            has_slept: false,
            waker: Waker::from(Arc::clone(&alarm)),
            alarm,
        }
    }

    /// Distinguishes connections while they exist.
    fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

impl<F: Future + Unpin> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let is_free = this.ticket.is_none() && with_line(|line| line.is_free(&this.turns));
        this.unmeasured += 1;
        if is_free && this.unmeasured < SAMPLE {
            let polled = this.work(cx);
            this.has_slept |= !this.has_more();
            return polled;
        }
        let began = now();
        if this.ticket.is_some() || this.waits(began) && !is_free {
            let called = with_line(|line| line.may_run(&this.turns, &mut this.ticket, cx));
            if !called {
                call();
                return Poll::Pending;
            }
        }
        let polled = this.work(cx);
        let has_more = this.has_more();
        let polls = if is_free { this.unmeasured } else { 1 };
        this.unmeasured = 0;
        let mut member = this.turns.0.lock();
        member.effort.add(began, now(), polls, has_more);
        drop(member);
        this.leave();
        polled
    }
}

impl<F: Future + Unpin> InTurn<F> {
    fn waits(&mut self, now: Nanos) -> bool {
        let mut member = self.turns.0.lock();
        member.effort.has_more &= !std::mem::take(&mut self.has_slept);
        member.waits(now)
    }

    fn work(&mut self, cx: &Context<'_>) -> Poll<F::Output> {
        self.alarm.task.register(cx.waker());
        self.alarm.rang.store(false, Ordering::Relaxed);
        Pin::new(&mut self.work).poll(&mut Context::from_waker(&self.waker))
    }

    /// Whether it was woken while it worked.
    fn has_more(&self) -> bool {
        self.alarm.rang.load(Ordering::Relaxed)
    }
}

impl<F> InTurn<F> {
    fn leave(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            drop(with_line(|line| line.leave(&self.turns, ticket)));
            call();
        }
    }
}

impl<F> Drop for InTurn<F> {
    fn drop(&mut self) {
        self.leave();
    }
}

fn with_line<T: Default>(act: impl FnOnce(&mut Line) -> T) -> T {
    // While the thread ends, there is no line any more.
    let done = LINE.try_with(|line| act(&mut line.borrow_mut()));
    done.unwrap_or_default()
}

/// Wakes the next task. A waker is foreign code, so the line is not borrowed meanwhile.
fn call() {
    if let Some(next) = with_line(Line::call) {
        next.wake();
    }
}

/// The classes have the turn one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    #[default]
    Newcomer,
    /// A session that came with many others.
    Crowd,
    /// A session that has not been busy for long.
    Fresh,
    Session,
}

/// A connection's part of the line.
#[derive(Debug)]
struct Member {
    is_session: bool,
    generation: Option<Joined>,
    effort: Effort,
    /// Its tasks that wait, by ticket.
    waiting: BTreeMap<u64, Waker>,
    /// Its position in the line.
    position: Option<Position>,
    /// One of its tasks was called and has not left yet. Then it is nowhere in the line.
    is_called: bool,
}

impl Member {
    /// Whether its tasks wait in line.
    fn waits(&mut self, now: Nanos) -> bool {
        let is_busy = self.effort.is_busy(now, self.waiting.is_empty());
        if !is_busy {
            self.generation
                .take_if(|joined| now >= joined.0.began + CROWD_FOR);
        }
        is_busy || self.generation.as_ref().is_some_and(Joined::is_crowd)
    }

    fn class(&self) -> Class {
        let is_fresh = |since| now() < since + FRESH;
        match &self.generation {
            _ if !self.is_session => Class::Newcomer,
            Some(joined) if joined.is_crowd() => Class::Crowd,
            _ if self.effort.busy_since.is_some_and(is_fresh) => Class::Fresh,
            _ => Class::Session,
        }
    }
}

/// Class, round and number.
type Position = (Class, u64, u64);

/// The busy connections of a thread that wait, in each class first come first served. In each round
/// one session of each crowd goes, so that a small crowd does not wait for all of a large one.
#[derive(Debug, Default)]
struct Line {
    /// The last number of a ticket or a position.
    numbers: u64,
    queue: BTreeMap<Position, Turns>,
    /// Which class had the turn before.
    last: Class,
    /// The round of the crowds now.
    round: u64,
    /// Was woken and will run next. Tasks that were ready before run before it.
    called: Option<u64>,
    /// The connections whose tasks ran last: see [`Turns::id`].
    recent: [usize; FEW],
    /// Where the next one is noted.
    next_recent: usize,
}

impl Line {
    /// Whether this task may run now. Otherwise it is in line afterwards, and will be woken.
    fn may_run(&mut self, turns: &Turns, ticket: &mut Option<u64>, cx: &Context<'_>) -> bool {
        if ticket.is_none() && self.is_free(turns) {
            return true;
        }
        let number = *ticket.get_or_insert_with(|| self.next_number());
        if self.called == Some(number) {
            self.note_run(turns);
            return true;
        }
        let mut member = turns.0.lock();
        match member.waiting.get_mut(&number) {
            Some(waiting) => waiting.clone_from(cx.waker()),
            None => drop(member.waiting.insert(number, cx.waker().clone())),
        }
        self.queue_up(&mut member, turns);
        false
    }

    /// The task of this ticket does not wait any more.
    fn leave(&mut self, turns: &Turns, ticket: u64) -> Option<Waker> {
        let mut member = turns.0.lock();
        let waiting = member.waiting.remove(&ticket);
        if self.called == Some(ticket) {
            self.called = None;
            member.is_called = false;
            self.queue_up(&mut member, turns);
        }
        if member.waiting.is_empty() {
            if let Some(position) = member.position.take() {
                self.queue.remove(&position);
            }
        }
        waiting
    }

    /// At the end, if tasks of it wait and it has no position.
    fn queue_up(&mut self, member: &mut Member, turns: &Turns) {
        let waits = !member.is_called && !member.waiting.is_empty();
        if waits && member.position.is_none() {
            let class = member.class();
            let round = match &member.generation {
                Some(Joined(generation)) if class == Class::Crowd => {
                    let next = generation.round.load(Ordering::Relaxed) + 1;
                    let round = next.max(self.round);
                    generation.round.store(round, Ordering::Relaxed);
                    round
                }
                _ => 0,
            };
            let position = (class, round, self.next_number());
            member.position = Some(position);
            self.queue.insert(position, turns.clone());
        }
    }

    /// Whether nobody is in line, and this connection is one of the few whose tasks ran last.
    fn is_free(&self, turns: &Turns) -> bool {
        let is_empty = self.queue.is_empty() && self.called.is_none();
        is_empty && self.recent.contains(&turns.id())
    }

    fn note_run(&mut self, turns: &Turns) {
        let id = turns.id();
        if self.recent.contains(&id) {
            return;
        }
        if let Some(oldest) = self.recent.get_mut(self.next_recent) {
            *oldest = id;
        }
        self.next_recent = (self.next_recent + 1) % FEW;
    }

    fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// The waker of the task that runs next, unless one was called already.
    fn call(&mut self) -> Option<Waker> {
        if self.called.is_some() {
            return None;
        }
        let later = (Excluded((self.last, u64::MAX, u64::MAX)), Unbounded);
        let mut in_order = self.queue.range(later).chain(&self.queue);
        let position = *in_order.next()?.0;
        self.last = position.0;
        self.round = self.round.max(position.1);
        let turns = self.queue.remove(&position)?;
        let mut member = turns.0.lock();
        member.position = None;
        let (ticket, waker) = member.waiting.pop_first()?;
        member.is_called = true;
        self.called = Some(ticket);
        Some(waker)
    }
}

/// How much a connection has worked lately.
#[derive(Debug)]
struct Effort {
    /// When it will have slept enough for its work.
    slept: Nanos,
    ended: Nanos,
    /// It was woken while it worked.
    has_more: bool,
    busy_since: Option<Nanos>,
}

impl Effort {
    /// A new connection is busy until it sleeps.
    fn new(now: Nanos) -> Self {
        Self {
            slept: now + BURST * SLEEPS,
            ended: now,
            has_more: false,
            busy_since: Some(now),
        }
    }

    fn is_busy(&mut self, now: Nanos, is_idle: bool) -> bool {
        self.wait(now);
        if is_idle && now >= self.ended + REST {
            self.busy_since = None;
        }
        if self.slept > now + BURST * SLEEPS {
            self.busy_since.get_or_insert(now);
        }
        self.busy_since.is_some()
    }

    /// So many polls, of which this one was the last.
    fn add(&mut self, began: Nanos, ended: Nanos, polls: u64, has_more: bool) {
        self.wait(began);
        let took = ended.saturating_sub(began).min(POLL_MAX) * polls;
        // After a rest it owes no more than a burst.
        let most = ended + BURST * SLEEPS + REST;
        self.slept = most.min(self.slept.max(began) + took * SLEEPS);
        self.ended = ended;
        self.has_more = has_more;
    }

    /// Does not count the time as sleep if there was something to do.
    fn wait(&mut self, until: Nanos) {
        if self.has_more {
            self.slept += until.saturating_sub(self.ended);
            self.ended = until;
        }
    }
}

#[cfg(test)]
mod tests;
