//! The WebSocket of the example programs (RFC 6455), after its handshake: a `Stream` and a `Sink`
//! of messages on any socket.
//!
//! Messages are read and written in place where possible. tungstenite supplies the message type and
//! the frame headers. Memory and the work of one poll are bounded whatever the peer does: see
//! [`limits`].
//!
//! | the peer | closes with |
//! |---|---|
//! | breaks RFC 6455 (also lengths that are not minimal) | 1002 |
//! | sends text, or a close reason, that is not UTF-8 | 1007 |
//! | sends an empty fragment within a message, or too many small ones | 1008 |
//! | sends a message that is too long | 1009 |
//! | needs memory that the process does not have | 1013 |

#![forbid(unsafe_code)]

mod budget;
mod close;
mod error;
mod header;
mod inbound;
pub mod limits;
mod mask;
mod outbound;
mod partial;
mod patience;
mod socket;

pub use budget::Account;
pub use error::{Error, Violation};
pub use socket::WebSocket;
pub use tungstenite::Message;
pub use tungstenite::protocol::{CloseFrame, Role};
