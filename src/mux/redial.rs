use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

use super::TunnelError;
use super::source::{Arrival, Need, News, Source};
use crate::resume::Secret;
use crate::session::{Instant, clean_text};

/// Connects a client's tunnel again, each time with a new transport (PROTOCOL.md section 5.10).
///
/// A closure from [`Dial`] to a future is one.
///
/// The future ends with a transport whose handshake is complete and whose
/// [greeting](super::Builder::hear_greeting), if its route has one, was heard. It may wait before
/// it connects: back-off and jitter are the connector's. It is dropped when the peer is heard again
/// meanwhile, when the tunnel ends, or after the [time](super::Builder::dial_timeout) for one
/// attempt. After a failure that is not [final](ConnectFailure::is_final) the connector is asked
/// again at once, though at most ten times a second, and once a second if it keeps failing.
///
/// ```
/// use std::time::Duration;
///
/// use kohakuriver_tunnel::mux::{self, ConnectFailure, Dial, Mux, length_prefixed};
/// use kohakuriver_tunnel::transport::Plain;
/// use tokio::net::TcpStream;
///
/// /// A tunnel that goes on over one TCP connection after the other.
/// async fn connect(address: &'static str) -> std::io::Result<Mux> {
///     let first = length_prefixed(TcpStream::connect(address).await?);
///     let again = move |dial: Dial| async move {
///         if !dial.attached {
///             tokio::time::sleep(Duration::from_secs(dial.attempt.min(10).into())).await;
///         }
///         match TcpStream::connect(address).await {
///             Ok(socket) => Ok(length_prefixed(socket)),
///             Err(error) => Err(ConnectFailure::again(&error.to_string())),
///         }
///     };
///     let (mux, driver) = mux::builder().resuming_opener(first, Plain, again);
///     tokio::spawn(driver);
///     Ok(mux)
/// }
/// ```
pub trait Connect {
    /// What it connects.
    type Transport;
    /// One attempt.
    type Future: Future<Output = Result<Self::Transport, ConnectFailure>>;

    /// Begins an attempt.
    fn connect(&mut self, dial: Dial) -> Self::Future;
}

impl<F, T, A> Connect for F
where
    F: FnMut(Dial) -> A,
    A: Future<Output = Result<T, ConnectFailure>>,
{
    type Transport = T;
    type Future = A;

    fn connect(&mut self, dial: Dial) -> A {
        self(dial)
    }
}

/// Circumstances of an attempt to connect. [`Connect`] has a whole client.
///
/// ```
/// use std::time::Duration;
///
/// use kohakuriver_tunnel::mux::Dial;
///
/// fn pause(dial: Dial) -> Duration {
///     match dial.attached {
///         true => Duration::ZERO,
///         false => (dial.keep / 20).min(Duration::from_secs(dial.attempt.into())),
///     }
/// }
/// let keep = Duration::from_secs(120);
/// assert_eq!(pause(Dial::new(0, false, keep)), Duration::ZERO);
/// assert_eq!(pause(Dial::new(30, false, keep)), Duration::from_secs(6));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dial {
    /// Attempts before this one since the tunnel was attached: 0 for the first.
    pub attempt: u32,
    /// The old transport is still there, but there is doubt whether the peer hears: it was silent
    /// for a keepalive interval, or the program [asked](super::Tunnel::probe). A connector that
    /// spreads the load of many clients after a loss need not wait for long then.
    pub attached: bool,
    /// For how long the tunnel is kept without a transport while it has streams: the shorter of
    /// both ends' values. A connector must not wait for longer between attempts.
    pub keep: Duration,
}

impl Dial {
    /// For the first transport, or the test of a connector. A tunnel's driver makes its own.
    #[must_use]
    pub const fn new(attempt: u32, attached: bool, keep: Duration) -> Self {
        Self {
            attempt,
            attached,
            keep,
        }
    }
}

/// Why a connector has no transport.
///
/// ```
/// use kohakuriver_tunnel::mux::ConnectFailure;
///
/// fn failure(status: u16) -> ConnectFailure {
///     match status {
///         401 | 403 => ConnectFailure::last("this client is not let in any more"),
///         status => ConnectFailure::again(&format!("the server answered {status}")),
///     }
/// }
/// assert!(failure(401).is_final() && !failure(503).is_final());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectFailure {
    text: String,
    is_final: bool,
}

impl ConnectFailure {
    /// Another attempt may succeed. The text is not shown anywhere; log it in the connector if you
    /// want it.
    #[must_use]
    pub fn again(text: &str) -> Self {
        Self::new(text, false)
    }

    /// No further attempt can succeed. The tunnel ends with this text, once it has no transport.
    #[must_use]
    pub fn last(text: &str) -> Self {
        Self::new(text, true)
    }

