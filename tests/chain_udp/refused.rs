//! Datagrams to a port without a service, or without one yet.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::wire::{Frame, Kind, Proto};
use tokio::net::UdpSocket;
use tokio_tungstenite::accept_async;
use tokio_tungstenite::tungstenite::Message;
use tunnel_test_support::chain::{CONTAINER, Chain, eventually, serve_udp_echo, service};
use tunnel_test_support::client::{self, Client};
use tunnel_test_support::program::Program;
use tunnel_test_support::{free_udp_port, has_ipv6};

use super::peer_of;

/// After a refusal the next datagram must not need a second attempt.
const ONE_TRY: Duration = Duration::from_secs(5);

/// Longer than the time after which the opener of a refused flow is told.
const TOLD: Duration = Duration::from_millis(1500);

/// A forward of a UDP port.
fn forward(chain: &Chain, port: u16) -> Program {
    chain.forward(port, &["--proto", "udp"])
}

/// Sent once, and the answer comes, perhaps after that to an earlier datagram which was sent again
/// meanwhile.
async fn echoed_at_once(socket: &UdpSocket, datagram: &[u8]) {
    socket.send(datagram).await.unwrap();
    let mut reply = [0; 100];
    let received = async {
        loop {
            let len = socket.recv(&mut reply).await.unwrap();
            if reply[..len] == *datagram {
                break;
            }
        }
    };
    let received = tokio::time::timeout(ONE_TRY, received).await;
    received.expect("the datagram was lost");
}

