//! A tunnel that outlives its WebSockets, at both ends: a server in axum, and a client that
//! connects again. When the WebSocket is lost, the connection waits and goes on over the next one.
//!
//! ```text
//! cargo run --example embed_resume -- serve 127.0.0.1:8000
//! cargo run --example embed_resume -- open ws://127.0.0.1:8000/api/tunnel/42 8080
//! ```
//!
//! `open` joins its input and output to the port, as netcat would. `forward` is a client for the
//! server, too, and the runner is a server for the client.

use std::{error::Error, net::SocketAddr, time::Duration};

use axum::extract::{ConnectInfo, State, ws};
use axum::{Router, http::HeaderMap, response::Response, routing::any, serve::ListenerExt};
use kohakuriver_tunnel::mux::{
    self, Acceptor, Admission, Binding, ConnectFailure, Dial, Keeper, KeeperLimits,
};
use kohakuriver_tunnel::session::{Reason, Version};
use kohakuriver_tunnel::{carrier, resume};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, ClientRequestBuilder};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

carrier!(ServerWs: ws::Message, close: ws::CloseFrame);
carrier!(ClientWs: tungstenite::Message, close: tungstenite::protocol::CloseFrame);

const PROTOCOL: &str = "sec-websocket-protocol";

/// More than a tunnel's messages have (PROTOCOL.md section 3) only costs memory. Holds for frames
/// too: one is buffered before the length of its message is checked.
const LARGEST_MESSAGE: usize = 1 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address] => serve(address).await,
        ["open", url, port] => open(url, port.parse()?).await,
        _ => Err("usage: embed_resume serve ADDRESS | embed_resume open URL PORT".into()),
    }
}

type Kept = Keeper<ws::WebSocket>;

async fn serve(address: &str) -> Result<(), Box<dyn Error>> {
    // Whoever guesses a secret takes a tunnel over.
    let random = |secret: &mut [u8]| getrandom::fill(secret).expect("the system is random");
    let kept: Kept = Keeper::new(resume::Config::default(), KeeperLimits::default(), random);
    let app = Router::new()
        .route("/api/tunnel/{task}", any(upgrade))
        .with_state(kept)
        .into_make_service_with_connect_info::<SocketAddr>();
    let no_delay = |tcp: &mut TcpStream| _ = tcp.set_nodelay(true);
    let listener = TcpListener::bind(address).await?.tap_io(no_delay);
    println!("Listening on {address}");
    Ok(axum::serve(listener, app).await?)
}

async fn upgrade(
    ws: ws::WebSocketUpgrade,
    headers: HeaderMap,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    State(kept): State<Kept>,
) -> Response {
    // Check a token or `Origin` here (PROTOCOL.md section 7).
    let offers = headers.get_all(PROTOCOL).iter();
    let offers: Vec<_> = offers.filter_map(|offer| offer.to_str().ok()).collect();
    let choice = resume::choose(&offers.join(","));
    let ws = ws
        .protocols(choice.answer)
        .max_message_size(LARGEST_MESSAGE)
        .max_frame_size(LARGEST_MESSAGE);
    ws.on_upgrade(async move |socket| {
        // Only who may use this route goes on with a tunnel of it.
        let binding = Binding::new("/api/tunnel", "everybody", peer.ip().to_string());
        if let Err(error) = tunnel(socket, choice, kept, binding).await {
            println!("{peer}: {error}");
        }
    })
}

async fn tunnel(
    mut socket: ws::WebSocket,
    choice: resume::Choice,
    kept: Kept,
    binding: Binding,
) -> Result<(), mux::ConnectError> {
    let mut builder = mux::builder().version(choice.version);
    if !choice.resumable {
        let (acceptor, driver) = builder.welcome(socket, ServerWs).await?;
        tokio::spawn(driver);
        serve_ports(acceptor).await;
        return Ok(());
    }
    builder.say_greeting(&mut socket, &mut ServerWs).await?;
    match builder.admit(&kept, socket, ServerWs, binding).await? {
        Admission::New(opening) => {
            let (acceptor, driver) = opening.acceptor();
            tokio::spawn(driver);
            serve_ports(acceptor).await;
        }
        Admission::Refused(reason) => println!("a tunnel cannot go on: {reason}"),
        _ => println!("a tunnel goes on"),
    }
    Ok(())
}

