//! The four programs end to end, beside bare TCP relays and beside what a user would pick instead,
//! in the same run.
//!
//! `cargo run --release --manifest-path benches/tunnel/Cargo.toml` builds the programs, installs
//! the others, measures, prints tables, and writes them with a chart. Times on a shared machine are
//! noisy, so all take turns at each measure, and the median of the rounds' ratios to the relays is
//! the result. If a transfer through ours or the relays does not match byte for byte, the run ends
//! with an error; a slow transfer never ends it. Everything runs in its own network namespace,
//! where every socket gets the same congestion control.

mod chains;
mod chart;
mod congestion;
mod field;
mod install;
mod load;
mod machine;
mod measures;
mod pattern;
mod peers;
mod process;
mod relay;
mod report;
mod resumption;
mod service;
mod slow;
mod socket;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tunnel_bench_support::build_programs;

use field::Field;
use install::Found;

#[derive(Parser)]
#[command(
    about = "Measures the programs end to end beside bare TCP relays and other tunnels",
    args_conflicts_with_subcommands = true
)]
struct Args {
    /// Rounds in which all take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Smaller transfers, three rounds: takes a third of the time and is rougher
    #[arg(long)]
    quick: bool,
    /// Only the chain with this many links: 3 client and runner, 4 with host, 5 with agent
    #[arg(long, value_name = "LINKS", value_parser = clap::value_parser!(u8).range(3..=5))]
    chain: Option<u8>,
    /// Only over these: loopback, a far path, a path whose connections stall
    #[arg(long, value_name = "PATH", value_delimiter = ',')]
    over: Vec<Over>,
    /// Round trip of the far path in milliseconds
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 50,
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    round_trip: u16,
    /// MiB of a transfer over the far path and over the one that stalls: 64, or 32 with --quick
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=4096))]
    far_mib: Option<u64>,
    /// Idle connections for the measurement of memory; at most 2,000 beside other tools
    #[arg(long, default_value_t = 10_000)]
    idle: usize,
    /// Without other tools
    #[arg(long)]
    alone: bool,
    /// Only these other tools: wstunnel, penguin, chisel, openssh
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        conflicts_with = "alone"
    )]
    only: Vec<String>,
    /// Take this program for one of the other tools, instead of an installed one
    #[arg(long, value_name = "NAME=FILE", value_parser = pair)]
    peer: Vec<(String, String)>,
    /// Install nothing: other tools that are not there are left out
    #[arg(long)]
    no_install: bool,
    /// For the process in the namespace: what could not be installed
    #[arg(long, hide = true, value_parser = pair)]
    absent: Vec<(String, String)>,
    /// Congestion control of every socket in the run; cubic is the default of an ordinary Linux.
    /// All is measured with the first, the chain of three links with the others too
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cubic,bbr",
        value_delimiter = ',',
        value_parser = ["cubic", "reno", "bbr"]
    )]
    congestion: Vec<String>,
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

impl Args {
    fn goes_over(&self, path: Over) -> bool {
        self.over.is_empty() || self.over.contains(&path)
    }

    /// Whether the chain of three links is measured on loopback.
    fn near_three(&self) -> bool {
        let three = self.chain.is_none_or(|links| links == 3);
        three && self.goes_over(Over::Loopback) && !self.resumption
    }
}

