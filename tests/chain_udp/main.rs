//! Datagrams through the chain.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod refused;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::wire::{Frame, Kind, Proto};
use tokio::net::UdpSocket;
use tokio_tungstenite::tungstenite::Message;
use tunnel_test_support::chain::{
    Chain, echoed, eventually, metric, pattern, serve_udp_echo, udp_echo,
};
use tunnel_test_support::client;
use tunnel_test_support::program::Program;
use tunnel_test_support::{free_udp_port, has_ipv6, soon};

const UDP: [&str; 2] = ["--proto", "udp"];

async fn peer_of(forward: &Program) -> UdpSocket {
    let address: SocketAddr = forward.address().parse().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    socket
}

async fn sizes_come_back(chain: &Chain) {
    let service = udp_echo().await;
    let forward = chain.forward(service.port(), &UDP);
    let socket = peer_of(&forward).await;
    for size in [0, 1, 512, 1472, 9000, 65_507] {
        let datagram = pattern(size as u64, size);
        soon("send", socket.send(&datagram)).await.unwrap();
        let mut reply = vec![0; 65_536];
        let len = soon("echo", socket.recv(&mut reply)).await.unwrap();
        assert!(reply[..len] == datagram, "size {size}: {len} came back");
    }
}

#[tokio::test]
async fn datagrams_of_all_sizes_come_back_whole() {
    sizes_come_back(&Chain::direct()).await;
}

#[tokio::test]
async fn datagrams_of_all_sizes_come_back_whole_through_the_agent() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    sizes_come_back(&chain).await;
}

#[tokio::test]
async fn each_local_peer_has_its_own_flow() {
    let chain = Chain::direct();
    let forward = chain.forward(udp_echo().await.port(), &UDP);
    let mut peers = Vec::new();
    for number in 0..200u64 {
        let socket = peer_of(&forward).await;
        socket.send(&pattern(number, 100)).await.unwrap();
        peers.push((number, socket));
    }
    for (number, socket) in &peers {
        let mut reply = [0; 200];
        let len = soon("echo", socket.recv(&mut reply)).await.unwrap();
        assert!(reply[..len] == pattern(*number, 100), "peer {number}");
    }
}

async fn survives_refusals(chain: &Chain) {
    let port = free_udp_port();
    let forward = chain.forward(port, &UDP);
    let socket = peer_of(&forward).await;
    for _ in 0..5 {
        socket.send(b"nobody there").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let service = UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(serve_udp_echo(service));
    echoed(&socket, b"there now").await;
}

#[tokio::test]
async fn a_refused_datagram_does_not_end_the_flow_and_is_counted() {
    let chain = Chain::direct();
    survives_refusals(&chain).await;
    let name = "runner_datagrams_lost_total{cause=\"refused\"}";
    assert!(metric(&chain.runner, name).await > 0);
}

#[tokio::test]
async fn a_refused_datagram_does_not_end_the_flow_through_the_agent() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    survives_refusals(&chain).await;
}

#[tokio::test]
async fn a_udp_service_on_the_ipv6_loopback_alone_is_reached() {
    if !has_ipv6() {
        return;
    }
    let service = UdpSocket::bind("[::1]:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    tokio::spawn(serve_udp_echo(service));
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let forward = chain.forward(port, &UDP);
    echoed(&peer_of(&forward).await, b"over six").await;
}

/// As many peers, each with a flow.
async fn peers_of(forward: &Program, count: u64) -> Vec<UdpSocket> {
    let mut peers = Vec::new();
    for number in 0..count {
        let socket = peer_of(forward).await;
        echoed(&socket, &pattern(number, 64)).await;
        peers.push(socket);
    }
    peers
}

#[tokio::test]
async fn silent_peers_are_forgotten() {
    let chain = Chain::direct();
    let service = udp_echo().await.port();
    let forward = chain.forward(service, &[UDP[0], UDP[1], "--udp-idle", "1"]);
    let before = descriptors(&chain.runner);
    let peers = peers_of(&forward, 300).await;
    eventually("sockets gone", Duration::from_secs(20), || async {
        (descriptors(&chain.runner) <= before).then_some(())
    })
    .await;
    // A forgotten flow is not refused: the next datagram opens a flow again.
    echoed(&peers[0], b"back again").await;
}

/// Answers with the address of the sender, which is that of the flow.
async fn tell_addresses() -> u16 {
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0; 100];
        while let Ok((_, peer)) = service.recv_from(&mut buffer).await {
            let _ = service.send_to(peer.to_string().as_bytes(), peer).await;
        }
    });
    port
}

async fn told_address(socket: &UdpSocket) -> String {
    socket.send(b"who am I?").await.unwrap();
    let mut reply = [0; 100];
    let len = soon("answer", socket.recv(&mut reply)).await.unwrap();
    String::from_utf8(reply[..len].to_vec()).unwrap()
}

