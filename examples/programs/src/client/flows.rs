//! A UDP port. Each local peer has a flow through a tunnel, which ends when the peer is idle.
//!
//! The port's socket and its flows are on the main thread. What comes back through a tunnel is sent
//! to the peer on that tunnel's thread.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kohakuriver_tunnel::mux::{Tunnel, TunnelDatagram};
use kohakuriver_tunnel::session::{OpenError, Reason, Reset};
use kohakuriver_tunnel::wire::Chunk;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::client::access::Access;
use crate::client::args::Forward;
use crate::client::lanes::Seat;
use crate::client::streams;
use crate::common::flow::{self, ANSWER_WITHIN};
use crate::common::program::Failure;

/// Datagrams read from the socket before other tasks get their turn.
const BURST: usize = 64;

/// Serves the port until dropped.
pub async fn serve(socket: UdpSocket, forward: Forward, access: Access) -> Failure {
    let mut flows = Flows {
        shared: Arc::new(Shared {
            socket,
            started: Instant::now(),
            told: AtomicBool::new(false),
            heard: AtomicU64::new(0),
        }),
        forward,
        access,
        by_peer: HashMap::new(),
        due: BTreeSet::new(),
        readers: JoinSet::new(),
        dropped: 0,
        asked: None,
        sent: Instant::now(),
    };
    loop {
        flows.turn().await;
    }
}

/// What the readers use too.
struct Shared {
    socket: UdpSocket,
    started: Instant,
    /// A refusal or silence was logged, and no datagram has come back since. The readers clear it.
    told: AtomicBool,
    /// Milliseconds from the start to the last datagram that came back. The readers write it.
    heard: AtomicU64,
}

