//! Frames over real sockets, with every WebSocket stack against every other.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use kohakuriver_tunnel::carrier;
use kohakuriver_tunnel::transport::{Carrier, CloseReason, FrameTransport, ReceiveError, Received};
use kohakuriver_tunnel::wire::{ClientId, DecodeError, Frame, HeadroomBuf, Proto};
use tokio::net::{TcpListener, TcpStream};

/// A carrier written by `carrier!`.
trait Stack: Carrier<Message: Debug> + Default {}

impl<C: Carrier<Message: Debug> + Default> Stack for C {}

mod tungstenite {
    use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};
    use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

    use super::*;

    carrier!(pub(super) Tungstenite: Message, close: CloseFrame);

    type Frames = FrameTransport<WebSocketStream<TcpStream>, Tungstenite>;

    pub(super) async fn client(server: SocketAddr) -> Frames {
        let socket = TcpStream::connect(server).await.unwrap();
        let url = format!("ws://{server}/");
        let (socket, _) = client_async(url, socket).await.unwrap();
        FrameTransport::new(socket, Tungstenite)
    }

    pub(super) async fn server(listener: TcpListener) -> Frames {
        let (socket, _) = listener.accept().await.unwrap();
        FrameTransport::new(accept_async(socket).await.unwrap(), Tungstenite)
    }
}

mod tokio_ws {
    use tokio_websockets::{ClientBuilder, CloseCode, Message, ServerBuilder, WebSocketStream};

    use super::*;

    carrier!(pub(super) TokioWebsockets: Message, code: CloseCode);

    type Frames = FrameTransport<WebSocketStream<TcpStream>, TokioWebsockets>;

    pub(super) async fn client(server: SocketAddr) -> Frames {
        let socket = TcpStream::connect(server).await.unwrap();
        let client = ClientBuilder::new().uri(&format!("ws://{server}/"));
        let (socket, _) = client.unwrap().connect_on(socket).await.unwrap();
        FrameTransport::new(socket, TokioWebsockets)
    }

    pub(super) async fn server(listener: TcpListener) -> Frames {
        let (socket, _) = listener.accept().await.unwrap();
        let (_, socket) = ServerBuilder::new().accept(socket).await.unwrap();
        FrameTransport::new(socket, TokioWebsockets)
    }
}

mod axum_ws {
    use axum::Router;
    use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
    use axum::routing::get;
    use tokio::sync::mpsc;

    use super::*;

    carrier!(pub(super) Axum: Message, close: CloseFrame);

    pub(super) async fn server(listener: TcpListener) -> FrameTransport<WebSocket, Axum> {
        let (accepted, mut sockets) = mpsc::channel(1);
        let upgrade = |upgrade: WebSocketUpgrade| async move {
            upgrade.on_upgrade(|socket| async move { accepted.send(socket).await.unwrap() })
        };
        let router = Router::new().route("/", get(upgrade));
        tokio::spawn(axum::serve(listener, router).into_future());
        FrameTransport::new(sockets.recv().await.unwrap(), Axum)
    }
}

/// Any stack's WebSocket.
trait Socket<M>: Stream<Item = Result<M, Self::Fault>> + Sink<M, Error = Self::Fault> + Unpin {
    type Fault: Debug;
}

impl<T, M, E: Debug> Socket<M> for T
where
    T: Stream<Item = Result<M, E>> + Sink<M, Error = E> + Unpin,
{
    type Fault = E;
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, future).await.unwrap()
}

/// Both ends of one connection.
async fn connect<C, S>(
    client: impl AsyncFnOnce(SocketAddr) -> C,
    server: impl AsyncFnOnce(TcpListener) -> S,
) -> (C, S) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    soon(async { tokio::join!(client(address), server(listener)) }).await
}

fn data(payload: impl Into<Bytes>) -> Frame {
    Frame::Data {
        proto: Proto::Tcp,
        id: ClientId(0xdead_beef),
        payload: payload.into(),
    }
}

/// Payloads around the sizes at which the length field of a WebSocket frame changes, as payload and
/// as message.
fn frames() -> impl Iterator<Item = Frame> {
    let sizes = [
        0, 1, 117, 118, 125, 126, 65_527, 65_528, 65_535, 65_536, 1_048_576,
    ];
    sizes
        .into_iter()
        .map(|size| data((0..size).map(|i| (i % 251) as u8).collect::<Vec<_>>()))
}

/// The frame as a message read behind headroom.
fn ready_made(frame: &Frame) -> Bytes {
    let mut buffer = HeadroomBuf::with_capacity(frame.payload().len());
    buffer
        .spare(frame.payload().len())
        .put_slice(frame.payload());
    buffer.split().seal(frame.header())
}

/// Requirements on each pairing, from `near` to `far`. Called again with the ends exchanged.
mod must {
    use super::*;

