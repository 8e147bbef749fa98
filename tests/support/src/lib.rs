//! Helpers for tests of whole programs.

pub mod certificates;
pub mod chain;
pub mod client;
pub mod files;
pub mod flood;
pub mod program;
pub mod relay;

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
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

/// A TCP port without a listener.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A UDP port without a listener.
pub fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

/// Whether this machine has the loopback address of IPv6. A test that needs it is skipped if not.
pub fn has_ipv6() -> bool {
    let bound = TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
    if let Err(error) = &bound {
        eprintln!("skipped: nothing can listen on ::1: {error}");
    }
    bound.is_ok()
}
