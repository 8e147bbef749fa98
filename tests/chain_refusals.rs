//! What a user sees for impossible requests, and that hostile clients do no harm.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::wire::{Frame, Kind, Proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tunnel_test_support::chain::{
    CONTAINER, Chain, SilentPort, connect, echo, ending, eventually, expect_echo, metric, service,
};
use tunnel_test_support::client::{self, Client, session};
use tunnel_test_support::program::Program;
use tunnel_test_support::{LIMIT, free_port, soon};

/// The next message, skipping measurements of the round trip.
async fn not_a_ping(client: &mut Client) -> Message {
    loop {
        let message = soon("message", client.next()).await.unwrap().unwrap();
        let kind = message.is_binary().then(|| message.clone().into_data()[0]);
        if kind != Some(Kind::Ping as u8) {
            return message;
        }
    }
}

fn frame(kind: Kind, port: u16, payload: &[u8]) -> Message {
    client::frame(kind, Proto::Tcp, 1, port, payload)
}

#[tokio::test]
async fn an_unknown_task_is_exit_code_3_and_the_hosts_reason() {
    let chain = Chain::direct();
    let url = chain.host_url();
    let mut forward = Program::start(
        "forward",
        &["--host", &url, "43", "80", "--local-port", "0"],
    );
    assert_eq!(forward.exit(LIMIT), 3);
    forward.complaint("task 43 is unknown");
    assert_eq!(forward.stderr().len(), 1);
}

#[test]
fn an_agent_of_a_container_that_the_runner_dials_is_told_so() {
    let chain = Chain::direct();
    let url = format!("ws://{}", chain.runner.address());
    let args = ["--runner-url", &url, "--container-id", CONTAINER];
    let mut agent = Program::start("agent", &[&args[..], &["--max-reconnect", "1"]].concat());
    assert_eq!(agent.exit(LIMIT), 3);
    agent.complaint("this runner dials this container itself (--target)");
    chain.runner.complaint("agent not registered: --target");
}

#[test]
fn an_unreachable_host_is_exit_code_3() {
    let url = format!("ws://127.0.0.1:{}", free_port());
    let mut forward = Program::start(
        "forward",
        &["--host", &url, "42", "80", "--local-port", "0"],
    );
    assert_eq!(forward.exit(LIMIT), 3);
    forward.complaint("connection refused");
}

#[test]
fn an_unreachable_runner_is_exit_code_3() {
    let dead = free_port();
    let task = format!("42=box@http://127.0.0.1:{dead}");
    let host = Program::start("host", &["--listen", "127.0.0.1:0", "--task", &task]);
    let url = format!("ws://{}", host.address());
    let mut forward = Program::start(
        "forward",
        &["--host", &url, "42", "80", "--local-port", "0"],
    );
    assert_eq!(forward.exit(LIMIT), 3);
    forward.complaint(&format!("the runner 127.0.0.1:{dead} is unreachable"));
}

#[test]
fn a_container_without_agent_is_exit_code_3() {
    let chain = Chain::for_agents();
    let mut forward = chain.start_forward(80, &[]);
    assert_eq!(forward.exit(LIMIT), 3);
    forward.complaint(&format!("no agent is connected for {CONTAINER}"));
}

