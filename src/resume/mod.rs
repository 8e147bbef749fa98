//! Resumption: a tunnel that outlives its transport, as a state machine without I/O (PROTOCOL.md
//! section 5.10).
//!
//! A [`Link`] stands between a [`Session`](crate::session::Session) and the transports that carry
//! it one after the other. It counts the messages of both directions, keeps those that the peer has
//! not acknowledged, and sends them again on the next transport. The session does not notice; its
//! clock stands still meanwhile.
//!
//! The code that drives it
//! - passes each received message to [`handle_message`](Link::handle_message), and what that
//!   delivers to the session,
//! - sends the output of [`poll_output`](Link::poll_output), until `None`,
//! - then takes from the session what [`accepts`](Link::accepts) allows, and passes each of these
//!   messages to [`sent`](Link::sent) before it goes out,
//! - polls the output again, until `None`, after the last of them: an acknowledgement may go along,
//! - calls [`detach`](Link::detach) when the transport is lost, [`attach`](Link::attach) (client)
//!   or [`takeover`](Link::takeover) (server) when there is another one,
//! - calls [`handle_timeout`](Link::handle_timeout) at [`poll_timeout`](Link::poll_timeout),
//! - tells the link by [`set_idle`](Link::set_idle) whether the session has streams or a message
//!   that ends one, and the session by
//!   [`set_outlives_transport`](crate::session::Session::set_outlives_transport) that silence is
//!   not its end: at [`Event::PeerDead`](crate::session::Event::PeerDead) the transport is
//!   detached,
//! - stops the clock of the session with `detach`, and lets it go on when the link is attached
//!   again,
//! - [holds](crate::session::Session::hold_data) the session's data while the link accepts only
//!   control messages.
//!
//! `mux` does all of this.
//!
//! ```
//! use kohakuriver_tunnel::resume::{Accepts, Config, Identity, Link, Message, Received, Secret};
//! use kohakuriver_tunnel::session::Instant;
//!
//! let now = Instant::default();
//! let mut client = Link::client(Config::default());
//! client.attach(now);
//! let open = client.poll_output().unwrap();
//!
//! // The server's first message is OPEN.
//! let Ok(Message::Open(open)) = Message::decode(&open) else { panic!() };
//! let identity = Identity { instance: 7, tunnel: 1 };
//! let mut server = Link::server(Config::default(), identity, &open, Secret::new([1; 16]), now);
//! client.handle_message(now, server.poll_output().unwrap());
//!
//! // The client's answer shows that it is still there.
//! server.handle_message(now, client.poll_output().unwrap());
//! assert!(server.is_confirmed());
//!
//! // A message is under way when the transport is lost.
//! assert_eq!(client.accepts(), Accepts::All);
//! client.sent(&"a message".into())?;
//! client.detach(now);
//! server.detach(now);
//!
//! client.attach(now);
//! let Ok(Message::Open(open)) = Message::decode(&client.poll_output().unwrap()) else { panic!() };
//! server.takeover(&open, Secret::new([2; 16]), now).unwrap();
//! client.handle_message(now, server.poll_output().unwrap());
//! let again = client.poll_output().unwrap();
//! assert_eq!(server.handle_message(now, again), Received::Deliver("a message".into()));
//! # Ok::<(), kohakuriver_tunnel::resume::Ended>(())
//! ```

mod ack;
mod attach;
mod config;
mod ending;
mod error;
mod keep;
mod link;
mod message;
mod offer;
mod outcome;
mod peer;
mod ring;
mod secret;
mod side;

pub use self::config::Config;
pub use self::error::{Ended, Refusal, Takeover, Violation};
pub use self::link::Link;
pub use self::message::{EndReason, Kind, Malformed, Message, Open, Opened, counts, is_layer};
pub use self::offer::{Choice, OFFER, answered, choose};
pub use self::outcome::{Accepts, Due, Identity, Received, Resumption, State, Stats};
pub use self::secret::Secret;

#[cfg(test)]
mod tests;
