//! Thousands of hostile connections against the four programs, beside one client that behaves.
//!
//! `cargo run --release --manifest-path benches/attacks/Cargo.toml` builds the programs, attacks
//! them in each way, prints a table, and writes it beside the results of an older build. It fails
//! when something that must work does not: a broken echo, a dead program, memory above the budget,
//! memory that is not freed, descriptors that stay open. A slow answer is a figure in the table,
//! not a failure.

mod attacks;
mod client;
mod measure;
mod programs;
mod report;
mod services;
mod swarm;
mod wire;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, Subcommand};
use tunnel_bench_support::build_programs;

use attacks::{ATTACKS, Attack};
use measure::{Plan, measure};
use programs::Programs;
use report::Results;

#[derive(Parser)]
#[command(
    about = "Attacks the programs and measures what that does to a client that behaves",
    args_conflicts_with_subcommands = true
)]
struct Args {
    /// Only these attacks; --list names them
    attacks: Vec<String>,
    /// List the attacks
    #[arg(long)]
    list: bool,
    /// Fewer connections, shorter: a few minutes in all
    #[arg(long)]
    quick: bool,
    /// Attack the programs of this folder instead of building them
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Hostile connections at a time
    #[arg(long, value_name = "N", default_value_t = 2000)]
    connections: usize,
    /// Addresses of 127.0.2.0/24 that they come from
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u8).range(1..=250)
    )]
    addresses: u8,
    /// Seconds of the attack before it is measured: what connections of this age do
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    settle: u64,
    /// --memory of the programs in MiB; with 48 MiB and 256 KiB a connection it is their budget
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u64,
    /// State of the programs, for the table [default: what git says]
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
    /// The programs are the baseline: writes before.json
    #[arg(long)]
    before: bool,
    /// Folder for attacks.md and after.json, which has before.json
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
    Attack { name: String, field: String },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match &args.part {
        Some(Part::Attack { name, field }) => attack(name, field),
        None if args.list => {
            for attack in ATTACKS {
                println!("{:24}{}", attack.name, attack.what);
            }
            Ok(())
        }
        None => run(&args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attacks: {error}");
            ExitCode::FAILURE
        }
    }
}

fn attack(name: &str, field: &str) -> Result<(), String> {
    let field = serde_json::from_str(field).map_err(|error| error.to_string())?;
    swarm::run(find(name)?, field).map_err(|error| error.to_string())
}

fn find(name: &str) -> Result<&'static Attack, String> {
    let mut named = ATTACKS.iter().filter(|attack| attack.name == name);
    named
        .next()
        .ok_or_else(|| format!("there is no attack {name}: --list names them"))
}

fn run(args: &Args) -> Result<(), String> {
    let wanted: Vec<&Attack> = if args.attacks.is_empty() {
        ATTACKS.iter().collect()
    } else {
        let named = args.attacks.iter().map(|name| find(name));
        named.collect::<Result<_, _>>()?
    };
    let limit = rlimit::increase_nofile_limit(u64::MAX).map_err(|error| error.to_string())?;
    // The busiest process, the host, has two descriptors a connection.
    let most = usize::try_from(limit / 3).unwrap_or(usize::MAX);
    let plan = Plan {
        connections: if args.quick { 400 } else { args.connections }.min(most),
        addresses: usize::from(args.addresses),
        idle: Duration::from_millis(if args.quick { 500 } else { 10_000 }),
        settle: Duration::from_secs(args.settle),
        attack: Duration::from_millis(if args.quick { 1300 } else { 6000 }),
        after: Duration::from_millis(if args.quick { 200 } else { 3000 }),
        memory: args.memory,
    };
    let programs = Programs::new(match &args.programs {
        Some(folder) => folder.clone(),
        None => build_programs()?,
    });
    let commit = args.commit.clone().unwrap_or_else(git_commit);

    let file = if args.before {
        "before.json"
    } else {
        "after.json"
    };
    let mut results = Results::read(&args.write.join(file))?;
    let mut failed = Vec::new();
    for attack in wanted {
        let outcome = measure(attack, &programs, plan, &commit)
            .map_err(|error| format!("{}: {error}", attack.name))?;
        println!("{}", report::line(&outcome));
        if !outcome.faults.is_empty() {
            failed.push(attack.name);
        }
        results.put(outcome);
        results.write(&args.write, file)?;
    }
    let before = Results::read(&args.write.join("before.json"))?;
    let after = Results::read(&args.write.join("after.json"))?;
    let table = report::markdown(ATTACKS, &before, &after);
    std::fs::write(args.write.join("attacks.md"), table)
        .map_err(|error| format!("cannot write to {}: {error}", args.write.display()))?;
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("did not withstand: {}", failed.join(", ")))
    }
}

fn git_commit() -> String {
    let asked = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR")])
        .args(["describe", "--always", "--dirty", "--exclude", "*"])
        .output();
    match asked {
        Ok(said) if said.status.success() => {
            String::from_utf8_lossy(&said.stdout).trim().to_owned()
        }
        _ => "unknown".into(),
    }
}
