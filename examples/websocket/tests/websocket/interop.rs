//! Our WebSocket as client and as server against two other implementations. They have to accept its
//! messages, whole and in fragments, with pings in between, and the other way round.

use std::fmt::Debug;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_websockets as tw;
use tunnel_websocket::{Message, Role};

use crate::support::{MAX, open, other, payload, sockets, within};

const ROLES: [Role; 2] = [Role::Client, Role::Server];
const SIZES: [usize; 10] = [0, 1, 125, 126, 1024, 1025, 65_535, 65_536, 300_000, MAX];

/// What the tests need of another stack.
trait Stack: Sized {
    type Message: Debug + Send;

    /// The frames that carry this message in pieces of at most `piece`, with pings between them.
    fn pieces(message: &Bytes, piece: usize) -> Vec<Self::Message>;
    fn binary(message: Bytes) -> Self::Message;
    fn ping(payload: Bytes) -> Self::Message;
    /// A data message.
    fn data(message: Self::Message) -> Option<Bytes>;
}

struct Tungstenite;

impl Stack for Tungstenite {
    type Message = Message;

    fn pieces(message: &Bytes, piece: usize) -> Vec<Message> {
        let mut frames = Vec::new();
        let count = message.len().div_ceil(piece);
        for (at, part) in message.chunks(piece).enumerate() {
            let kind = if at == 0 {
                Data::Binary
            } else {
                Data::Continue
            };
            let frame = Frame::message(part.to_vec(), OpCode::Data(kind), at + 1 == count);
            frames.push(Message::Frame(frame));
            frames.push(Self::ping(Bytes::from_static(b"between")));
        }
        frames
    }

    fn binary(message: Bytes) -> Message {
        Message::Binary(message)
    }

    fn ping(payload: Bytes) -> Message {
        Message::Ping(payload)
    }

    fn data(message: Message) -> Option<Bytes> {
        matches!(message, Message::Binary(_)).then(|| message.into_data())
    }
}

struct TokioWebsockets;

impl Stack for TokioWebsockets {
    type Message = tw::Message;

    /// This stack fragments messages itself, as configured.
    fn pieces(message: &Bytes, _: usize) -> Vec<tw::Message> {
        let ping = Self::ping(Bytes::from_static(b"between"));
        vec![ping.clone(), Self::binary(message.clone()), ping]
    }

    fn binary(message: Bytes) -> tw::Message {
        tw::Message::binary(message)
    }

    fn ping(payload: Bytes) -> tw::Message {
        tw::Message::ping(payload)
    }

    fn data(message: tw::Message) -> Option<Bytes> {
        message.is_binary().then(|| message.into_payload().into())
    }
}

async fn tungstenite(socket: TcpStream, role: Role) -> WebSocketStream<TcpStream> {
    WebSocketStream::from_raw_socket(socket, role, None).await
}

fn tokio_websockets(socket: TcpStream, role: Role, piece: usize) -> tw::WebSocketStream<TcpStream> {
    let config = tw::Config::default().frame_size(piece);
    match role {
        Role::Client => tw::ClientBuilder::new().config(config).take_over(socket),
        Role::Server => tw::ServerBuilder::new().config(config).serve(socket),
    }
}

