//! The host program between a WebSocket client and a stand-in for a runner.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tunnel_test_support::files::Folder;
use tunnel_test_support::program::Program;
use tunnel_test_support::{LIMIT, free_port, soon};

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

const V2: &str = "kohakuriver-tunnel.v2";

/// A runner that sends the path and headers it received as its first text, and then echoes every
/// message.
async fn echo_runner() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = String::new();
                let accepted = tokio_tungstenite::accept_hdr_async(
                    stream,
                    #[allow(clippy::result_large_err)] // the callback's type is the library's
                    |request: &Request, mut response: Response| {
                        let header = |name: &str| {
                            let value = request.headers().get(name);
                            value
                                .map_or("-", |value| value.to_str().unwrap())
                                .to_owned()
                        };
                        seen = format!(
                            "{} authorization={} extensions={}",
                            request.uri(),
                            header("authorization"),
                            header("sec-websocket-extensions"),
                        );
                        if header("sec-websocket-protocol") != "-" {
                            let name = "sec-websocket-protocol";
                            response.headers_mut().insert(name, V2.parse().unwrap());
                        }
                        Ok(response)
                    },
                )
                .await;
                let Ok(mut socket) = accepted else { return };
                socket.send(Message::text(seen)).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_binary() && socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn host(tasks: &[&str]) -> Program {
    let mut args = vec!["--listen", "127.0.0.1:0"];
    for task in tasks {
        args.extend(["--task", task]);
    }
    Program::start("host", &args)
}

async fn connect(host: &Program, path: &str) -> Client {
    let url = format!("ws://{}{path}", host.address());
    soon("connect", connect_async(url)).await.unwrap().0
}

async fn next(client: &mut Client) -> Message {
    soon("message", client.next()).await.unwrap().unwrap()
}

/// The text and close code of a refused session.
async fn refusal(host: &Program, path: &str) -> (String, CloseCode) {
    let mut client = connect(host, path).await;
    let text = next(&mut client).await.into_text().unwrap().to_string();
    match next(&mut client).await {
        Message::Close(Some(frame)) => (text, frame.code),
        other => panic!("not a close: {other:?}"),
    }
}

/// The first line of the answer to raw bytes.
async fn raw(host: &Program, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(host.address()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = soon("answer", stream.read(&mut answer)).await.unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_session_is_joined_to_the_tasks_runner() {
    let runner = echo_runner().await;
    let host = host(&[&format!("42=kohakuriver-vps-42@http://{runner}")]);
    let url = format!("ws://{}/ws/forward/42/8888?proto=udp", host.address());
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", "Bearer secret".parse().unwrap());
    headers.insert("sec-websocket-protocol", V2.parse().unwrap());
    headers.insert(
        "sec-websocket-extensions",
        "permessage-deflate".parse().unwrap(),
    );
    let (mut client, response) = soon("connect", connect_async(request)).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], V2);

    assert_eq!(
        next(&mut client).await.into_text().unwrap().as_str(),
        "/ws/forward/kohakuriver-vps-42/8888?proto=udp authorization=Bearer secret extensions=-"
    );
    for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20, 5 << 20] {
        let message = Message::binary(vec![size as u8; size]);
        client.send(message.clone()).await.unwrap();
        assert!(next(&mut client).await == message, "size {size}");
    }
    client.close(None).await.unwrap();
    while let Some(Ok(message)) = soon("close", client.next()).await {
        assert!(message.is_close());
    }
    let page = raw(&host, b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert_eq!(page, "HTTP/1.0 200 OK");
}

/// Reads an HTTP head.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("head", stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// The values of `Sec-WebSocket-Protocol` in a head.
fn protocols(head: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for line in head.lines() {
        if let Some((name, value)) = line.split_once(": ") {
            if name.eq_ignore_ascii_case("sec-websocket-protocol") {
                found.push(value);
            }
        }
    }
    found
}

