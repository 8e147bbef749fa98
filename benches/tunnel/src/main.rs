//! The four programs end to end, beside bare TCP relays in the same run.
//!
//! `cargo run --release --manifest-path benches/tunnel/Cargo.toml` builds the programs, measures,
//! prints a table, and writes it with a chart. Times on a shared machine are noisy, so each measure
//! is taken in pairs, relays and programs in turn, and the median of the pairs' ratios is the
//! result. If a transfer does not match byte for byte, the run ends with an error; a slow transfer
//! never ends it. Everything runs in its own network namespace, where every socket gets the same
//! congestion control.

mod chains;
mod chart;
mod congestion;
mod load;
mod machine;
mod pattern;
mod process;
mod relay;
mod report;
mod resumption;
mod service;
mod slow;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tunnel_bench_support::{build_programs, resident};

use chains::{Chain, Way};
use report::{Row, Section, median};

#[derive(Parser)]
#[command(
    about = "Measures the programs end to end beside bare TCP relays",
    args_conflicts_with_subcommands = true
)]
struct Args {
    /// Pairs of measurements
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Smaller transfers, three pairs: takes a third of the time and is rougher
    #[arg(long)]
    quick: bool,
    /// Only the chain with this many links: 3 client and runner, 4 with host, 5 with agent
    #[arg(long, value_name = "LINKS", value_parser = clap::value_parser!(u8).range(3..=5))]
    chain: Option<u8>,
    /// Idle connections for the measurement of memory
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Leave OpenSSH and penguin out
    #[arg(long)]
    alone: bool,
    /// Congestion control of every socket in the run; cubic is the default of an ordinary Linux
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cubic",
        value_parser = ["cubic", "reno", "bbr"]
    )]
    congestion: String,
    /// What resumption costs, with it on and off: nothing else is measured
    #[arg(long)]
    resumption: bool,
    /// With --resumption: without the long path
    #[arg(long, requires = "resumption")]
    loopback: bool,
    /// Measure the programs of this folder instead of building them
    #[arg(long, value_name = "FOLDER", overrides_with = "programs")]
    programs: Option<PathBuf>,
    /// Folder for tunnel.md and tunnel.svg
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/results")
    )]
    write: PathBuf,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The parts of this program, each a process.
#[derive(Subcommand)]
#[command(hide = true)]
enum Part {
    #[command(hide = true)]
    Serve { port: u16 },
    #[command(hide = true)]
    Relay { port: u16, target: u16 },
    #[command(hide = true)]
    Slow { port: u16, target: u16 },
}

/// The long path between client and host.
const ROUND_TRIP: Duration = Duration::from_millis(100);
const MBIT: u32 = 1000;

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match &args.part {
        Some(Part::Serve { port }) => raise_limit(())
            .and_then(|()| service::serve(*port))
            .map_err(told),
        Some(Part::Relay { port, target }) => relay::serve(*port, *target).map_err(told),
        Some(Part::Slow { port, target }) => {
            slow::serve(*port, *target, slow::Path::new(ROUND_TRIP, MBIT)).map_err(told)
        }
        None => run(&args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tunnel: {error}");
            ExitCode::FAILURE
        }
    }
}

fn told(error: io::Error) -> String {
    error.to_string()
}

/// Raises the limit of descriptors as far as this user may; children inherit it.
fn raise_limit<T>(value: T) -> io::Result<T> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    Ok(value)
}

/// The amount of work per measure.
struct Sizes {
    runs: usize,
    mib: u64,
    round_trips: usize,
    connections: usize,
    datagrams: u32,
    idle: usize,
}