#[tokio::test]
async fn a_peer_that_stays_in_use_is_not_forgotten() {
    let chain = Chain::direct();
    let port = tell_addresses().await;
    let forward = chain.forward(port, &[UDP[0], UDP[1], "--udp-idle", "5"]);
    let socket = peer_of(&forward).await;
    let first = told_address(&socket).await;
    // Together longer than that.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(750)).await;
        assert_eq!(told_address(&socket).await, first, "the flow changed");
    }
}

/// Answers each datagram with this many, `pause` between them.
async fn talkative(answers: u8, pause: Duration) -> u16 {
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0; 100];
        while let Ok((_, peer)) = service.recv_from(&mut buffer).await {
            for number in 0..answers {
                let _ = service.send_to(&[number], peer).await;
                tokio::time::sleep(pause).await;
            }
        }
    });
    port
}

#[tokio::test]
async fn a_peer_that_only_listens_is_not_forgotten() {
    let chain = Chain::direct();
    // Together longer than that, and each pause so much shorter that a slow machine keeps it.
    let port = talkative(10, Duration::from_millis(500)).await;
    let forward = chain.forward(port, &[UDP[0], UDP[1], "--udp-idle", "4"]);
    let socket = peer_of(&forward).await;
    socket.send(b"tell me").await.unwrap();
    for number in 0..10 {
        let mut reply = [0; 2];
        let len = soon("datagram", socket.recv(&mut reply)).await.unwrap();
        assert_eq!(reply[..len], [number]);
    }
}

/// Two flows of a version 1 session for longer than a minute: on the first one nothing comes after
/// a datagram, on the second one only the service sends. `dialler` has their sockets.
async fn a_minute_in_version_1(chain: &Chain, dialler: &Program) {
    const SECONDS: u8 = 64;
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap().port();
    let talkative = talkative(SECONDS, Duration::from_secs(1)).await;
    let url = format!("{}/api/tunnel/42", chain.host_url());
    let mut client = client::session(&url, false).await;
    let idle = dialler.descriptors();
    for (id, port) in [(1, silent), (2, talkative)] {
        for (kind, payload) in [(Kind::Connect, &b""[..]), (Kind::Data, b"tell me")] {
            let message = client::frame(kind, Proto::Udp, id, port, payload);
            client.send(message).await.unwrap();
        }
    }
    let (mut numbers, mut closed) = (Vec::new(), false);
    while numbers.len() < usize::from(SECONDS) {
        let message = soon("a datagram", client.next()).await.unwrap().unwrap();
        let Message::Binary(message) = message else {
            continue;
        };
        match Frame::decode(message).unwrap() {
            Frame::Connected { .. } => {}
            Frame::Data { payload, .. } => numbers.push(payload[0]),
            Frame::Close { id, .. } if id.0 == 1 => closed = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(numbers, (0..SECONDS).collect::<Vec<_>>());
    assert!(closed, "nothing has come for a minute");
    assert_eq!(dialler.descriptors(), idle + 1);
}

/// Clients of version 1 do not close their flows themselves.
#[tokio::test]
async fn a_flow_of_version_1_ends_after_a_minute_without_datagrams() {
    let (direct, through_agent) = (Chain::direct(), Chain::for_agents());
    let agent = through_agent.agent();
    tokio::join!(
        a_minute_in_version_1(&direct, &direct.runner),
        a_minute_in_version_1(&through_agent, &agent),
    );
}

#[tokio::test]
async fn a_peer_may_be_silent_for_longer_than_a_minute() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let port = tell_addresses().await;
    let forward = chain.forward(port, &[UDP[0], UDP[1], "--udp-idle", "300"]);
    let socket = peer_of(&forward).await;
    let first = told_address(&socket).await;
    tokio::time::sleep(Duration::from_secs(62)).await;
    assert_eq!(told_address(&socket).await, first);
}

#[tokio::test]
async fn one_peer_too_many_takes_the_place_of_the_quietest() {
    let chain = Chain::direct();
    let service = udp_echo().await.port();
    let forward = chain.forward(service, &[UDP[0], UDP[1], "--udp-peers", "10"]);
    let before = descriptors(&chain.runner);
    let _peers = peers_of(&forward, 100).await;
    eventually("10 flows", Duration::from_secs(20), || async {
        (descriptors(&chain.runner) <= before + 10).then_some(())
    })
    .await;
}

#[tokio::test]
async fn peers_of_udp_ports_leave_most_streams_to_tcp() {
    let chain = Chain::direct();
    let service = udp_echo().await.port();
    let port = format!("{service}:0/udp");
    let args = ["--host", &chain.host_url(), "42", &port, &port];
    let forward = Program::start("forward", &args);
    let before = descriptors(&chain.runner);
    let _peers = peers_of(&forward, 2500).await;
    // The other port may have as many.
    eventually("2048 flows", Duration::from_secs(20), || async {
        (descriptors(&chain.runner) <= before + 2060).then_some(())
    })
    .await;
}

/// Open file descriptors of a program.
fn descriptors(program: &Program) -> usize {
    let folder = format!("/proc/{}/fd", program.pid());
    std::fs::read_dir(folder).unwrap().count()
}
