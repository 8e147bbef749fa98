#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::future::poll_fn;

use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::common::addresses::Source;
use crate::common::handshakes::Handshakes;

const BUSY: usize = 100;
const ROUNDS: usize = 50;

type Count = Arc<AtomicUsize>;

fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { tokio::spawn(work).await.unwrap() })
}

/// Goes to the end of the event loop's queue.
async fn requeue() {
    let mut again = true;
    poll_fn(|cx| {
        if !std::mem::take(&mut again) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A task that always has more to do, and counts.
async fn work_without_end(count: Count) {
    loop {
        count.fetch_add(1, Ordering::Relaxed);
        requeue().await;
    }
}

fn start(turns: &Turns, count: &Count) -> JoinHandle<()> {
    let work = Box::pin(work_without_end(Arc::clone(count)));
    tokio::spawn(turns.run(work))
}

/// For a session that came alone.
fn single() -> Turns {
    LATEST.set(None);
    Turns::session()
}

/// Polls of busy tasks while another task has `ROUNDS` polls.
async fn polls_beside(start: impl Fn(&Count)) -> usize {
    let count = Count::default();
    for _ in 0..BUSY {
        start(&count);
    }
    // All have begun.
    requeue().await;
    let before = count.load(Ordering::Relaxed);
    for _ in 0..ROUNDS {
        requeue().await;
    }
    count.load(Ordering::Relaxed) - before
}

#[test]
fn others_wait_for_one_busy_task_and_not_for_all() {
    let plain = run(polls_beside(|count| {
        drop(tokio::spawn(work_without_end(Arc::clone(count))));
    }));
    assert_eq!(plain, BUSY * ROUNDS);
    // The system may stop this thread, and whoever has slept meanwhile is quiet.
    let least = |start: fn(&Count)| (0..5).map(|_| run(polls_beside(start))).min();
    let in_turn = least(|count| drop(start(&Turns::session(), count)));
    let unfinished = least(|count| {
        let handshakes = Arc::new(Handshakes::new(1, 1));
        let place = handshakes.begin(Source::Proxied(0));
        let work = work_without_end(Arc::clone(count));
        tokio::spawn(async move { place.unless_displaced(work).await });
    });
    for polls in [in_turn, unfinished].map(Option::unwrap) {
        assert!((1..=10 * ROUNDS).contains(&polls), "{polls}");
    }
}

#[test]
fn busy_connections_take_turns_however_many_tasks_they_have() {
    let counts = run(async {
        let counts = [(); 4].map(|()| Count::default());
        for (count, tasks) in counts.iter().zip([3, 1, 1, 1]) {
            let turns = Turns::session();
            for _ in 0..tasks {
                start(&turns, count);
            }
        }
        let sum = || {
            counts
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .sum::<usize>()
        };
        while sum() < 1000 {
            requeue().await;
        }
        counts.map(|count| count.load(Ordering::Relaxed))
    });
    assert!(counts.iter().all(|count| *count > 200), "{counts:?}");
}

/// As those of a client and of its agent, which pass each message on.
#[test]
fn two_busy_connections_that_wake_each_other_need_no_line() {
    let numbers = run(async {
        let halves = [Arc::new(Notify::new()), Arc::new(Notify::new())];
        let passed = Count::default();
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (Arc::clone(&halves[from]), Arc::clone(&halves[to]));
            let passed = Arc::clone(&passed);
            tokio::spawn(Turns::session().run(Box::pin(async move {
                loop {
                    from.notified().await;
                    passed.fetch_add(1, Ordering::Relaxed);
                    to.notify_one();
                }
            })));
        }
        halves[0].notify_one();
        let mut numbers = Vec::new();
        for target in [100, 1100] {
            while passed.load(Ordering::Relaxed) < target {
                requeue().await;
            }
            numbers.push(with_line(|line| line.numbers));
        }
        numbers
    });
    assert_eq!(numbers[0], numbers[1]);
}

#[test]
fn whoever_need_not_wait_is_busy_while_it_has_more_and_quiet_after_it_has_slept() {
    let busy_since = |turns: &Turns| turns.0.lock().effort.busy_since;
    run(async move {
        let flood = single();
        let count = Count::default();
        let task = start(&flood, &count);
        let mut since = None;
        for target in [1000, 2000] {
            let began = now();
            while now() < began + 5 * REST || count.load(Ordering::Relaxed) < target {
                requeue().await;
            }
            let before = std::mem::replace(&mut since, busy_since(&flood));
            assert!(since.is_some() && [None, since].contains(&before));
        }
        task.abort();
        let _ = task.await;

        // Every other poll leaves something to do, among them those that are measured, or not.
        for before in 0..2 {
            let quiet = single();
            let (more, gone) = (Arc::new(Notify::new()), Count::default());
            let (woken, done) = (Arc::clone(&more), Arc::clone(&gone));
            tokio::spawn(quiet.run(Box::pin(async move {
                for _ in 0..before {
                    requeue().await;
                }
                loop {
                    woken.notified().await;
                    requeue().await;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })));
            // It waits in line once, as a newcomer.
            for _ in 0..4 {
                requeue().await;
            }
            for round in 0..20 {
                std::thread::sleep(std::time::Duration::from_nanos(2 * REST));
                more.notify_one();
                while gone.load(Ordering::Relaxed) <= round {
                    requeue().await;
                }
            }
            assert_eq!(busy_since(&quiet), None, "{before}");
        }
    });
}

#[test]
fn whoever_is_busy_for_a_short_time_does_not_wait_for_all() {
    let polls = run(async {
        let (flood, count) = (Count::default(), Count::default());
        for _ in 0..BUSY {
            start(&single(), &flood);
        }
        let began = now();
        while now() < began + 2 * FRESH {
            requeue().await;
        }
        let mut polls = usize::MAX;
        // The system may stop this thread for longer than that.
        for round in 1..=10 {
            let task = start(&single(), &count);
            let before = flood.load(Ordering::Relaxed);
            while count.load(Ordering::Relaxed) < 5 * round {
                requeue().await;
            }
            polls = polls.min(flood.load(Ordering::Relaxed) - before);
            task.abort();
            let _ = task.await;
        }
        polls
    });
    assert!(polls < BUSY, "{polls}");
}

#[test]
fn whoever_leaves_the_line_holds_up_nobody() {
    let left = run(async {
        let count = Count::default();
        let tasks = [(); 20].map(|()| start(&Turns::session(), &count));
        let newcomers = [(); 20].map(|()| start(&Turns::newcomer(), &count));
        for task in tasks.iter().chain(&newcomers) {
            requeue().await;
            task.abort();
        }
        for task in tasks.into_iter().chain(newcomers) {
            assert!(task.await.unwrap_err().is_cancelled());
        }
        let last = start(&Turns::session(), &count);
        let before = count.load(Ordering::Relaxed);
        while count.load(Ordering::Relaxed) < before + 10 {
            requeue().await;
        }
        last.abort();
        let _ = last.await;
        with_line(|line| line.queue.len())
    });
    assert_eq!(left, 0);
}

#[test]
fn whoever_came_with_many_others_waits_also_while_quiet() {
    let crowd = [(); CROWD + 1].map(|()| Turns::session());
    let later = single();
    LATEST.set(None);
    let at_ease = [(); CROWD].map(|()| Turns::session());
    let began = now();
    let waits = |turns: &Turns, now| {
        let mut member = turns.0.lock();
        assert!(!member.effort.is_busy(now, true));
        (member.waits(now), member.class() == Class::Crowd)
    };
    let soon = began + CROWD_FOR / 2;
    assert!(crowd.iter().all(|turns| waits(turns, soon) == (true, true)));
    assert_eq!(waits(&later, soon), (false, false));
    let is_free = |turns: &Turns| waits(turns, soon) == (false, false);
    assert!(at_ease.iter().all(is_free));
    let late = began + CROWD_FOR;
    assert!(
        crowd
            .iter()
            .all(|turns| waits(turns, late) == (false, false))
    );
}

#[test]
fn whoever_is_busy_stays_in_its_crowd() {
    let crowd = [(); CROWD + 1].map(|()| Turns::session());
    let now = now() + 2 * CROWD_FOR;
    for turns in &crowd {
        let mut member = turns.0.lock();
        member.effort = Effort::new(now);
        assert!(member.waits(now));
        assert_eq!(member.class(), Class::Crowd);
    }
}

#[test]
fn a_small_crowd_does_not_wait_for_all_of_a_large_one() {
    let polls = run(async {
        let (flood, count) = (Count::default(), Count::default());
        let small = [(); CROWD + 1].map(|()| Turns::session());
        LATEST.set(None);
        for _ in 0..BUSY {
            start(&Turns::session(), &flood);
        }
        while flood.load(Ordering::Relaxed) < 10 * BUSY {
            requeue().await;
        }
        let before = flood.load(Ordering::Relaxed);
        start(&small[0], &count);
        while count.load(Ordering::Relaxed) < 10 {
            requeue().await;
        }
        flood.load(Ordering::Relaxed) - before
    });
    assert!(polls < BUSY, "{polls}");
}

#[test]
fn a_crowd_of_which_few_are_left_is_none() {
    let mut crowd = [(); CROWD + 1].map(|()| Turns::session()).to_vec();
    let class = |turns: &Turns| turns.0.lock().class();
    assert_eq!(class(&crowd[0]), Class::Crowd);
    drop(crowd.pop());
    assert_ne!(class(&crowd[0]), Class::Crowd);
}

#[test]
fn generations_follow_one_another() {
    LATEST.set(None);
    let now = now();
    let first = Joined::new(now);
    let again = Joined::new(now + GENERATION / 2);
    let second = Joined::new(now + GENERATION);
    assert!(Arc::ptr_eq(&first.0, &again.0));
    assert!(!Arc::ptr_eq(&first.0, &second.0));
    assert_eq!(first.0.sessions.load(Ordering::Relaxed), 2);
}

#[test]
fn only_sleep_makes_quiet() {
    let start = now();
    let after = |count| start + micros(count);
    let mut effort = Effort::new(start);
    assert!(effort.is_busy(after(0), true), "a newcomer is busy");
    assert!(!effort.is_busy(after(1500), true));

    // Short pieces of work between sleeps.
    for at in (10_000..500_000).step_by(2000) {
        assert!(!effort.is_busy(after(at), true));
        effort.add(after(at), after(at + 50), 1, false);
    }
    // Several that one of them stands for.
    effort.add(after(600_000), after(600_005), 8, false);
    assert!(!effort.is_busy(after(600_005), true));
    effort.add(after(600_005), after(600_105), 8, false);
    assert!(effort.is_busy(after(600_105), true));
    // A flood that has a short turn now and then.
    let mut at = 1_000_000;
    for _ in 0..100 {
        effort.is_busy(after(at), true);
        effort.add(after(at), after(at + 5), 1, true);
        at += 50_000;
    }
    assert!(effort.is_busy(after(at), true));
    // Its last turn has left nothing to do.
    effort.add(after(at), after(at + 5), 1, false);
    assert!(effort.is_busy(after(at + 500), true));
    assert!(effort.is_busy(after(at + 100_000), false), "others wait");
    assert!(!effort.is_busy(after(at + 100_000), true));
}

#[test]
fn a_rest_makes_quiet_however_long_the_work_was() {
    let start = now();
    let after = |count| start + micros(count);
    let mut effort = Effort::new(start);
    let mut at = 0;
    while at < 10_000_000 {
        effort.add(after(at), after(at + 100), 1, false);
        at += 150;
        assert!(effort.is_busy(after(at), true), "at {at}");
    }
    assert!(!effort.is_busy(after(at + 1000), true));
    // A short piece of work once it has slept for longer.
    at += 5000;
    effort.add(after(at), after(at + 50), 1, false);
    assert!(!effort.is_busy(after(at + 50), true));
}