fn run(args: &Args) -> Result<(), String> {
    let sizes = Sizes {
        runs: if args.quick {
            3
        } else {
            usize::from(args.runs)
        },
        mib: if args.quick { 128 } else { 1024 },
        round_trips: if args.quick { 1_000 } else { 5_000 },
        connections: if args.quick { 800 } else { 4_000 },
        datagrams: if args.quick { 1_000 } else { 5_000 },
        idle: if args.quick {
            args.idle.min(1_000)
        } else {
            args.idle
        },
    };
    raise_limit(()).map_err(told)?;
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => build_programs()?,
    };
    // After the build, which may need a network. The process continues in the namespace if it can
    // enter one.
    congestion::enter_namespace(&args.congestion, &programs);
    let congestion = congestion::in_use(&args.congestion).map_err(told)?;
    println!("congestion control: {congestion}");
    let service = chains::service()?;
    let mut sections = Vec::new();
    if args.resumption {
        sections = resumption::price(&programs, &service, &sizes, args.loopback)?;
    }
    for links in (3..=5_u8).filter(|_| !args.resumption) {
        if args.chain.is_none_or(|only| only == links) {
            let links = usize::from(links);
            let bare = chains::relays(links - 1, service.port)?;
            let ours = chains::programs(&programs, links, service.port, Way::default())?;
            sections.push(measure(&ours, &bare, &service, &sizes)?);
        }
    }
    let others = [chains::openssh, chains::penguin];
    let alone = args.alone || args.resumption;
    for start in others.into_iter().filter(|_| !alone) {
        match start(service.port) {
            Ok(other) => {
                let bare = chains::relays(2, service.port)?;
                let rows = compare(&other, &bare, &sizes)?;
                sections.push(Section {
                    chain: other.name.clone(),
                    beside: bare.name.clone(),
                    columns: ["bare", "ours"],
                    rows,
                    notes: Vec::new(),
                });
            }
            Err(why) => eprintln!("left out: {why}"),
        }
    }
    let mut about = machine::about(sizes.runs);
    about.insert(2, format!("congestion control: {congestion}"));
    let table = report::markdown(&sections, &about);
    println!("{table}");
    println!("{}", report::summary(&sections));
    let name = if args.resumption {
        "resumption"
    } else {
        "tunnel"
    };
    std::fs::create_dir_all(&args.write)
        .and_then(|()| std::fs::write(args.write.join(name).with_extension("md"), &table))
        .and_then(|()| {
            if args.resumption {
                return Ok(());
            }
            let chart = chart::svg(&sections, &about[..3]);
            std::fs::write(args.write.join("tunnel.svg"), chart)
        })
        .map_err(|error| format!("cannot write to {}: {error}", args.write.display()))
}

/// One measure: the load on a port and its result.
type Measure<'a> = Box<dyn Fn(u16) -> io::Result<f64> + 'a>;

fn row(
    measure: &'static str,
    unit: &'static str,
    higher_is_better: bool,
    (bare, ours): (&Chain, &Chain),
    runs: usize,
    work: &Measure<'_>,
) -> Result<Row, String> {
    let take = |chain: &Chain| {
        work(chain.port).map_err(|error| format!("{measure} through {}: {error}", chain.name))
    };
    let mut pairs = Vec::with_capacity(runs);
    for _ in 0..runs {
        pairs.push((take(bare)?, take(ours)?));
    }
    eprintln!("{}: {measure}", ours.name);
    Ok(Row {
        measure,
        unit,
        higher_is_better,
        pairs,
    })
}

