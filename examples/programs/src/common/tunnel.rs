//! Puts tunnels on WebSockets, and ends them in good order when the program is told to end.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::future::{BoxFuture, FutureExt};
use kohakuriver_tunnel::mux::{
    self, Acceptor, Admission, Binding, Budget, Builder, Connect, ConnectError, Keeper, Mux,
    TokioTimer, Tunnel, TunnelError,
};
use kohakuriver_tunnel::resume;
use kohakuriver_tunnel::session::{Config, Version};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::args::Within;
use super::memory::{Charged, MemoryArgs};
use super::program::{Failure, Process};
use super::resume::ResumeArgs;
use super::words;
use super::ws::{self, Socket, WebSocketCarrier};

/// How long open connections may go on when the program is told to end.
const GRACE: Duration = Duration::from_secs(1);

/// The program ends after this, whatever the peers do.
const STOP_WITHIN: Duration = Duration::from_millis(2500);

/// Time to tell the peers, when the user does not want to wait.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Longest time of an attempt to connect again. Its pauses and its steps have limits of their own.
const ATTEMPT: Duration = Duration::from_secs(86_400);

/// Drives a tunnel on WebSockets from the source `S`.
type Driver<S> = mux::Driver<Socket, WebSocketCarrier, TokioTimer, S>;

/// A tunnel's driver, which the caller runs.
pub type Driving = BoxFuture<'static, Ended>;

/// The result of a tunnel.
pub type Ended = Result<(), TunnelError>;

/// The tunnels of this process.
#[derive(Debug, Clone, Default)]
pub struct Tunnels {
    state: Arc<Mutex<State>>,
    drivers: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<u64, Tunnel>,
    last_number: u64,
    stopping: bool,
}

/// A tunnel's entry. It is there until the driver ends or is dropped.
struct Entry {
    tunnels: Arc<Mutex<State>>,
    number: u64,
}

/// Flags of every program with tunnels.
#[derive(Args, Debug, Clone, PartialEq)]
pub struct TunnelArgs {
    /// With a version 1 peer: seconds that a paused reader may hold up the others of its tunnel
    /// before it is reset. One that holds up nobody is not reset. Where nobody can know, as when
    /// what another sent long before is not answered, it is reset once --v1-reach is used up.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = parse_seconds)]
    v1_stall: f64,

    /// With a version 1 peer: MiB kept for a paused reader before the tunnel is no longer read.
    #[arg(long, value_name = "MIB", default_value = "4")]
    v1_buffer: Within<1, 1024>,

    /// With a version 1 peer: MiB kept in addition for a paused reader that is not known to hold up
    /// anybody, to reach what is behind its data: the peer's pings, and data for others; 0 keeps
    /// none.
    #[arg(long, value_name = "MIB", default_value = "32")]
    v1_reach: Within<0, 1024>,

    #[command(flatten)]
    resume: ResumeArgs,

    #[command(flatten)]
    memory: MemoryArgs,
}

/// What the tunnels of a program have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    config: Config,
    /// For what peers may make the process hold.
    pub budget: Budget,
    /// The same for WebSockets.
    charged: Arc<Charged>,
    pub tunnels: Tunnels,
    /// `None` if tunnels end with their WebSockets.
    pub resume: Option<resume::Config>,
}

impl TunnelArgs {
    /// # Errors
    /// Flags contradict each other.
    pub fn settings(&self, process: &Process) -> Result<Settings, Failure> {
        let budget = self.memory.budget(&process.threads);
        Ok(Settings {
            config: self.config(process.place),
            charged: Arc::new(Charged::new(&budget, process.threads.count())),
            budget,
            tunnels: process.tunnels.clone(),
            resume: self.resume.config()?,
        })
    }

    fn config(&self, place: &'static str) -> Config {
        let mut config = Config::default();
        config.place = place;
        // The program takes each request at once and accepts it when the service has answered, so a
        // burst of slow ones is no reason to refuse any.
        config.accept_backlog = config.max_streams;
        config.v1_stall = Duration::from_secs_f64(self.v1_stall);
        config.v1_stream_buffer = self.v1_buffer.mib();
        config.v1_reach = self.v1_reach.mib();
        // A thousand streams may use their initial windows at once, and none waits for another, nor
        // is a paused reader reset: it may use half of the budget. What all sessions hold has its
        // own bound.
        let paused = config.v1_stream_buffer.saturating_add(config.v1_reach);
        config.receive_budget = paused.saturating_mul(2).max(256 << 20);
        config
    }
}

