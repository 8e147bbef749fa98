//! Context of the figures: date, machine, command.

use std::fs;
use std::process::Command;

use crate::congestion;

pub fn about(runs: usize) -> Vec<String> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model
        .and_then(|line| line.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    let date = date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let here = || std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let given = congestion::inside().unwrap_or_else(here);
    vec![
        format!("{}, median of {runs} rounds", date.unwrap_or_default()),
        format!("{model}, {cores} cores, Linux {}", kernel.trim()),
        command(&given),
    ]
}

/// The command that makes this run.
fn command(given: &str) -> String {
    let cargo = "cargo run --release --manifest-path benches/tunnel/Cargo.toml";
    match given {
        "" => cargo.into(),
        given => format!("{cargo} -- {given}"),
    }
}
