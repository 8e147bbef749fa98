//! Helpers for tests of whole programs.

pub mod certificates;
pub mod chain;
pub mod client;
pub mod files;
pub mod flood;
pub mod program;
pub mod relay;

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longer than anything on loopback takes unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Fails the test after a time limit instead of hanging.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not done within {LIMIT:?}"),
    }
}

/// Allows this process as many open files as it may have. Login shells set 1024, which is less than
/// a flood or the peers of a UDP port need.
fn raise_file_limit() {
    static RAISED: Once = Once::new();
    RAISED.call_once(|| {
        if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
            eprintln!("the limit of open files stays: {error}");
        }
    });
}

/// A TCP port without a listener.
pub fn free_port() -> u16 {
    unused(|at| TcpListener::bind(at).is_ok())
}

/// A UDP port without a listener.
pub fn free_udp_port() -> u16 {
    unused(|at| UdpSocket::bind(at).is_ok())
}

/// Below the ports that systems give out, or another socket could have it before its user. Each
/// process begins elsewhere, and no port comes twice.
fn unused(is_free: impl Fn((Ipv4Addr, u16)) -> bool) -> u16 {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    loop {
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        let at = std::process::id().wrapping_mul(61).wrapping_add(asked) % 12_000;
        let port = 20_000 + u16::try_from(at).unwrap();
        if is_free((Ipv4Addr::LOCALHOST, port)) {
            return port;
        }
    }
}

/// Whether this machine has the loopback address of IPv6. A test that needs it is skipped if not.
pub fn has_ipv6() -> bool {
    let bound = TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
    if let Err(error) = &bound {
        skipped(&format!("nothing can listen on ::1: {error}"));
    }
    bound.is_ok()
}

/// Says that a test cannot run here. What `eprintln` prints is hidden if the test passes.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED, NOT CHECKED: {why}");
}