/// What lies between client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    Loopback,
    Far,
    Stalls,
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
    Slow {
        port: u16,
        target: u16,
        round_trip_ms: u64,
        mbit: u32,
        stall_mib: u32,
    },
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("NAME=VALUE is expected")?;
    install::named(pair.0)?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match &args.part {
        Some(Part::Serve { port }) => raise_limit()
            .and_then(|()| service::serve(*port))
            .map_err(told),
        Some(Part::Relay { port, target }) => relay::serve(*port, *target).map_err(told),
        &Some(Part::Slow {
            port,
            target,
            round_trip_ms,
            mbit,
            stall_mib,
        }) => {
            let path = slow::Path {
                round_trip: Duration::from_millis(round_trip_ms),
                mbit,
                stall_mib,
            };
            slow::serve(port, target, path).map_err(told)
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
fn raise_limit() -> io::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    Ok(())
}

/// The amount of work per measure.
struct Sizes {
    runs: usize,
    mib: u64,
    crowd_mib: u64,
    beside: Duration,
    far_round_trip: Duration,
    far_mib: u64,
    far_beside: Duration,
    round_trips: usize,
    connections: usize,
    datagrams: u32,
    idle: usize,
}

impl Sizes {
    fn of(args: &Args) -> Self {
        // A connection takes two descriptors in the busiest process.
        let limit = rlimit::getrlimit(rlimit::Resource::NOFILE);
        let most = limit.map_or(1_000, |(soft, _)| soft / 2 - 64);
        let idle = args.idle.min(usize::try_from(most).unwrap_or(usize::MAX));
        let far_round_trip = Duration::from_millis(args.round_trip.into());
        let far_mib = |usual| args.far_mib.unwrap_or(usual);
        if args.quick {
            Self {
                runs: usize::from(args.runs.min(3)),
                mib: 128,
                crowd_mib: 125,
                beside: Duration::from_millis(300),
                far_round_trip,
                far_mib: far_mib(32),
                far_beside: Duration::from_secs(2),
                round_trips: 1_000,
                connections: 2_000,
                datagrams: 1_000,
                idle: idle.min(1_000),
            }
        } else {
            Self {
                runs: usize::from(args.runs),
                mib: 512,
                crowd_mib: 1_000,
                beside: Duration::from_secs(1),
                far_round_trip,
                far_mib: far_mib(64),
                far_beside: Duration::from_secs(3),
                round_trips: 5_000,
                connections: 2_000,
                datagrams: 5_000,
                idle,
            }
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    raise_limit().map_err(told)?;
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => build_programs()?,
    };
    let peers = peers(args)?;
    // After building and installing, which may need a network. The process continues in the
    // namespace if it can enter one.
    congestion::enter_namespace(&known(&programs, &peers));
    let sizes = Sizes::of(args);
    let service = chains::service()?;
    let field = Field {
        programs: &programs,
        service: &service,
        sizes: &sizes,
        peers: &peers,
    };
    let mut sections = Vec::new();
    let mut controls = Vec::new();
    let ended = measure(args, &field, &mut sections, &mut controls);
    let mut about = machine::about(sizes.runs);
    about.insert(
        2,
        format!("congestion control: {}", controls.join("; then ")),
    );
    let mut notes = field::notes(&peers);
    if let Err(error) = &ended {
        notes.push(format!("**The run ended early**: {error}."));
    }
    write(args, &sections, &about, &notes)?;
    ended
}

/// Measures what `args` ask for. An error leaves the sections that were complete before.
fn measure(
    args: &Args,
    field: &Field<'_>,
    sections: &mut Vec<report::Section>,
    controls: &mut Vec<String>,
) -> Result<(), String> {
    for (number, algorithm) in args.congestion.iter().enumerate() {
        let all = number == 0;
        if !all && (!args.near_three() || congestion::inside().is_none()) {
            break;
        }
        congestion::set(algorithm)?;
        let control = congestion::in_use(algorithm).map_err(told)?;
        println!("congestion control: {control}");
        controls.push(control);
        if args.resumption {
            *sections =
                resumption::price(field.programs, field.service, field.sizes, args.loopback)?;
            continue;
        }
        for links in 3..=5_u8 {
            let three = links == 3;
            if args.chain.is_some_and(|only| only != links) || !(all || three) {
                continue;
            }
            if args.goes_over(Over::Loopback) {
                sections.push(field.near(links.into(), algorithm, !all)?);
            }
            for path in [Over::Far, Over::Stalls]
                .into_iter()
                .filter(|path| args.goes_over(*path))
            {
                if all && three {
                    sections.push(field.far(path, algorithm)?);
                }
            }
        }
    }
    Ok(())
}

/// The other tools of this run, installed if need be.
fn peers(args: &Args) -> Result<Vec<Found>, String> {
    if args.alone || args.resumption || args.chain.is_some_and(|links| links != 3) {
        return Ok(Vec::new());
    }
    let wanted = args.only.iter().map(|name| install::named(name));
    let mut wanted = wanted.collect::<Result<Vec<_>, String>>()?;
    if wanted.is_empty() {
        wanted.extend(&peers::ALL);
    }
    let of = |pairs: &[(String, String)], name: &str| {
        let pair = pairs.iter().rfind(|pair| pair.0.eq_ignore_ascii_case(name));
        pair.map(|pair| pair.1.clone())
    };
    let found = wanted.into_iter().map(|peer| {
        let program = if let Some(file) = of(&args.peer, peer.name) {
            Ok(file.into())
        } else if let Some(why) = of(&args.absent, peer.name) {
            Err(why)
        } else {
            install::find(peer, !args.no_install)
        };
        if let (Err(why), None) = (&program, congestion::inside()) {
            eprintln!("NOT MEASURED: {}: {why}", peer.name);
        }
        Found { peer, program }
    });
    Ok(found.collect())
}

/// Arguments that tell what was found.
fn known(programs: &std::path::Path, peers: &[Found]) -> Vec<OsString> {
    let mut words = vec!["--programs".into(), programs.into()];
    for found in peers {
        let (flag, value) = match &found.program {
            Ok(file) => ("--peer", file.display().to_string()),
            Err(why) => ("--absent", why.clone()),
        };
        words.push(flag.into());
        words.push(format!("{}={value}", found.peer.name).into());
    }
    words
}

fn write(
    args: &Args,
    sections: &[report::Section],
    about: &[String],
    notes: &[String],
) -> Result<(), String> {
    let table = report::markdown(sections, about, notes);
    println!("{table}");
    println!("{}", report::summary(sections));
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
            let chart = chart::svg(sections, &about[..3]);
            std::fs::write(args.write.join("tunnel.svg"), chart)
        })
        .map_err(|error| format!("cannot write to {}: {error}", args.write.display()))
}
