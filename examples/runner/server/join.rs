//! Two legs of one connection, each in a tunnel of its own: own ids, own credit, own version.
//!
//! A direction reads from one leg only what the other takes, so a stall stays with its connection.

use std::pin::pin;

use kohakuriver_tunnel::mux::{ReadHalf, TunnelDatagram, TunnelStream, WriteHalf};
use kohakuriver_tunnel::session::{Reason, Reset, SendError};
use kohakuriver_tunnel::wire::Chunk;
use tokio::time::Instant;

use crate::common::serve::FLOW_IDLE;

/// Joins two streams until both directions have ended; a reset of either reaches the other.
pub async fn streams(mut client: TunnelStream, mut agent: TunnelStream) {
    let (to_agent, to_client) = {
        let (client_read, client_write) = client.split_mut();
        let (agent_read, agent_write) = agent.split_mut();
        let mut up = pin!(pump(client_read, agent_write));
        let mut down = pin!(pump(agent_read, client_write));
        // A reset of the sender ends the connection at once. One of the receiver does not: what it sent
        // before is still delivered, and its own direction then ends with the same reset.
        tokio::select! {
            ended = &mut up => match ended {
                Ended::Sender(reset) => (Some(reset), None),
                Ended::Receiver(reset) => (None, Some(both(down.await, reset))),
                Ended::Well => rest(down.await, false),
            },
            ended = &mut down => match ended {
                Ended::Sender(reset) => (None, Some(reset)),
                Ended::Receiver(reset) => (Some(both(up.await, reset)), None),
                Ended::Well => rest(up.await, true),
            },
        }
    };
    if let Some(reset) = to_agent {
        agent.reset(reset.reason, &reset.text);
    }
    if let Some(reset) = to_client {
        client.reset(reset.reason, &reset.text);
    }
}

/// Joins two flows until either ends, or both fall silent.
pub async fn flows(client: TunnelDatagram, agent: TunnelDatagram) {
    let mut last_used = Instant::now();
    let mut idle = pin!(tokio::time::sleep_until(last_used + FLOW_IDLE));
    loop {
        tokio::select! {
            received = client.recv() => match received {
                Ok(datagram) => {
                    last_used = Instant::now();
                    if let Err(reset) = agent.send(datagram) {
                        return client.reset(reset.reason, &reset.text);
                    }
                }
                Err(_) => return,
            },
            received = agent.recv() => match received {
                Ok(datagram) => {
                    last_used = Instant::now();
                    if client.send(datagram).is_err() {
                        return;
                    }
                }
                Err(reset) => return client.reset(reset.reason, &reset.text),
            },
            () = &mut idle => {
                if last_used.elapsed() >= FLOW_IDLE {
                    return;
                }
                idle.as_mut().reset(last_used + FLOW_IDLE);
            }
        }
    }
}

/// How one direction ended.
enum Ended {
    Well,
    Sender(Reset),
    Receiver(Reset),
}

/// Resets for the agent and for the client after one direction ended well and the other so.
fn rest(ended: Ended, up: bool) -> (Option<Reset>, Option<Reset>) {
    match (ended, up) {
        (Ended::Well, _) => (None, None),
        (Ended::Sender(reset), true) | (Ended::Receiver(reset), false) => (Some(reset), None),
        (Ended::Sender(reset), false) | (Ended::Receiver(reset), true) => (None, Some(reset)),
    }
}

/// The more telling of two resets of one leg: that of its sending direction, which came in order.
fn both(ended: Ended, reset: Reset) -> Reset {
    match ended {
        Ended::Sender(in_order) => in_order,
        Ended::Receiver(_) | Ended::Well => reset,
    }
}

async fn pump(from: &mut ReadHalf, to: &mut WriteHalf) -> Ended {
    loop {
        let mut bytes = match from.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                to.finish();
                return Ended::Well;
            }
            Err(reset) => return Ended::Sender(reset),
        };
        while !bytes.is_empty() {
            let capacity = match to.capacity().await {
                Ok(capacity) => capacity,
                Err(reset) => return Ended::Receiver(reset),
            };
            let piece = bytes.split_to(capacity.min(bytes.len()));
            match to.send(Chunk::from(piece)) {
                Ok(()) => {}
                Err(SendError::Reset(reset)) => return Ended::Receiver(reset),
                Err(other) => {
                    return Ended::Receiver(Reset::new(Reason::Gone, &other.to_string()));
                }
            }
        }
    }
}
