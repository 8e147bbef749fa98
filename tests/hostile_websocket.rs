//! Peers that abuse the WebSocket against the real programs: memory stays within a stated bound,
//! and a well-behaved session continues.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tunnel_test_support::chain::{CONTAINER, Chain, connect, echo, expect_echo, service};
use tunnel_test_support::program::Program;
use tunnel_test_support::{LIMIT, soon};

/// Most growth of a program, whatever one peer does.
const GROWTH_MAX: usize = 16 << 20;

/// Bytes that each flood sends, several times the allowed growth.
const FLOOD: usize = 64 << 20;

/// The largest ping, and the same from a server.
const CLIENT_PING: [u8; 131] = ping::<131>(0xfd, 6);
const SERVER_PING: [u8; 127] = ping::<127>(0x7d, 2);

const fn ping<const N: usize>(second: u8, header: usize) -> [u8; N] {
    let mut frame = [0; N];
    frame[0] = 0x89;
    frame[1] = second;
    let mut at = header;
    while at < N {
        frame[at] = b'p';
        at += 1;
    }
    frame
}

/// A raw connection after a WebSocket handshake.
async fn upgrade(address: &str, path: &str) -> TcpStream {
    let (socket, head) = soon("an upgrade", ask(address, path)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    socket
}

async fn ask(address: &str, path: &str) -> io::Result<(TcpStream, String)> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    let head = head(&mut socket).await?;
    Ok((socket, head))
}

async fn head(socket: &mut TcpStream) -> io::Result<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(socket.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// Serves one WebSocket handshake and returns the connection.
async fn hostile_server() -> (String, JoinHandle<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let accepted = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let head = head(&mut socket).await.unwrap();
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        let key = lines.find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"));
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.unwrap().1.as_bytes())
        );
        socket.write_all(answer.as_bytes()).await.unwrap();
        socket
    });
    (url, accepted)
}

/// Writes a frame again and again and reads nothing, until [`FLOOD`] bytes are written or the peer
/// blocks the connection. It may not end it, or the flood would show nothing.
async fn flood(socket: &mut TcpStream, frame: &[u8]) {
    let batch = frame.repeat(500);
    for round in 0..FLOOD / batch.len() {
        match timeout(Duration::from_secs(2), socket.write_all(&batch)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("ended in round {round}: {error}"),
            Err(_) => return,
        }
    }
}

