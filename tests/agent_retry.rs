//! The waits of the agent between two attempts, for many agents at once.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tunnel_programs::retry::{Retry, pause_in_doubt};

/// The longest wait with the agent's default.
const LONGEST: Duration = Duration::from_secs(10);

/// The times of the first attempts of an agent whose runner reports that many agents.
fn tries<const N: usize>(agents: Option<u32>) -> [f64; N] {
    let mut retry = Retry::of_agent();
    retry.connected(agents);
    retry.held();
    let mut at = 0.0;
    std::array::from_fn(|_| {
        at += retry.wait(LONGEST).as_secs_f64();
        at
    })
}

#[test]
fn the_first_try_comes_within_half_a_second_where_the_agents_are_few() {
    // A runner that reports nothing is a deployed one.
    for agents in [None, Some(0), Some(1), Some(40), Some(250)] {
        for _ in 0..1000 {
            let [first, second] = tries(agents);
            assert!(first <= 0.5, "{first} for {agents:?}");
            assert!(second <= 2.8, "{second} for {agents:?}");
        }
    }
}

#[test]
fn no_second_sees_more_than_its_share_of_many_agents_whenever_the_runner_is_back() {
    for agents in [2000_u32, 5000, 16_384] {
        let all: Vec<[f64; 6]> = (0..agents).map(|_| tries(Some(agents))).collect();
        let last = all.iter().flatten().fold(0.0, |last, at| at.max(last));
        // The runner returns at some time, and each agent registers with its next attempt.
        let mut back = 0.0;
        while back < last / 2.0 {
            let mut seconds = vec![0; 400];
            for tries in &all {
                if let Some(at) = tries.iter().find(|at| **at >= back) {
                    seconds[(at - back) as usize] += 1;
                }
            }
            let most = seconds.iter().max().unwrap();
            assert!(
                // 500, half of that again for agents that tried in vain before, and chance.
                *most <= 870,
                "{most} of {agents} in one second, back at {back}"
            );
            back += 0.7;
        }
    }
}

#[test]
fn waits_grow_to_twice_the_delay_and_start_over_once_a_registration_held() {
    let mut retry = Retry::of_agent();
    for _ in 0..10 {
        retry.wait(LONGEST);
    }
    for _ in 0..100 {
        let wait = retry.wait(LONGEST).as_secs_f64();
        assert!((5.0..=15.0).contains(&wait), "{wait}");
    }
    retry.connected(Some(1));
    assert!(
        retry.wait(LONGEST) >= Duration::from_secs(5),
        "dropped at once"
    );
    retry.held();
    assert!(retry.wait(LONGEST) <= Duration::from_millis(500));
}

#[test]
fn few_agents_do_not_come_back_in_one_second_to_a_runner_that_was_away_for_seconds() {
    let mut bunched = 0;
    for away in [2.0, 3.0, 5.0, 8.0] {
        for _ in 0..250 {
            let next = |tries: [f64; 12]| tries.into_iter().find(|at| *at >= away).unwrap();
            let mut back: Vec<f64> = (0..12).map(|_| next(tries(Some(12)))).collect();
            back.sort_by(f64::total_cmp);
            // Nine of twelve within a second.
            bunched += u32::from(back.windows(9).any(|nine| nine[8] - nine[0] < 1.0));
        }
    }
    assert!(bunched <= 20, "{bunched} of 1000");
}

#[test]
fn a_short_delay_is_kept_and_a_runner_is_not_believed_everything() {
    let mut short = Retry::of_agent();
    for _ in 0..100 {
        assert!(short.wait(Duration::from_millis(20)) <= Duration::from_millis(30));
    }
    for _ in 0..1000 {
        assert!(tries::<1>(Some(u32::MAX))[0] <= 200.0);
    }
}

#[test]
fn an_agent_that_is_back_early_remembers_that_there_are_many() {
    let longest = |told: &[u32]| {
        let mut retry = Retry::of_agent();
        for agents in told {
            retry.connected(Some(*agents));
        }
        let draws = (0..1000).map(|_| retry.clone().wait(LONGEST));
        draws.max().unwrap().as_secs_f64()
    };
    assert!((9.0..=10.0).contains(&longest(&[10_000, 1])));
    assert!(longest(&[10_000, 1, 1, 1, 1, 1, 1]) < 0.5);
}

#[test]
fn the_place_of_a_newer_agent_is_looked_at_rarely() {
    let mut retry = Retry::of_agent();
    let mut waits = (0..5).map(|_| retry.wait_long().as_secs_f64());
    for mean in [60.0, 120.0, 240.0, 300.0, 300.0] {
        let wait = waits.next().unwrap();
        assert!((mean * 0.9..=mean * 1.1).contains(&wait), "{wait}, {mean}");
    }
}

#[tokio::test(start_paused = true)]
async fn doubts_of_many_clients_are_spread_and_that_of_one_that_woke_up_is_not_put_off() {
    let (hint, mut woken) = watch::channel(());
    let mut waits = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        pause_in_doubt(&mut woken).await;
        waits.push(began.elapsed());
    }
    let most = waits.iter().max().unwrap();
    assert!(*most <= Duration::from_millis(501), "{most:?}");
    let late = |wait: &&Duration| **wait >= Duration::from_millis(250);
    let late = waits.iter().filter(late).count();
    assert!((20..=80).contains(&late), "{late} of 100");

    hint.send(()).unwrap();
    let began = Instant::now();
    pause_in_doubt(&mut woken).await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// A tunnel that is given up during a wait does not put the next registration off.
#[tokio::test(start_paused = true)]
async fn a_wait_that_was_cut_short_is_not_drawn_again() {
    let keep = Duration::from_secs(30);
    for _ in 0..1000 {
        let mut retry = Retry::of_agent();
        retry.connected(Some(16_384));
        let due = retry.due(LONGEST, keep / 2);
        assert!(due <= Instant::now() + keep / 2);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(retry.due(LONGEST, Duration::MAX), due);
        retry.attempt();
        assert_ne!(retry.due(LONGEST, Duration::MAX), due);
    }
}