#[tokio::test]
async fn offers_and_choices_of_a_subprotocol_pass_as_they_are() {
    let runner = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = host(&[&format!("42=box@http://{}", runner.local_addr().unwrap())]);
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let both = "kohakuriver-tunnel.v2.resume, kohakuriver-tunnel.v2";
    for (offered, chosen) in [
        (&[][..], &[][..]),
        (&[both], &[]),
        (&[both], &["kohakuriver-tunnel.v2.resume"]),
        (&[both], &[V2]),
        (
            &["kohakuriver-tunnel.v2.resume", "kohakuriver-tunnel.v2"],
            &[V2],
        ),
        (&["a;b=\"c, d\",,e"], &["a;b=\"c"]),
        (&["chat"], &["something else"]),
    ] {
        let mut client = TcpStream::connect(host.address()).await.unwrap();
        let mut request = format!("GET /api/tunnel/42 HTTP/1.1\r\nHost: h\r\n{upgrade}");
        for value in offered {
            request += &format!("Sec-WebSocket-Protocol: {value}\r\n");
        }
        request += "\r\n";
        client.write_all(request.as_bytes()).await.unwrap();
        // The second path is asked for where a deployed runner does not know the first.
        for status in ["404 Not Found", "101 Switching Protocols"] {
            let (mut stream, _) = soon("request", runner.accept()).await.unwrap();
            assert_eq!(protocols(&head(&mut stream).await), offered);
            let mut answer = format!("HTTP/1.1 {status}\r\n");
            if status.starts_with("101") {
                answer += "Connection: Upgrade\r\nUpgrade: websocket\r\n";
                for value in chosen {
                    answer += &format!("Sec-WebSocket-Protocol: {value}\r\n");
                }
            } else {
                answer += "Content-Length: 0\r\n";
            }
            answer += "\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            if status.starts_with("101") {
                let answer = head(&mut client).await;
                assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
                assert_eq!(protocols(&answer), chosen);
                // Raw bytes from here on.
                client.write_all(b"up").await.unwrap();
                stream.write_all(b"down").await.unwrap();
                let mut read = [0; 4];
                soon("down", client.read_exact(&mut read)).await.unwrap();
                assert_eq!(&read, b"down");
                soon("up", stream.read_exact(&mut read[..2])).await.unwrap();
                assert_eq!(&read[..2], b"up");
            }
        }
    }
}

