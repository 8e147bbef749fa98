//! A flow at the service's end. It has its own socket, so that answers and refusals find it.
//!
//! A refusal (ICMP "port unreachable") concerns a datagram that was sent before. The kernel keeps
//! it as an error of the socket: the next call fails, but the socket does not become readable.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use kohakuriver_tunnel::mux::TunnelDatagram;
use kohakuriver_tunnel::session::{Reason, Reset};
use kohakuriver_tunnel::wire::Chunk;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use super::net;
use super::serve::{Served, flow_idle, reason};

/// How long a flow that never had an answer is refused before the opener is told: long enough for a
/// service that restarts, short enough for somebody who waits for an answer.
const REFUSED_FOR: Duration = Duration::from_millis(750);

/// A flow that ends sooner after a datagram, without an answer, was refused. Peers of version 1
/// only close it, and cannot say why.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What is said then.
pub const REFUSED_BY_CLOSE: &str = "closed without an answer, so probably nothing listens there";

/// Longest datagram, in bytes, that is kept to be sent to another address too, as no budget counts
/// it. If a longer one is refused, the next datagram goes to the other address.
const KEPT_MAX: usize = 2048;

/// The largest UDP payload, and one byte more to notice a longer one.
const DATAGRAM_MAX: usize = 65_536;

thread_local! {
    /// Buffer for one datagram of any socket of the thread. One for each would cost 64 KiB.
    static DATAGRAM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A datagram in memory of its own, and what else `receive` returns beside its length.
///
/// # Errors
/// That of `receive`.
pub fn received<T>(
    receive: impl FnOnce(&mut [u8]) -> io::Result<(usize, T)>,
) -> io::Result<(Chunk, T)> {
    DATAGRAM.with_borrow_mut(|buffer| {
        buffer.resize(DATAGRAM_MAX, 0);
        let (len, beside) = receive(buffer)?;
        Ok((Chunk::copied(buffer.get(..len).unwrap_or_default()), beside))
    })
}

pub struct ServiceFlow<'a> {
    flow: TunnelDatagram,
    port: u16,
    socket: UdpSocket,
    /// Addresses tried in turn while they refuse.
    addresses: &'a [SocketAddr],
    current: usize,
    /// The current address has answered and not refused since.
    serves: bool,
    /// The last datagram, until it is answered.
    unanswered: Option<Unanswered>,
    /// Whether there ever was an answer.
    answered: bool,
    refused: Option<Refused>,
    served: &'a Served,
}

/// A datagram without an answer.
struct Unanswered {
    /// For [`ANSWER_WITHIN`], unless it is long.
    kept: Option<Bytes>,
    /// The number of other addresses it may still go to.
    others: usize,
}

/// All addresses have refused a datagram.
struct Refused {
    since: Instant,
    reset: Reset,
    /// The last one was refused too.
    still: bool,
}

impl<'a> ServiceFlow<'a> {
    /// `socket` is connected to the first address.
    pub fn new(
        flow: TunnelDatagram,
        port: u16,
        socket: UdpSocket,
        addresses: &'a [SocketAddr],
        served: &'a Served,
    ) -> Self {
        Self {
            flow,
            port,
            socket,
            addresses,
            current: 0,
            serves: false,
            unanswered: None,
            answered: false,
            refused: None,
            served,
        }
    }

    /// A socket that sends to an address and learns of its refusals.
    pub async fn open(address: SocketAddr) -> io::Result<UdpSocket> {
        let local: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(local).await?;
        socket.connect(address).await?;
        Ok(socket)
    }

