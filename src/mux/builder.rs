use alloc::sync::Arc;
use core::hash::BuildHasher;
use core::time::Duration;
use std::hash::RandomState;

use super::handshake;
use super::resuming::Resuming;
use super::shared::Shared;
use super::stoppable::TunnelClock;
use super::{
    Acceptor, Budget, Connect, ConnectError, Driver, Mux, Redial, Timer, TokioTimer, Tunnel,
};
use crate::resume::{self, Link};
use crate::session::{Config, Role, Session, Version};
use crate::transport::{Carrier, Transport};

/// Settings of a tunnel: v2, the default [`Config`], tokio's timer, and no shared budget.
///
/// On another runtime than tokio's, each builder needs its [`timer`](Builder::timer), also one that
/// only hears or says a greeting.
pub fn builder() -> Builder {
    Builder {
        version: Version::V2,
        config: Config::default(),
        timer: TokioTimer::default(),
        budget: None,
        greeting_timeout: handshake::GREETING_TIMEOUT,
        resume: resume::Config::default(),
        dial_timeout: DIAL_TIMEOUT,
    }
}

/// Longer than a program's longest pause between attempts.
const DIAL_TIMEOUT: Duration = Duration::from_secs(120);

/// Settings of a tunnel that has no transport yet. [`builder`] makes one; clones serve many
/// tunnels.
///
/// A transport is a `Stream` and `Sink` of messages that a [`Carrier`] classifies. Its own
/// handshake (the HTTP upgrade of a WebSocket) is complete. The route decides what comes next:
///
/// | the tunnel begins | opening end | accepting end |
/// |---|---|---|
/// | with a greeting | [`connect`](Self::connect) | [`welcome`](Self::welcome), [`refuse`] |
/// | at once | [`opener`](Self::opener) | [`acceptor`](Self::acceptor) |
///
/// A forwarding session has a greeting, an agent's tunnel has none (PROTOCOL.md section 4.1).
///
/// [`refuse`]: Self::refuse
///
/// ```
/// use std::time::Duration;
///
/// use kohakuriver_tunnel::mux::{self, Budget};
/// use kohakuriver_tunnel::session::{Config, Version};
/// use kohakuriver_tunnel::transport::Plain;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let (socket, _far) = tokio::io::duplex(1 << 16);
/// let all_tunnels = Budget::new(256 << 20);
/// let config = Config::default().with_keepalive(Some(Duration::from_secs(5)));
/// let builder = mux::builder().version(Version::V2).config(config).budget(&all_tunnels);
///
/// let (mux, driver) = builder.opener(mux::length_prefixed(socket), Plain);
/// tokio::spawn(driver);
/// let stream = mux.open_tcp(8080).unwrap();
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "it does nothing until a transport is there"]
pub struct Builder<R = TokioTimer> {
    version: Version,
    config: Config,
    pub(super) timer: R,
    budget: Option<Budget>,
    pub(super) greeting_timeout: Duration,
    resume: resume::Config,
    dial_timeout: Duration,
}

impl<R> Builder<R> {
    /// The version that the handshake selected, from [`Version::answered`] or [`Version::choose`].
    /// Not for tunnels that outlive their transports ([`resuming_opener`](Self::resuming_opener),
    /// [`resuming_acceptor`](Self::resuming_acceptor), [`admit`](Self::admit)): they speak v2.
    pub fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// The tunnel's bounds and times.
    ///
    /// Unless [`Config::first_id`] is set, the first client id is random, from the operating system
    /// through the standard library. `wasm32-unknown-unknown` has no such source: set
    /// [`Config::first_id`] there from a source of the platform, so that the ids of two clients
    /// differ (PROTOCOL.md section 2.3).
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// A timer other than tokio's.
    pub fn timer<Q: Timer>(self, timer: Q) -> Builder<Q> {
        Builder {
            version: self.version,
            config: self.config,
            timer,
            budget: self.budget,
            greeting_timeout: self.greeting_timeout,
            resume: self.resume,
            dial_timeout: self.dial_timeout,
        }
    }

    /// Charges what the tunnel holds to a budget shared with other tunnels.
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// How long [`connect`](Self::connect) waits for the greeting, and [`welcome`](Self::welcome)
    /// for the transport to accept its own. Default 10 s, as deployed parts wait.
    pub fn greeting_timeout(mut self, timeout: Duration) -> Self {
        self.greeting_timeout = timeout;
        self
    }

