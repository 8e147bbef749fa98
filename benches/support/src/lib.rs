//! What the benchmarks that start the programs share.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time for a process to answer after its start.
pub const READY: Duration = Duration::from_secs(20);

const PROGRAMS: [&str; 4] = ["forward", "host", "runner", "agent"];

/// Builds the programs in their current state and gives their folder.
///
/// # Errors
/// They do not build.
pub fn build_programs() -> Result<PathBuf, String> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--quiet"])
        .args(PROGRAMS.iter().flat_map(|name| ["--example", name]))
        .current_dir(&project)
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !built.success() {
        return Err("the programs do not build".into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(project.join("target"), PathBuf::from);
    Ok(target.join("release/examples"))
}

/// Resident memory of a process in bytes, as Linux reports it; 0 once it has ended.
#[must_use]
pub fn resident(id: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// A port of loopback that nobody listens on.
///
/// # Errors
/// The system has none.
pub fn free_port() -> Result<u16, String> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    let address = bound.map_err(|error| format!("no free port: {error}"))?;
    Ok(address.port())
}

/// Waits until a port of loopback accepts connections.
///
/// # Errors
/// It does not within [`READY`].
pub fn await_port(port: u16, what: &str) -> Result<(), String> {
    until(READY, what, || {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
    })
}

/// Polls until it holds.
///
/// # Errors
/// It does not in time, or `ready` fails.
pub fn until(
    within: Duration,
    what: &str,
    mut ready: impl FnMut() -> Result<bool, String>,
) -> Result<(), String> {
    let deadline = Instant::now() + within;
    while !ready()? {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {} s", within.as_secs()));
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}