    pub(super) async fn carry_frames_of_every_size<A: Stack, B: Stack>(
        near: &mut FrameTransport<impl Socket<A::Message>, A>,
        far: &mut FrameTransport<impl Socket<B::Message>, B>,
    ) {
        for frame in frames() {
            let send = async {
                near.send(frame.clone()).await.unwrap();
                near.send(ready_made(&frame)).await.unwrap();
            };
            let receive = async {
                for _ in 0..2 {
                    assert!(far.next().await.unwrap().unwrap() == frame);
                }
            };
            soon(async { tokio::join!(send, receive) }).await;
        }
    }

    pub(super) async fn report_a_malformed_message_and_go_on<A: Stack, B: Stack>(
        near: &mut FrameTransport<impl Socket<A::Message>, A>,
        far: &mut FrameTransport<impl Socket<B::Message>, B>,
    ) {
        let messages = [
            (data("before").to_bytes(), Ok(data("before"))),
            (Bytes::new(), Err(DecodeError::Truncated { len: 0 })),
            ("short".into(), Err(DecodeError::Truncated { len: 5 })),
            ("no frame".into(), Err(DecodeError::UnknownKind(b'n'))),
            (data("after").to_bytes(), Ok(data("after"))),
        ];
        for (message, _) in &messages {
            soon(near.feed(message.clone())).await.unwrap();
        }
        soon(near.flush()).await.unwrap();
        for (_, expected) in messages {
            match (soon(far.next()).await.unwrap(), expected) {
                (Ok(frame), Ok(expected)) => assert_eq!(frame, expected),
                (Err(ReceiveError::Decode(error)), Err(expected)) => assert_eq!(error, expected),
                (item, expected) => panic!("expected {expected:?}, got {item:?}"),
            }
        }
    }

    pub(super) async fn surface_text<A: Stack, B: Stack>(
        near: &mut FrameTransport<impl Socket<A::Message>, A>,
        far: &mut FrameTransport<impl Socket<B::Message>, B>,
    ) {
        let text = A::default().text("CONNECTED".into()).unwrap();
        soon(near.transport_mut().send(text)).await.unwrap();
        soon(near.send(data("after"))).await.unwrap();
        match soon(far.next()).await.unwrap() {
            Err(ReceiveError::Text(text)) => assert_eq!(text, "CONNECTED"),
            item => panic!("expected the text, got {item:?}"),
        }
        assert_eq!(soon(far.next()).await.unwrap().unwrap(), data("after"));
    }

    pub(super) async fn outlive_a_ping_flood<A: Stack, B: Stack>(
        near: &mut FrameTransport<impl Socket<A::Message>, A>,
        far: &mut FrameTransport<impl Socket<B::Message>, B>,
    ) {
        let ping = || A::default().ping().unwrap();
        let flood = async {
            for _ in 0..20_000 {
                near.transport_mut().feed(ping()).await.unwrap();
            }
            near.send(data("after")).await.unwrap();
            // Pongs are skipped here too.
            assert_eq!(near.next().await.unwrap().unwrap(), data("reply"));
        };
        let receive = async {
            assert_eq!(far.next().await.unwrap().unwrap(), data("after"));
            far.send(data("reply")).await.unwrap();
        };
        soon(async { tokio::join!(flood, receive) }).await;
    }

    /// Longer than a close frame allows, in characters of two bytes.
    pub(super) async fn carry_the_reason_of_a_close<A: Stack, B: Stack>(
        near: &mut FrameTransport<impl Socket<A::Message>, A>,
        far: &mut FrameTransport<impl Socket<B::Message>, B>,
    ) {
        let close = async {
            let close = A::default().close(1008, &"é".repeat(100)).unwrap();
            near.transport_mut().send(close).await.unwrap();
            assert!(near.next().await.is_none());
        };
        let receive = async {
            assert!(far.next().await.is_none());
            let reason = CloseReason::new(1008, "é".repeat(61));
            assert_eq!(far.close_reason(), Some(&reason));
        };
        soon(async { tokio::join!(close, receive) }).await;
    }

    /// Neither end is dropped before both have seen the end: the handshake itself must complete.
    pub(super) async fn end_at_close<A: Stack, B: Stack>(
        near: &mut FrameTransport<impl Socket<A::Message>, A>,
        far: &mut FrameTransport<impl Socket<B::Message>, B>,
    ) {
        let close = async {
            near.send(data("last")).await.unwrap();
            near.close().await.unwrap();
            assert!(near.next().await.is_none());
        };
        let receive = async {
            assert_eq!(far.next().await.unwrap().unwrap(), data("last"));
            for _ in 0..3 {
                assert!(far.next().await.is_none());
            }
        };
        soon(async { tokio::join!(close, receive) }).await;
    }