    /// Bounds and times of a client's tunnel that outlives its transports: see
    /// [`resuming_opener`](Self::resuming_opener). A server's are those of its
    /// [`Keeper`](super::Keeper).
    pub fn resume(mut self, config: resume::Config) -> Self {
        self.resume = config;
        self
    }

    /// How long one attempt of a [connector](super::Connect) may take, including its pauses. Then
    /// it is dropped, and another one begins. Default 120 s.
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.dial_timeout = timeout;
        self
    }
}

impl<R: Timer> Builder<R> {
    /// An opener's tunnel without a greeting: the handle that opens connections, and the driver to
    /// spawn.
    pub fn opener<T, C>(self, transport: T, carrier: C) -> (Mux, Driver<T, C, R>)
    where
        C: Carrier,
        T: Transport<C::Message>,
    {
        let driver = self.start(Role::Opener, transport, carrier);
        (Mux::new(driver.tunnel()), driver)
    }

    /// An acceptor's tunnel without a greeting: the handle that accepts connections, and the driver
    /// to spawn.
    pub fn acceptor<T, C>(self, transport: T, carrier: C) -> (Acceptor, Driver<T, C, R>)
    where
        C: Carrier,
        T: Transport<C::Message>,
    {
        let driver = self.start(Role::Acceptor, transport, carrier);
        (Acceptor::new(driver.tunnel()), driver)
    }

    /// An opener's tunnel that outlives its transports (PROTOCOL.md section 5.10): the handle that
    /// opens connections, and the driver to spawn.
    ///
    /// The handshake of `transport` agreed on resumption
    /// ([`resume::answered`](crate::resume::answered)), and its greeting was
    /// [heard](Self::hear_greeting), if its route has one. When it is lost, `connector` connects
    /// again; streams and flows stay as they are meanwhile, and their clocks stand still. The
    /// example `embed_resume` has all of it, at both ends.
    ///
    /// Where the server was started again, or no transport came in time, the tunnel ends with
    /// [`TunnelError::NotResumed`](super::TunnelError::NotResumed), and it takes a new tunnel to go
    /// on. Before a program exits, it should [close](super::Tunnel::close) or
    /// [shut down](super::Tunnel::shutdown) the tunnel, or drop all handles, and await the driver.
    /// Otherwise the server keeps the tunnel for a client that does not return.
    pub fn resuming_opener<T, C, N>(
        self,
        transport: T,
        carrier: C,
        connector: N,
    ) -> (Mux, Driver<T, C, R, Redial<N>>)
    where
        C: Carrier,
        T: Transport<C::Message>,
        N: Connect<Transport = T>,
    {
        let driver = self.redialling(Role::Opener, transport, carrier, connector);
        (Mux::new(driver.tunnel()), driver)
    }

    /// As [`resuming_opener`](Self::resuming_opener), an acceptor's: for a client at which the
    /// server opens connections, as an agent.
    pub fn resuming_acceptor<T, C, N>(
        self,
        transport: T,
        carrier: C,
        connector: N,
    ) -> (Acceptor, Driver<T, C, R, Redial<N>>)
    where
        C: Carrier,
        T: Transport<C::Message>,
        N: Connect<Transport = T>,
    {
        let driver = self.redialling(Role::Acceptor, transport, carrier, connector);
        (Acceptor::new(driver.tunnel()), driver)
    }