async fn serve_ports(mut acceptor: Acceptor) {
    while let Some(incoming) = acceptor.accept_tcp().await {
        tokio::spawn(async move {
            match TcpStream::connect(("127.0.0.1", incoming.port())).await {
                Ok(mut service) => {
                    let _ = service.set_nodelay(true);
                    if incoming.accept().relay(&mut service).await.is_err() {
                        let _ = service.set_zero_linger(); // not an end like any other
                    }
                }
                Err(error) => incoming.reject(Reason::Refused, &error.to_string()),
            }
        });
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A WebSocket on which the session has begun, and whether the server resumes tunnels.
async fn connect(url: &str) -> Result<(Socket, Version, bool), ConnectFailure> {
    let last = |error: &dyn Error| ConnectFailure::last(&error.to_string());
    let again = |error: &dyn Error| ConnectFailure::again(&error.to_string());
    let request = ClientRequestBuilder::new(url.parse().map_err(|error| last(&error))?);
    let request = request.with_sub_protocol(resume::OFFER);
    let config = WebSocketConfig::default()
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE));
    let connected = connect_async_with_config(request, Some(config), true).await;
    let (mut socket, answer) = connected.map_err(|error| match &error {
        // This client is not let in any more, or there is nothing for it. Others pass, as 408, 429.
        tungstenite::Error::Http(answer) => match answer.status().as_u16() {
            401 | 403 | 404 => last(&error),
            _ => again(&error),
        },
        _ => again(&error),
    })?;
    let chosen = answer.headers().get(PROTOCOL);
    let chosen = resume::answered(chosen.and_then(|name| name.to_str().ok()));
    let (version, resumable) = chosen.map_err(|error| last(&error))?;
    let heard = mux::builder()
        .hear_greeting(&mut socket, &mut ClientWs)
        .await;
    heard.map_err(|error| again(&error))?;
    Ok((socket, version, resumable))
}

async fn open(url: &str, port: u16) -> Result<(), Box<dyn Error>> {
    let (socket, version, resumable) = connect(url).await?;
    let builder = mux::builder().version(version);
    let (mux, driver) = if resumable {
        let url = url.to_owned();
        let next = move |dial: Dial| {
            let url = url.clone();
            async move {
                if !dial.attached {
                    // The WebSocket is lost, perhaps those of many clients: not all at once.
                    let wait = 200 * u64::from(dial.attempt.min(50)) + fastrand::u64(..200);
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                }
                match connect(&url).await {
                    Ok((socket, _, true)) => Ok(socket),
                    Ok(_) => Err(ConnectFailure::last("tunnels are not resumed any more")),
                    Err(failure) => {
                        eprintln!("{failure}");
                        Err(failure)
                    }
                }
            }
        };
        let (mux, driver) = builder.resuming_opener(socket, ClientWs, next);
        (mux, tokio::spawn(driver))
    } else {
        let (mux, driver) = builder.opener(socket, ClientWs);
        (mux, tokio::spawn(driver))
    };

    let (mut reply, mut request) = tokio::io::split(mux.open_tcp(port)?);
    let tunnel = mux.tunnel().clone();
    drop(mux); // the tunnel ends with the connection
    let send = async move {
        tokio::io::copy(&mut tokio::io::stdin(), &mut request).await?;
        request.shutdown().await
    };
    let receive = async move {
        let mut stdout = tokio::io::stdout();
        tokio::io::copy(&mut reply, &mut stdout).await?;
        stdout.flush().await
    };
    let copied = async { tokio::try_join!(send, receive) }.await;
    if copied.is_err() {
        tunnel.shutdown(); // for instance, nobody reads the output any more
    }
    driver.await??; // tells the server, which would keep the tunnel otherwise
    copied?;
    Ok(())
}
