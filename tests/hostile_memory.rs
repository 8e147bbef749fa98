//! What strangers make a program hold stays within its budget, and goes when they do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::wire::{ClientId, Header, Kind, Proto};
use support::chain::{
    CONTAINER, Chain, SilentPort, connect, echo, eventually, expect_echo, service,
};
use support::program::Program;
use support::soon;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

const MIB: usize = 1 << 20;

/// What the programs are told to keep to, in MiB.
const BUDGET: usize = 48;

/// What a program needs besides: its own code and tables, buffers under way, what the allocator keeps.
const BESIDES: usize = 32 * MIB;

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Bytes of memory that a program has now.
fn resident(program: &Program) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().unwrap() * 1024
}

async fn session(url: &str, v2: bool) -> Client {
    let mut request = url.into_client_request().unwrap();
    if v2 {
        let value = "kohakuriver-tunnel.v2".parse().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", value);
    }
    let (mut client, _) = soon("connect", connect_async(request)).await.unwrap();
    let first = soon("first text", client.next()).await.unwrap().unwrap();
    assert_eq!(first, Message::text("CONNECTED"));
    client
}

fn message(kind: Kind, id: u32, port: u16, len: usize) -> Message {
    let header = Header {
        kind,
        proto: Proto::Tcp,
        id: ClientId(id),
        port,
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(bytes.len() + len, 7);
    Message::binary(bytes)
}

/// Asks for connections that nobody makes and sends as much on each as the protocol lets it.
async fn flood(mut client: Client, port: u16) -> Client {
    let sending = async {
        for id in 1..=80 {
            let mut sent = client.feed(message(Kind::Connect, id, port, 0)).await;
            for _ in 0..4 {
                sent = sent.and(client.feed(message(Kind::Data, id, 0, 64 << 10)).await);
            }
            if sent.and(client.flush().await).is_err() {
                return;
            }
        }
    };
    // Over v1 it has to stop somewhere.
    let _ = tokio::time::timeout(Duration::from_secs(3), sending).await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_for_connections_that_nobody_makes_stays_within_the_budget() {
    let silent = SilentPort::open();
    let echo = service(echo).await;
    let target = format!("{CONTAINER}=127.0.0.1");
    let memory = BUDGET.to_string();
    let chain = Chain::with_runner(&["--target", &target, "--memory", &memory]);
    let forward = chain.forward(echo.port(), &[]);
    let mut beside = connect(&forward).await;
    expect_echo(&mut beside, b"before").await;
    let before = resident(&chain.runner);

    let url = format!("ws://{}/api/tunnel/{CONTAINER}", chain.runner.address());
    let mut floods = Vec::new();
    for index in 0..10 {
        let client = session(&url, index % 5 != 0).await;
        floods.push(tokio::spawn(flood(client, silent.port())));
    }
    let mut most = 0;
    while !floods.iter().all(tokio::task::JoinHandle::is_finished) {
        most = most.max(resident(&chain.runner));
        expect_echo(&mut beside, b"meanwhile").await;
    }
    println!("{} MiB before, {} MiB at most", before / MIB, most / MIB);
    assert!(
        most <= before + BUDGET * MIB + BESIDES,
        "{} MiB",
        most / MIB
    );
    // A new connection of somebody who holds nothing is served too.
    expect_echo(&mut connect(&forward).await, b"new").await;

    for flood in floods {
        drop(flood.await.unwrap());
    }
    eventually(
        "memory is given back",
        Duration::from_secs(20),
        async || (resident(&chain.runner) <= before + 16 * MIB).then_some(()),
    )
    .await;
    expect_echo(&mut beside, b"after").await;
}
