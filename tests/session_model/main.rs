//! Both ends of a tunnel on simulated links: random operations, checked against a model that knows
//! only what was sent and done, and what a session makes of a link (`links.rs`).
//!
//! `PROPTEST_CASES` sets the number of runs.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod checks;
mod links;
mod model;
mod network;
mod op;
mod traffic;

use std::time::Duration;

use kohakuriver_tunnel::session::{Config, INITIAL_WINDOW, Version};
use proptest::prelude::*;

use self::model::Model;
use self::network::{LinkConfig, Network};
use self::op::{Op, ops};

const HOUR: Duration = Duration::from_secs(3600);

/// Large bounds, small ones that only cost speed, and ones that honest streams reach.
fn configs() -> impl Strategy<Value = Config> {
    // Close to the last id, a few streams reach the wrap while others are live.
    let first_id = prop_oneof![Just(1), Just(u32::MAX - 3)];
    (0..3, first_id).prop_map(|(size, first_id)| {
        let mut config = Config::default();
        config.first_id = Some(first_id);
        config.keepalive = None;
        // The random phase must not reset a v1 stream by its timing.
        config.linger = HOUR;
        config.v1_stall = HOUR;
        if size > 0 {
            config.max_piece = 1000;
            config.contended_piece = 300;
            config.stream_send_buffer = 5_000;
            config.send_budget = 10_000;
            config.max_window = INITIAL_WINDOW + 10_000;
            config.v1_stream_buffer = 10_000;
            config.datagram_queue = 3;
            config.datagram_buffer = 3_000;
            config.datagram_budget = 5_000;
            config.max_replies = 16;
        }
        if size > 1 {
            config.max_streams = 6;
            config.accept_backlog = 2;
            config.receive_budget = 60_000;
        }
        config
    })
}

fn links() -> impl Strategy<Value = LinkConfig> {
    let buffers = (0..3_usize, 0..3_usize);
    (0..100_u64, 0..20_u64, 10..100_000_u64, buffers).prop_map(
        |(delay, jitter, kilobytes, (send_buffer, pipe))| LinkConfig {
            bytes_per_second: kilobytes << 10,
            delay: Duration::from_millis(delay),
            jitter: Duration::from_millis(jitter),
            send_buffer: [1, 10_000, 128 << 10][send_buffer],
            pipe: [0, 20_000, 1 << 20][pipe],
        },
    )
}

fn run(version: Version, config: Config, links: [LinkConfig; 2], seed: u64, ops: &[Op]) {
    let configs = [config.clone(), config.clone()];
    let mut network = Network::new(version, configs, links, seed);
    network.tapped = true;
    network.batch = usize::try_from(seed % 7).unwrap() + 1;
    let mut model = Model {
        version,
        config,
        streams: Vec::new(),
        told: 0,
        drains: [false; 2],
    };
    for op in ops {
        model.apply(&mut network, op);
        model.check(&mut network);
    }
    model.wind_up(&mut network);
}

fn cases(standard: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: cases.and_then(|n| n.parse().ok()).unwrap_or(standard),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn v2_does_what_the_model_does(
        config in configs(), out in links(), back in links(), seed in any::<u64>(),
        ops in prop::collection::vec(ops(), 0..200),
    ) {
        run(Version::V2, config, [out, back], seed, &ops);
    }

    #[test]
    fn v1_does_what_the_model_does(
        config in configs(), out in links(), back in links(), seed in any::<u64>(),
        ops in prop::collection::vec(ops(), 0..200),
    ) {
        run(Version::V1, config, [out, back], seed, &ops);
    }
}