    /// Waits for the acceptor's greeting, as [`connect`](Self::connect), on a transport for a
    /// tunnel that exists or begins otherwise.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn hear_greeting<T, C>(
        &mut self,
        transport: &mut T,
        carrier: &mut C,
    ) -> Result<(), ConnectError>
    where
        C: Carrier,
        T: Transport<C::Message>,
    {
        let limit = self.greeting_timeout;
        handshake::hear(transport, carrier, &mut self.timer, limit).await
    }

    /// Sends the greeting to the opener, as [`welcome`](Self::welcome), before
    /// [`admit`](Self::admit).
    ///
    /// # Errors
    /// As [`welcome`](Self::welcome).
    pub async fn say_greeting<T, C>(
        &mut self,
        transport: &mut T,
        carrier: &mut C,
    ) -> Result<(), ConnectError>
    where
        C: Carrier,
        T: Transport<C::Message>,
    {
        let limit = self.greeting_timeout;
        handshake::say(transport, carrier, &mut self.timer, limit).await
    }

    /// Waits for the acceptor's greeting and returns the opener's end of the tunnel.
    ///
    /// Messages right after the greeting stay in the transport for the tunnel. Dropping the future
    /// drops the transport.
    ///
    /// # Errors
    /// [`ConnectError`]: the peer refuses, with its text, or sends no greeting in
    /// [time](Self::greeting_timeout), or sends something else.
    ///
    /// ```
    /// use kohakuriver_tunnel::carrier;
    /// use kohakuriver_tunnel::mux;
    /// # use tokio_tungstenite::WebSocketStream;
    /// # use tokio_tungstenite::tungstenite::{self, protocol::Role as Side};
    ///
    /// carrier!(Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame);
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let (near, far) = tokio::io::duplex(1 << 16);
    /// # let socket = WebSocketStream::from_raw_socket(near, Side::Client, None).await;
    /// # let server = WebSocketStream::from_raw_socket(far, Side::Server, None).await;
    /// # tokio::spawn(mux::builder().refuse(server, Ws, 1008, "unknown task"));
    /// let error = mux::builder().connect(socket, Ws).await.unwrap_err();
    /// assert_eq!(error.to_string(), "unknown task");
    /// # }
    /// ```
    pub async fn connect<T, C>(
        mut self,
        mut transport: T,
        mut carrier: C,
    ) -> Result<(Mux, Driver<T, C, R>), ConnectError>
    where
        C: Carrier,
        T: Transport<C::Message>,
    {
        self.hear_greeting(&mut transport, &mut carrier).await?;
        Ok(self.opener(transport, carrier))
    }

    /// Sends the greeting to the opener and returns the acceptor's end of the tunnel.
    ///
    /// # Errors
    /// [`ConnectError`] if the transport does not accept the greeting in
    /// [time](Self::greeting_timeout), or fails.
    pub async fn welcome<T, C>(
        mut self,
        mut transport: T,
        mut carrier: C,
    ) -> Result<(Acceptor, Driver<T, C, R>), ConnectError>
    where
        C: Carrier,
        T: Transport<C::Message>,
    {
        self.say_greeting(&mut transport, &mut carrier).await?;
        Ok(self.acceptor(transport, carrier))
    }

    /// Refuses the opener: sends `why`, closes the transport with `code` (1008 for a refusal by
    /// rule, 1011 for a failure; PROTOCOL.md section 4.1), and waits for the peer's close.
    ///
    /// Takes at most 5 s. Ends sooner if the peer goes on sending: after 32 messages or 256 KiB.
    pub async fn refuse<T, C>(mut self, transport: T, carrier: C, code: u16, why: &str)
    where
        C: Carrier,
        T: Transport<C::Message>,
    {
        handshake::refuse(transport, carrier, &mut self.timer, code, why).await;
    }

    fn redialling<T, C, N>(
        self,
        role: Role,
        transport: T,
        carrier: C,
        connector: N,
    ) -> Driver<T, C, R, Redial<N>>
    where
        C: Carrier,
        N: Connect<Transport = T>,
    {
        let (config, limit) = (self.resume.clone(), self.dial_timeout);
        let (timer, tunnel) = self.resumable(role);
        let now = tunnel.shared.clock.timer_now();
        let mut link = Link::client(config);
        link.attach(now);
        let redial = Redial::new(connector, limit, now);
        let resuming = Resuming::new(link, redial);
        Driver::new(transport, carrier, Some(resuming), timer, tunnel)
    }

    /// A tunnel whose session outlives its transport, and so speaks version 2.
    pub(super) fn resumable(mut self, role: Role) -> (R, Tunnel) {
        self.config.first_id.get_or_insert_with(random_id);
        let clock = self.timer.clock();
        let mut session = Session::new(role, Version::V2, self.config, clock.now());
        session.set_outlives_transport(true);
        let clock = TunnelClock::stoppable(clock);
        let shared = Arc::new(Shared::new(session, clock, self.budget.as_ref()));
        shared.lock().attached.confirmed = false;
        (self.timer, Tunnel { shared })
    }

    fn start<T, C>(mut self, role: Role, transport: T, carrier: C) -> Driver<T, C, R> {
        self.config.first_id.get_or_insert_with(random_id);
        let clock = self.timer.clock();
        let session = Session::new(role, self.version, self.config, clock.now());
        let shared = Arc::new(Shared::new(
            session,
            TunnelClock::running(clock),
            self.budget.as_ref(),
        ));
        Driver::new(transport, carrier, None, self.timer, Tunnel { shared })
    }
}

/// A first client id that other processes are unlikely to use (PROTOCOL.md section 2.3).
fn random_id() -> u32 {
    // The operating system supplies the key once per process. Each further hasher has a different
    // key.
    let random = RandomState::new().hash_one(());
    (random >> 32) as u32
}
