//! What is done to a pair of sessions.

use proptest::prelude::*;

use super::network::Side;

#[derive(Debug, Clone)]
pub(super) enum Op {
    Open {
        udp: bool,
    },
    Accept {
        which: usize,
    },
    Reject {
        which: usize,
    },
    Send {
        side: Side,
        which: usize,
        len: usize,
        copy: bool,
    },
    Recv {
        side: Side,
        which: usize,
        times: usize,
    },
    /// Sends until it blocks, or for a megabyte.
    Flood {
        side: Side,
        which: usize,
    },
    Finish {
        side: Side,
        which: usize,
    },
    Reset {
        side: Side,
        which: usize,
    },
    Release {
        side: Side,
        which: usize,
    },
    /// Reads and drops what comes from now on.
    Discard {
        side: Side,
        which: usize,
    },
    /// Changes how payloads are held, not what happens to them.
    Scarce {
        side: Side,
        scarce: bool,
    },
    Wait {
        micros: u64,
    },
    Rate {
        side: Side,
        kilobytes: u64,
    },
    Ping {
        side: Side,
    },
    Drain {
        side: Side,
    },
    Shutdown {
        side: Side,
    },
}

fn sides() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Opener), Just(Side::Acceptor)]
}

pub(super) fn ops() -> impl Strategy<Value = Op> {
    let which = 0..1000_usize;
    let len = prop_oneof![4 => 0..3_000_usize, 1 => 0..200_000_usize];
    let times = prop_oneof![3 => 1..4_usize, 1 => Just(1_000_usize)];
    let at = || (sides(), 0..1000_usize);
    prop_oneof![
        4 => prop_oneof![3 => Just(false), 1 => Just(true)].prop_map(|udp| Op::Open { udp }),
        5 => which.clone().prop_map(|which| Op::Accept { which }),
        1 => which.prop_map(|which| Op::Reject { which }),
        24 => (at(), len, any::<bool>())
            .prop_map(|((side, which), len, copy)| Op::Send { side, which, len, copy }),
        16 => (at(), times).prop_map(|((side, which), times)| Op::Recv { side, which, times }),
        3 => at().prop_map(|(side, which)| Op::Flood { side, which }),
        3 => at().prop_map(|(side, which)| Op::Finish { side, which }),
        1 => at().prop_map(|(side, which)| Op::Reset { side, which }),
        1 => at().prop_map(|(side, which)| Op::Release { side, which }),
        1 => at().prop_map(|(side, which)| Op::Discard { side, which }),
        1 => (sides(), any::<bool>()).prop_map(|(side, scarce)| Op::Scarce { side, scarce }),
        16 => prop_oneof![0..2_000_u64, 0..1_000_000_u64].prop_map(|micros| Op::Wait { micros }),
        1 => (sides(), 10..100_000_u64)
            .prop_map(|(side, kilobytes)| Op::Rate { side, kilobytes }),
        // Nothing new begins after a drain, so it is rare.
        1 => (sides(), 0..16_u8).prop_map(|(side, what)| match what {
            0 => Op::Drain { side },
            1 => Op::Shutdown { side },
            _ => Op::Ping { side },
        }),
    ]
}
