//! The small examples `embed_*`, and what README.md shows of them, beside the real programs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tunnel_test_support::chain::{
    CONTAINER, connect, echo, eventually, expect_echo, pattern, service, start_runner,
};
use tunnel_test_support::program::{Program, command};
use tunnel_test_support::relay::Relay;
use tunnel_test_support::{free_port, soon};

const EXIT: Duration = Duration::from_secs(30);

/// A web service of one page, which closes the connection after it.
async fn page(text: &'static str) -> String {
    let serve = move |mut stream: TcpStream| async move {
        let mut request = [0; 1024];
        let len = stream.read(&mut request).await.unwrap();
        assert!(request[..len].starts_with(b"GET / HTTP/1."));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", text.len());
        let answer = format!("{head}Connection: close\r\n\r\n{text}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    service(serve).await.port().to_string()
}

fn start_direct_runner() -> (Program, String) {
    let runner = start_runner("127.0.0.1:0", &["--target", "vm-7=127.0.0.1"]);
    let url = format!("ws://{}/api/tunnel/vm-7", runner.address());
    (runner, url)
}

async fn start_server() -> (Program, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let server = Program::start("embed_server", &[&address]);
    eventually("the server", EXIT, || async {
        TcpStream::connect(&address).await.ok()
    })
    .await;
    (server, format!("ws://{address}/api/tunnel/42"))
}

/// A program without its introduction.
fn code(program: &str) -> String {
    let lines = program
        .lines()
        .skip_while(|line| line.starts_with("//!") || line.is_empty());
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_readme_shows_the_shortest_server_and_client() {
    let readme = include_str!("../README.md");
    let server = code(include_str!("../examples/embed_server.rs"));
    let client = code(include_str!("../examples/embed_client.rs"));
    for program in [&server, &client] {
        assert!(program.lines().count() <= 25, "too many lines:\n{program}");
    }
    let [server, client] = [server, client].map(|program| {
        let block = format!("```rust,no_run\n{program}```\n");
        readme
            .find(&block)
            .unwrap_or_else(|| panic!("README.md has not:\n{block}"))
    });
    assert!(server < client, "the server comes first");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_gets_a_page_through_the_runner() {
    let (_runner, url) = start_direct_runner();
    let port = page("hello from vm-7\n").await;
    let mut client = Program::start("embed_client", &[&url, &port]);
    client.line("hello from vm-7");
    assert_eq!(client.exit(EXIT), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_says_what_the_runner_refused() {
    let runner = start_runner("127.0.0.1:0", &[]);
    let url = format!("ws://{}/api/tunnel/{CONTAINER}", runner.address());
    let mut client = Program::start("embed_client", &[&url, "8080"]);
    client.complaint(&format!("no agent is connected for {CONTAINER}"));
    assert_eq!(client.exit(EXIT), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_reaches_services_through_the_server() {
    let (_server, url) = start_server().await;
    let service = service(echo).await.port().to_string();
    let forward = Program::start(
        "forward",
        &[
            "--host",
            &url,
            "--remote-port",
            &service,
            "--local-port",
            "0",
        ],
    );
    // Several connections at once, more than a window on each.
    let echoes = (0..4).map(|seed| {
        let connected = connect(&forward);
        async move {
            let mut stream = connected.await;
            for _ in 0..10 {
                expect_echo(&mut stream, &pattern(seed, 64 << 10)).await;
            }
        }
    });
    futures_util::future::join_all(echoes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_without_a_service_is_not_accepted() {
    let (_server, url) = start_server().await;
    let nothing = free_port().to_string();
    let mut client = Program::start("embed_client", &[&url, &nothing]);
    client.complaint("not accepted");
    assert_eq!(client.exit(EXIT), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hyper_and_tonic_reach_their_services_through_the_runner() {
    let (_runner, url) = start_direct_runner();
    let web = page("hello over hyper\n").await;
    let (reporter, health) = tonic_health::server::health_reporter();
    // Not `tonic::transport::Server`: its features would make the static agent larger.
    let routes = TowerToHyperService::new(tonic::service::Routes::new(health));
    let serve = move |stream| {
        let server = http2::Builder::new(TokioExecutor::new());
        let connection = server.serve_connection(TokioIo::new(stream), routes.clone());
        async { connection.await.unwrap() }
    };
    let grpc = service(serve).await.port().to_string();

    for (status, word) in [
        (tonic_health::ServingStatus::Serving, "Serving"),
        (tonic_health::ServingStatus::NotServing, "NotServing"),
    ] {
        reporter.set_service_status("", status).await;
        let mut client = Program::start("embed_http", &[&url, &web, &grpc]);
        client.line("hello over hyper");
        assert_eq!(client.line(word), "");
        assert_eq!(client.exit(EXIT), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_driven_by_hand_gets_a_page_through_the_runner() {
    let (_runner, url) = start_direct_runner();
    let port = page("hello without a runtime\n").await;
    let mut client = Program::start("embed_session", &[&url, &port]);
    client.line("hello without a runtime");
    assert_eq!(client.exit(EXIT), 0);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_carries_a_tunnel() {
    let folder = std::env::temp_dir().join(format!("embedded-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("tunnel.sock");
    let path = path.to_str().unwrap().to_owned();
    let server = Program::start("embed_unix", &["serve", &path]);
    server.line("Listening on ");
    let port = service(echo).await.port().to_string();

    let work = tokio::task::spawn_blocking(move || {
        let mut open = command("embed_unix");
        open.args(["open", &path, &port])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = open.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let sent = pattern(7, 3 << 20);
        let writing = sent.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&writing).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        assert!(
            output.stdout == sent,
            "{} of {} bytes",
            output.stdout.len(),
            sent.len()
        );
    });
    soon("the reply", work).await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_the_websockets_between_the_resuming_ends() {
    let address = format!("127.0.0.1:{}", free_port());
    let server = Program::start("embed_resume", &["serve", &address]);
    server.line("Listening on ");
    let relay = Relay::to(&address).await;
    let url = format!("ws://{}/api/tunnel/42", relay.address());
    let port = service(echo).await.port().to_string();
    let mut open = tokio::process::Command::from(command("embed_resume"));
    open.args(["open", &url, &port]).kill_on_drop(true);
    open.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = open.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for round in 1..=3 {
        let sent = pattern(round, 100_000);
        let mut got = vec![0; sent.len()];
        let (wrote, read) = soon("an echo", async {
            tokio::join!(stdin.write_all(&sent), stdout.read_exact(&mut got))
        })
        .await;
        wrote.and(read).unwrap();
        assert!(got == sent, "round {round} differs");
        relay.cut();
    }
    drop(stdin);
    assert!(soon("the end", child.wait()).await.unwrap().success());
    server.line("a tunnel goes on");
}