impl Shared {
    /// Milliseconds since the start.
    fn clock(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

struct Flows {
    shared: Arc<Shared>,
    forward: Forward,
    access: Access,
    by_peer: HashMap<SocketAddr, Open>,
    /// When to look at each flow again: the earliest moment at which it can be idle.
    due: BTreeSet<(Instant, SocketAddr)>,
    /// One task per flow, for the other direction.
    readers: JoinSet<(Arc<Flow>, Reset)>,
    /// Datagrams from local peers that were dropped because there was no flow for them.
    dropped: u64,
    /// When the first datagram was sent of those after which no look was taken yet.
    asked: Option<Instant>,
    /// When the last one was sent.
    sent: Instant,
}

/// What both directions of a flow use.
struct Flow {
    peer: SocketAddr,
    datagrams: TunnelDatagram,
    tunnel: Tunnel,
    /// Milliseconds since the start. Both directions write it.
    last_used: AtomicU64,
    /// A datagram has come back.
    answered: AtomicBool,
    seat: Seat,
}

impl Flow {
    /// When it was last used.
    fn used_at(&self, started: Instant) -> Instant {
        started + Duration::from_millis(self.last_used.load(Ordering::Relaxed))
    }
}

/// A flow that has not ended.
struct Open {
    flow: Arc<Flow>,
    reader: AbortHandle,
    /// Its moment in [`Flows::due`].
    due: Instant,
}

impl Flows {
    async fn turn(&mut self) {
        let far = || Instant::now() + Duration::from_secs(3600);
        let due = self.due.first().map_or_else(far, |(at, _)| *at);
        let silent = self.asked.map_or_else(far, |asked| asked + ANSWER_WITHIN);
        tokio::select! {
            ready = self.shared.socket.readable() => {
                // The read reports an error of the socket.
                let _ = ready;
                self.receive_burst();
            }
            Some(ended) = self.readers.join_next() => {
                if let Ok((flow, reset)) = ended {
                    self.ended(&flow, &reset);
                }
            }
            () = tokio::time::sleep_until(due) => {
                let now = Instant::now();
                while self.due.first().is_some_and(|(at, _)| *at <= now) {
                    self.look_at_first(now);
                }
            }
            () = tokio::time::sleep_until(silent) => self.look_for_silence(),
        }
    }

    fn receive_burst(&mut self) {
        for _ in 0..BURST {
            match flow::received(|buffer| self.shared.socket.try_recv_from(buffer)) {
                Ok((datagram, peer)) => self.send(peer, datagram),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error about one peer does not concern the others.
                Err(error) => tracing::debug!("a datagram could not be received: {error}"),
            }
        }
    }

    fn send(&mut self, peer: SocketAddr, datagram: Chunk) {
        let flow = match self.by_peer.get(&peer) {
            Some(open) => Some(Arc::clone(&open.flow)),
            None => self.open(peer),
        };
        let Some(flow) = flow else {
            self.dropped += 1;
            tracing::debug!(%peer, dropped = self.dropped, "no flow for a datagram");
            return;
        };
        flow.last_used.store(self.shared.clock(), Ordering::Relaxed);
        // If the flow has just ended, its reader reports it and the next datagram opens another.
        let _ = flow.datagrams.send(datagram);
        self.sent = Instant::now();
        self.asked.get_or_insert(self.sent);
    }

    fn open(&mut self, peer: SocketAddr) -> Option<Arc<Flow>> {
        let (mux, seat) = self.access.flow_seat()?;
        let datagrams = match mux.open_udp(self.forward.remote) {
            Ok(datagrams) => datagrams,
            Err(error) => {
                if let OpenError::Limit(_) = error {
                    // The ports share the session. There is room for the next datagram.
                    self.forget_oldest();
                }
                return None;
            }
        };
        if self.by_peer.len() >= self.forward.udp_peers {
            self.forget_oldest();
        }
        let flow = Arc::new(Flow {
            peer,
            datagrams,
            tunnel: mux.tunnel().clone(),
            last_used: AtomicU64::new(self.shared.clock()),
            answered: AtomicBool::new(false),
            seat,
        });
        let reading = read(Arc::clone(&self.shared), Arc::clone(&flow));
        let due = Instant::now() + self.forward.udp_idle;
        let open = Open {
            flow: Arc::clone(&flow),
            reader: flow.seat.thread().spawn_in(&mut self.readers, reading),
            due,
        };
        tracing::debug!(%peer, tunnel = flow.seat.index, "flow opened");
        self.by_peer.insert(peer, open);
        self.due.insert((due, peer));
        Some(flow)
    }

    /// Ends the flow that was silent for longest.
    fn forget_oldest(&mut self) {
        let before = self.by_peer.len();
        while let Some((at, _)) = self.due.first().copied() {
            self.look_at_first(at);
            if self.by_peer.len() < before {
                return;
            }
        }
    }

    /// Takes the first entry of the queue. Its flow ends if it was not used since it was queued,
    /// and is queued again otherwise.
    fn look_at_first(&mut self, now: Instant) {
        let Some((_, peer)) = self.due.pop_first() else {
            return;
        };
        let Entry::Occupied(mut entry) = self.by_peer.entry(peer) else {
            return;
        };
        let used_at = entry.get().flow.used_at(self.shared.started);
        let idle_at = used_at + self.forward.udp_idle;
        if idle_at > now {
            entry.get_mut().due = idle_at;
            self.due.insert((idle_at, peer));
        } else {
            tracing::debug!(%peer, "flow forgotten");
            entry.remove().reader.abort();
        }
    }

    fn ended(&mut self, flow: &Arc<Flow>, reset: &Reset) {
        let Entry::Occupied(entry) = self.by_peer.entry(flow.peer) else {
            return;
        };
        if !Arc::ptr_eq(&entry.get().flow, flow) {
            return;
        }
        tracing::debug!(peer = %flow.peer, "flow ended: {reset}");
        self.due.remove(&(entry.remove().due, flow.peer));
        let port = self.forward.remote;
        match reset.reason {
            // The end of the tunnel is logged elsewhere.
            _ if flow.tunnel.close_reason().is_some() => self.asked = None,
            Reason::Gone if self.access.is_v1() && !flow.answered.load(Ordering::Relaxed) => {
                if flow.used_at(self.shared.started).elapsed() < ANSWER_WITHIN {
                    self.tell(&format!("port {port}/udp: {}", flow::REFUSED_BY_CLOSE));
                }
            }
            // An ordinary end.
            Reason::Gone | Reason::TimedOut => {}
            _ => self.tell(&streams::told(port, reset)),
        }
    }

    /// Peers of version 1 may refuse a port in silence.
    fn look_for_silence(&mut self) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        // To a whole millisecond.
        let heard = Duration::from_millis(self.shared.heard.load(Ordering::Relaxed) + 1);
        let heard = self.shared.started + heard;
        if heard > asked {
            self.asked = Some(self.sent).filter(|sent| *sent > heard);
        } else if self.access.is_v1() {
            self.tell(&format!(
                "port {}/udp: nothing has come back for {} s: no service listens there, or it does \
                 not answer",
                self.forward.remote,
                ANSWER_WITHIN.as_secs()
            ));
        }
    }

    /// Logs one line for the port, and no other until a datagram comes back: applications retry.
    fn tell(&self, line: &str) {
        if !self.shared.told.swap(true, Ordering::Relaxed) {
            let port = self.forward.remote;
            tracing::warn!("{line}; this line comes once until port {port} answers");
        }
    }
}

/// Carries datagrams back to a peer until the tunnel ends the flow. Returns how.
async fn read(shared: Arc<Shared>, flow: Arc<Flow>) -> (Arc<Flow>, Reset) {
    loop {
        match flow.datagrams.recv().await {
            Ok(datagram) => {
                let (now, peer) = (shared.clock(), flow.peer);
                flow.last_used.store(now, Ordering::Relaxed);
                flow.answered.store(true, Ordering::Relaxed);
                shared.heard.store(now, Ordering::Relaxed);
                shared.told.store(false, Ordering::Relaxed);
                if let Err(error) = shared.socket.send_to(&datagram, peer).await {
                    tracing::debug!(%peer, "a datagram could not be sent: {error}");
                }
            }
            Err(reset) => return (flow, reset),
        }
    }
}
