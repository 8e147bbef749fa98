//! The protocol as one state machine without I/O, clock or randomness (PROTOCOL.md sections 4 to
//! 6).
//!
//! A [`Session`] is one end of one tunnel. The code that drives it
//! - passes received messages to [`handle_message`](Session::handle_message),
//! - passes the output of [`poll_transmit`](Session::poll_transmit) to the transport, until `None`;
//!   where the transport has no [`Ping`](Transmit::Ping), it calls
//!   [`handle_activity`](Session::handle_activity) for it,
//! - handles the events of [`poll_event`](Session::poll_event), until `None`,
//! - calls [`handle_timeout`](Session::handle_timeout) at [`poll_timeout`](Session::poll_timeout),
//!
//! and polls all of these again after any call that takes `&mut self`. While
//! [`can_receive`](Session::can_receive) is false, it does not read the transport. When the
//! transport ends, it calls [`handle_closed`](Session::handle_closed).
//!
//! Every call in which time matters takes the current [`Instant`].
//!
//! ```
//! use kohakuriver_tunnel::session::{
//!     Config, Event, Instant, Recv, Role, Session, Transmit, Version,
//! };
//!
//! let now = Instant::default();
//! let mut opener = Session::new(Role::Opener, Version::V2, Config::default(), now);
//! let mut acceptor = Session::new(Role::Acceptor, Version::V2, Config::default(), now);
//!
//! let stream = opener.open_tcp(8080, now)?;
//! opener.send_slice(stream, b"hello").unwrap(); // no need to wait for the answer
//! opener.finish(stream);
//! while let Some(Transmit::Message(message)) = opener.poll_transmit(now) {
//!     acceptor.handle_message(now, message).unwrap();
//! }
//!
//! let Some(Event::Incoming { stream, port: 8080, .. }) = acceptor.poll_event() else { panic!() };
//! acceptor.accept(stream, now).unwrap();
//! assert_eq!(acceptor.recv(stream, now), Ok(Recv::Data("hello".into())));
//! assert_eq!(acceptor.recv(stream, now), Ok(Recv::Finished));
//! acceptor.send_slice(stream, b"the reply survives the half-close").unwrap();
//! # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
//! ```

mod budget;
mod config;
mod control;
mod counters;
mod dialect;
mod draining;
mod ending;
mod endpoint;
mod error;
mod events;
mod greeting;
mod ids;
mod keepalive;
mod late;
mod linger;
mod outgoing;
mod peer;
mod pressure;
mod ready;
mod receiving;
mod reset;
mod sending;
mod state;
mod stream;
mod streams;
mod time;

pub use self::config::Config;
pub use self::counters::{Stats, StreamStats};
pub use self::endpoint::{Recv, Session};
pub use self::error::{OpenError, SendError, StreamError, Violation};
pub use self::events::Event;
pub use self::greeting::{Greeting, NotOffered};
pub use self::outgoing::Transmit;
pub use self::pressure::Allowance;
pub use self::reset::{Reason, Reset, clean_text};
pub use self::state::State;
pub use self::streams::StreamId;
pub use self::time::Instant;

/// Bytes that each end of a v2 stream may send before the first WINDOW (PROTOCOL.md section 5.5).
pub const INITIAL_WINDOW: u32 = 256 << 10;

/// Bytes that a v2 opener sends on a stream before CONNECTED (PROTOCOL.md section 4.2).
pub const EARLY_DATA: u32 = 64 << 10;

/// The largest datagram, in bytes (PROTOCOL.md section 4.3).
pub const MAX_DATAGRAM: usize = 65_507;

/// The protocol spoken on a tunnel, agreed on before its first message (PROTOCOL.md section 5.1).
///
/// ```
/// use kohakuriver_tunnel::session::Version;
///
/// let (version, answer) = Version::choose(Version::OFFER);
/// assert_eq!((version, answer), (Version::V2, Some("kohakuriver-tunnel.v2")));
/// assert_eq!(Version::answered(answer)?, Version::V2);
/// # Ok::<(), kohakuriver_tunnel::session::NotOffered>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Version {
    /// The deployed protocol: no credit, and no dependable half-close.
    V1,
    /// With credit, half-close, resets and keepalive.
    V2,
}

/// Which end of the tunnel this is. Only the opener sends CONNECT.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, Role, Session, Version};
///
/// let now = Instant::default();
/// let end = |role| Session::new(role, Version::V2, Config::default(), now);
/// assert!(end(Role::Opener).open_tcp(80, now).is_ok());
/// assert!(end(Role::Acceptor).open_tcp(80, now).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Opens connections.
    Opener,
    /// Accepts them.
    Acceptor,
}
