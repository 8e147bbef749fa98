//! What resumption costs: the same chain with and without it, in the same run.

use std::path::Path as Folder;

use crate::chains::{self, Chain, Way};
use crate::load;
use crate::process;
use crate::report::{Row, Section};
use crate::{Measure, Sizes};

/// Both chains on loopback, then, unless that is all, with a long path between client and host.
///
/// # Errors
/// A chain does not start, or a transfer was damaged.
pub fn price(
    folder: &Folder,
    service: &Chain,
    sizes: &Sizes,
    loopback: bool,
) -> Result<Vec<Section>, String> {
    let mut sections = Vec::new();
    let places = [(false, "loopback"), (true, "100 ms, 1 Gbit/s")];
    for (slow, place) in places.into_iter().filter(|(slow, _)| !(loopback && *slow)) {
        let chain = |resume| chains::programs(folder, 5, service.port, Way { resume, slow });
        let (off, on) = (chain(false)?, chain(true)?);
        let rows = if slow {
            far(&off, &on, sizes)
        } else {
            near(&off, &on, sizes)
        }?;
        sections.push(Section {
            chain: format!("resumption on, {place}"),
            beside: "off".into(),
            columns: ["off", "on"],
            rows,
            notes: Vec::new(),
        });
    }
    Ok(sections)
}

fn near(off: &Chain, on: &Chain, sizes: &Sizes) -> Result<Vec<Row>, String> {
    let mib = sizes.mib;
    let mut rows = Vec::new();
    for (name, connections, up) in [
        ("up, 1 connection", 1, true),
        ("down, 1 connection", 1, false),
        ("up, 16 connections", 16, true),
        ("down, 16 connections", 16, false),
    ] {
        let [rate, cpu] = both(name, connections, up, mib, (off, on), sizes.runs)?;
        rows.extend([rate, cpu]);
    }
    let count = sizes.round_trips;
    let round_trip: Measure<'_> =
        Box::new(move |port| Ok(load::quantile(&load::round_trips(port, count)?, 0.5)));
    rows.push(alternating(
        "round trip of 64 B, p50",
        "µs",
        false,
        (off, on),
        sizes.runs,
        &round_trip,
    )?);
    Ok(rows)
}

fn far(off: &Chain, on: &Chain, sizes: &Sizes) -> Result<Vec<Row>, String> {
    let mib = sizes.mib / 2;
    let measures: [(&str, Measure<'_>); 4] = [
        (
            "up, 1 connection",
            Box::new(move |port| load::upload(port, 1, mib)),
        ),
        (
            "down, 1 connection",
            Box::new(move |port| load::download(port, 1, mib)),
        ),
        (
            "up, 16 connections",
            Box::new(move |port| load::upload(port, 16, mib)),
        ),
        (
            "down, 16 connections",
            Box::new(move |port| load::download(port, 16, mib)),
        ),
    ];
    let mut rows = Vec::new();
    for (name, work) in &measures {
        rows.push(alternating(
            name,
            "MiB/s",
            true,
            (off, on),
            sizes.runs,
            work,
        )?);
    }
    let round_trip: Measure<'_> =
        Box::new(|port| Ok(load::quantile(&load::round_trips(port, 20)?, 0.5)));
    rows.push(alternating(
        "round trip of 64 B, p50",
        "µs",
        false,
        (off, on),
        sizes.runs,
        &round_trip,
    )?);
    Ok(rows)
}

/// Pairs of runs. Every other pair begins with the second chain.
fn alternating(
    measure: &'static str,
    unit: &'static str,
    higher_is_better: bool,
    (off, on): (&Chain, &Chain),
    runs: usize,
    work: &Measure<'_>,
) -> Result<Row, String> {
    let mut pairs = Vec::with_capacity(runs);
    // The first transfers grow buffers.
    for chain in [off, on] {
        work(chain.port).map_err(|error| format!("{measure}: {error}"))?;
    }
    for number in 0..runs {
        let take = |chain: &Chain| work(chain.port).map_err(|error| format!("{measure}: {error}"));
        pairs.push(if number % 2 == 0 {
            let before = take(off)?;
            (before, take(on)?)
        } else {
            let after = take(on)?;
            (take(off)?, after)
        });
    }
    eprintln!("{measure}: {pairs:.1?}");
    Ok(Row {
        measure,
        unit,
        higher_is_better,
        pairs,
    })
}

/// Throughput, and CPU seconds per GiB of all roles, of the same transfers.
fn both(
    measure: &'static str,
    connections: usize,
    up: bool,
    mib: u64,
    chains: (&Chain, &Chain),
    runs: usize,
) -> Result<[Row; 2], String> {
    let cpu = std::cell::RefCell::new(Vec::new());
    let (off, on) = chains;
    let work: Measure<'_> = Box::new(|port| {
        let chain = if port == off.port { off } else { on };
        let before = seconds(chain);
        let rate = if up {
            load::upload(port, connections, mib)
        } else {
            load::download(port, connections, mib)
        }?;
        let used = (seconds(chain) - before) * 1024.0 / mib as f64;
        cpu.borrow_mut().push((port, used));
        Ok(rate)
    });
    let rate = alternating(measure, "MiB/s", true, chains, runs, &work)?;
    drop(work);
    let taken = cpu.into_inner();
    let of = |chain: &Chain| {
        let all = taken.iter().filter(|(port, _)| *port == chain.port);
        all.skip(1).map(|(_, used)| *used).collect::<Vec<f64>>()
    };
    let pairs = of(off).into_iter().zip(of(on)).collect();
    Ok([
        rate,
        Row {
            measure: "CPU of all roles beside it",
            unit: "s/GiB",
            higher_is_better: false,
            pairs,
        },
    ])
}

fn seconds(chain: &Chain) -> f64 {
    let roles = chain.processes.iter();
    roles.map(|role| process::cpu_seconds(role.id())).sum()
}