/// Floods while the well-behaved client continues. Nothing may grow.
async fn flood_beside(client: &mut TcpStream, socket: &mut TcpStream, programs: &[&Program]) {
    for i in 0..20_u8 {
        expect_echo(client, &[i; 500]).await;
    }
    let before: Vec<usize> = programs.iter().map(|program| program.resident()).collect();
    let mut round_trips = 0;
    let attack = flood(socket, &CLIENT_PING);
    tokio::pin!(attack);
    loop {
        tokio::select! {
            biased;
            () = expect_echo(client, &[7; 500]) => round_trips += 1,
            () = &mut attack => break,
        }
    }
    // A connection cut off above leaves its echo behind, so the count exceeds.
    assert!(round_trips > 0, "the session beside it stood still");
    for (program, before) in programs.iter().zip(before) {
        let growth = program.resident().saturating_sub(before);
        assert!(growth <= GROWTH_MAX, "grew by {} MiB", growth >> 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_of_a_client_that_does_not_read_cost_the_runner_nothing() {
    let chain = Chain::direct();
    let port = service(echo).await.port();
    let forward = chain.forward(port, &[]);
    let mut client = connect(&forward).await;
    let path = format!("/ws/forward/{CONTAINER}/{port}?proto=tcp");
    let mut socket = upgrade(&chain.runner.address(), &path).await;
    flood_beside(&mut client, &mut socket, &[&chain.runner]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_those_of_an_agent() {
    let chain = Chain::direct();
    let port = service(echo).await.port();
    let forward = chain.forward(port, &[]);
    let mut client = connect(&forward).await;
    let mut socket = upgrade(&chain.runner.address(), "/ws/tunnel/hostile").await;
    flood_beside(&mut client, &mut socket, &[&chain.runner]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_those_that_come_through_the_host() {
    let chain = Chain::direct();
    let port = service(echo).await.port();
    let forward = chain.forward(port, &[]);
    let mut client = connect(&forward).await;
    let path = format!("/ws/forward/42/{port}?proto=tcp");
    let mut socket = upgrade(&chain.host.address(), &path).await;
    flood_beside(&mut client, &mut socket, &[&chain.runner, &chain.host]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_of_a_hostile_host_cost_forward_nothing() {
    let (url, accepted) = hostile_server().await;
    let args = ["--host", &url, "42", "80", "--local-port", "0"];
    let mut forward = Program::start("forward", &args);
    let mut socket = soon("the connection of forward", accepted).await.unwrap();
    socket.write_all(b"\x81\x09CONNECTED").await.unwrap();
    forward.address();
    let before = forward.resident();
    flood(&mut socket, &SERVER_PING).await;
    let growth = forward.resident().saturating_sub(before);
    assert!(growth <= GROWTH_MAX, "grew by {} MiB", growth >> 20);
    assert!(forward.is_running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_of_a_hostile_runner_cost_the_agent_nothing() {
    let (url, accepted) = hostile_server().await;
    let args = ["--runner-url", &url, "--container-id", CONTAINER];
    let mut agent = Program::start("agent", &args);
    let mut socket = soon("the connection of the agent", accepted).await.unwrap();
    agent.complaint("registered at");
    let before = agent.resident();
    flood(&mut socket, &SERVER_PING).await;
    let growth = agent.resident().saturating_sub(before);
    assert!(growth <= GROWTH_MAX, "grew by {} MiB", growth >> 20);
    assert!(agent.is_running());
}

/// Thirty connections that reconnect whenever they are ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_fragments_keep_nobody_waiting() {
    let chain = Chain::direct();
    let port = service(echo).await.port();
    let forward = chain.forward(port, &[]);
    let mut client = connect(&forward).await;
    let address = chain.runner.address();
    let floods: Vec<_> = (0..30)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move {
                let path = format!("/ws/forward/{CONTAINER}/{port}?proto=tcp");
                let mut batch = b"\x02\x80\0\0\0\0".to_vec();
                batch.extend(b"\x00\x80\0\0\0\0".repeat(20_000));
                loop {
                    let Ok((mut socket, _)) = ask(&address, &path).await else {
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    };
                    batch[0] = 2;
                    while socket.write_all(&batch).await.is_ok() {
                        batch[0] = 0;
                    }
                }
            })
        })
        .collect();
    let before = chain.runner.resident();
    soon("a hundred round trips", async {
        for i in 0..100_u8 {
            expect_echo(&mut client, &[i; 500]).await;
        }
    })
    .await;
    let growth = chain.runner.resident().saturating_sub(before);
    assert!(growth <= GROWTH_MAX, "grew by {} MiB", growth >> 20);
    for flood in floods {
        flood.abort();
    }
}

/// The most of a frame of a MiB, masked with zeros.
fn begun() -> Vec<u8> {
    let mut begun = b"\x82\xff\0\0\0\0\0\x10\0\0\0\0\0\0".to_vec();
    begun.resize(900 << 10, 7);
    begun
}

/// Counts what comes, and answers with the number of bytes.
async fn count(mut stream: TcpStream) {
    if let Ok(count) = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await {
        let _ = stream.write_all(&count.to_be_bytes()).await;
    }
}

/// Uploads so many bytes to a service that [counts](count) them.
async fn upload(forward: &Program, len: usize) {
    let mut stream = connect(forward).await;
    let uploaded = async {
        stream.write_all(&vec![7; len]).await?;
        stream.shutdown().await?;
        stream.read_u64().await
    };
    assert_eq!(soon("an upload", uploaded).await.unwrap(), len as u64);
}

/// Messages that never end, three times what may be taken for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_beside_half_messages_are_not_cut() {
    let target = format!("{CONTAINER}=127.0.0.1");
    let chain = Chain::with_runner(&["--target", &target, "--memory", "64"]);
    let port = service(count).await.port();
    let forward = chain.forward(port, &[]);
    upload(&forward, 1 << 20).await;
    let path = format!("/ws/forward/{CONTAINER}/{port}?proto=tcp");
    let mut begun = begun();
    begun.resize(1 << 20, 7);
    let mut held = Vec::new();
    for _ in 0..60 {
        let mut socket = upgrade(&chain.runner.address(), &path).await;
        let begun = begun.clone();
        held.push(tokio::spawn(async move {
            let _ = socket.write_all(&begun).await;
            let mut told = Vec::new();
            let _ = socket.read_to_end(&mut told).await;
            told.ends_with(b"\x88\x02\x03\xf5")
        }));
    }
    sleep(Duration::from_secs(1)).await;
    for _ in 0..20 {
        upload(&forward, 16 << 20).await;
        sleep(Duration::from_millis(200)).await;
    }
    // Though nothing comes from them any more, those that hold much have to go.
    let ends = async {
        let mut let_go = 0;
        while let_go < 10 {
            let (told, _, rest) = futures_util::future::select_all(held).await;
            let_go += usize::from(told.unwrap());
            held = rest;
        }
    };
    soon("the end of ten", ends).await;
}

/// Two hundred messages that never end, nine times what the runner may hold for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_messages_are_paid_from_one_budget() {
    const BUDGET: usize = 20 << 20;
    let target = format!("{CONTAINER}=127.0.0.1");
    let chain = Chain::with_runner(&["--target", &target, "--memory", "20"]);
    let port = service(echo).await.port();
    let forward = chain.forward(port, &[]);
    let mut client = connect(&forward).await;
    expect_echo(&mut client, b"before").await;
    let counts = chain.forward(service(count).await.port(), &[]);
    upload(&counts, 1 << 20).await;
    let before = chain.runner.resident();
    let path = format!("/ws/forward/{CONTAINER}/{port}?proto=tcp");
    let begun = begun();
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut socket = upgrade(&chain.runner.address(), &path).await;
        // Fails if the runner closed before everything was written.
        let _ = timeout(Duration::from_secs(5), socket.write_all(&begun)).await;
        held.push(socket);
    }
    let growth = chain.runner.resident().saturating_sub(before);
    assert!(
        growth <= BUDGET + GROWTH_MAX,
        "grew by {} MiB",
        growth >> 20
    );
    for i in 0..20_u8 {
        expect_echo(&mut client, &[i; 500]).await;
    }
    // Long messages wait until the incomplete ones have to go.
    expect_echo(&mut client, &[7; 500_000]).await;
    upload(&counts, 8 << 20).await;
    // Those that do not get the memory in time are told to try again later (1013).
    let ends = held.into_iter().map(|mut socket| async move {
        let mut told = Vec::new();
        let read = timeout(LIMIT, socket.read_to_end(&mut told)).await;
        usize::from(read.is_ok() && told.ends_with(b"\x88\x02\x03\xf5"))
    });
    let let_go: usize = futures_util::future::join_all(ends).await.iter().sum();
    assert!(let_go > 100, "only {let_go} were told to try again later");
}

/// A hundred messages that never end, of clients that get no session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_messages_of_who_is_refused_are_not_kept() {
    let chain = Chain::direct();
    let begun = begun();
    for program in [&chain.host, &chain.runner] {
        let before = program.resident();
        let little_is_held = || {
            let growth = program.resident().saturating_sub(before);
            assert!(growth <= GROWTH_MAX, "grew by {} MiB", growth >> 20);
        };
        let mut held = Vec::new();
        for _ in 0..100 {
            let mut socket = upgrade(&program.address(), "/api/tunnel/nobody").await;
            // Fails if the program closed before everything was written.
            let _ = soon("a reader", socket.write_all(&begun)).await;
            held.push(socket);
            little_is_held();
        }
        for mut socket in held {
            let mut told = Vec::new();
            let _ = soon("the end", socket.read_to_end(&mut told)).await;
            little_is_held();
        }
    }
}
