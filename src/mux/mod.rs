//! Async handles on a [`Session`](crate::session::Session): tokio's `AsyncRead` and `AsyncWrite` over any
//! message transport.
//!
//! [`connect`] gives a [`Mux`] to open connections with, an [`Acceptor`] for those of the other side, and a
//! [`Driver`] that owns the transport. The caller spawns the driver; nothing moves unless it is polled.
//!
//! Set `TCP_NODELAY` on the TCP socket below the transport. The driver flushes when it has nothing more to send, and
//! with Nagle's algorithm a small message would then wait for the peer's delayed acknowledgement: 40 ms and more.
//!
//! ```
//! # use tokio_tungstenite::WebSocketStream;
//! # use tokio_tungstenite::tungstenite::{self, protocol::Role as Side};
//! use kohakuriver_tunnel::carrier;
//! use kohakuriver_tunnel::mux;
//! use kohakuriver_tunnel::session::{Config, Role, Version};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! carrier!(Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame);
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (near, far) = tokio::io::duplex(1 << 16);
//! # let client = WebSocketStream::from_raw_socket(near, Side::Client, None).await;
//! # let server = WebSocketStream::from_raw_socket(far, Side::Server, None).await;
//! let (mux, _, driver) =
//!     mux::connect(client, Ws, Role::Opener, Version::V2, Config::default());
//! tokio::spawn(driver);
//! # let (_, mut acceptor, driver) =
//! #     mux::connect(server, Ws, Role::Acceptor, Version::V2, Config::default());
//! # tokio::spawn(driver);
//! # tokio::spawn(async move {
//! #     let mut stream = acceptor.accept().await.unwrap().accept_tcp();
//! #     let mut request = Vec::new();
//! #     stream.read_to_end(&mut request).await.unwrap();
//! #     stream.write_all(b"reply").await.unwrap();
//! # });
//! let mut stream = mux.open_tcp(8080)?;
//! stream.write_all(b"request").await?;
//! stream.shutdown().await?; // the other direction stays open
//! let mut reply = String::new();
//! stream.read_to_string(&mut reply).await?;
//! assert_eq!(reply, "reply");
//! # Ok(())
//! # }
//! ```

mod acceptor;
mod budget;
mod datagram;
mod driver;
mod patience;
mod relay;
mod shared;
mod stream;
mod timer;

pub use self::acceptor::{Acceptor, Incoming};
pub use self::budget::Budget;
pub use self::datagram::TunnelDatagram;
pub use self::driver::{Closed, Driver};
pub use self::relay::{RelayError, Relayed};
pub use self::shared::Mux;
pub use self::stream::{ReadHalf, TunnelStream, WriteHalf};
pub use self::timer::{Timer, TokioTimer};

use crate::session::{Config, Role, Version};
use crate::transport::Carrier;

/// Puts handles on a transport whose handshake is over, timed by tokio.
pub fn connect<T, C: Carrier>(
    transport: T,
    carrier: C,
    role: Role,
    version: Version,
    config: Config,
) -> (Mux, Acceptor, Driver<T, C>) {
    connect_with_timer(
        transport,
        carrier,
        role,
        version,
        config,
        TokioTimer::default(),
    )
}

/// As [`connect`], timed by another runtime.
pub fn connect_with_timer<T, C: Carrier, R: Timer>(
    transport: T,
    carrier: C,
    role: Role,
    version: Version,
    config: Config,
    timer: R,
) -> (Mux, Acceptor, Driver<T, C, R>) {
    let mux = Mux::new(role, version, config, timer.now());
    let acceptor = Acceptor::new(&mux, role);
    let driver = Driver::new(transport, carrier, timer, &mux);
    (mux, acceptor, driver)
}
