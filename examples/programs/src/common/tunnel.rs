//! From a WebSocket to a tunnel, and to its end in good order when the program is told to stop.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kohakuriver_tunnel::mux::{self, Acceptor, Budget, Closed, Driver, Mux};
use kohakuriver_tunnel::session::{Config, Role, Version};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::farewell::{Farewell, Parting};
use super::memory::{Charged, MemoryArgs};
use super::ws::{Socket, Tungstenite};

/// How long the connections of a program that is to stop may go on.
const GRACE: Duration = Duration::from_secs(1);

/// After this the program ends, whatever the other sides do.
const STOP_WITHIN: Duration = Duration::from_millis(2500);

/// The tunnels of this process.
#[derive(Debug, Clone, Default)]
pub struct Tunnels {
    stopping: CancellationToken,
    open: TaskTracker,
}

/// Flags of every program that ends tunnels.
#[derive(Args, Debug, Clone)]
pub struct TunnelArgs {
    /// With a version 1 peer: seconds that a reader which pauses may hold up the others of its tunnel; then it is
    /// reset. One that holds up nobody is not.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 2.0,
        value_parser = parse_seconds
    )]
    v1_stall: f64,

    /// With a version 1 peer: MiB kept for a reader that pauses before the tunnel is no longer read.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 4,
        value_parser = clap::value_parser!(u64).range(1..=1024)
    )]
    v1_buffer: u64,

    /// With a version 1 peer: MiB more that are kept for a reader that pauses and holds up nobody, to reach and
    /// answer the peer's pings behind them; 0 to keep none.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 32,
        value_parser = clap::value_parser!(u64).range(0..=1024)
    )]
    v1_reach: u64,

    #[command(flatten)]
    memory: MemoryArgs,
}

/// What tunnels of a program have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    config: Config,
    budget: Budget,
    tunnels: Tunnels,
}

impl TunnelArgs {
    pub fn settings(&self, tunnels: Tunnels) -> Settings {
        let bytes = |mib: u64| usize::try_from(mib << 20).unwrap_or(usize::MAX);
        let mut settings = Settings::new(self.memory.budget(), tunnels);
        settings.config.v1_stall = Duration::from_secs_f64(self.v1_stall);
        settings.config.v1_stream_buffer = bytes(self.v1_buffer);
        settings.config.v1_reach = bytes(self.v1_reach);
        // A paused reader must not be the victim of the bound on all streams.
        let paused = settings.config.v1_stream_buffer.saturating_mul(2);
        settings.config.receive_budget = settings.config.receive_budget.max(paused);
        settings
    }
}

impl Settings {
    pub fn new(budget: Budget, tunnels: Tunnels) -> Self {
        let mut config = Config::default();
        // Each is looked at as soon as it comes, and accepted when the service has answered: a burst of slow
        // ones is no reason to refuse any.
        config.accept_backlog = config.max_streams;
        Self {
            config,
            budget,
            tunnels,
        }
    }
}

/// Puts a tunnel on a WebSocket whose handshake is over. The caller runs the driver, the future at the end.
pub fn over(
    socket: Socket,
    role: Role,
    v2: bool,
    settings: &Settings,
) -> (Mux, Acceptor, impl Future<Output = Closed> + Send + 'static) {
    over_with(socket, role, v2, settings, Farewell::default())
}

/// As [`over`], for somebody who has more to say or to hear at its end than that it is the end.
pub fn over_with(
    mut socket: Socket,
    role: Role,
    v2: bool,
    settings: &Settings,
    farewell: Farewell,
) -> (Mux, Acceptor, impl Future<Output = Closed> + Send + 'static) {
    let version = if v2 { Version::V2 } else { Version::V1 };
    let Settings {
        config,
        budget,
        tunnels,
    } = settings;
    socket.charge_to(Arc::new(Charged(budget.clone())));
    let socket = Parting { socket, farewell };
    let (mux, acceptor, driver) = mux::connect(socket, Tungstenite, role, version, config.clone());
    mux.join_budget(budget);
    let stopping = tunnels.stopping.clone();
    let driver = tunnels.open.track_future(drive(driver, stopping));
    (mux, acceptor, driver)
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s| (0.1..=3600.0).contains(s));
    seconds.ok_or_else(|| "write seconds from 0.1 to 3600".to_owned())
}

impl Tunnels {
    /// Ends all: the other sides are told, connections get a moment to end by themselves, and the
    /// WebSockets are closed. At once when `again` is ready.
    pub async fn end(&self, again: impl Future) {
        self.stopping.cancel();
        self.open.close();
        tokio::select! {
            () = self.open.wait() => {}
            () = sleep(STOP_WITHIN) => {}
            _ = again => {}
        }
    }
}

async fn drive(driver: Driver<Parting, Tungstenite>, stopping: CancellationToken) -> Closed {
    let mut driver = pin!(driver);
    tokio::select! {
        closed = &mut driver => return closed,
        () = stopping.cancelled() => {}
    }
    let mux = driver.mux();
    mux.drain();
    let used = async {
        while mux.stats().streams > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        closed = &mut driver => return closed,
        _ = timeout(GRACE, used) => {}
    }
    mux.shutdown();
    driver.await
}
