//! From a WebSocket to a tunnel.

use kohakuriver_tunnel::mux::{self, Acceptor, Driver, Mux};
use kohakuriver_tunnel::session::{Config, Role, Version};

use super::ws::{Socket, Tungstenite};

/// Puts a tunnel on a WebSocket whose handshake is over. The caller spawns the driver.
pub fn over(socket: Socket, role: Role, v2: bool) -> (Mux, Acceptor, Driver<Socket, Tungstenite>) {
    let version = if v2 { Version::V2 } else { Version::V1 };
    let mut config = Config::default();
    // Each is looked at as soon as it comes, and accepted when the service has answered: a burst of slow
    // ones is no reason to refuse any.
    config.accept_backlog = config.max_streams;
    mux::connect(socket, Tungstenite, role, version, config)
}
