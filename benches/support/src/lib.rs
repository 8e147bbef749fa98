//! What the benchmarks that start the programs share.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
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

/// A port of loopback that nobody listens on, another one each time.
///
/// It is below those that systems give out, or another socket could have it before its user. Each
/// process begins elsewhere.
///
/// # Errors
/// The system has none.
pub fn free_port() -> Result<u16, String> {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static ASKED: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        let at = std::process::id().wrapping_mul(61).wrapping_add(asked) % COUNT;
        let port = u16::try_from(FIRST + at).map_err(|error| error.to_string())?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err("no free port".into())
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
