//! The body of the fuzz target of the same name on random input, which runs on every toolchain.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

#[path = "../fuzz/src/session.rs"]
mod target;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").map_or(500, |n| n.parse().unwrap()),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_session_survives_any_sequence(data in prop::collection::vec(any::<u8>(), 0..2_000)) {
        target::session(&data);
    }
}
