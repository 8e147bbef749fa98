//! The listeners of host and runner under connections that try to keep others out.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tunnel_test_support::certificates::Certificates;
use tunnel_test_support::chain::{
    CONTAINER, Chain, connect, echo, eventually, expect_echo, expect_metric, metric, service,
    start_runner,
};
use tunnel_test_support::client::{Client, greeted};
use tunnel_test_support::flood::{Attack, Flood};
use tunnel_test_support::program::Program;
use tunnel_test_support::{LIMIT, soon};

/// Shorter than the time limit of a silent connection, 10 s: a client that gets in by then did not
/// wait for the limit.
const BEFORE_A_TIMEOUT: Duration = Duration::from_secs(8);

const FLOOD: usize = 1200;

/// The beginning of a TLS record of 512 bytes.
const HALF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

const HALF_A_HEAD: &[u8] = b"GET /healthz HTTP/1.1\r\nX: ";

/// A session from 127.0.0.`last` after its first text, or the status of its refusal.
async fn session(program: &Program, path: &str, last: u8) -> Result<(Client, String), u16> {
    greeted(&format!("ws://{}{path}", program.address()), &[], last).await
}

/// Connects five times in a row, each time before the flood's connections time out.
async fn gets_in(program: &Program, path: &str, last: u8) {
    for attempt in 0..5 {
        let session = timeout(BEFORE_A_TIMEOUT, session(program, path, last));
        let (_client, text) = session.await.expect("in time").expect("a session");
        assert_eq!(text, "CONNECTED", "attempt {attempt}");
    }
}

