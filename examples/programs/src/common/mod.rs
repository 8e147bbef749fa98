//! What the four programs share: command line, logging, signals, sockets, the WebSocket handshake.
//!
//! This is policy. The rules of messages and streams are in the library.

pub mod accept;
pub mod addresses;
pub mod args;
pub mod ceilings;
pub mod connection;
pub mod dials;
pub mod files;
pub mod flow;
pub mod front;
pub mod handshakes;
pub mod http;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod names;
pub mod net;
pub mod output;
pub mod places;
pub mod program;
pub mod proxies;
pub mod reread;
pub mod resume;
pub mod retry;
pub mod route;
pub mod secret;
pub mod serve;
pub mod sessions;
pub mod signals;
pub mod threads;
pub mod tls;
pub mod token;
pub mod trust;
pub mod tunnel;
pub mod turns;
pub mod url;
pub mod wake;
pub mod words;
pub mod ws;