    /// Carries datagrams until the flow ends, and returns why.
    ///
    /// A single refusal ends nothing, since the service may be restarting. With `v2`, a flow that
    /// never had an answer and is refused for a while ends. Its opener reports that, and opens
    /// another flow with the next datagram.
    pub async fn run(mut self, v2: bool) -> Reset {
        let mut last_used = Instant::now();
        let longest = flow_idle(v2);
        let idle = sleep_until(last_used + longest);
        tokio::pin!(idle);
        loop {
            let refused = self.refused.as_ref().filter(|_| v2 && !self.answered);
            let telling_at = refused.map(|refused| refused.since + REFUSED_FOR);
            let keeps = self.unanswered.as_ref().is_some_and(|it| it.kept.is_some());
            tokio::select! {
                biased;
                received = self.flow.recv() => match received {
                    Ok(datagram) => {
                        last_used = Instant::now();
                        self.send(datagram).await;
                    }
                    Err(reset) => return reset,
                },
                ready = self.socket.ready(Interest::READABLE | Interest::ERROR) => {
                    // The read reports an error of the socket.
                    let _ = ready;
                    match self.receive() {
                        Ok(Some(datagram)) => {
                            last_used = Instant::now();
                            self.answered = true;
                            self.serves = true;
                            self.unanswered = None;
                            self.refused = None;
                            if let Err(reset) = self.flow.send(datagram) {
                                return reset;
                            }
                        }
                        Ok(None) => {}
                        Err(error) => self.failed(&error).await,
                    }
                }
                () = sleep_until(telling_at.unwrap_or(last_used)), if telling_at.is_some() => {
                    // If the last datagram was not refused, a service received it.
                    if let Some(refused) = self.refused.take().filter(|refused| refused.still) {
                        self.flow.reset(refused.reset.reason, &refused.reset.text);
                        return refused.reset;
                    }
                }
                () = sleep_until(last_used + ANSWER_WITHIN), if keeps => self.unanswered = None,
                () = &mut idle => {
                    if last_used.elapsed() >= longest {
                        return Reset::new(Reason::TimedOut, "idle");
                    }
                    idle.as_mut().reset(last_used + longest);
                }
            }
        }
    }

    async fn send(&mut self, datagram: Bytes) {
        // A refusal here concerns an earlier datagram, and this one was not sent.
        for _ in 0..=self.addresses.len() {
            let Err(error) = self.socket.send(&datagram).await else {
                if let Some(refused) = &mut self.refused {
                    refused.still = false;
                }
                let others = match &self.unanswered {
                    _ if self.serves => 0,
                    // Those that refused one that was not kept have had their turn.
                    Some(Unanswered { kept: None, others }) => *others,
                    _ => self.addresses.len().saturating_sub(1),
                };
                // A copy, because the datagram may be a part of a large buffer.
                let keep = others > 0 && datagram.len() <= KEPT_MAX;
                let kept = keep.then(|| Bytes::copy_from_slice(&datagram));
                self.unanswered = Some(Unanswered { kept, others });
                return;
            };
            self.failed(&error).await;
            if !is_refusal(&error) {
                return;
            }
        }
    }

    /// A datagram, if one has arrived.
    fn receive(&self) -> io::Result<Option<Chunk>> {
        let pending = self.socket.try_io(Interest::ERROR, || {
            let pending = self.socket.take_error()?;
            pending.ok_or_else(|| io::ErrorKind::WouldBlock.into())
        });
        if let Ok(error) = pending {
            return Err(error);
        }
        match received(|buffer| Ok((self.socket.try_recv(buffer)?, ()))) {
            Ok((datagram, ())) => Ok(Some(datagram)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The failure of one datagram does not end the flow.
    async fn failed(&mut self, error: &io::Error) {
        if !is_refusal(error) {
            tracing::debug!("a datagram failed: {error}");
            self.served.flow_failures.add(1);
            return;
        }
        self.served.flow_refusals.add(1);
        let last = self.unanswered.take();
        if std::mem::take(&mut self.serves) {
            // It is probably back soon, and its earlier answers may still be unread.
            return;
        }
        self.turn_to_other().await;
        match last {
            Some(Unanswered { kept, others }) if others > 0 => {
                if let Some(datagram) = &kept {
                    let _ = self.socket.send(datagram).await;
                }
                let others = others - 1;
                self.unanswered = Some(Unanswered { kept, others });
            }
            _ => {
                let text = format!("port {}/udp: {}", self.port, net::plain(error));
                let since = self.refused.as_ref().map(|refused| refused.since);
                self.refused = Some(Refused {
                    since: since.unwrap_or_else(Instant::now),
                    reset: Reset::new(reason(error), &text),
                    still: true,
                });
            }
        }
    }

    async fn turn_to_other(&mut self) {
        if self.addresses.len() < 2 {
            return;
        }
        self.current = (self.current + 1) % self.addresses.len();
        let Some(address) = self.addresses.get(self.current) else {
            return;
        };
        if let Ok(socket) = Self::open(*address).await {
            self.socket = socket;
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}