impl Settings {
    /// The same for the tunnels of another thread.
    pub fn for_thread(&self) -> Self {
        Self {
            budget: self.budget.for_thread(),
            charged: Arc::new(self.charged.for_thread()),
            ..self.clone()
        }
    }
}

/// A WebSocket whose handshake is complete, and the negotiated version.
pub struct Upgraded {
    pub socket: Socket,
    pub version: Version,
    /// The client's first message is OPEN.
    pub resumable: bool,
}

impl Upgraded {
    pub fn is_v2(&self) -> bool {
        self.version == Version::V2
    }

    /// A client's end of a session, and its driver, which the caller runs. `redial` connects it
    /// again.
    ///
    /// # Errors
    /// The peer refuses, or sends no greeting.
    pub async fn connect(
        self,
        tunnels: &Settings,
        redial: impl Connect<Transport = Socket, Future: Send> + Send + 'static,
    ) -> Result<(Mux, Driving), ConnectError> {
        let resumable = self.resumable;
        let (mut builder, mut socket) = self.on(tunnels);
        builder
            .hear_greeting(&mut socket, &mut WebSocketCarrier)
            .await?;
        let tunnels = &tunnels.tunnels;
        Ok(match resumable {
            true => tunnels.drive(builder.resuming_opener(socket, WebSocketCarrier, redial)),
            false => tunnels.drive(builder.opener(socket, WebSocketCarrier)),
        })
    }

    /// The next WebSocket of a client's tunnel, after its greeting.
    ///
    /// # Errors
    /// The peer refuses, sends no greeting, or does not resume tunnels.
    pub async fn reconnect(self, tunnels: &Settings) -> Result<Socket, ws::HandshakeError> {
        let resumable = self.resumable;
        let (mut builder, mut socket) = self.on(tunnels);
        builder
            .hear_greeting(&mut socket, &mut WebSocketCarrier)
            .await?;
        resumed(socket, resumable)
    }

    /// A server's end of a session. Tells the client that it begins.
    ///
    /// # Errors
    /// The peer is gone.
    pub async fn welcome(self, tunnels: &Settings) -> Result<(Acceptor, Driving), ConnectError> {
        let (builder, socket) = self.on(tunnels);
        let welcomed = builder.welcome(socket, WebSocketCarrier).await?;
        Ok(tunnels.tunnels.drive(welcomed))
    }

    /// A server's end, of a peer that resumes tunnels: finds the tunnel that it asks for. With
    /// `greets` the client is told before that its session begins.
    ///
    /// # Errors
    /// The peer is gone, or asks for nothing.
    pub async fn admit(
        self,
        tunnels: &Settings,
        keeper: &Keeper<Socket>,
        binding: Binding,
        greets: bool,
    ) -> Result<Admission<Socket, WebSocketCarrier>, ConnectError> {
        let (mut builder, mut socket) = self.on(tunnels);
        if greets {
            builder
                .say_greeting(&mut socket, &mut WebSocketCarrier)
                .await?;
        }
        let resume = tunnels.resume.as_ref();
        if let Some(limit) = resume.map(|config| config.opening_timeout) {
            builder = builder.greeting_timeout(limit);
        }
        builder
            .admit(keeper, socket, WebSocketCarrier, binding)
            .await
    }

    /// A runner's end of the tunnel to an agent.
    pub fn opener(self, tunnels: &Settings) -> (Mux, Driving) {
        let (builder, socket) = self.on(tunnels);
        tunnels
            .tunnels
            .drive(builder.opener(socket, WebSocketCarrier))
    }

    /// An agent's end. `redial` connects it again.
    pub fn acceptor(
        self,
        tunnels: &Settings,
        redial: impl Connect<Transport = Socket, Future: Send> + Send + 'static,
    ) -> (Acceptor, Driving) {
        let resumable = self.resumable;
        let (builder, socket) = self.on(tunnels);
        let tunnels = &tunnels.tunnels;
        match resumable {
            true => tunnels.drive(builder.resuming_acceptor(socket, WebSocketCarrier, redial)),
            false => tunnels.drive(builder.acceptor(socket, WebSocketCarrier)),
        }
    }

