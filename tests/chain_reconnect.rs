//! `forward` at its start and while the other side is gone: waiting, retrying, reporting.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tunnel_test_support::chain::{
    CONTAINER, Chain, connect, echo, ending, eventually, expect_echo, metric, service,
};
use tunnel_test_support::program::Program;
use tunnel_test_support::{LIMIT, free_port, soon};

const SOON: Duration = Duration::from_secs(5);

/// Refusals slow down the attempts.
const BACK: Duration = Duration::from_secs(40);

/// A host at an address, with one task and its runner.
fn host_at(address: &str, task: &str, runner: &str, environment: &[(&str, &str)]) -> Program {
    let task = format!("{task}={CONTAINER}@http://{runner}");
    let args = ["--listen", address, "--task", &task];
    let host = Program::start_with("host", &args, environment);
    host.address();
    host
}

/// Waits until an application's connection works. Each attempt makes the forward retry sooner.
async fn works_again(local: &str) {
    eventually("an echo", BACK, || async {
        let mut stream = TcpStream::connect(local).await.ok()?;
        stream.write_all(b"hello").await.ok()?;
        let mut reply = [0; 5];
        let read = tokio::time::timeout(SOON, stream.read_exact(&mut reply));
        read.await.ok()?.ok()?;
        (reply == *b"hello").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_task_that_is_unknown_for_a_while_is_told_once_and_outlasted() {
    let port = service(echo).await.port();
    let mut chain = Chain::direct();
    let (address, runner) = (chain.host.address(), chain.runner.address());
    let mut forward = chain.forward(port, &["--wait", "2"]);
    expect_echo(&mut connect(&forward).await, b"before").await;

    chain.host.kill();
    chain.host = host_at(&address, "43", &runner, &[]);
    forward.complaint("task 42 is unknown");
    // Each connection makes the forward retry, waits its time, and is reset with a line of its own.
    for _ in 0..3 {
        let ended = ending(&mut connect(&forward).await).await;
        assert_eq!(ended, Some(ErrorKind::ConnectionReset));
    }
    let line = format!("port {port}: ");
    forward.expect_lines(&line, 3);
    forward.expect_lines("still trying", 1);
    forward.expect_lines("reconnecting to", 1);
    assert!(forward.is_running());

    chain.host.kill();
    chain.host = host_at(&address, "42", &runner, &[]);
    works_again(&forward.address()).await;
    // Nothing was connected, so the tunnel was kept for 10 s at most.
    let over = |line: &&String| line.contains("reconnected to") || line.contains("goes on after");
    let once = || async { (forward.stderr().iter().filter(over).count() == 1).then_some(()) };
    eventually("one line of its end", LIMIT, once).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_token_that_is_not_taken_any_more_does_not_end_a_forward() {
    let port = service(echo).await.port();
    let mut chain = Chain::direct();
    let (address, runner) = (chain.host.address(), chain.runner.address());
    let mut forward = chain.forward(port, &[]);
    chain.host.kill();
    let token = [("KOHAKURIVER_TUNNEL_TOKEN", "s3cret")];
    chain.host = host_at(&address, "42", &runner, &token);
    forward.complaint("HTTP 401");
    assert!(forward.is_running());
    chain.host.kill();
    chain.host = host_at(&address, "42", &runner, &[]);
    works_again(&forward.address()).await;
    forward.expect_lines("HTTP 401", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_reason_of_a_refusal_is_told_once() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let host = service(move |mut stream| {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        async move {
            if matches!(number, 0 | 7..) {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                socket.send(Message::text("CONNECTED")).await.unwrap();
                if number == 0 {
                    let _ = socket.close(None).await;
                }
                while let Some(Ok(_)) = socket.next().await {}
                return;
            }
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let status = [503, 429, 502][number % 3];
            let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let url = format!("ws://{}", host.await);
    let args = ["--host", &url, "42", "80", "--local-port", "0"];
    let forward = Program::start("forward", &args);
    forward.address();
    let hurried = async {
        while asked.load(Ordering::Relaxed) < 8 {
            let _ = TcpStream::connect(forward.address()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("seven tries", hurried).await;
    forward.complaint("reconnected to");
    for status in ["503", "429", "502"] {
        forward.expect_lines(&format!("HTTP {status}"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_task_is_waited_for_at_the_start_where_that_is_asked_for() {
    let port = service(echo).await.port();
    let runner = Chain::direct().runner;
    let address = format!("127.0.0.1:{}", free_port());
    let url = format!("ws://{address}");
    let words = ["--host", &url, "42", &port.to_string(), "--local-port", "0"];
    let forward = Program::start("forward", &[&words[..], &["--wait-for-task"]].concat());
    // First the host is not there, then it does not know the task, and then it does.
    forward.complaint("connection refused; waiting for task 42");
    let mut host = host_at(&address, "43", &runner.address(), &[]);
    forward.complaint("task 42 is unknown; waiting for task 42");
    host.kill();
    let _host = host_at(&address, "42", &runner.address(), &[]);
    // An answer within one of the waits between two attempts.
    forward.line("Listening on ");
    expect_echo(&mut connect(&forward).await, b"worth the wait").await;
    forward.expect_lines("waiting for", 2);
}

#[test]
fn a_local_port_of_another_that_waits_is_told_at_once() {
    let url = format!("ws://127.0.0.1:{}", free_port());
    let port = free_port().to_string();
    let words = ["--host", &url, "42", "80", "--local-port", &port];
    let args = [&words[..], &["--wait-for-task=600"]].concat();
    let first = Program::start("forward", &args);
    first.complaint("waiting for task 42");
    let mut second = Program::start("forward", &args);
    assert_eq!(second.exit(LIMIT), 1);
    second.complaint("address already in use; choose another local port");
}

/// Its connections linger, and belong to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_local_port_with_connections_that_have_ended_is_free() {
    let chain = Chain::direct();
    let service = service(|stream| async move { drop(stream) });
    let (remote, local) = (service.await.port(), free_port().to_string());
    let args = ["--host", &chain.host_url(), "42", &remote.to_string()].map(str::to_owned);
    let args = [&args[..], &["--local-port".to_owned(), local]].concat();
    for _ in 0..3 {
        let mut forward = start(&args);
        // The forward closes first.
        let mut stream = connect(&forward).await;
        assert_eq!(soon("end", stream.read(&mut [0; 1])).await.unwrap(), 0);
        drop(stream);
        forward.signal("TERM");
        assert_eq!(forward.exit(LIMIT), 0);
    }
}

#[test]
fn waiting_at_the_start_has_its_limit() {
    let chain = Chain::direct();
    let url = chain.host_url();
    let words = ["--host", &url, "43", "80", "--local-port", "0"];
    let mut forward = Program::start("forward", &[&words[..], &["--wait-for-task=2"]].concat());
    assert_eq!(forward.exit(LIMIT), 3);
    let told = forward.complaint("no longer waiting for task 43 after 2 s");
    assert!(told.contains("task 43 is unknown"), "{told}");
    assert_eq!(forward.stderr().len(), 2);
}

#[test]
fn a_wrong_token_is_not_waited_out() {
    let token = [("KOHAKURIVER_TUNNEL_TOKEN", "s3cret")];
    let host = host_at("127.0.0.1:0", "42", "127.0.0.1:1", &token);
    let url = format!("ws://{}", host.address());
    let words = ["--host", &url, "42", "80", "--local-port", "0"];
    let mut forward = Program::start("forward", &[&words[..], &["--wait-for-task"]].concat());
    assert_eq!(forward.exit(LIMIT), 3);
    forward.complaint("HTTP 401");
    assert_eq!(forward.stderr().len(), 1);
}

/// The arguments of a forward of these ports, each to any free local port.
fn several(url: &str, ports: &[u16], more: &[&str]) -> Vec<String> {
    let words = ["--host", url, "42"].into_iter().map(str::to_owned);
    let ports = ports.iter().map(|port| format!("{port}:0"));
    let more = more.iter().map(|&word| word.to_owned());
    words.chain(ports).chain(more).collect()
}

fn start(args: &[String]) -> Program {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Program::start("forward", &args)
}

/// The local address for a port of the task.
fn address_of(forward: &Program, port: u16) -> String {
    let line = forward.line_with(&format!("task 42 port {port}"));
    let rest = line.strip_prefix("Listening on ").unwrap();
    rest.split(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn several_ports_share_a_websocket_and_an_outage_is_one_line() {
    let mut chain = Chain::direct();
    let (address, runner) = (chain.host.address(), chain.runner.address());
    let mut ports = Vec::new();
    for _ in 0..8 {
        ports.push(service(echo).await.port());
    }
    let forward = start(&several(&chain.host_url(), &ports, &[]));
    for port in &ports {
        let stream = TcpStream::connect(address_of(&forward, *port)).await;
        expect_echo(&mut stream.unwrap(), b"shared").await;
    }
    assert_eq!(metric(&chain.host, "host_sessions").await, 1);

    chain.host.kill();
    forward.complaint("reconnecting to");
    chain.host = host_at(&address, "42", &runner, &[]);
    forward.complaint("the tunnel goes on after ");
    for port in &ports {
        let stream = TcpStream::connect(address_of(&forward, *port)).await;
        expect_echo(&mut stream.unwrap(), b"shared again").await;
    }
    assert_eq!(metric(&chain.host, "host_sessions").await, 1);
    assert_eq!(forward.stderr().len(), 2, "{:?}", forward.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ports_share_a_websocket_again_after_a_while_without_their_task() {
    let mut chain = Chain::direct();
    let (address, runner) = (chain.host.address(), chain.runner.address());
    let ports = [service(echo).await.port(), service(echo).await.port()];
    let forward = start(&several(&chain.host_url(), &ports, &["--no-resume"]));
    address_of(&forward, ports[1]);
    chain.host.kill();
    chain.host = host_at(&address, "43", &runner, &[]);
    forward.complaint("task 42 is unknown");
    chain.host.kill();
    chain.host = host_at(&address, "42", &runner, &[]);
    for port in ports {
        let local = address_of(&forward, port);
        works_again(&local).await;
    }
    assert_eq!(metric(&chain.host, "host_sessions").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ports_of_both_protocols_share_a_websocket() {
    let chain = Chain::direct();
    let tcp = service(echo).await.port();
    let udp = tunnel_test_support::chain::udp_echo().await.port();
    let url = chain.host_url();
    let udp_word = format!("{udp}:0/udp");
    let forward = start(&several(&url, &[tcp], &[&udp_word]));
    let stream = TcpStream::connect(address_of(&forward, tcp)).await;
    expect_echo(&mut stream.unwrap(), b"tcp").await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address_of(&forward, udp)).await.unwrap();
    socket.send(b"udp").await.unwrap();
    let mut reply = [0; 100];
    let len = soon("echo", socket.recv(&mut reply)).await.unwrap();
    assert_eq!(&reply[..len], b"udp");
    assert_eq!(metric(&chain.host, "host_sessions").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ports_behind_a_deployed_host_have_a_websocket_each_and_an_outage_is_one_line() {
    let (cut, cuts) = tokio::sync::watch::channel(());
    let begun = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&begun);
    let host = service(move |stream| {
        let (mut cut, begun) = (cuts.clone(), Arc::clone(&counter));
        async move {
            #[allow(clippy::result_large_err)] // tungstenite's own
            let known = |request: &Request, response: Response| {
                if request.uri().path().starts_with("/ws/forward/42/") {
                    return Ok(response);
                }
                let mut unknown = ErrorResponse::default();
                *unknown.status_mut() = StatusCode::FORBIDDEN;
                Err(unknown)
            };
            let Ok(mut socket) = accept_hdr_async(stream, known).await else {
                return;
            };
            cut.mark_unchanged();
            begun.fetch_add(1, Ordering::Relaxed);
            socket.send(Message::text("CONNECTED")).await.unwrap();
            tokio::select! {
                _ = cut.changed() => {}
                () = async { while let Some(Ok(_)) = socket.next().await {} } => {}
            }
        }
    });
    let url = format!("ws://{}", host.await);
    let forward = start(&several(&url, &[81, 82, 83, 84, 85, 86, 87, 88], &[]));
    address_of(&forward, 88);
    assert_eq!(begun.load(Ordering::Relaxed), 8);
    cut.send(()).unwrap();
    forward.complaint("reconnecting to");
    forward.complaint("reconnected to");
    assert_eq!(begun.load(Ordering::Relaxed), 16);
    assert_eq!(forward.stderr().len(), 2, "{:?}", forward.stderr());
}
