//! Context of the figures: date, machine, command.

use std::fs;
use std::process::Command;

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
    vec![
        format!("{}, median of {runs} pairs", date.unwrap_or_default()),
        format!("{model}, {cores} cores, Linux {}", kernel.trim()),
        command(std::env::args().skip(1).collect()),
    ]
}

/// The command that makes this run.
fn command(flags: Vec<String>) -> String {
    let cargo = "cargo run --release --manifest-path benches/tunnel/Cargo.toml";
    match flags.as_slice() {
        [] => cargo.into(),
        flags => format!("{cargo} -- {}", flags.join(" ")),
    }
}
