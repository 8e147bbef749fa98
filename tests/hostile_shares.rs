//! One greedy session beside a modest one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::wire::{Header, Kind, Proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tunnel_test_support::LIMIT;
use tunnel_test_support::chain::{
    CONTAINER, Chain, SilentPort, echo, eventually, metric, service, start_agent,
};
use tunnel_test_support::client::{Client, V2, frame, greeted, upgrade};
use tunnel_test_support::flood::{Attack, Flood, connect_from};
use tunnel_test_support::program::Program;

/// Shorter than a connection attempt's time, 10 s: a client served by then did not wait for an
/// attempt to end.
const BEFORE_A_TIMEOUT: Duration = Duration::from_secs(8);

/// A v2 session for any port of the container, or the status of its refusal.
async fn session(runner: &Program) -> Result<Client, u16> {
    let url = format!("ws://{}/api/tunnel/{CONTAINER}", runner.address());
    let (client, text) = greeted(&url, &[V2], 1).await?;
    assert_eq!(text, "CONNECTED");
    Ok(client)
}

fn connect(id: u32, proto: Proto, port: u16) -> Message {
    frame(Kind::Connect, proto, id, port, b"")
}

/// Requests `count` connections and continues to read. The task ends with the session.
async fn greedy(mut client: Client, count: u32, proto: Proto, port: u16) -> Greedy {
    for id in 1..=count {
        client.feed(connect(id, proto, port)).await.unwrap();
        if id % 256 == 0 {
            client.flush().await.unwrap();
        }
    }
    client.flush().await.unwrap();
    Greedy(tokio::spawn(async move {
        while let Some(Ok(_)) = client.next().await {}
    }))
}

/// Ends its session when dropped.
struct Greedy(tokio::task::JoinHandle<()>);

impl Drop for Greedy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Requests one connection; returns whether it was made before others timed out.
async fn is_served(client: &mut Client, id: u32, proto: Proto, port: u16) -> bool {
    client.send(connect(id, proto, port)).await.unwrap();
    let answer = async {
        loop {
            // After a silence there are pings too.
            let Message::Binary(message) = client.next().await.unwrap().unwrap() else {
                continue;
            };
            let header = Header::from_bytes(message[..8].try_into().unwrap());
            match header {
                Ok(Header {
                    kind: Kind::Connected,
                    ..
                }) => return true,
                Ok(Header {
                    kind: Kind::Error, ..
                }) => return false,
                _ => {}
            }
        }
    };
    timeout(BEFORE_A_TIMEOUT, answer).await.unwrap_or(false)
}

async fn descriptors_return(program: &Program, idle: usize) {
    eventually("the descriptors' return", LIMIT, || async {
        (program.descriptors() <= idle).then_some(())
    })
    .await;
}

/// Greedy sessions to a silent port beside one that connects to a service.
async fn dials(chain: &Chain, dialler: &Program, greedy_sessions: usize, each: u32) {
    let port = service(echo).await.port();
    let silent = SilentPort::open();
    let mut modest = session(&chain.runner).await.unwrap();
    assert!(is_served(&mut modest, 1, Proto::Tcp, port).await);
    let idle = (chain.runner.descriptors(), dialler.descriptors());
    let mut all = Vec::new();
    for _ in 0..greedy_sessions {
        let client = session(&chain.runner).await.unwrap();
        all.push(greedy(client, each, Proto::Tcp, silent.port()).await);
    }
    eventually("the flood's attempts", LIMIT, || async {
        (dialler.descriptors() > idle.1 + 400).then_some(())
    })
    .await;
    for id in 2..12 {
        assert!(
            is_served(&mut modest, id, Proto::Tcp, port).await,
            "connection {id}"
        );
    }
    drop(all);
    // The modest session's connections still exist.
    descriptors_return(&chain.runner, idle.0 + 12).await;
    descriptors_return(dialler, idle.1 + 12).await;
}

#[tokio::test]
async fn a_session_towards_a_silent_target_makes_no_other_wait() {
    let chain = Chain::direct();
    dials(&chain, &chain.runner, 1, 1200).await;
    dials(&chain, &chain.runner, 10, 200).await;
}

#[tokio::test]
async fn a_session_towards_a_silent_service_makes_no_other_of_the_container_wait() {
    let chain = Chain::for_agents();
    let agent = start_agent(&chain.runner.address());
    dials(&chain, &agent, 1, 1200).await;
    // As many streams as a tunnel allows.
    dials(&chain, &agent, 1, 16_384).await;
}

