//! Two legs of one connection, each in a tunnel of its own: own ids, own credit, own version.
//!
//! A direction reads from one leg only what the other takes, so a stall stays with its connection.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Buf;
use kohakuriver_tunnel::mux::{ReadHalf, TunnelDatagram, TunnelStream, WriteHalf};
use kohakuriver_tunnel::session::{Reset, SendError};
use kohakuriver_tunnel::wire::Chunk;
use tokio::time::Instant;

use crate::common::serve::{FLOW_IDLE, LAST_WORDS};

/// Joins two streams until both directions have ended, each for itself; a reset of either reaches
/// the other.
pub async fn streams(mut client: TunnelStream, mut agent: TunnelStream) {
    let one_finished = AtomicBool::new(false);
    let (to_agent, to_client) = {
        let (client_read, client_write) = client.split_mut();
        let (agent_read, agent_write) = agent.split_mut();
        let mut up = pin!(pump(client_read, agent_write, &one_finished));
        let mut down = pin!(pump(agent_read, client_write, &one_finished));
        // A leg that is reset has its own direction to end: what it sent before the reset comes
        // first.
        tokio::select! {
            ended = &mut up => match ended {
                Ended::Both => (None, None),
                Ended::SenderReset(reset) => (Some(reset), None),
                Ended::ReceiverReset => (None, down.await.sender_reset()),
            },
            ended = &mut down => match ended {
                Ended::Both => (None, None),
                Ended::SenderReset(reset) => (None, Some(reset)),
                Ended::ReceiverReset => (up.await.sender_reset(), None),
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

/// Joins two flows until either ends, or both fall silent; gives the reason with which the agent
/// ended its own.
pub async fn flows(client: &TunnelDatagram, agent: &TunnelDatagram) -> Option<Reset> {
    let mut last_used = Instant::now();
    let mut idle = pin!(tokio::time::sleep_until(last_used + FLOW_IDLE));
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

/// How one direction ended.
enum Ended {
    /// Well, and the other one before it.
    Both,
    SenderReset(Reset),
    ReceiverReset,
}

impl Ended {
    fn sender_reset(self) -> Option<Reset> {
        match self {
            Self::SenderReset(reset) => Some(reset),
            // The other leg is gone as well.
            Self::Both | Self::ReceiverReset => None,
        }
    }
}

/// Carries one direction to its end; then, unless the other one has ended too, waits for a reset.
async fn pump(from: &mut ReadHalf, to: &mut WriteHalf, one_finished: &AtomicBool) -> Ended {
    loop {
        let mut bytes = match from.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break,
            Err(reset) => return Ended::SenderReset(reset),
        };
        while !bytes.is_empty() {
            let capacity = tokio::select! {
                biased;
                capacity = to.capacity() => capacity,
                reset = abandoned(from) => return Ended::SenderReset(reset),
            };
            let Ok(capacity) = capacity else {
                return Ended::ReceiverReset;
            };
            let len = capacity.min(bytes.len());
            match to.send(Chunk::from(bytes.slice(..len))) {
                Ok(()) => bytes.advance(len),
                // Other streams of the tunnel took the room meanwhile.
                Err(SendError::Blocked(_)) => {}
                Err(_) => return Ended::ReceiverReset,
            }
        }
    }
    to.finish();
    if one_finished.swap(true, Ordering::Relaxed) {
        return Ended::Both;
    }
    Ended::SenderReset(reset_of(from).await)
}

/// A sender that was reset while the receiver takes nothing. Without the bound, a stalled service
/// would keep the connections of all clients that gave up on it.
async fn abandoned(from: &mut ReadHalf) -> Reset {
    let reset = reset_of(from).await;
    tokio::time::sleep(LAST_WORDS).await;
    reset
}

async fn reset_of(from: &mut ReadHalf) -> Reset {
    poll_fn(|cx| from.poll_reset(cx)).await
}
