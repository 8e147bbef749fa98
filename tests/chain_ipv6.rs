//! The chain where there is nothing but IPv6: addresses on the command line, in URLs and in
//! certificates.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;

use tokio::net::UdpSocket;
use tunnel_test_support::certificates::Certificates;
use tunnel_test_support::chain::{CONTAINER, connect, echo, expect_echo, serve_udp_echo};
use tunnel_test_support::chain::{agent_at, service_at, start_runner};
use tunnel_test_support::program::Program;
use tunnel_test_support::{has_ipv6, soon};

const ANY: &str = "[::1]:0";

/// Echoes of TCP and UDP through a forward of both.
async fn echoes_come_back(forward: &[&str]) {
    let tcp = service_at(ANY, echo).await.port().to_string();
    let service = UdpSocket::bind(ANY).await.unwrap();
    let udp = service.local_addr().unwrap().port();
    tokio::spawn(serve_udp_echo(service));

    let local = ["42", "--local-host", "::1"];
    let ports = [&format!("{tcp}:0"), &format!("{udp}:0/udp")];
    let words = [forward, &local, &ports.map(String::as_str)].concat();
    let forward = Program::start("forward", &words);
    let of = |line: String| line.split(' ').nth(2).unwrap().to_owned();
    let address: SocketAddr = of(forward.line_with("(tcp)")).parse().unwrap();
    assert!(address.is_ipv6());
    let mut stream = connect(&forward).await;
    assert_eq!(stream.peer_addr().unwrap(), address);
    expect_echo(&mut stream, b"over six").await;

    let address: SocketAddr = of(forward.line_with("(udp)")).parse().unwrap();
    let socket = UdpSocket::bind(ANY).await.unwrap();
    socket.connect(address).await.unwrap();
    socket.send(b"a datagram over six").await.unwrap();
    let mut reply = [0; 64];
    let len = soon("a datagram", socket.recv(&mut reply)).await.unwrap();
    assert_eq!(reply[..len], *b"a datagram over six");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_part_is_reached_over_ipv6() {
    if !has_ipv6() {
        return;
    }
    let target = format!("{CONTAINER}=::1");
    for direct in [true, false] {
        let args = if direct {
            &["--target", &target][..]
        } else {
            &[]
        };
        let runner = start_runner(ANY, args);
        let _agent = (!direct).then(|| {
            let url = format!("ws://{}", runner.address());
            agent_at(&url, &[])
        });
        let task = format!("42={CONTAINER}@http://{}", runner.address());
        let host = Program::start("host", &["--listen", ANY, "--task", &task]);
        let url = format!("ws://{}", host.address());
        echoes_come_back(&["--host", &url]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn certificates_for_ipv6_addresses_are_believed() {
    if !has_ipv6() {
        return;
    }
    let Certificates { cert, key, ca, .. } = &Certificates::issued(&["::1"], |_| {});
    let identity = ["--listen", ANY, "--cert", cert, "--key", key];
    let runner = Program::start("runner", &identity);
    let url = format!("wss://{}", runner.address());
    let _agent = agent_at(&url, &["--ca", ca]);
    let task = format!("42={CONTAINER}@https://{}", runner.address());
    let args = ["--ca", ca, "--task", &task];
    let host = Program::start("host", &[&identity[..], &args].concat());
    let url = format!("wss://{}", host.address());
    echoes_come_back(&["--host", &url, "--ca", ca]).await;
}