/// Two greedy sessions with as many flows as they get, beside one that connects to a service.
async fn flows(chain: &Chain, server: &Program) {
    let port = service(echo).await.port();
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let udp = silent.local_addr().unwrap().port();
    let mut modest = session(&chain.runner).await.unwrap();
    assert!(is_served(&mut modest, 1, Proto::Tcp, port).await);
    let idle = server.descriptors();
    let mut all = Vec::new();
    for least in [6000, 6500] {
        let client = session(&chain.runner).await.unwrap();
        all.push(greedy(client, 16_384, Proto::Udp, udp).await);
        eventually("the flood's flows", LIMIT, || async {
            (server.descriptors() > idle + least).then_some(())
        })
        .await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let opened = server.descriptors() - idle;
    assert!(opened < 7100, "{opened}");
    assert!(is_served(&mut modest, 2, Proto::Udp, udp).await);
    for id in 3..12 {
        assert!(
            is_served(&mut modest, id, Proto::Tcp, port).await,
            "connection {id}"
        );
    }
    drop(all);
    descriptors_return(server, idle + 12).await;
}

#[tokio::test]
async fn flows_leave_ports_of_the_machine() {
    let chain = Chain::direct();
    flows(&chain, &chain.runner).await;
}

#[tokio::test]
async fn flows_leave_ports_of_the_container_and_streams_of_its_agent() {
    let chain = Chain::for_agents();
    let agent = start_agent(&chain.runner.address());
    flows(&chain, &agent).await;
}

/// A runner with few descriptors, which dials the container itself.
fn runner_of_few() -> Program {
    let target = format!("{CONTAINER}=127.0.0.1");
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--target",
        &target,
        "--max-sessions",
        "100",
    ];
    let runner = Program::start_limited("runner", &args, 128);
    runner.complaint("--max-sessions 100 is more than the open files of this process allow");
    runner
}

#[tokio::test]
async fn flows_share_the_descriptors_too() {
    let port = service(echo).await.port();
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let flows_to = silent.local_addr().unwrap().port();
    let runner = runner_of_few();
    let mut modest = session(&runner).await.unwrap();
    let mut greedy = session(&runner).await.unwrap();
    let mut own = 0;
    while is_served(&mut greedy, own + 1, Proto::Udp, flows_to).await {
        own += 1;
    }
    assert!((5..40).contains(&own), "{own} flows");
    let refused = "runner_connections_over_share_total{cause=\"sockets\"}";
    assert_eq!(metric(&runner, refused).await, 1);
    assert!(is_served(&mut modest, 1, Proto::Tcp, port).await);
}

#[tokio::test]
async fn few_descriptors_are_shared_and_some_are_kept_for_agents() {
    let port = service(echo).await.port();
    let runner = runner_of_few();
    let mut modest = session(&runner).await.unwrap();
    let mut greedy_session = session(&runner).await.unwrap();
    let mut own = 0;
    while is_served(&mut greedy_session, own + 1, Proto::Tcp, port).await {
        own += 1;
    }
    assert!((5..40).contains(&own), "{own} connections");
    assert!(is_served(&mut modest, 1, Proto::Tcp, port).await);

    let mut others = Vec::new();
    let refused = loop {
        match session(&runner).await {
            Ok(client) => others.push(client),
            Err(status) => break status,
        }
    };
    assert_eq!(refused, 503);
    let _flood = Flood::start(&runner.address(), 300, 100, Attack::Silent).await;
    assert!(is_served(&mut modest, 2, Proto::Tcp, port).await);
    let url = format!("ws://{}", runner.address());
    for name in ["one", "two", "three"] {
        let args = ["--runner-url", &url, "--container-id", name];
        let agent = Program::start("agent", &args);
        agent.complaint("registered at");
    }
    let complaints = runner.stderr().into_iter();
    let complaints: Vec<_> = complaints
        .filter(|line| line.contains("cannot accept"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

#[test]
fn a_limit_that_is_not_asked_for_is_no_warning() {
    for name in ["runner", "host"] {
        let task = ["--task", "42=box@http://127.0.0.1:1"];
        let own = if name == "host" { &task[..] } else { &[] };
        let args = [&["--listen", "127.0.0.1:0"], own].concat();
        let program = Program::start_limited(name, &args, 64);
        program.address();
        assert!(program.stderr().is_empty(), "{:?}", program.stderr());
    }
}

#[tokio::test]
async fn one_address_cannot_have_all_the_places_of_agents() {
    let args = ["--listen", "127.0.0.1:0", "--max-agents", "9"];
    let runner = Program::start("runner", &args);
    let address = runner.address();
    let register = async |number: usize| {
        let url = format!("ws://{address}/ws/tunnel/fake-{number}");
        upgrade(&url, &[], 10).await.map(|(agent, _)| agent)
    };
    let mut fakes = Vec::new();
    while let Ok(agent) = register(fakes.len()).await {
        fakes.push(agent);
    }
    assert_eq!(fakes.len(), 8);
    let agent = start_agent(&address);
    // A client that reconnects still has its place, more than once.
    for _ in 0..3 {
        let again = register(0).await.unwrap();
        fakes.push(again);
        assert!(register(100).await.is_err());
    }
    drop((fakes, agent));
    eventually("places again", LIMIT, || async { register(100).await.ok() }).await;
}

#[tokio::test]
async fn too_many_open_files_is_one_line_and_passes() {
    let args = ["--listen", "127.0.0.1:0"];
    let usual = Program::start("runner", &args);
    usual.address();
    let files = u32::try_from(usual.descriptors()).unwrap() + 1;
    let runner = Program::start_limited("runner", &args, files);
    let address = runner.address();
    let mut waiting = Vec::new();
    for last in 10..20 {
        waiting.push(connect_from(last, address.parse().unwrap()).await.unwrap());
    }
    runner.complaint("cannot accept connections now: too many open files");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(runner.stderr().len(), 1, "{:?}", runner.stderr());
    drop(waiting);
    eventually("an answer", LIMIT, || async {
        let mut stream = connect_from(1, address.parse().unwrap()).await.ok()?;
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.ok()?;
        (&answer == b"HTTP/1.1 200").then_some(())
    })
    .await;
}