/// A host that answers each connection with the same bytes.
async fn host_that_says(answer: &'static [u8]) -> String {
    let address = service(move |mut stream| async move {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let _ = stream.write_all(answer).await;
    });
    format!("ws://{}", address.await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn words_of_the_other_side_do_not_drive_the_terminal() {
    let body =
        "HTTP/1.1 403 No\r\nContent-Length: 23\r\n\r\n\u{1b}]0;pwned\u{7}\u{202e}\u{200f} denied";
    let greeting = service(|stream| async {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        let text = "Error: no\u{1b}[2J\nINFO all is well\u{202e}";
        socket.send(Message::text(text)).await.unwrap();
        let _ = socket.close(None).await;
        while let Some(Ok(_)) = socket.next().await {}
    });
    let greeting = format!("ws://{}", greeting.await);
    for (url, part) in [
        (host_that_says(body.as_bytes()).await, "denied"),
        (greeting, "all is well"),
    ] {
        let args = ["--host", &url, "42", "80", "--local-port", "0"];
        let mut forward = Program::start("forward", &args);
        assert_eq!(forward.exit(LIMIT), 3);
        let told = forward.complaint(part);
        let harmful = |c: char| c.is_control() || ('\u{200e}'..='\u{202e}').contains(&c);
        assert!(!told.contains(harmful), "{told:?}");
        assert_eq!(forward.stderr().len(), 1);
    }
}

#[tokio::test]
async fn a_taken_local_port_is_exit_code_1_and_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let chain = Chain::direct();
    let args = [
        "--host",
        &chain.host_url(),
        "42",
        "80",
        "--local-port",
        &port,
    ];
    let mut forward = Program::start("forward", &args);
    assert_eq!(forward.exit(LIMIT), 1);
    forward.complaint(&format!("127.0.0.1:{port}"));
    assert_eq!(forward.stderr().len(), 1);
}

#[test]
fn the_reason_for_ending_is_logged_as_json_whatever_the_filter() {
    for filter in ["error", "off"] {
        let args = ["42", "80", "--log-format", "json", "--token-file", "/none"];
        let mut forward = Program::start_with("forward", &args, &[("RUST_LOG", filter)]);
        assert_eq!(forward.exit(LIMIT), 2);
        let line = forward.complaint("exit_code").to_lowercase();
        assert!(
            line.starts_with('{') && line.contains("no such file"),
            "{line}"
        );
        assert_eq!(forward.stderr().len(), 1);
    }
}

#[test]
fn help_teaches_by_example() {
    for name in ["forward", "host", "runner", "agent"] {
        let mut program = Program::start(name, &["--help"]);
        assert_eq!(program.exit(LIMIT), 0);
        program.line_with("Examples:");
        program.line_with("Exit codes:");
    }
}

#[tokio::test]
async fn tunnels_that_are_turned_off_say_so() {
    let switch = [("TUNNEL_ENABLED", "False")];
    let target = format!("{CONTAINER}=127.0.0.1");
    let args = ["--listen", "127.0.0.1:0", "--target", &target];
    let runner = Program::start_with("runner", &args, &switch);
    let task = format!("42={CONTAINER}@http://{}", runner.address());
    let host = Program::start("host", &["--listen", "127.0.0.1:0", "--task", &task]);
    let url = format!("ws://{}", host.address());
    let mut forward = Program::start(
        "forward",
        &["--host", &url, "42", "80", "--local-port", "0"],
    );
    assert_eq!(forward.exit(LIMIT), 3);
    forward.complaint("tunnels are turned off on this runner");
}

#[tokio::test]
async fn a_session_opens_only_its_own_port() {
    let (port, other) = (service(echo).await.port(), service(echo).await.port());
    let chain = Chain::direct();
    let url = format!("{}/ws/forward/42/{port}?proto=tcp", chain.host_url());
    let mut client = session(&url, true).await;
    for (id, proto, port_of_other) in [(1, Proto::Tcp, other), (2, Proto::Udp, port)] {
        let connect = client::frame(Kind::Connect, proto, id, port_of_other, b"");
        client.send(connect).await.unwrap();
        let answer = not_a_ping(&mut client).await;
        match Frame::decode(answer.into_data()).unwrap() {
            Frame::Error { text: payload, .. } => {
                let text = String::from_utf8_lossy(&payload).into_owned();
                assert!(
                    text.contains(&format!("for port {port}/tcp only")),
                    "{text}"
                );
            }
            other => panic!("not refused: {other:?}"),
        }
    }
    let denied = "runner_connections_total{outcome=\"denied\"}";
    assert_eq!(metric(&chain.runner, denied).await, 2);
}

#[tokio::test]
async fn a_client_that_knows_only_version_1_is_served() {
    let port = service(echo).await.port();
    let chain = Chain::direct();
    let url = format!("{}/ws/forward/42/{port}", chain.host_url());
    let mut client = session(&url, false).await;
    // As the deployed client does: data at once, with port 0.
    client.send(frame(Kind::Connect, port, b"")).await.unwrap();
    client
        .send(frame(Kind::Data, 0, b"optimistic"))
        .await
        .unwrap();
    let connected = soon("connected", client.next()).await.unwrap().unwrap();
    assert_eq!(connected.into_data()[0], Kind::Connected as u8);
    let data = soon("data", client.next()).await.unwrap().unwrap();
    assert_eq!(data.into_data()[8..], *b"optimistic");
}

#[tokio::test]
async fn a_hostile_session_harms_only_itself() {
    let port = service(echo).await.port();
    let mut chain = Chain::direct();
    let forward = chain.forward(port, &[]);
    let mut bystander = connect(&forward).await;
    expect_echo(&mut bystander, b"before").await;
    let url = format!("{}/ws/forward/42/{port}", chain.host_url());

    for (what, message) in [
        ("a text in mid-session", Message::text("CONNECTED")),
        ("more than 16 MiB", Message::binary(vec![3; (16 << 20) + 1])),
    ] {
        let mut client = session(&url, true).await;
        let _ = client.send(message).await;
        let ended = async { while let Some(Ok(_)) = client.next().await {} };
        soon(what, ended).await;
        expect_echo(&mut bystander, what.as_bytes()).await;
    }
    for message in [
        Message::binary(&b""[..]),
        Message::binary(&b"\x01\x00\x00"[..]),
        Message::binary(vec![0xff; 8]),
        Message::binary(vec![0x00; 65_536]),
        frame(Kind::Data, 0, b"for nobody"),
        frame(Kind::Connected, 0, b"who asked?"),
        frame(Kind::Connect, 0, b"port 0"),
    ] {
        let mut client = session(&url, true).await;
        let _ = client.send(message).await;
        // Whatever a client did to its own session, the next session works.
        let mut next = connect(&forward).await;
        expect_echo(&mut next, b"and after").await;
        expect_echo(&mut bystander, b"still here").await;
    }
    // Bytes that are not a WebSocket frame, and a truncated frame.
    for bytes in [
        &b"\xff\xff\xff\xff\xff\xff\xff\xff"[..],
        &b"\x82\xfe\x10\x00\x01"[..],
    ] {
        let mut client = session(&url, false).await;
        let stream = client.get_mut();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        ending(stream).await;
        expect_echo(&mut bystander, bytes).await;
    }
    assert!(chain.host.is_running() && chain.runner.is_running());
}

#[tokio::test]
async fn connection_attempts_are_bounded_and_end_with_their_session() {
    let silent = SilentPort::open();
    let chain = Chain::direct();
    let port = service(echo).await.port();
    let forward = chain.forward(port, &[]);
    let url = format!("{}/api/tunnel/42", chain.host_url());
    let mut client = session(&url, true).await;
    let idle = chain.runner.descriptors();
    for id in 1..=1200 {
        let connect = client::frame(Kind::Connect, Proto::Tcp, id, silent.port(), b"");
        client.feed(connect).await.unwrap();
    }
    client.flush().await.unwrap();
    // Half of all connection attempts; the rest is for other sessions.
    eventually("the attempts", LIMIT, || async {
        (chain.runner.descriptors() >= idle + 500).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let attempts = chain.runner.descriptors() - idle;
    assert!(attempts <= 512, "{attempts} attempts");

    drop(client);
    eventually("their end", Duration::from_secs(8), || async {
        (chain.runner.descriptors() < idle).then_some(())
    })
    .await;
    expect_echo(&mut connect(&forward).await, b"a turn again").await;
}

#[tokio::test]
async fn a_runner_that_is_told_to_end_lets_its_connections_finish() {
    let port = service(echo).await.port();
    let mut chain = Chain::direct();
    let url = format!("ws://{}/api/tunnel/{CONTAINER}", chain.runner.address());
    let mut client = session(&url, true).await;
    client.send(frame(Kind::Connect, port, b"")).await.unwrap();
    let connected = not_a_ping(&mut client).await.into_data();
    assert_eq!(connected[0], Kind::Connected as u8);

    chain.runner.signal("TERM");
    let goaway = not_a_ping(&mut client).await.into_data();
    assert_eq!(goaway[0], Kind::GoAway as u8);
    client.send(frame(Kind::Data, 0, b"last")).await.unwrap();
    let data = not_a_ping(&mut client).await.into_data();
    assert_eq!(data[8..], *b"last");
    client.send(frame(Kind::Close, 0, b"")).await.unwrap();
    let close = not_a_ping(&mut client).await.into_data();
    assert_eq!(close[0], Kind::Close as u8);

    match not_a_ping(&mut client).await {
        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("not a close: {other:?}"),
    }
    while let Some(Ok(_)) = soon("the end", client.next()).await {}
    assert_eq!(chain.runner.exit(LIMIT), 0);
}

/// What tunnels have after a signal to end in good order.
const GRACE: Duration = Duration::from_secs(2);

/// The longest time that forward and runner take to end beside a peer that does not answer, from
/// the first signal on.
async fn ending_takes(signals: &[&str]) -> Duration {
    let port = service(echo).await.port();
    let mut chain = Chain::direct();
    let mut forward = chain.forward(port, &[]);
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"in use").await;
    chain.host.signal("STOP");
    let mut longest = Duration::ZERO;
    for program in [&mut forward, &mut chain.runner] {
        let started = Instant::now();
        program.signal("TERM");
        program.complaint("SIGTERM: ending");
        for signal in signals {
            // Until then it has the cause of the first one.
            tokio::time::sleep(Duration::from_millis(300)).await;
            program.signal(signal);
        }
        assert_eq!(program.exit(LIMIT), 0);
        longest = longest.max(started.elapsed());
    }
    longest
}

#[tokio::test]
async fn a_second_signal_ends_it_sooner() {
    let with_one = ending_takes(&[]).await;
    assert!(with_one >= GRACE, "{with_one:?}");
    // A machine may stand still for a while, but not each time.
    for _ in 0..3 {
        if ending_takes(&["INT"]).await < GRACE {
            return;
        }
    }
    panic!("a second signal changes nothing");
}

#[tokio::test]
async fn garbage_instead_of_http_harms_nobody() {
    let port = service(echo).await.port();
    let mut chain = Chain::direct();
    let forward = chain.forward(port, &[]);
    for address in [chain.host.address(), chain.runner.address()] {
        for bytes in [&[0xff; 4096][..], b"GET / HTTP/9.9\r\n\r\n", b"GET /ws/fo"] {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            ending(&mut stream).await;
        }
    }
    expect_echo(&mut connect(&forward).await, b"unharmed").await;
    assert!(chain.host.is_running() && chain.runner.is_running());
}

/// The other side of a version 1 tunnel ends it because its data is not read, and one line says who
/// did not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_end_of_a_tunnel_over_a_pause_is_told_with_whose_pause_it_was() {
    let host = service(|stream| async {
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        socket.send(Message::text("CONNECTED")).await.unwrap();
        let Some(Ok(Message::Binary(connect))) = socket.next().await else {
            panic!("no connection is asked for");
        };
        let Ok(Frame::Connect { id, .. }) = Frame::decode(connect) else {
            panic!("it is not the first message");
        };
        let say = |kind, payload| client::frame(kind, Proto::Tcp, id.0, 80, payload);
        socket.send(say(Kind::Connected, b"")).await.unwrap();
        let data = say(Kind::Data, &[0; 1 << 16]);
        let reading = async { while socket.send(data.clone()).await.is_ok() {} };
        // More than a moment passes in which nothing is read.
        let _ = tokio::time::timeout(Duration::from_secs(5), reading).await;
    });
    let url = format!("ws://{}", host.await);
    let args = ["42", "80", "--local-port", "0", "--host", &url];
    let small = ["--v1-buffer", "1", "--v1-reach", "0"];
    let forward = Program::start("forward", &[&args[..], &small].concat());
    let mut app = connect(&forward).await;
    let saying = async {
        // What cannot be sent shows that the tunnel has ended.
        while app.write_all(b"more").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("the end", saying).await;
    let line = forward.complaint("after the application had not read enough for");
    assert!(line.contains("port 80: the tunnel ended"), "{line}");
    forward.expect_lines("had not read enough for", 1);
}