/// Our end echoes. The other end sends every size whole, then in pieces of `piece`, and gets all
/// back.
async fn echoed<S, T, E>(ours: TcpStream, role: Role, theirs: T, piece: usize)
where
    S: Stack + 'static,
    T: Stream<Item = Result<S::Message, E>>
        + Sink<S::Message, Error = E>
        + Debug
        + Send
        + Unpin
        + 'static,
    E: Debug + Send + 'static,
{
    let echo = tokio::spawn(async move {
        let mut ours = open(ours, role, MAX);
        let mut pings = 0;
        while let Some(message) = ours.next().await {
            match message.unwrap() {
                message @ Message::Binary(_) => ours.send(message).await.unwrap(),
                Message::Ping(_) => pings += 1,
                _ => {}
            }
        }
        pings
    });
    let (mut sink, mut stream) = theirs.split();
    let sizes = || SIZES.into_iter().chain(SIZES.into_iter().skip(1));
    let sending = tokio::spawn(async move {
        for (at, size) in sizes().enumerate() {
            let message = payload(size, size as u8);
            if at < SIZES.len() {
                sink.feed(S::binary(message)).await.unwrap();
                sink.feed(S::ping(Bytes::from_static(b"whole")))
                    .await
                    .unwrap();
            } else {
                for frame in S::pieces(&message, piece) {
                    sink.feed(frame).await.unwrap();
                }
            }
            sink.flush().await.unwrap();
        }
        sink
    });
    for size in sizes() {
        let received = loop {
            let message = within(stream.next()).await.unwrap().unwrap();
            if let Some(data) = S::data(message) {
                break data;
            }
        };
        assert!(received == payload(size, size as u8), "{size} bytes");
    }
    let sink = within(sending).await.unwrap();
    let mut theirs = sink.reunite(stream).unwrap();
    let _ = within(theirs.close()).await;
    while let Some(Ok(_)) = within(theirs.next()).await {}
    let pings = within(echo).await.unwrap();
    assert!(pings > SIZES.len(), "{pings}");
}

#[tokio::test]
async fn tungstenite_gets_its_messages_back() {
    for role in ROLES {
        for piece in [1000, 70_000] {
            let (near, far) = sockets().await;
            let theirs = tungstenite(far, other(role)).await;
            echoed::<Tungstenite, _, _>(near, role, theirs, piece).await;
        }
    }
}

#[tokio::test]
async fn tokio_websockets_gets_its_messages_back() {
    for role in ROLES {
        for piece in [1000, 70_000] {
            let (near, far) = sockets().await;
            let theirs = tokio_websockets(far, other(role), piece);
            echoed::<TokioWebsockets, _, _>(near, role, theirs, piece).await;
        }
    }
}

/// Our end sends first, closes, and sees the other end's close.
#[tokio::test]
async fn both_take_what_ours_sends_and_its_close() {
    for role in ROLES {
        let (near, far) = sockets().await;
        let mut theirs = tungstenite(far, other(role)).await;
        let ours = tokio::spawn(send_all(near, role));
        for size in SIZES {
            let message = within(theirs.next()).await.unwrap().unwrap();
            assert_eq!(message.len(), size);
        }
        let ping = within(theirs.next()).await.unwrap().unwrap();
        assert_eq!(ping, Message::Ping("p".into()));
        assert!(matches!(theirs.next().await, Some(Ok(Message::Close(_)))));
        let _ = theirs.flush().await;
        within(ours).await.unwrap();

        let (near, far) = sockets().await;
        let mut theirs = tokio_websockets(far, other(role), usize::MAX);
        let ours = tokio::spawn(send_all(near, role));
        for size in SIZES {
            let message = within(theirs.next()).await.unwrap().unwrap();
            assert_eq!(message.into_payload().len(), size);
        }
        assert!(within(theirs.next()).await.unwrap().unwrap().is_ping());
        assert!(within(theirs.next()).await.unwrap().unwrap().is_close());
        assert!(within(theirs.next()).await.is_none());
        within(ours).await.unwrap();
    }
}

async fn send_all(socket: TcpStream, role: Role) {
    let mut ours = open(socket, role, MAX);
    for size in SIZES {
        ours.feed(Message::Binary(payload(size, 1))).await.unwrap();
    }
    ours.feed(Message::Ping("p".into())).await.unwrap();
    ours.close().await.unwrap();
    let mut last = None;
    while let Some(message) = ours.next().await {
        last = Some(message.unwrap());
    }
    let Some(Message::Close(Some(frame))) = last else {
        panic!("ended with {last:?}");
    };
    assert_eq!(u16::from(frame.code), 1001);
}
