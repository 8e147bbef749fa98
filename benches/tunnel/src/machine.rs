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
        "cargo run --release --manifest-path benches/tunnel/Cargo.toml".into(),
    ]
}
