//! The same congestion control for every socket of a run.
//!
//! The network namespace and the route set the algorithm of a socket. The run therefore starts
//! itself again in its own namespace, where the routes of loopback name the algorithm. A route may
//! name an algorithm that an ordinary user may not select (`tcp_allowed_congestion_control`), and
//! no other program on the machine is affected.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;

use socket2::SockRef;

/// Set for the process that runs in the namespace, to the arguments that the user gave.
const INSIDE: &str = "TUNNEL_BENCH_NAMESPACE";

/// Brings loopback up, and becomes the arguments.
const ENTER: &str = "ip link set lo up && exec \"$@\"";

/// Names the algorithm ($0) in the routes of loopback.
const CHANGE: &str = r#"
for prefix in 127.0.0.0/8 127.0.0.1; do
    ip route change local $prefix dev lo proto kernel scope host src 127.0.0.1 table local \
        congctl "$0" || exit
done
"#;

/// Replaces this process by itself, with `more` arguments, in a network namespace. Returns if it
/// runs in one already, or if that is not permitted, which it prints.
pub fn enter_namespace(more: &[OsString]) {
    if inside().is_some() {
        return;
    }
    let ways: [&[&str]; 2] = [&["--net"], &["--map-root-user", "--net"]];
    for way in ways {
        let probe = unshare(way).args(["sh", "-c", CHANGE, "reno"]).output();
        if !probe.is_ok_and(|probe| probe.status.success()) {
            continue;
        }
        let Ok(program) = env::current_exe() else {
            break;
        };
        let given: Vec<OsString> = env::args_os().skip(1).collect();
        let failed = unshare(way)
            .arg(program)
            .args(&given)
            .args(more)
            .env(INSIDE, given.join(OsStr::new(" ")))
            .exec();
        eprintln!("cannot start again in a network namespace: {failed}");
        return;
    }
    eprintln!(
        "NOT in a network namespace of its own (that needs unshare and ip as root, or user \
         namespaces): every socket has the kernel's default congestion control. Ratios are fair \
         only if no program sets another."
    );
}

/// The arguments that the user gave, in the process that runs in the namespace.
pub fn inside() -> Option<String> {
    env::var_os(INSIDE).map(|given| given.to_string_lossy().into_owned())
}

/// Gives the algorithm to all connections that are made from now on. Without a namespace nothing
/// changes.
pub fn set(algorithm: &str) -> Result<(), String> {
    if inside().is_none() {
        return Ok(());
    }
    let changed = Command::new("sh").args(["-c", CHANGE, algorithm]).output();
    let changed = changed.map_err(|error| error.to_string())?;
    if changed.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&changed.stderr).trim().to_owned();
    Err(format!("no congestion control {algorithm}: {said}"))
}

fn unshare(way: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(way).args(["sh", "-c", ENTER, "sh"]);
    command
}

/// The algorithm of both ends of a connection on loopback, as text for the table.
pub fn in_use(asked: &str) -> io::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    let (near, far) = (name(&near)?, name(&far)?);
    let mut words = if near == far && near == asked {
        format!("{near} for every process")
    } else {
        format!("NOT {asked}: {near} for who connects, {far} for who accepts")
    };
    if near == "bbr" {
        // The programs' own `unpace` sets this; nothing else in the run does.
        words.push_str(", but the four programs take reno on loopback");
    }
    Ok(words)
}

fn name(stream: &TcpStream) -> io::Result<String> {
    let name = SockRef::from(stream).tcp_congestion()?;
    let end = name.iter().position(|byte| *byte == 0);
    let name = &name[..end.unwrap_or(name.len())];
    Ok(String::from_utf8_lossy(name).into_owned())
}