    /// The next WebSocket of an agent's tunnel.
    ///
    /// # Errors
    /// The runner does not resume tunnels.
    pub fn resumed(self, tunnels: &Settings) -> Result<Socket, ws::HandshakeError> {
        let resumable = self.resumable;
        let (_, socket) = self.on(tunnels);
        resumed(socket, resumable)
    }

    fn on(mut self, settings: &Settings) -> (Builder, Socket) {
        let Settings { config, budget, .. } = settings;
        self.socket.charge_to(Arc::clone(&settings.charged) as _);
        let builder = mux::builder().version(self.version).config(config.clone());
        let builder = builder.budget(budget).dial_timeout(ATTEMPT);
        let resume = settings.resume.clone().unwrap_or_default();
        (builder.resume(resume), self.socket)
    }
}

fn resumed(socket: Socket, resumable: bool) -> Result<Socket, ws::HandshakeError> {
    let off = "the other side does not let tunnels go on any more";
    let not_resumed = || ws::HandshakeError::NotResumed(off.to_owned());
    resumable.then_some(socket).ok_or_else(not_resumed)
}

/// How a tunnel ended, as text.
pub fn told(ended: &Ended) -> String {
    match ended {
        Ok(()) => "finished".to_owned(),
        Err(error) => words::tunnel(error),
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s| (0.1..=3600.0).contains(s));
    seconds.ok_or_else(|| "write seconds from 0.1 to 3600".to_owned())
}

impl Tunnels {
    /// A handle, and the driver of its tunnel, which is ended with the program.
    pub fn drive<H, S>(&self, (handle, driver): (H, Driver<S>)) -> (H, Driving)
    where
        Driver<S>: Future<Output = Ended> + Send + 'static,
    {
        // Before `end` can find the tunnel: it waits for the drivers of those that it finds.
        let token = self.drivers.token();
        let entry = self.enter(driver.tunnel());
        let driving = async move {
            let _held = (entry, token);
            driver.await
        };
        (handle, Box::pin(driving))
    }

    fn enter(&self, tunnel: &Tunnel) -> Entry {
        let mut state = self.state.lock();
        state.last_number += 1;
        let number = state.last_number;
        state.open.insert(number, tunnel.clone());
        let stopping = state.stopping;
        drop(state);
        if stopping {
            tunnel.shutdown();
        }
        Entry {
            tunnels: Arc::clone(&self.state),
            number,
        }
    }

    /// Ends all tunnels. The peers are told, open connections get a moment to end, then the
    /// WebSockets are closed. When `again` is ready, there is no such moment, but the peers are
    /// told: they would keep the connections for a while.
    pub async fn end(&self, again: impl Future) {
        let open: Vec<Tunnel> = {
            let mut state = self.state.lock();
            state.stopping = true;
            state.open.values().cloned().collect()
        };
        self.drivers.close();
        let ending = async {
            for tunnel in &open {
                // It goes on by itself.
                let _ = tunnel.close().now_or_never();
            }
            let _ = timeout(GRACE, self.drivers.wait()).await;
            open.iter().for_each(Tunnel::shutdown);
            self.drivers.wait().await;
        };
        tokio::select! {
            () = ending => {}
            () = sleep(STOP_WITHIN) => {}
            _ = again => {
                open.iter().for_each(Tunnel::shutdown);
                let _ = timeout(AT_ONCE, self.drivers.wait()).await;
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tunnels.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        tunnel: TunnelArgs,
    }

    #[test]
    fn every_flag_of_version_1_has_its_setting() {
        let flags = "program --v1-stall 0.5 --v1-buffer 7 --v1-reach 9";
        let config = Line::parse_from(flags.split(' ')).tunnel.config("here");
        assert_eq!(config.v1_stall, Duration::from_millis(500));
        assert_eq!(config.v1_stream_buffer, 7 << 20);
        assert_eq!(config.v1_reach, 9 << 20);
        assert_eq!(config.place, "here");
    }

    /// Half of the budget is for readers that pause.
    #[test]
    fn the_budget_has_room_for_every_buffer_and_reach() {
        for (buffer, reach, budget) in [
            ("4", "32", 256 << 20),
            ("96", "32", 256 << 20),
            ("128", "32", 320 << 20),
            ("1", "1024", 2050 << 20),
        ] {
            let flags = ["program", "--v1-buffer", buffer, "--v1-reach", reach];
            let config = Line::parse_from(flags).tunnel.config("here");
            assert_eq!(config.receive_budget, budget, "{flags:?}");
        }
    }
}
