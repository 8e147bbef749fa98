//! Joins the two flows of one connection, each in its own tunnel.

use std::pin::pin;

use kohakuriver_tunnel::mux::TunnelDatagram;
use kohakuriver_tunnel::session::Reset;
use tokio::time::{Instant, sleep_until};

use crate::common::flow::ANSWER_WITHIN;
use crate::common::serve::flow_idle;

/// How an agent ended its flow.
pub struct Ended {
    pub reset: Reset,
    /// A datagram was sent just before, and none ever came back.
    pub unanswered: bool,
}

/// Joins two flows until either ends or both are idle. Returns how, if the agent ended its flow.
pub async fn join(client: &TunnelDatagram, agent: &TunnelDatagram, v2: bool) -> Option<Ended> {
    let longest = flow_idle(v2);
    let mut last_used = Instant::now();
    let mut answered = false;
    let ended = |reset, answered: bool, last_used: Instant| {
        let unanswered = !answered && last_used.elapsed() < ANSWER_WITHIN;
        Some(Ended { reset, unanswered })
    };
    let mut idle = pin!(sleep_until(last_used + longest));
    loop {
        tokio::select! {
            received = client.recv() => match received {
                Ok(datagram) => {
                    last_used = Instant::now();
                    if let Err(reset) = agent.send(datagram) {
                        return ended(reset, answered, last_used);
                    }
                }
                Err(_) => return None,
            },
            received = agent.recv() => match received {
                Ok(datagram) => {
                    last_used = Instant::now();
                    answered = true;
                    if client.send(datagram).is_err() {
                        return None;
                    }
                }
                Err(reset) => return ended(reset, answered, last_used),
            },
            () = &mut idle => {
                if last_used.elapsed() >= longest {
                    return None;
                }
                idle.as_mut().reset(last_used + longest);
            }
        }
    }
}
