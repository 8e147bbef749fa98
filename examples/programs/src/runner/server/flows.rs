//! Joins the two flows of one connection, each in its own tunnel.

use std::pin::pin;

use kohakuriver_tunnel::mux::TunnelDatagram;
use kohakuriver_tunnel::session::Reset;
use tokio::time::{Instant, sleep_until};

use crate::common::serve::FLOW_IDLE;

/// Joins two flows until either ends or both are idle. Returns the reason if the agent ended its
/// flow.
pub async fn join(client: &TunnelDatagram, agent: &TunnelDatagram) -> Option<Reset> {
    let mut last_used = Instant::now();
    let mut idle = pin!(sleep_until(last_used + FLOW_IDLE));
    loop {
        tokio::select! {
            received = client.recv() => match received {
                Ok(datagram) => {
                    last_used = Instant::now();
                    if let Err(reset) = agent.send(datagram) {
                        return Some(reset);
                    }
                }
                Err(_) => return None,
            },
            received = agent.recv() => match received {
                Ok(datagram) => {
                    last_used = Instant::now();
                    if client.send(datagram).is_err() {
                        return None;
                    }
                }
                Err(reset) => return Some(reset),
            },
            () = &mut idle => {
                if last_used.elapsed() >= FLOW_IDLE {
                    return None;
                }
                idle.as_mut().reset(last_used + FLOW_IDLE);
            }
        }
    }
}
