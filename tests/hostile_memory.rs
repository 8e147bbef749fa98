//! Memory that peers make a program hold stays within its budget, and is freed when they leave.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use futures_util::SinkExt;
use kohakuriver_tunnel::wire::{Kind, Proto};
use tokio::net::UdpSocket;
use tunnel_test_support::chain::{
    CONTAINER, Chain, SilentPort, connect, echo, eventually, expect_echo, expect_metric, service,
};
use tunnel_test_support::client::{Client, frame, session};
use tunnel_test_support::program::Program;

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
    let target = format!("{CONTAINER}=127.0.0.1");
    let memory = BUDGET.to_string();
    let chain = Chain::with_runner(&["--target", &target, "--memory", &memory]);
    held_within_the_budget(&chain, &[&chain.runner]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_an_agent_hold_more_or_the_runner_for_it() {
    let memory = BUDGET.to_string();
    let chain = Chain::with_runner(&["--memory", &memory]);
    let url = format!("ws://{}", chain.runner.address());
    let args = ["--runner-url", &url, "--container-id", CONTAINER];
    let agent = Program::start("agent", &[&args[..], &["--memory", &memory]].concat());
    agent.complaint("registered at");
    held_within_the_budget(&chain, &[&chain.runner, &agent]).await;
}

/// Ten floods, beside a client that behaves.
async fn held_within_the_budget(chain: &Chain, programs: &[&Program]) {
    let silent = SilentPort::open();
    let echo = service(echo).await;
    let forward = chain.forward(echo.port(), &[]);
    let mut beside = connect(&forward).await;
    expect_echo(&mut beside, b"before").await;
    let resident = || programs.iter().map(|program| program.resident());
    let before: Vec<usize> = resident().collect();

    let url = format!("ws://{}/api/tunnel/{CONTAINER}", chain.runner.address());
    let mut floods = Vec::new();
    for index in 0..10 {
        let client = session(&url, index % 5 != 0).await;
        floods.push(tokio::spawn(flood(client, silent.port())));
    }
    while !floods.iter().all(tokio::task::JoinHandle::is_finished) {
        for (now, before) in resident().zip(&before) {
            assert!(now <= before + BUDGET * MIB + BESIDES, "{} MiB", now / MIB);
        }
        expect_echo(&mut beside, b"meanwhile").await;
    }
    // A new connection of a client that holds nothing is served too.
    expect_echo(&mut connect(&forward).await, b"new").await;

    for flood in floods {
        drop(flood.await.unwrap());
    }
    let limit = Duration::from_secs(20);
    eventually("memory is given back", limit, async || {
        let mut pairs = resident().zip(&before);
        let given_back = pairs.all(|(now, before)| now <= before + 16 * MIB);
        given_back.then_some(())
    })
    .await;
    expect_echo(&mut beside, b"after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_keeps_no_long_datagram_that_nobody_answers() {
    let chain = Chain::with_runner(&["--target", &format!("{CONTAINER}=localhost")]);
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let before = chain.runner.resident();
    let url = format!("ws://{}/api/tunnel/{CONTAINER}", chain.runner.address());
    let mut client = session(&url, true).await;
    let datagram = vec![7; 60_000];
    for id in 1..=1000 {
        let connect = frame(Kind::Connect, Proto::Udp, id, port, b"");
        client.feed(connect).await.unwrap();
        let data = frame(Kind::Data, Proto::Udp, id, 0, &datagram);
        client.send(data).await.unwrap();
    }
    let opened = "runner_connections_total{outcome=\"direct_udp\"}";
    expect_metric(&chain.runner, opened, 1000).await;
    eventually("memory is given back", Duration::from_secs(20), || async {
        (chain.runner.resident() <= before + 24 * MIB).then_some(())
    })
    .await;
}
