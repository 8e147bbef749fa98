//! Port forwarding over any message transport, in layers from an eight-byte header to async
//! streams.
//!
//! ```text
//!  0      1       2               6        8
//!  +------+-------+---------------+--------+------------- - -
//!  | type | proto |   client id   |  port  |  payload
//!  +------+-------+---------------+--------+------------- - -
//! ```
//!
//! | module | feature | what it is |
//! |---|---|---|
//! | [`wire`] | always | the message: headers, typed and raw frames, buffers with headroom |
//! | [`session`] | always | the protocol as a state machine without I/O |
//! | [`resume`] | always | a tunnel that outlives its transport, without I/O |
#![cfg_attr(
    feature = "codec",
    doc = "| [`codec`] | `codec` | tokio-util codecs for datagrams and byte streams |"
)]
#![cfg_attr(
    feature = "transport",
    doc = "| [`transport`] | `transport` | frames over any WebSocket stack; [`carrier!`] |"
)]
#![cfg_attr(
    feature = "mux",
    doc = "| [`mux`] | `mux` | async streams and datagram flows |"
)]
//!
//! All but `codec` and `mux` are `no_std` with `alloc`. Each module begins with an example; the
//! README has one for each layer but `resume`, and `examples/embed_*.rs` are complete programs:
//! client, server, both ends of a tunnel that outlives its WebSockets, HTTP and gRPC through a
//! tunnel, a Unix socket, a session without a runtime. The code implements PROTOCOL.md.
//!
//! The protocol does not provide confidentiality, authentication, or connections opened by the
//! acceptor. With v1 peers it does not provide flow control or resumption either.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

/// Setters that can be chained, of public fields.
macro_rules! setters {
    ($($setter:ident => $field:ident: $type:ty,)+) => {$(
        #[doc = concat!("Sets [`", stringify!($field), "`](Self::", stringify!($field), ").")]
        #[must_use]
        pub const fn $setter(mut self, $field: $type) -> Self {
            self.$field = $field;
            self
        }
    )+};
}

#[cfg(feature = "codec")]
#[cfg_attr(docsrs, doc(cfg(feature = "codec")))]
pub mod codec;
#[cfg(feature = "mux")]
#[cfg_attr(docsrs, doc(cfg(feature = "mux")))]
pub mod mux;
pub mod resume;
pub mod session;
pub mod wire;

#[cfg(feature = "transport")]
#[cfg_attr(docsrs, doc(cfg(feature = "transport")))]
pub mod transport;

/// The crate of the buffers in this interface: `bytes::Bytes`.
pub use bytes;

/// The README's snippets are tests. They use every feature.
#[cfg(all(doctest, feature = "codec", feature = "transport", feature = "mux"))]
#[doc = include_str!("../README.md")]
struct ReadmeSnippets;
