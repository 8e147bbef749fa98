//! What tests of whole programs share.
#![allow(dead_code, unreachable_pub)] // each test file uses its own selection
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod chain;
pub mod flood;
pub mod program;

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

/// Nothing on loopback takes this long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Fails the test instead of hanging it.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not done within {LIMIT:?}"),
    }
}

/// As a file with a secret has to be: for its owner alone.
pub fn make_private(path: &std::path::Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).unwrap();
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// A TCP port where nothing listens now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A UDP port where nothing listens now.
pub fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap().port()
}
