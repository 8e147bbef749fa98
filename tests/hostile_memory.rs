//! Memory that peers make a program hold stays within its budget, and is freed when they leave.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use futures_util::SinkExt;
use kohakuriver_tunnel::wire::{Kind, Proto};
use tunnel_test_support::chain::{
    CONTAINER, Chain, SilentPort, connect, echo, eventually, expect_echo, service,
};
use tunnel_test_support::client::{Client, frame, session};

const MIB: usize = 1 << 20;

/// The programs' `--memory` in MiB.
const BUDGET: usize = 48;

/// Memory that a program needs in addition: code and tables, buffers in use, memory kept by the
/// allocator.
const BESIDES: usize = 32 * MIB;

/// Requests connections that cannot be made, and sends as much on each as the protocol allows.
async fn flood(mut client: Client, port: u16) -> Client {
    let data = vec![7; 64 << 10];
    let sending = async {
        for id in 1..=80 {
            let mut sent = client
                .feed(frame(Kind::Connect, Proto::Tcp, id, port, b""))
                .await;
            for _ in 0..4 {
                sent = sent.and(
                    client
                        .feed(frame(Kind::Data, Proto::Tcp, id, 0, &data))
                        .await,
                );
            }
            if sent.and(client.flush().await).is_err() {
                return;
            }
        }
    };
    // In v1 it has to stop at some point.
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
    let before = chain.runner.resident();

    let url = format!("ws://{}/api/tunnel/{CONTAINER}", chain.runner.address());
    let mut floods = Vec::new();
    for index in 0..10 {
        let client = session(&url, index % 5 != 0).await;
        floods.push(tokio::spawn(flood(client, silent.port())));
    }
    let mut most = 0;
    while !floods.iter().all(tokio::task::JoinHandle::is_finished) {
        most = most.max(chain.runner.resident());
        expect_echo(&mut beside, b"meanwhile").await;
    }
    println!("{} MiB before, {} MiB at most", before / MIB, most / MIB);
    assert!(
        most <= before + BUDGET * MIB + BESIDES,
        "{} MiB",
        most / MIB
    );
    // A new connection of a client that holds nothing is served too.
    expect_echo(&mut connect(&forward).await, b"new").await;

    for flood in floods {
        drop(flood.await.unwrap());
    }
    eventually(
        "memory is given back",
        Duration::from_secs(20),
        async || (chain.runner.resident() <= before + 16 * MIB).then_some(()),
    )
    .await;
    expect_echo(&mut beside, b"after").await;
}
