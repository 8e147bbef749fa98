//! Connections through forward, host and runner, each a real process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::ws::WebSocketUpgrade;
use axum::routing::get;
use futures_util::{SinkExt, StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tunnel_test_support::chain::{
    Chain, connect, echo, ending, expect_echo, expect_reverse, pattern, reverse, service,
    service_at,
};
use tunnel_test_support::program::Program;
use tunnel_test_support::{LIMIT, free_port, soon};

const MIB: usize = 1 << 20;

/// Downloads of that many MiB that depend on their seed, and a WebSocket that echoes.
async fn web_service() -> u16 {
    let download = |Path((seed, mib)): Path<(u64, usize)>| async move {
        let blocks = (0..mib).map(move |index| pattern(seed * 1000 + index as u64, MIB));
        Body::from_stream(stream::iter(blocks.map(Ok::<_, std::io::Error>)))
    };
    let socket = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(message)) = socket.recv().await {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
        })
    };
    let app = Router::new()
        .route("/download/{seed}/{mib}", get(download))
        .route("/echo", get(socket));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

/// The digest of a download through the tunnel.
async fn download(forward: &Program, seed: u64, mib: usize) -> [u8; 32] {
    use http_body_util::{BodyExt, Empty};
    let stream = hyper_util::rt::TokioIo::new(connect(forward).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(format!("/download/{seed}/{mib}"))
        .header("host", "service")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let mut body = soon("answer", sender.send_request(request))
        .await
        .unwrap()
        .into_body();
    let mut digest = Sha256::new();
    while let Some(frame) = soon("body", body.frame()).await {
        digest.update(frame.unwrap().into_data().unwrap());
    }
    digest.finalize().into()
}

fn expected(seed: u64, mib: usize) -> [u8; 32] {
    let mut digest = Sha256::new();
    for index in 0..mib {
        digest.update(pattern(seed * 1000 + index as u64, MIB));
    }
    digest.finalize().into()
}

#[tokio::test]
async fn a_download_arrives_whole() {
    let chain = Chain::direct();
    let forward = chain.forward(web_service().await, &[]);
    assert_eq!(download(&forward, 1, 64).await, expected(1, 64));
}

#[tokio::test]
async fn fifty_downloads_at_once_arrive_whole() {
    let chain = Chain::direct();
    let forward = std::sync::Arc::new(chain.forward(web_service().await, &[]));
    let mut downloads = JoinSet::new();
    for seed in 0..50 {
        let forward = std::sync::Arc::clone(&forward);
        downloads.spawn(async move { (seed, download(&forward, seed, 2).await) });
    }
    while let Some(done) = downloads.join_next().await {
        let (seed, digest) = done.unwrap();
        assert_eq!(digest, expected(seed, 2), "download {seed}");
    }
}

#[tokio::test]
async fn a_websocket_of_the_service_works_through_the_tunnel() {
    let chain = Chain::direct();
    let forward = chain.forward(web_service().await, &[]);
    let url = format!("ws://{}/echo", forward.address());
    let (mut socket, _) = soon("connect", connect_async(url)).await.unwrap();
    for size in [0, 1, 1000, 100_000] {
        let message = Message::binary(pattern(size as u64, size));
        socket.send(message.clone()).await.unwrap();
        assert!(soon("echo", socket.next()).await.unwrap().unwrap() == message);
    }
}

#[tokio::test]
async fn half_close_keeps_the_reply() {
    let chain = Chain::direct();
    let forward = chain.forward(service(reverse).await.port(), &[]);
    expect_reverse(&forward, 8 * MIB).await;
}

#[tokio::test]
async fn a_reply_outlives_a_service_that_closes_at_once() {
    let service = service(|mut stream| async move {
        stream.write_all(&pattern(9, MIB)).await.unwrap();
    });
    let chain = Chain::direct();
    let forward = chain.forward(service.await.port(), &[]);
    for _ in 0..20 {
        let mut reply = Vec::new();
        let mut stream = connect(&forward).await;
        soon("reply", stream.read_to_end(&mut reply)).await.unwrap();
        assert!(reply == pattern(9, MIB), "{} bytes came", reply.len());
    }
}

#[tokio::test]
async fn a_refused_port_is_a_reset_and_one_line() {
    let dead = free_port();
    let chain = Chain::direct();
    let mut forward = chain.forward(dead, &[]);
    let started = Instant::now();
    let mut stream = connect(&forward).await;
    assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
    // Without an answer it would wait for 10 s.
    assert!(started.elapsed() < Duration::from_secs(5));
    let line = forward.complaint(&format!("port {dead}: connection refused"));
    assert_eq!(forward.stderr(), [line]);

    // The forward continues to run, for when the service is there.
    service_at(&format!("127.0.0.1:{dead}"), echo).await;
    expect_echo(&mut connect(&forward).await, b"there now").await;
    assert!(forward.is_running());
}

#[tokio::test]
async fn a_reset_of_the_service_reaches_the_application() {
    let service = service(|mut stream| async move {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        stream.set_zero_linger().unwrap();
    });
    let chain = Chain::direct();
    let forward = chain.forward(service.await.port(), &[]);
    let mut stream = connect(&forward).await;
    stream.write_all(b"x").await.unwrap();
    assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_reset_of_the_application_reaches_the_service() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let service = service(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            stream.write_all(&byte).await.unwrap();
            tell.send(ending(&mut stream).await).await.unwrap();
        }
    });
    let chain = Chain::direct();
    let forward = chain.forward(service.await.port(), &[]);
    let mut stream = connect(&forward).await;
    // A reset overtakes what has not arrived.
    expect_echo(&mut stream, b"x").await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    let ended = soon("end", told.recv()).await.unwrap();
    assert_eq!(ended, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_paused_reader_stops_nobody_else() {
    let service = service(|mut stream| async move {
        let mut kind = [0];
        stream.read_exact(&mut kind).await.unwrap();
        if kind == *b"f" {
            let block = vec![7; MIB];
            while stream.write_all(&block).await.is_ok() {}
        } else {
            echo(stream).await;
        }
    });
    let chain = Chain::direct();
    let forward = chain.forward(service.await.port(), &[]);
    let mut paused = connect(&forward).await;
    paused.write_all(b"f").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut other = connect(&forward).await;
    other.write_all(b"e").await.unwrap();
    for round in 0..50 {
        let started = Instant::now();
        expect_echo(&mut other, &pattern(round, 64)).await;
        assert!(started.elapsed() < Duration::from_secs(2), "round {round}");
    }
    let mut still = vec![0; 32 * MIB];
    soon("the rest", paused.read_exact(&mut still))
        .await
        .unwrap();
}

#[tokio::test]
async fn several_ports_in_one_command() {
    let (one, two) = (service(echo).await.port(), service(echo).await.port());
    let chain = Chain::direct();
    let (host, first, second) = (chain.host_url(), format!("{one}:0"), format!("{two}:0/tcp"));
    let forward = Program::start("forward", &["42", &first, &second, "--host", &host]);
    for remote in [one, two] {
        let line = forward.line_with(&format!("(tcp) -> task 42 port {remote}"));
        let address = line.split(' ').nth(2).unwrap().to_owned();
        let mut stream = soon("connect", TcpStream::connect(address)).await.unwrap();
        expect_echo(&mut stream, &pattern(u64::from(remote), 10_000)).await;
    }
}

#[tokio::test]
async fn the_full_url_form_works() {
    let port = service(echo).await.port().to_string();
    let chain = Chain::direct();
    let url = format!("{}/api/tunnel/42", chain.host_url());
    let args = ["--host", &url, "--local-port", "0", "--remote-port", &port];
    let forward = Program::start("forward", &args);
    forward.line_with(&format!("(tcp) -> task 42 port {port}"));
    expect_echo(&mut connect(&forward).await, b"by the full URL").await;
}

#[tokio::test]
async fn the_url_of_a_session_for_one_port_works() {
    let port = service(echo).await.port();
    let chain = Chain::direct();
    let url = format!("{}/ws/forward/42/{port}?proto=tcp", chain.host_url());
    let forward = Program::start("forward", &["--host", &url, "--local-port", "0"]);
    forward.line_with(&format!("(tcp) -> task 42 port {port}"));
    expect_echo(&mut connect(&forward).await, b"by the full URL").await;
}

#[tokio::test]
async fn without_arguments_the_whole_chain_runs_in_one_process() {
    let mut forward = Program::start("forward", &[]);
    let address = forward.address();
    let mut stream = soon("connect", TcpStream::connect(&address)).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    soon("page", stream.read_to_string(&mut page))
        .await
        .unwrap();
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("<h1>It works.</h1>"));

    let (mut socket, _) = connect_async(format!("ws://{address}/echo")).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let reply = soon("echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(reply, Message::text("hello"));

    forward.signal("TERM");
    assert_eq!(forward.exit(LIMIT), 0);
}
