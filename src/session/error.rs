use thiserror::Error;

use super::{Reset, State};
use crate::wire::{Chunk, ClientId, DecodeError, Kind};

/// A breach of the protocol by the peer. The session counts it, resets at most one stream because
/// of it, and continues.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, Role, Session, Version, Violation};
/// use kohakuriver_tunnel::wire::{Frame, Kind};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V1, Config::default(), now);
/// let outcome = session.handle_message(now, Frame::<&[u8]>::GoAway.to_bytes());
/// assert_eq!(outcome, Err(Violation::NotInVersion(Kind::GoAway)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Violation {
    /// A message that is not a frame.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// A type that this version of the protocol does not have.
    #[error("{0} on a v1 tunnel")]
    NotInVersion(Kind),
    /// A type that only the opener sends.
    #[error("{0} from the wrong side")]
    WrongRole(Kind),
    /// A message that the stream's state does not allow.
    #[error("{kind} for client id {id} in state {state:?}")]
    Unexpected {
        /// Type of the message.
        kind: Kind,
        /// The stream's id.
        id: ClientId,
        /// The state of the stream.
        state: State,
    },
    /// DATA with a protocol other than the stream's.
    #[error("{kind} for client id {id} with the wrong protocol")]
    WrongProto {
        /// Type of the message.
        kind: Kind,
        /// The stream's id.
        id: ClientId,
    },
    /// A message about an unknown stream.
    #[error("{kind} for unknown client id {id}")]
    UnknownStream {
        /// Type of the message.
        kind: Kind,
        /// The id.
        id: ClientId,
    },
    /// More bytes than the credit granted.
    #[error("client id {id} sent {excess} bytes more than its window")]
    CreditOverrun {
        /// The stream's id.
        id: ClientId,
        /// Bytes beyond the credit.
        excess: u64,
    },
    /// Credit of 2^63 bytes or more in total.
    #[error("client id {id} was granted more credit than can be counted")]
    CreditOverflow {
        /// The stream's id.
        id: ClientId,
    },
    /// The peer sends requests and does not read the answers.
    #[error("more than {0} answers wait to be read")]
    TooManyRequests(usize),
}

/// Why a stream was not opened.
///
/// ```
/// use kohakuriver_tunnel::session::{Config, Instant, OpenError, Role, Session, Version};
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Acceptor, Version::V2, Config::default(), now);
/// assert_eq!(session.open_tcp(80, now), Err(OpenError::NotOpener));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// This end is the acceptor; only the opener opens streams.
    #[error("this end of the tunnel only accepts connections")]
    NotOpener,
    /// [`Config::max_streams`](super::Config::max_streams) is reached.
    #[error("{0} connections are open already")]
    Limit(usize),
    /// Too many messages that open or reset connections wait for the transport.
    #[error("the tunnel is congested")]
    Congested,
    /// This end is draining, or the peer sent GOAWAY.
    #[error("the tunnel takes no new connections")]
    Draining,
    /// The tunnel has ended.
    #[error("the tunnel has ended")]
    Closed,
}

/// Why data was not sent.
///
/// ```
/// use kohakuriver_tunnel::session::{
///     Config, EARLY_DATA, Instant, Role, SendError, Session, Version,
/// };
/// use kohakuriver_tunnel::wire::Chunk;
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
/// let stream = session.open_tcp(80, now)?;
/// let chunk = Chunk::copied(&vec![0; EARLY_DATA as usize + 1]);
/// let Err(SendError::Blocked(chunk)) = session.send(stream, chunk) else { panic!() };
/// assert_eq!(chunk.len(), EARLY_DATA as usize + 1);
/// # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SendError {
    /// No credit or no room for it now; [`Event::Writable`](super::Event::Writable) follows, at
    /// once if there is room for a part. Contains the chunk.
    #[error("no credit or no room now")]
    Blocked(Chunk),
    /// A datagram beyond [`MAX_DATAGRAM`](super::MAX_DATAGRAM). Counted as dropped.
    #[error("datagram of {0} bytes is longer than {max}", max = super::MAX_DATAGRAM)]
    TooLong(usize),
    /// The connection was not [accepted](super::Session::accept) yet.
    #[error("the connection was not accepted yet")]
    NotAccepted,
    /// This direction was already finished.
    #[error("this direction was finished before")]
    Finished,
    /// The stream was reset.
    #[error(transparent)]
    Reset(Reset),
    /// No such stream, or the call does not fit its kind (stream or flow).
    #[error("no such stream")]
    Unknown,
}

/// Why a call on a stream failed.
///
/// ```
/// use kohakuriver_tunnel::session::{
///     Config, Instant, Reason, Role, Session, StreamError, Version,
/// };
///
/// let now = Instant::default();
/// let mut session = Session::new(Role::Opener, Version::V2, Config::default(), now);
/// let stream = session.open_tcp(80, now)?;
/// session.reset(stream, Reason::Reset, "");
/// assert!(matches!(session.recv(stream, now), Err(StreamError::Reset(_))));
/// session.release(stream, now);
/// assert_eq!(session.recv(stream, now), Err(StreamError::Unknown));
/// # Ok::<(), kohakuriver_tunnel::session::OpenError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The stream was reset.
    #[error(transparent)]
    Reset(Reset),
    /// No such stream, or it was released.
    #[error("no such stream")]
    Unknown,
    /// The call does not fit the stream's state or kind.
    #[error("not possible in this state of the stream")]
    WrongState,
}
