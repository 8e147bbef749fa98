//! Puts tunnels on WebSockets, and ends them in good order when the program is told to end.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use kohakuriver_tunnel::mux::{
    self, Acceptor, Budget, Builder, ConnectError, Driver, Mux, TunnelError,
};
use kohakuriver_tunnel::session::{Config, Version};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::memory::{Charged, MemoryArgs};
use super::ws::{Socket, WebSocketCarrier};

/// How long open connections may go on when the program is told to end.
const GRACE: Duration = Duration::from_secs(1);

/// The program ends after this, whatever the peers do.
const STOP_WITHIN: Duration = Duration::from_millis(2500);

/// The result of a tunnel.
pub type Ended = Result<(), TunnelError>;

/// The tunnels of this process.
#[derive(Debug, Clone, Default)]
pub struct Tunnels {
    stopping: CancellationToken,
    open: TaskTracker,
}

/// Flags of every program with tunnels.
#[derive(Args, Debug, Clone)]
pub struct TunnelArgs {
    /// With a version 1 peer: seconds that a paused reader may hold up the others of its tunnel
    /// before it is reset. One that holds up nobody is not reset.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 2.0,
        value_parser = parse_seconds
    )]
    v1_stall: f64,

    /// With a version 1 peer: MiB kept for a paused reader before the tunnel is no longer read.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 4,
        value_parser = clap::value_parser!(u64).range(1..=1024)
    )]
    v1_buffer: u64,

    /// With a version 1 peer: MiB kept in addition for a paused reader that holds up nobody, to
    /// reach the peer's pings behind its data and answer them; 0 keeps none.
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

/// What the tunnels of a program have in common.
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
        // The bound on all streams must not reset a paused reader.
        let paused = settings.config.v1_stream_buffer.saturating_mul(2);
        settings.config.receive_budget = settings.config.receive_budget.max(paused);
        settings
    }
}

impl Settings {
    pub fn new(budget: Budget, tunnels: Tunnels) -> Self {
        let mut config = Config::default();
        // The program takes each request at once and accepts it when the service has answered, so a
        // burst of slow ones is no reason to refuse any.
        config.accept_backlog = config.max_streams;
        Self {
            config,
            budget,
            tunnels,
        }
    }
}

/// A WebSocket whose handshake is complete, and the negotiated version.
pub struct Upgraded {
    pub socket: Socket,
    pub version: Version,
}

impl Upgraded {
    pub fn is_v2(&self) -> bool {
        self.version == Version::V2
    }

    /// A client's end of a session, and its driver, which the caller runs.
    ///
    /// # Errors
    /// The peer refuses, or sends no greeting.
    pub async fn connect(
        self,
        tunnels: &Settings,
    ) -> Result<(Mux, impl Future<Output = Ended> + Send + use<>), ConnectError> {
        let (builder, socket) = self.on(tunnels);
        let (mux, driver) = builder.connect(socket, WebSocketCarrier).await?;
        Ok((mux, tunnels.tunnels.drive(driver)))
    }

    /// A server's end of a session. Tells the client that it begins.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn welcome(
        self,
        tunnels: &Settings,
    ) -> Result<(Acceptor, impl Future<Output = Ended> + Send + use<>), ConnectError> {
        let (builder, socket) = self.on(tunnels);
        let (acceptor, driver) = builder.welcome(socket, WebSocketCarrier).await?;
        Ok((acceptor, tunnels.tunnels.drive(driver)))
    }

    /// A runner's end of the tunnel to an agent.
    pub fn opener(self, tunnels: &Settings) -> (Mux, impl Future<Output = Ended> + Send + use<>) {
        let (builder, socket) = self.on(tunnels);
        let (mux, driver) = builder.opener(socket, WebSocketCarrier);
        (mux, tunnels.tunnels.drive(driver))
    }

    /// An agent's end.
    pub fn acceptor(
        self,
        tunnels: &Settings,
    ) -> (Acceptor, impl Future<Output = Ended> + Send + use<>) {
        let (builder, socket) = self.on(tunnels);
        let (acceptor, driver) = builder.acceptor(socket, WebSocketCarrier);
        (acceptor, tunnels.tunnels.drive(driver))
    }

    fn on(mut self, Settings { config, budget, .. }: &Settings) -> (Builder, Socket) {
        self.socket.charge_to(Arc::new(Charged(budget.clone())));
        let builder = mux::builder().version(self.version).config(config.clone());
        (builder.budget(budget), self.socket)
    }
}

/// How a tunnel ended, as text.
pub fn told(ended: &Ended) -> String {
    match ended {
        Ok(()) => "finished".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s| (0.1..=3600.0).contains(s));
    seconds.ok_or_else(|| "write seconds from 0.1 to 3600".to_owned())
}

impl Tunnels {
    fn drive(
        &self,
        driver: Driver<Socket, WebSocketCarrier>,
    ) -> impl Future<Output = Ended> + use<> {
        self.open.track_future(drive(driver, self.stopping.clone()))
    }

    /// Ends all tunnels. The peers are told, open connections get a moment to end, then the
    /// WebSockets are closed. Returns at once when `again` is ready.
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

async fn drive(driver: Driver<Socket, WebSocketCarrier>, stopping: CancellationToken) -> Ended {
    let mut driver = pin!(driver);
    tokio::select! {
        ended = &mut driver => return ended,
        () = stopping.cancelled() => {}
    }
    let tunnel = driver.tunnel().clone();
    tokio::select! {
        ended = &mut driver => return ended,
        _ = timeout(GRACE, tunnel.close()) => {}
    }
    tunnel.shutdown();
    driver.await
}