    pub(super) async fn carry_both_ways_at_once<A: Stack, B: Stack>(
        near: FrameTransport<impl Socket<A::Message>, A>,
        far: FrameTransport<impl Socket<B::Message>, B>,
    ) {
        async fn run<E: Debug, F: Debug>(
            mut sink: impl Sink<Frame, Error = E> + Unpin,
            stream: impl Stream<Item = Result<Frame, F>> + Unpin,
        ) {
            let count = 3 * frames().count();
            let send = async {
                for frame in frames().chain(frames()).chain(frames()) {
                    sink.feed(frame).await.unwrap();
                }
                sink.flush().await.unwrap();
            };
            let receive = stream.take(count).map(|item| item.unwrap()).collect();
            let (_, received): (_, Vec<_>) = tokio::join!(send, receive);
            let expected = frames().chain(frames()).chain(frames());
            assert!(received.into_iter().eq(expected));
        }
        let ((near_sink, near_stream), (far_sink, far_stream)) = (near.split(), far.split());
        soon(async { tokio::join!(run(near_sink, near_stream), run(far_sink, far_stream)) }).await;
    }
}

macro_rules! pairings {
    ($($name:ident: $client:expr => $server:expr;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test]
            async fn carries_frames_of_every_size() {
                let (mut client, mut server) = connect($client, $server).await;
                must::carry_frames_of_every_size(&mut client, &mut server).await;
                must::carry_frames_of_every_size(&mut server, &mut client).await;
            }

            #[tokio::test]
            async fn carries_both_ways_at_once() {
                let (client, server) = connect($client, $server).await;
                must::carry_both_ways_at_once(client, server).await;
            }

            #[tokio::test]
            async fn reports_a_malformed_message_and_goes_on() {
                let (mut client, mut server) = connect($client, $server).await;
                must::report_a_malformed_message_and_go_on(&mut client, &mut server).await;
                must::report_a_malformed_message_and_go_on(&mut server, &mut client).await;
            }

            #[tokio::test]
            async fn surfaces_text() {
                let (mut client, mut server) = connect($client, $server).await;
                must::surface_text(&mut client, &mut server).await;
                must::surface_text(&mut server, &mut client).await;
            }

            #[tokio::test]
            async fn outlives_a_ping_flood() {
                let (mut client, mut server) = connect($client, $server).await;
                must::outlive_a_ping_flood(&mut client, &mut server).await;
                must::outlive_a_ping_flood(&mut server, &mut client).await;
            }

            #[tokio::test]
            async fn carries_the_clients_reason_to_close() {
                let (mut client, mut server) = connect($client, $server).await;
                must::carry_the_reason_of_a_close(&mut client, &mut server).await;
            }

            #[tokio::test]
            async fn carries_the_servers_reason_to_close() {
                let (mut client, mut server) = connect($client, $server).await;
                must::carry_the_reason_of_a_close(&mut server, &mut client).await;
            }

            #[tokio::test]
            async fn ends_when_the_client_closes() {
                let (mut client, mut server) = connect($client, $server).await;
                must::end_at_close(&mut client, &mut server).await;
            }

            #[tokio::test]
            async fn ends_when_the_server_closes() {
                let (mut client, mut server) = connect($client, $server).await;
                must::end_at_close(&mut server, &mut client).await;
            }
        }
    )*};
}

pairings! {
    tungstenite_to_tungstenite: tungstenite::client => tungstenite::server;
    tungstenite_to_tokio_websockets: tungstenite::client => tokio_ws::server;
    tungstenite_to_axum: tungstenite::client => axum_ws::server;
    tokio_websockets_to_tungstenite: tokio_ws::client => tungstenite::server;
    tokio_websockets_to_tokio_websockets: tokio_ws::client => tokio_ws::server;
    tokio_websockets_to_axum: tokio_ws::client => axum_ws::server;
}

/// A minimal carrier: no pings, no texts, no reasons.
#[tokio::test]
async fn two_methods_are_a_carrier_too() {
    use tokio_tungstenite::tungstenite::Message;

    struct Least;

    impl Carrier for Least {
        type Message = Message;

        fn binary(&mut self, message: Bytes) -> Message {
            Message::Binary(message)
        }

        fn classify(&mut self, message: Message) -> Received<Message> {
            match message {
                Message::Binary(message) => Received::Message(message),
                Message::Close(_) => Received::End(None),
                other => Received::Other(other),
            }
        }
    }

    assert!(Least.ping().is_none());
    assert!(Least.text(String::new()).is_none());
    assert!(Least.close(1000, "").is_none());
    let (client, mut server) = connect(tungstenite::client, axum_ws::server).await;
    let (socket, _) = client.into_parts();
    let mut client = FrameTransport::new(socket, Least);
    soon(client.send(data("there"))).await.unwrap();
    assert_eq!(soon(server.next()).await.unwrap().unwrap(), data("there"));
    soon(server.send(data("and back"))).await.unwrap();
    assert_eq!(
        soon(client.next()).await.unwrap().unwrap(),
        data("and back")
    );
}

#[tokio::test]
async fn a_connection_that_breaks_is_an_error_or_the_end_and_never_hangs() {
    let (client, mut server) = connect(tungstenite::client, tokio_ws::server).await;
    drop(client); // without a closing handshake
    match soon(server.next()).await {
        None | Some(Err(ReceiveError::Transport(_))) => {}
        item => panic!("expected the failure, got {item:?}"),
    }
    assert!(soon(server.next()).await.is_none());
}