    fn new(text: &str, is_final: bool) -> Self {
        let text = clean_text(text.as_bytes());
        Self { text, is_final }
    }

    /// Whether the tunnel ends.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        self.is_final
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl core::error::Error for ConnectFailure {}

/// Transports from a [`Connect`]: where a client's tunnel gets the next one. Only the type of a
/// [`Driver`](super::Driver) names it. [`Connect`] has an example.
pub struct Redial<N: Connect> {
    connector: N,
    /// The attempt under way.
    current: Option<Attempt<N::Future>>,
    limit: Duration,
    /// Attempts since the tunnel was attached.
    attempts: u32,
    /// Attempts since it was attached for long.
    fruitless: u32,
    not_before: Instant,
    /// Whether the next transport is wanted and may still come.
    is_wanted: bool,
    attached_at: Instant,
    /// The text of an attempt after which no other can succeed.
    final_failure: Option<String>,
}

struct Attempt<F> {
    future: Pin<Box<F>>,
    until: Instant,
}

impl<N: Connect> Redial<N> {
    /// Time from one attempt to the next, at least. Doubles while attempts are fruitless.
    const PACE: Duration = Duration::from_millis(100);
    const SLOWEST_PACE: Duration = Duration::from_secs(1);
    /// An attempt was worth it if the tunnel stays attached for this long.
    const STABLE: Duration = Duration::from_secs(5);

    pub(super) fn new(connector: N, limit: Duration, now: Instant) -> Self {
        Self {
            connector,
            current: None,
            limit,
            attempts: 0,
            fruitless: 0,
            not_before: now,
            is_wanted: false,
            attached_at: now,
            final_failure: None,
        }
    }

    fn begin(&mut self, now: Instant, attached: bool, keep: Duration) {
        let dial = Dial::new(self.attempts, attached, keep);
        self.attempts = self.attempts.saturating_add(1);
        let pace = Self::PACE * (1 << self.fruitless.min(4));
        self.not_before = now + pace.min(Self::SLOWEST_PACE);
        self.fruitless = self.fruitless.saturating_add(1);
        self.current = Some(Attempt {
            future: Box::pin(self.connector.connect(dial)),
            until: now + self.limit,
        });
    }
}

// The connector is never pinned.
impl<N: Connect> Unpin for Redial<N> {}

impl<N: Connect> Source for Redial<N> {
    type Transport = N::Transport;

    const RESUMES: bool = true;

    fn poll_arrival(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        need: Need,
        keep: Duration,
    ) -> Poll<Arrival<N::Transport>> {
        self.is_wanted = false;
        match need {
            Need::None => {
                self.current = None;
                self.attempts = 0;
                self.final_failure = None;
                return Poll::Pending;
            }
            Need::Wait => return Poll::Pending,
            Need::Doubt | Need::Lost => {}
        }
        let lost = need == Need::Lost;
        if let Some(text) = &self.final_failure {
            let over = || Arrival::Over(TunnelError::NotConnected(text.clone()));
            return if lost {
                Poll::Ready(over())
            } else {
                Poll::Pending
            };
        }
        self.is_wanted = true;
        if self.current.is_none() && now >= self.not_before {
            self.begin(now, !lost, keep);
        }
        let Some(attempt) = &mut self.current else {
            return Poll::Pending;
        };
        let outcome = match attempt.future.as_mut().poll(cx) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending if now < attempt.until => return Poll::Pending,
            Poll::Pending => Err(ConnectFailure::again("no connection in time")),
        };
        self.current = None;
        match outcome {
            Ok(transport) => Poll::Ready(Arrival::Dialled(transport)),
            Err(failure) if failure.is_final => {
                self.final_failure = Some(failure.text);
                self.poll_arrival(cx, now, need, keep)
            }
            Err(_) => {
                if now >= self.not_before {
                    // It took longer than the pace demands.
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let next = match &self.current {
            Some(attempt) => attempt.until,
            None => self.not_before,
        };
        self.is_wanted.then_some(next)
    }

    fn next_secret(&mut self) -> Secret {
        // A client gives none.
        Secret::new([0; Secret::LEN])
    }

    fn note(&mut self, now: Instant, news: &News<'_>) {
        match news {
            News::Attached => {
                self.attached_at = now;
                self.attempts = 0;
            }
            News::Detached { .. } if now - self.attached_at >= Self::STABLE => self.fruitless = 0,
            News::Ended(_) => self.current = None,
            _ => {}
        }
    }
}

impl<N: Connect> fmt::Debug for Redial<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redial")
            .field("connecting", &self.current.is_some())
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}