#[tokio::test]
async fn a_web_page_from_elsewhere_opens_nothing_where_no_token_is_demanded() {
    let runner = echo_runner().await;
    let host = host(&[&format!("42=box@http://{runner}")]);
    let real_runner = Program::start("runner", &["--listen", "127.0.0.1:0"]);
    for (server, path) in [
        (&host, "/ws/forward/42/80"),
        (&real_runner, "/ws/forward/box/80"),
        (&real_runner, "/ws/tunnel/box"),
    ] {
        let port = server.port();
        for (host, origin, status) in [
            ("127.0.0.1", "Origin: https://evil.example\r\n", "403"),
            ("127.0.0.1", "Origin: null\r\n", "403"),
            ("127.0.0.1", "Origin: http://127.0.0.1:PORT\r\n", "101"),
            ("localhost", "Origin: http://localhost:PORT\r\n", "101"),
            // It points its name at this server.
            (
                "evil.example",
                "Origin: http://evil.example:PORT\r\n",
                "403",
            ),
            ("127.0.0.1", "", "101"),
            ("host.example", "", "101"),
        ] {
            let origin = origin.replace("PORT", &port.to_string());
            let upgrade = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            );
            let answer = raw(server, format!("{upgrade}{origin}\r\n").as_bytes()).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{path} {origin} {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_session_for_any_port_keeps_its_own_path() {
    let runner = echo_runner().await;
    let host = host(&[&format!("42=box@http://{runner}")]);
    let mut client = connect(&host, "/api/tunnel/42").await;
    let seen = next(&mut client).await.into_text().unwrap();
    assert!(seen.starts_with("/api/tunnel/box "), "{seen}");
}

#[tokio::test]
async fn who_cannot_be_joined_is_told_why() {
    let dead = free_port();
    let host = host(&[&format!("7=box@http://127.0.0.1:{dead}")]);
    let (text, code) = refusal(&host, "/ws/forward/8/80").await;
    assert_eq!(text, "Error: task 8 is unknown");
    assert_eq!(code, CloseCode::Policy);
    let (text, code) = refusal(&host, "/ws/forward/7/80").await;
    let expected = format!("Error: the runner 127.0.0.1:{dead} is unreachable: connection refused");
    assert_eq!((text, code), (expected, CloseCode::Error));
}

#[tokio::test]
async fn bad_requests_get_one_line_and_harm_nobody() {
    let runner = echo_runner().await;
    let host = host(&[&format!("42=box@http://{runner}")]);
    let mut client = connect(&host, "/ws/forward/42/80").await;
    next(&mut client).await;

    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    for (request, expected) in [
        (
            "GET /ws/forward/42/0 HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
        ),
        (
            "GET /ws/forward/42/99999 HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
        ),
        (
            "GET /ws/forward/42/80?proto=sctp HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
        ),
        (
            "GET /ws/forward/4%2f2/80 HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 400",
        ),
        ("GET /nothing HTTP/1.1\r\n\r\n".to_owned(), "HTTP/1.1 404"),
        (
            "GET /ws/forward/42/80 HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 426",
        ),
        (
            format!("POST /ws/forward/42/80 HTTP/1.1\r\n{upgrade}"),
            "HTTP/1.1 405",
        ),
        ("GET /metrics HTTP/1.1\r\n\r\n".to_owned(), "HTTP/1.1 200"),
        ("\0\0\0\0\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        (
            format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000)),
            "HTTP/1.1 431",
        ),
    ] {
        let status = raw(&host, request.as_bytes()).await;
        let shown: String = request.chars().take(60).collect();
        assert!(status.starts_with(expected), "{shown:?}: {status}");
    }
    // Connections that send nothing or part of a request, and then close.
    for half in ["", "GET /ws/forw"] {
        let mut stream = TcpStream::connect(host.address()).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
    }
    client
        .send(Message::binary(&b"still here"[..]))
        .await
        .unwrap();
    assert_eq!(next(&mut client).await.into_data(), &b"still here"[..]);
}

#[tokio::test]
async fn a_connection_that_dies_takes_its_other_half_along() {
    let runner = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = host(&[&format!("42=box@http://{}", runner.local_addr().unwrap())]);
    let url = format!("ws://{}/ws/forward/42/80", host.address());
    let (client, server) = tokio::join!(connect_async(url), async {
        let (stream, _) = runner.accept().await.unwrap();
        tokio_tungstenite::accept_async(stream).await.unwrap()
    });
    let (mut client, server) = (client.unwrap().0, server);
    server.get_ref().set_zero_linger().unwrap();
    drop(server);
    match soon("end", client.next()).await {
        Some(Err(Error::Io(error))) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        other => panic!("expected a reset: {other:?}"),
    }
}

#[tokio::test]
async fn a_task_file_is_read_again_when_it_changes() {
    let runner = echo_runner().await;
    let folder = Folder::new();
    let write = |text: &str| folder.write("tasks.toml", text, 0o600);
    let file = write("[tasks]\n");
    let host = Program::start("host", &["--listen", "127.0.0.1:0", "--tasks", &file]);
    let (text, _) = refusal(&host, "/ws/forward/42/80").await;
    assert_eq!(text, "Error: task 42 is unknown");

    write(&format!("[tasks]\n42 = \"box@http://{runner}\"\n"));
    let mut client = connect(&host, "/ws/forward/42/80").await;
    assert!(next(&mut client).await.is_text());

    write("[tasks\n");
    let mut client = connect(&host, "/ws/forward/42/80").await;
    assert!(next(&mut client).await.is_text());
    host.complaint("keeping what was read before");
}

#[tokio::test]
async fn a_host_with_a_token_demands_it_and_shows_it_to_the_runner() {
    let runner = echo_runner().await;
    let task = format!("42=box@http://{runner}");
    let args = ["--listen", "127.0.0.1:0", "--task", &task];
    let token = [("KOHAKURIVER_TUNNEL_TOKEN", "secret")];
    let host = Program::start_with("host", &args, &token);
    let url = format!("ws://{}/ws/forward/42/80", host.address());
    match soon("refusal", connect_async(&url)).await {
        Err(Error::Http(response)) => {
            assert_eq!(response.status(), 401);
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
        }
        other => panic!("expected 401: {other:?}"),
    }
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", "Bearer secret".parse().unwrap());
    let (mut client, _) = soon("connect", connect_async(request)).await.unwrap();
    let seen = next(&mut client).await.into_text().unwrap();
    assert!(seen.contains("authorization=Bearer secret"), "{seen}");
}

/// A cluster that knows task 42 (running on node `n1`), 43 (stopped), 44 (of another user), 46 (a
/// virtual machine), 47 (no VPS) and 48 (on a node that is offline).
async fn cluster(runner: SocketAddr) -> SocketAddr {
    use axum::extract::Path;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::get;

    let status = |Path(id): Path<String>, headers: HeaderMap| async move {
        if headers
            .get("authorization")
            .is_none_or(|token| token != "Bearer mine")
        {
            return (StatusCode::UNAUTHORIZED, String::new());
        }
        let task = |kind: &str, status: &str, node: &str, backend: &str| {
            let task = format!(
                r#"{{"task_id":"{id}","task_type":"{kind}","status":"{status}",
                   "assigned_node":"{node}","vps_backend":{backend},"vm_ip":null}}"#
            );
            (StatusCode::OK, task)
        };
        match id.as_str() {
            "42" => task("vps", "running", "n1", r#""docker""#),
            "43" => task("vps", "stopped", "n1", r#""docker""#),
            "44" => (StatusCode::FORBIDDEN, String::new()),
            "46" => task("vps", "running", "n1", r#""qemu""#),
            "47" => task("command", "running", "n1", "null"),
            "48" => task("vps", "running", "n2", r#""docker""#),
            _ => (StatusCode::NOT_FOUND, String::new()),
        }
    };
    let nodes = move || async move {
        format!(
            r#"[{{"hostname":"n1","url":"http://{runner}","status":"online","cores":8}},
                {{"hostname":"n2","url":"http://{runner}","status":"offline","cores":8}}]"#
        )
    };
    let app = axum::Router::new()
        .route("/api/status/{id}", get(status))
        .route("/api/nodes", get(nodes));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

#[tokio::test]
async fn the_cluster_decides_who_may_forward_to_what() {
    let runner = echo_runner().await;
    let api = format!("http://{}", cluster(runner).await);
    let host = Program::start("host", &["--listen", "127.0.0.1:0", "--api", &api]);
    let to_runner = "/ws/forward/kohakuriver-vps-42/80?proto=tcp authorization=- ";
    for (task, token, expected) in [
        ("42", "mine", to_runner),
        ("42", "stolen", "401 the cluster wants a valid token"),
        (
            "43",
            "mine",
            "Error: task 43 is not running (it is stopped)",
        ),
        ("44", "mine", "403 task 44 belongs to someone else"),
        ("45", "mine", "Error: task 45 is unknown"),
        ("46", "mine", "/ws/forward/vm-46/80?"),
        ("47", "mine", "/ws/forward/kohakuriver-task-47/80?"),
        ("48", "mine", "Error: the runner n2 of task 48 is offline"),
    ] {
        let url = format!("ws://{}/ws/forward/{task}/80", host.address());
        let mut request = url.into_client_request().unwrap();
        let value = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", value);
        let said = match soon("connect", connect_async(request)).await {
            Ok((mut client, _)) => {
                let said = next(&mut client).await.into_text().unwrap().to_string();
                if said.starts_with("Error: ") {
                    match next(&mut client).await {
                        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Policy),
                        other => panic!("not a close: {other:?}"),
                    }
                }
                said
            }
            Err(Error::Http(answer)) => {
                let body = answer.body().clone().unwrap_or_default();
                let body = String::from_utf8(body).unwrap();
                format!("{} {body}", answer.status().as_u16())
            }
            Err(error) => panic!("{task} {token}: {error}"),
        };
        assert!(said.starts_with(expected), "{task} {token}: {said}");
    }
}

/// Waiting changes nothing about a wrong token.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_waits_for_a_task_that_the_cluster_does_not_let_him_have() {
    let runner = echo_runner().await;
    let api = format!("http://{}", cluster(runner).await);
    let host = Program::start("host", &["--listen", "127.0.0.1:0", "--api", &api]);
    let url = format!("ws://{}", host.address());
    for (task, token, expected) in [
        ("42", "stolen", "HTTP 401: the cluster wants a valid token"),
        ("44", "mine", "HTTP 403: task 44 belongs to someone else"),
    ] {
        for ports in [&["80:0"][..], &["80:0", "81:0"]] {
            let args = [&["--host", &url, task], ports, &["--wait-for-task"]].concat();
            let token = [("KOHAKURIVER_TUNNEL_TOKEN", token)];
            let mut forward = Program::start_with("forward", &args, &token);
            assert_eq!(forward.exit(LIMIT), 3, "{task}");
            forward.complaint(expected);
        }
    }
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    for args in [
        &[][..],
        &["--task", "42"],
        &["--task", "42=box"],
        &["--task", "42=box@ftp://x"],
        &["--listen", "nowhere", "--task", "42=box@http://x"],
        &["--nonsense"],
        &["--tasks", "/does/not/exist.toml"],
    ] {
        let mut host = Program::start("host", args);
        assert_eq!(host.exit(LIMIT), 2, "{args:?}");
        host.complaint("host: ");
        let said = host.stderr();
        assert_eq!(said.len(), 1, "{args:?}: {said:?}");
    }
}

#[test]
fn signals_end_it_well() {
    for signal in ["INT", "TERM"] {
        let mut host = host(&["42=box@http://127.0.0.1:1"]);
        host.address();
        host.signal(signal);
        assert_eq!(host.exit(LIMIT), 0, "{signal}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let args = ["--listen", &address, "--task", "42=box@http://127.0.0.1:1"];
    let mut host = Program::start("host", &args);
    assert_eq!(host.exit(LIMIT), 1);
    host.complaint(&address);
}
