//! Async handles on a [`Session`](crate::session::Session): tokio's `AsyncRead` and `AsyncWrite`
//! over any message transport.
//!
//! A [`builder`] makes a tunnel on a transport. The opener gets a [`Mux`] that opens connections,
//! the acceptor an [`Acceptor`] that accepts them. Both get a [`Driver`] that owns the transport.
//! The caller spawns the driver; nothing happens unless it is polled. A [`Tunnel`] watches the
//! tunnel and ends it.
//!
//! The transport is a WebSocket of any stack ([`carrier!`](crate::carrier!)) or any byte stream
//! ([`length_prefixed`]).
//!
//! Set `TCP_NODELAY` on the TCP socket below the transport. The driver flushes when it has nothing
//! more to send. With Nagle's algorithm a small message would then wait for the peer's delayed
//! acknowledgement, 40 ms and more.
//!
//! ```
//! # use tokio_tungstenite::WebSocketStream;
//! # use tokio_tungstenite::tungstenite::{self, protocol::Role as Side};
//! use kohakuriver_tunnel::carrier;
//! use kohakuriver_tunnel::mux;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! carrier!(Ws: tungstenite::Message, close: tungstenite::protocol::CloseFrame);
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (near, far) = tokio::io::duplex(1 << 16);
//! # let client = WebSocketStream::from_raw_socket(near, Side::Client, None).await;
//! # let server = WebSocketStream::from_raw_socket(far, Side::Server, None).await;
//! # tokio::spawn(async move {
//! #     let (mut acceptor, driver) = mux::builder().welcome(server, Ws).await.unwrap();
//! #     tokio::spawn(driver);
//! #     let Some(mux::Incoming::Tcp(incoming)) = acceptor.accept().await else { return };
//! #     let mut stream = incoming.accept();
//! #     let mut request = Vec::new();
//! #     stream.read_to_end(&mut request).await.unwrap();
//! #     stream.write_all(b"reply").await.unwrap();
//! # });
//! let (mux, driver) = mux::builder().connect(client, Ws).await?;
//! tokio::spawn(driver);
//! let mut stream = mux.open_tcp(8080)?;
//! stream.write_all(b"request").await?;
//! stream.shutdown().await?; // the other direction stays open
//! let mut reply = String::new();
//! stream.read_to_string(&mut reply).await?;
//! assert_eq!(reply, "reply");
//! # Ok(())
//! # }
//! ```
//!
//! A tunnel may outlive its transport (PROTOCOL.md section 5.10), if the handshake agrees on that
//! ([`resume`](crate::resume)). The client connects again; the server's [`Keeper`] finds the
//! tunnel. Streams wait meanwhile, and lose nothing:
//!
//! ```
//! # use kohakuriver_tunnel::mux::length_prefixed;
//! use kohakuriver_tunnel::mux::{self, Admission, Attachment, Binding, Keeper, KeeperLimits};
//! use kohakuriver_tunnel::resume::Config;
//! use kohakuriver_tunnel::transport::Plain;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy, duplex, split};
//!
//! type Transport = mux::LengthPrefixed<DuplexStream>;
//!
//! /// Serves a transport, whether it is of a new tunnel or not.
//! async fn serve(keeper: Keeper<Transport>, transport: Transport) {
//!     let binding = Binding::new("the route", "a group", "the peer's address");
//!     let admitted = mux::builder().admit(&keeper, transport, Plain, binding).await;
//!     let Ok(Admission::New(opening)) = admitted else { return };
//!     let (mut acceptor, driver) = opening.acceptor();
//!     tokio::spawn(driver);
//!     let Some(stream) = acceptor.accept_tcp().await else { return };
//!     let (mut read, mut write) = split(stream.accept());
//!     let _ = copy(&mut read, &mut write).await;
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # fn os_random(bytes: &mut [u8]) { bytes.fill(4) }
//! let keeper = Keeper::new(Config::default(), KeeperLimits::default(), os_random);
//! let connect = move || {
//!     let (near, far) = duplex(1 << 16); // a WebSocket, in a program
//!     tokio::spawn(serve(keeper.clone(), length_prefixed(far)));
//!     length_prefixed(near)
//! };
//! let first = connect();
//! let again = move |_| std::future::ready(Ok(connect()));
//! let (mux, driver) = mux::builder().resuming_opener(first, Plain, again);
//! tokio::spawn(driver);
//! let mut stream = mux.open_tcp(7)?;
//! stream.write_all(b"this survives a lost transport").await?;
//! let mut reply = [0; 30];
//! stream.read_exact(&mut reply).await?;
//! assert_eq!(mux.tunnel().attachment(), Attachment::First);
//! # Ok(())
//! # }
//! ```

mod acceptor;
mod admission;
mod attachment;
mod budget;
mod builder;
mod closing;
mod datagram;
mod driver;
mod error;
mod flood;
mod grace;
mod handovers;
mod handshake;
mod incoming;
mod join;
mod keeper;
mod length_prefixed;
mod opener;
mod path;
mod read_turn;
mod redial;
mod relay;
mod resuming;
mod shared;
mod source;
mod stoppable;
mod stream;
mod timer;
mod tunnel;
mod unacknowledged;
mod waiting;
mod watchers;

pub use self::acceptor::Acceptor;
pub use self::admission::{Admission, Opening};
pub use self::attachment::{Attachment, Attachments};
pub use self::budget::Budget;
pub use self::builder::{Builder, builder};
pub use self::datagram::TunnelDatagram;
pub use self::driver::Driver;
pub use self::error::{ConnectError, TunnelError};
pub use self::incoming::{Incoming, IncomingTcp, IncomingUdp};
pub use self::keeper::{Binding, Keeper, KeeperLimits, KeeperStats, Kept};
pub use self::length_prefixed::{LengthPrefixed, length_prefixed};
pub use self::opener::Mux;
pub use self::redial::{Connect, ConnectFailure, Dial, Redial};
pub use self::relay::{RelayError, Relayed};
pub use self::source::{Once, Source};
pub use self::stream::{ReadHalf, TunnelStream, WriteHalf};
pub use self::timer::{Clock, SystemClock, Timer, TokioTimer};
pub use self::tunnel::Tunnel;