/// The whole answer to a request. The connection ends after it.
async fn answer(program: &Program, request: &str) -> String {
    let mut stream = TcpStream::connect(program.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    soon("the end of the answer", read).await.unwrap();
    answer
}

/// The number of refusals for this cause.
async fn turned_away(program: &Program, cause: &str) -> u64 {
    let page = answer(program, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let label = format!("turned_away_total{{cause=\"{cause}\"}} ");
    let line = page.lines().find_map(|line| line.split_once(&label));
    line.unwrap_or_else(|| panic!("no {label} in {page}"))
        .1
        .parse()
        .unwrap()
}

async fn descriptors_return(program: &Program, idle: usize) {
    eventually("the descriptors' return", LIMIT, || async {
        (program.descriptors() <= idle).then_some(())
    })
    .await;
}

/// A flood against host and runner, while clients connect from the flood's address and from
/// another.
async fn flood(attack: Attack, sources: u8) {
    let port = service(echo).await.port();
    let chain = Chain::direct();
    let to_host = format!("/ws/forward/42/{port}");
    let to_runner = format!("/ws/forward/{CONTAINER}/{port}");
    for (program, path) in [(&chain.host, to_host), (&chain.runner, to_runner)] {
        gets_in(program, &path, 1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let idle = program.descriptors();
        let flood = Flood::start(&program.address(), FLOOD, sources, attack).await;
        gets_in(program, &path, 1).await;
        gets_in(program, &path, 10).await;
        drop(flood);
        descriptors_return(program, idle).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answered_connections_that_stay_keep_nobody_out() {
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n";
    flood(Attack::Says(request), 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_connections_keep_nobody_out() {
    flood(Attack::Silent, 1).await;
    flood(Attack::Silent, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn slow_requests_keep_nobody_out() {
    flood(Attack::Drips(HALF_A_HEAD), 1).await;
    flood(Attack::Drips(HALF_A_HEAD), 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tls_handshakes_that_stall_keep_no_agent_out() {
    let Certificates { cert, key, .. } = &Certificates::self_signed(&["127.0.0.1"], |_| {});
    let args = ["--listen", "127.0.0.1:0", "--cert", cert, "--key", key];
    let runner = Program::start("runner", &args);
    let url = format!("wss://{}", runner.address());
    for (attack, sources) in [
        (Attack::Silent, 1),
        (Attack::Says(HALF_A_HELLO), 1),
        (Attack::Drips(HALF_A_HELLO), 200),
    ] {
        let idle = runner.descriptors();
        let flood = Flood::start(&runner.address(), FLOOD, sources, attack).await;
        let args = ["--runner-url", &url, "--container-id", "box", "--ca", cert];
        // It tries once, and that must succeed.
        let args = [&args[..], &["--max-reconnect", "1"]].concat();
        for _ in 0..3 {
            let agent = Program::start("agent", &args);
            agent.complaint("registered at");
        }
        drop(flood);
        descriptors_return(&runner, idle).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_displaced_connections_is_counted() {
    let chain = Chain::direct();
    let _flood = Flood::start(&chain.runner.address(), FLOOD, 1, Attack::Silent).await;
    assert!(turned_away(&chain.runner, "displaced").await >= 100);
}

#[tokio::test]
async fn who_is_not_let_in_is_counted_and_logged() {
    let token = [("KOHAKURIVER_TUNNEL_TOKEN", "s3cret")];
    let (listen, task) = (["--listen", "127.0.0.1:0"], "42=box@http://127.0.0.1:1");
    let host = [&listen[..], &["--task", task]].concat();
    for (name, args, path) in [
        ("host", &host[..], "/api/tunnel/42"),
        ("runner", &listen, "/api/tunnel/box"),
        ("runner", &listen, "/ws/tunnel/box"),
    ] {
        let told = |program: &Program| program.complaint("not let in").contains(path);
        let closed = Program::start_with(name, args, &token);
        assert_eq!(session(&closed, path, 1).await.err(), Some(401));
        assert_eq!(turned_away(&closed, "token").await, 1);
        assert!(told(&closed));

        let open = Program::start(name, args);
        let url = format!("ws://{}{path}", open.address());
        let page = greeted(&url, &[("origin", "https://evil.example")], 1).await;
        assert_eq!(page.err(), Some(403));
        assert_eq!(turned_away(&open, "origin").await, 1);
        assert!(told(&open));
    }
}

#[tokio::test]
async fn a_connection_serves_one_request_and_says_so() {
    let chain = Chain::direct();
    for program in [&chain.host, &chain.runner] {
        for path in ["/healthz", "/metrics", "/nothing"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            let answer = answer(program, &request.repeat(2)).await.to_lowercase();
            assert!(answer.contains("connection: close"), "{answer}");
            assert_eq!(answer.matches("http/1.1").count(), 1, "{answer}");
        }
    }
}

#[tokio::test]
async fn a_slow_connection_has_one_deadline_for_everything() {
    let chain = Chain::direct();
    for program in [&chain.host, &chain.runner] {
        let mut stream = TcpStream::connect(program.address()).await.unwrap();
        stream.write_all(HALF_A_HEAD).await.unwrap();
        let closed = async {
            loop {
                if stream.write_all(b"x").await.is_err() {
                    return;
                }
                let mut rest = [0; 16];
                let read = stream.read(&mut rest);
                if let Ok(Ok(0) | Err(_)) = timeout(Duration::from_millis(500), read).await {
                    return;
                }
            }
        };
        soon("its end", closed).await;
        assert_eq!(turned_away(program, "late").await, 1);
    }
}

#[tokio::test]
async fn one_address_has_its_share_of_the_sessions() {
    let port = service(echo).await.port();
    let chain = Chain::direct();
    let task = format!("42={CONTAINER}@http://{}", chain.runner.address());
    let host = |args: &[&str]| {
        let own = ["--listen", "127.0.0.1:0", "--task", &task];
        let host = Program::start("host", &[&own[..], args].concat());
        host.address();
        host
    };
    let path = format!("/ws/forward/42/{port}");
    for (args, share) in [
        (&["--max-per-address", "3"][..], 3),
        (&["--max-sessions", "6"], 3),
        (&["--max-sessions", "8", "--max-per-address", "7"], 4),
    ] {
        let host = host(args);
        let mut sessions = Vec::new();
        for _ in 0..share {
            sessions.push(session(&host, &path, 10).await.unwrap());
        }
        assert_eq!(session(&host, &path, 10).await.err(), Some(503), "{args:?}");
        assert_eq!(session(&host, &path, 10).await.err(), Some(503), "{args:?}");
        assert_eq!(turned_away(&host, "address").await, 2);
        host.complaint("give --proxy 127.0.0.10");
        assert_eq!(host.stderr().len(), 1, "{:?}", host.stderr());
        sessions.push(session(&host, &path, 11).await.unwrap());
        drop(sessions);
        eventually("a place again", LIMIT, || async {
            session(&host, &path, 10).await.ok()
        })
        .await;
    }
    let host = host(&["--max-per-address", "1", "--proxy", "127.0.0.8/29"]);
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(session(&host, &path, 10).await.unwrap());
    }
}

#[tokio::test]
async fn a_tunnel_that_waits_gives_way_to_those_alone_who_may_have_its_place() {
    let port = service(echo).await.port().to_string();
    let args = ["--target", "42=127.0.0.1", "--max-sessions", "2"];
    let runner = start_runner(
        "127.0.0.1:0",
        &[&args[..], &["--max-per-address", "1"]].concat(),
    );
    let url = format!("ws://{}", runner.address());
    let mut forward = Program::start(
        "forward",
        &["--host", &url, "42", &port, "--local-port", "0"],
    );
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"worth keeping").await;
    forward.kill();
    expect_metric(&runner, "runner_tunnels_detached", 1).await;

    let path = format!("/ws/forward/42/{port}");
    let _other = session(&runner, &path, 10).await.unwrap();
    assert_eq!(session(&runner, &path, 10).await.err(), Some(503));
    assert_eq!(metric(&runner, "runner_tunnels_detached").await, 1);
    let _third = session(&runner, &path, 11).await.unwrap();
    assert_eq!(metric(&runner, "runner_tunnels_detached").await, 0);
}

#[tokio::test]
async fn a_runner_gives_all_its_sessions_to_its_host_unless_told_otherwise() {
    let port = service(echo).await.port();
    let target = format!("{CONTAINER}=127.0.0.1");
    let path = format!("/ws/forward/{CONTAINER}/{port}");
    let own = [
        "--listen",
        "127.0.0.1:0",
        "--target",
        &target,
        "--max-sessions",
        "4",
    ];
    for (args, allowed) in [(&[][..], 4), (&["--max-per-address", "1"], 1)] {
        let runner = Program::start("runner", &[&own[..], args].concat());
        let mut sessions = Vec::new();
        while let Ok(session) = session(&runner, &path, 1).await {
            sessions.push(session);
        }
        assert_eq!(sessions.len(), allowed);
    }
}
