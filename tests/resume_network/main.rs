//! Sessions on links, on a virtual network whose transports are cut, held, raced and forged.
//!
//! `RESUME_SEEDS` sets the number of runs or a range of seeds (`1000..2000`), `RESUME_SEED` the
//! only one. The same seed gives the same run.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    missing_docs
)]

mod apps;
mod chaos;
mod connector;
mod drive;
mod end;
mod finish;
mod keeper;
mod network;
mod rng;
mod scenario;
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kohakuriver_tunnel::resume::{Link, State};

use self::finish::Totals;
use self::network::Network;
use self::rng::Rng;
use self::scenario::{HOUR, Scenario, Shape};
use self::wire::{MILLI, SECOND};

fn seeds() -> std::ops::Range<u64> {
    let number = |text: &str| text.parse::<u64>().unwrap();
    if let Ok(seed) = std::env::var("RESUME_SEED") {
        return number(&seed)..number(&seed) + 1;
    }
    let seeds = std::env::var("RESUME_SEEDS").unwrap_or("100".to_owned());
    match seeds.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => 0..number(&seeds),
    }
}

#[test]
fn every_stream_survives_what_happens_to_its_transports() {
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut totals = Totals::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return totals;
            }
            let run = || Network::new(seed).run_to_the_end(&mut totals);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                println!("RESUME_SEED={seed} shows it");
                // The others stop too.
                next.store(seeds.end, Ordering::Relaxed);
                resume_unwind(panic);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let mut totals = Totals::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            totals += worker.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
    println!("{totals:?}");
    totals.check();
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1_000_000..1_000_010 {
        let [first, second] = [(); 2].map(|()| {
            let mut totals = Totals::default();
            let mut network = Network::new(seed);
            network.run_to_the_end(&mut totals);
            (network.now, totals)
        });
        assert_eq!(first, second);
    }
}

/// The client has OPENED, and its first ACK is lost. It is away for longer than a tunnel without
/// connections is kept.
#[test]
fn a_tunnel_whose_first_acknowledgement_is_lost_is_kept_as_any_other() {
    let mut kept = 0;
    for seed in 0..50 {
        let mut rng = Rng::new(seed);
        let mut scenario = Scenario::choose(&mut rng);
        scenario.shape = Shape::Direct;
        (scenario.cuts, scenario.drip, scenario.requests) = (0, false, false);
        (scenario.expires, scenario.ends, scenario.young) = (false, false, false);
        scenario.line.delay = 10 * MILLI;
        scenario.resume = scenario
            .resume
            .with_keep(HOUR)
            .with_idle_keep(Duration::from_secs(1));
        let mut network = Network::of(scenario, rng);
        let client = network.tunnels[0].client;
        let step = |network: &mut Network| {
            let next = network.next_moment().unwrap();
            network.advance(next);
        };
        while link(&network, client).identity().is_none() {
            step(&mut network);
        }
        let transport = network.ends[client].transport.unwrap();
        network.transports[transport].cut(network.now, &mut network.rng);
        let server = network.tunnels[0].server.unwrap();
        while [client, server].map(|end| link(&network, end).state()) != [State::Detached; 2] {
            step(&mut network);
            network.tunnels[0].next_dial = None;
        }
        let has_streams = network.ends[server].session.stats().streams > 0;
        // Otherwise it arrived before the cut did.
        if has_streams && !link(&network, server).is_confirmed() {
            network.tunnels[0].next_dial = Some(network.now + 60 * SECOND);
            network.run_to_the_end(&mut Totals::default());
            kept += 1;
        }
    }
    assert!(kept > 10, "{kept}");
}

fn link(network: &Network, end: usize) -> &Link {
    network.ends[end].link.as_ref().unwrap()
}

#[test]
fn a_thousand_forged_stale_and_replayed_opens_change_nothing() {
    let mut rng = Rng::new(7);
    let mut scenario = Scenario::choose(&mut rng);
    scenario.shape = Shape::Direct;
    (scenario.cuts, scenario.drip, scenario.requests) = (60, false, false);
    (scenario.expires, scenario.ends, scenario.young) = (false, false, false);
    scenario.resume = scenario
        .resume
        .with_keep(HOUR * 1000)
        .with_idle_keep(HOUR * 1000);
    let mut network = Network::of(scenario, rng);
    // Until there are secrets and OPENs of before.
    while network.tunnels[0].takeovers < 5 {
        let next = network.next_moment().unwrap();
        network.advance(next);
    }
    let refused = network.tunnels[0].refused;
    for _ in 0..1_000 {
        network.attack(0);
        // Each is compared with the state before it in `first_message`.
        network.run_until(network.now + 1);
    }
    // The others were no OPEN, or named a tunnel that is not there.
    assert!(network.tunnels[0].refused - refused >= 500);
    network.run_to_the_end(&mut Totals::default());
}
