//! Datagrams through the chain.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod refused;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tunnel_test_support::chain::{Chain, eventually, metric, pattern, serve_udp_echo, udp_echo};
use tunnel_test_support::program::Program;
use tunnel_test_support::{free_udp_port, has_ipv6, soon};

const UDP: [&str; 2] = ["--proto", "udp"];

async fn peer_of(forward: &Program) -> UdpSocket {
    let address: SocketAddr = forward.address().parse().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    socket
}

/// Sends until an answer comes: a datagram may get lost, but not always.
async fn echoed(socket: &UdpSocket, datagram: &[u8]) {
    eventually("an echo", Duration::from_secs(20), || async {
        socket.send(datagram).await.unwrap();
        let mut reply = vec![0; 65_536];
        let received = socket.recv(&mut reply);
        let limit = Duration::from_millis(500);
        let len = tokio::time::timeout(limit, received).await.ok()?.unwrap();
        (reply[..len] == *datagram).then_some(())
    })
    .await;
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