async fn first_after_refusals(chain: &Chain) {
    for address in ["127.0.0.1", "::1"] {
        if address == "::1" && !has_ipv6() {
            continue;
        }
        for refused in 1..=4 {
            let port = free_udp_port();
            let forward = forward(chain, port);
            let socket = peer_of(&forward).await;
            for _ in 0..refused {
                socket.send(b"nobody there").await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let service = UdpSocket::bind((address, port)).await.unwrap();
            let service = tokio::spawn(serve_udp_echo(service));
            echoed_at_once(&socket, b"the first that can arrive").await;
            service.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_first_datagram_after_a_refusal_arrives_through_the_agent() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    first_after_refusals(&chain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_first_datagram_after_a_refusal_arrives_at_a_target_of_two_addresses() {
    let chain = Chain::with_runner(&["--target", &format!("{CONTAINER}=localhost")]);
    first_after_refusals(&chain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_that_restarts_misses_no_datagram_after_it_is_back() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let port = free_udp_port();
    let forward = forward(&chain, port);
    let socket = peer_of(&forward).await;
    for round in 0..4 {
        let service = UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
        let service = tokio::spawn(serve_udp_echo(service));
        echoed_at_once(&socket, b"there").await;
        service.abort();
        let _ = service.await;
        for _ in 0..round {
            socket.send(b"while it is away").await.unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_refused_udp_port_is_one_line_until_it_answers() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let port = free_udp_port();
    let forward = forward(&chain, port);
    let line = format!("port {port}/udp: connection refused");
    // One datagram is enough. Further ones, also from other peers, cause no further lines.
    peer_of(&forward).await.send(b"anybody?").await.unwrap();
    forward.complaint(&line);
    for _ in 0..3 {
        peer_of(&forward).await.send(b"anybody?").await.unwrap();
        tokio::time::sleep(TOLD / 2).await;
    }
    tokio::time::sleep(TOLD).await;
    forward.expect_lines(&line, 1);

    let service = UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
    let service = tokio::spawn(serve_udp_echo(service));
    echoed_at_once(&peer_of(&forward).await, b"there now").await;
    service.abort();
    let _ = service.await;
    peer_of(&forward).await.send(b"gone again?").await.unwrap();
    let again = || async { (forward.lines_with(&line) == 2).then_some(()) };
    eventually("a second line", ONE_TRY, again).await;
}

/// Serves flows in version 1: sends datagrams that begin with "answer" back, and closes a flow at
/// any other, or says nothing.
async fn serve_v1(mut socket: Client, closes: bool) {
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(bytes) = message else {
            continue;
        };
        let frame = Frame::decode(bytes).unwrap();
        let (id, payload) = (frame.id().0, frame.payload());
        let answer = match frame.kind() {
            Kind::Connect => (Kind::Connected, &b""[..]),
            Kind::Data if payload.starts_with(b"answer") => (Kind::Data, payload),
            Kind::Data if closes => (Kind::Close, &b""[..]),
            _ => continue,
        };
        let answer = client::frame(answer.0, Proto::Udp, id, 0, answer.1);
        socket.send(answer).await.unwrap();
    }
}

/// A host of version 1 that serves flows itself.
async fn host_v1(closes: bool) -> String {
    let host = service(move |stream| async move {
        if let Ok(mut socket) = accept_async(stream).await {
            socket.send(Message::text("CONNECTED")).await.unwrap();
            serve_v1(socket, closes).await;
        }
    });
    format!("ws://{}", host.await)
}

/// An agent of version 1 that serves flows itself.
async fn agent_v1(chain: &Chain, closes: bool) {
    let url = format!("ws://{}/ws/tunnel/{CONTAINER}", chain.runner.address());
    let (agent, _) = client::upgrade(&url, &[], 1).await.unwrap();
    tokio::spawn(serve_v1(agent, closes));
}

/// There is one line, and another one once there was an answer.
async fn told_once_until_it_answers(forward: &Program, line: &str) {
    let socket = peer_of(forward).await;
    for _ in 0..3 {
        socket.send(b"anybody?").await.unwrap();
        tokio::time::sleep(TOLD / 2).await;
    }
    forward.complaint(line);
    socket.send(b"nobody?").await.unwrap();
    tokio::time::sleep(ONE_TRY + TOLD).await;
    forward.expect_lines(line, 1);
    assert_eq!(forward.stderr().len(), 1, "{:?}", forward.stderr());

    echoed_at_once(&socket, b"answer").await;
    // Not within the milliseconds of the answer.
    tokio::time::sleep(Duration::from_millis(50)).await;
    peer_of(forward).await.send(b"gone again?").await.unwrap();
    let again = || async { (forward.lines_with(line) == 2).then_some(()) };
    eventually("a second line", 2 * ONE_TRY, again).await;
}

fn forward_of_v1(url: &str) -> Program {
    let words = ["--host", url, "42", "53", "--proto", "udp"];
    let forward = Program::start("forward", &[&words[..], &["--local-port", "0"]].concat());
    forward.address();
    forward
}

const CLOSED: &str = "port 53/udp: closed without an answer";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flow_that_a_part_of_version_1_closes_is_one_line_until_it_answers() {
    let forward = forward_of_v1(&host_v1(true).await);
    told_once_until_it_answers(&forward, CLOSED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flow_that_an_agent_of_version_1_closes_is_one_line_until_it_answers() {
    let chain = Chain::for_agents();
    agent_v1(&chain, true).await;
    told_once_until_it_answers(&forward(&chain, 53), CLOSED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silence_behind_a_part_of_version_1_is_one_line_until_it_answers() {
    let forward = forward_of_v1(&host_v1(false).await);
    let line = "port 53/udp: nothing has come back for 5 s";
    told_once_until_it_answers(&forward, line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_that_never_answers_is_no_fault_in_version_2() {
    let chain = Chain::direct();
    let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let forward = forward(&chain, service.local_addr().unwrap().port());
    let socket = peer_of(&forward).await;
    socket.send(b"a line for the log").await.unwrap();
    tokio::time::sleep(ONE_TRY + TOLD).await;
    assert!(forward.stderr().is_empty(), "{:?}", forward.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_of_version_1_keeps_its_flow_when_its_agent_closes_it() {
    let chain = Chain::for_agents();
    agent_v1(&chain, true).await;
    let mut client = session(&chain, 53, false).await;
    client.send(frame(Kind::Connect, 53, b"")).await.unwrap();
    for _ in 0..2 {
        client.send(frame(Kind::Data, 0, b"x")).await.unwrap();
        let kinds = heard(&mut client).await;
        let mut kinds = kinds.iter().map(Frame::kind);
        assert!(kinds.all(|kind| kind == Kind::Connected));
    }
    client.send(frame(Kind::Data, 0, b"answer")).await.unwrap();
    let answers = heard(&mut client).await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].payload()[..], *b"answer");
}

/// A session for one UDP port, after its `CONNECTED`.
async fn session(chain: &Chain, port: u16, v2: bool) -> Client {
    let url = format!("{}/ws/forward/42/{port}?proto=udp", chain.host_url());
    client::session(&url, v2).await
}

fn frame(kind: Kind, port: u16, payload: &[u8]) -> Message {
    client::frame(kind, Proto::Udp, 1, port, payload)
}

/// Messages received within a while, without measurements of the round trip.
async fn heard(client: &mut Client) -> Vec<Frame> {
    let mut heard = Vec::new();
    let listening = async {
        while let Some(Ok(message)) = client.next().await {
            if let Message::Binary(bytes) = message {
                let frame = Frame::decode(bytes).unwrap();
                if frame.kind() != Kind::Ping {
                    heard.push(frame);
                }
            }
        }
    };
    let _ = tokio::time::timeout(TOLD, listening).await;
    heard
}

async fn outlasts_refusals_in_v1(chain: &Chain) {
    let port = free_udp_port();
    let mut client = session(chain, port, false).await;
    client.send(frame(Kind::Connect, port, b"")).await.unwrap();
    for _ in 0..2 {
        client.send(frame(Kind::Data, 0, b"x")).await.unwrap();
        let kinds = heard(&mut client).await.iter().map(Frame::kind).collect();
        let kinds: Vec<Kind> = kinds;
        assert!(
            kinds.iter().all(|kind| *kind == Kind::Connected),
            "{kinds:?}"
        );
    }
    let service = UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(serve_udp_echo(service));
    client.send(frame(Kind::Data, 0, b"now")).await.unwrap();
    let answers = heard(&mut client).await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].payload()[..], *b"now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_of_version_1_keeps_its_flow_however_often_it_is_refused() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    outlasts_refusals_in_v1(&chain).await;
    outlasts_refusals_in_v1(&Chain::direct()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_of_version_2_is_told_that_its_flow_was_refused_all_along() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let port = free_udp_port();
    let mut client = session(&chain, port, true).await;
    client.send(frame(Kind::Connect, port, b"")).await.unwrap();
    client.send(frame(Kind::Data, 0, b"x")).await.unwrap();
    let told = heard(&mut client).await;
    match &told[..] {
        [Frame::Connected { .. }, Frame::Error { code: 1, .. }] => {}
        other => panic!("{other:?}"),
    }
}