/// The measures for every tunnel.
fn compare(ours: &Chain, bare: &Chain, sizes: &Sizes) -> Result<Vec<Row>, String> {
    let mib = sizes.mib;
    let measures: [(&str, &str, bool, Measure<'_>); 4] = [
        (
            "up, 1 connection",
            "MiB/s",
            true,
            Box::new(move |port| load::upload(port, 1, mib)),
        ),
        (
            "down, 1 connection",
            "MiB/s",
            true,
            Box::new(move |port| load::download(port, 1, mib)),
        ),
        (
            "round trip of 64 B, p50",
            "µs",
            false,
            Box::new(|port| {
                Ok(load::quantile(
                    &load::round_trips(port, sizes.round_trips)?,
                    0.5,
                ))
            }),
        ),
        (
            "connections",
            "per second",
            true,
            Box::new(|port| load::connections(port, sizes.connections)),
        ),
    ];
    let rows = measures
        .iter()
        .map(|(name, unit, higher, work)| row(name, unit, *higher, (bare, ours), sizes.runs, work));
    rows.collect()
}

fn measure(ours: &Chain, bare: &Chain, service: &Chain, sizes: &Sizes) -> Result<Section, String> {
    let mib = sizes.mib;
    // First, while no role holds buffers from earlier measures.
    let memory = idle(ours, sizes).map_err(|error| format!("idle connections: {error}"))?;
    let mut rows = compare(ours, bare, sizes)?;
    let measures: [(&str, &str, bool, Measure<'_>); 6] = [
        (
            "up, 4 connections",
            "MiB/s",
            true,
            Box::new(move |port| load::upload(port, 4, mib)),
        ),
        (
            "down, 4 connections",
            "MiB/s",
            true,
            Box::new(move |port| load::download(port, 4, mib)),
        ),
        (
            "up, 100 connections",
            "MiB/s",
            true,
            Box::new(move |port| load::upload(port, 100, mib)),
        ),
        (
            "down, 100 connections",
            "MiB/s",
            true,
            Box::new(move |port| load::download(port, 100, mib)),
        ),
        (
            "echo of 100 x 256 KiB",
            "MiB/s",
            true,
            Box::new(|port| load::echo(port, 100, 256)),
        ),
        (
            "round trip beside bulk, p99",
            "µs",
            false,
            Box::new(move |port| Ok(load::quantile(&load::round_trips_beside(port, mib)?, 0.99))),
        ),
    ];
    for (name, unit, higher, work) in &measures {
        rows.push(row(name, unit, *higher, (bare, ours), sizes.runs, work)?);
    }
    for (measure, up) in [
        ("CPU time of a role, up", true),
        ("CPU time of a role, down", false),
    ] {
        rows.push(cpu_row(measure, up, (bare, ours), sizes)?);
    }
    let udp = datagrams(ours, service, sizes).map_err(|error| format!("datagrams: {error}"))?;
    let notes = vec![udp, memory];
    Ok(Section {
        chain: ours.name.clone(),
        beside: bare.name.clone(),
        columns: ["bare", "ours"],
        rows,
        notes,
    })
}

/// CPU seconds per GiB of the average role.
fn cpu_row(
    measure: &'static str,
    up: bool,
    chains: (&Chain, &Chain),
    sizes: &Sizes,
) -> Result<Row, String> {
    let (bare, ours) = chains;
    let work: Measure<'_> = Box::new(|port| {
        let chain = if port == bare.port { bare } else { ours };
        let before = chain_cpu(chain);
        if up {
            load::upload(port, 1, sizes.mib)?;
        } else {
            load::download(port, 1, sizes.mib)?;
        }
        // One relay for each role. The second client, for datagrams, is idle meanwhile.
        let roles = bare.processes.len();
        Ok((chain_cpu(chain) - before) / roles as f64 * 1024.0 / sizes.mib as f64)
    });
    row(measure, "s/GiB", false, chains, sizes.runs, &work)
}

fn chain_cpu(chain: &Chain) -> f64 {
    chain
        .processes
        .iter()
        .map(|role| process::cpu_seconds(role.id()))
        .sum()
}

/// Datagrams through the chain and straight to the service.
fn datagrams(ours: &Chain, service: &Chain, sizes: &Sizes) -> io::Result<String> {
    let count = sizes.datagrams;
    let (mut direct, mut through, mut lost) = (Vec::new(), Vec::new(), 0);
    for _ in 0..sizes.runs {
        direct.push(load::quantile(&load::datagrams(service.port, count)?, 0.5));
        let times = load::datagrams(ours.port, count)?;
        lost += count as usize - times.len();
        through.push(load::quantile(&times, 0.5));
    }
    let all = count as usize * sizes.runs;
    let (direct, through) = (median(&mut direct), median(&mut through));
    Ok(format!(
        "UDP: round trip of 64 B, p50, {through:.0} µs, straight to the service {direct:.0} µs; \
         {lost} of {all} lost."
    ))
}

/// Memory of each role while connections wait.
fn idle(ours: &Chain, sizes: &Sizes) -> io::Result<String> {
    // A connection takes two descriptors in the busiest process.
    let most = rlimit::getrlimit(rlimit::Resource::NOFILE)?.0 / 2 - 64;
    let count = sizes.idle.min(usize::try_from(most).unwrap_or(usize::MAX));
    let memory = || ours.processes.iter().map(|role| resident(role.id()));
    let before: Vec<u64> = memory().collect();
    let held = load::idle(ours.port, count)?;
    let roles = ours.processes.iter().zip(before).zip(memory());
    let roles = roles.filter(|((role, _), _)| role.name != "forward (udp)");
    let roles: Vec<String> = roles
        .map(|((role, before), after)| {
            let each = after.saturating_sub(before) as f64 / count as f64 / 1000.0;
            format!(
                "{} {:.1} MB ({each:.1} KB each)",
                role.name,
                after as f64 / 1e6
            )
        })
        .collect();
    drop(held);
    Ok(format!(
        "Memory with {count} idle connections: {}.",
        roles.join(", ")
    ))
}
