//! Behind a proxy that is the only way out.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use tunnel_test_support::LIMIT;
use tunnel_test_support::certificates::Certificates;
use tunnel_test_support::chain::{CONTAINER, Chain, connect, echo, expect_echo, host_at, service};
use tunnel_test_support::program::Program;
use tunnel_test_support::relay::Relay;

/// A name that only the proxy knows.
const NAME: &str = "cluster.invalid";

/// `me:s3cret` in base64.
const CREDENTIALS: &str = "Proxy-Authorization: Basic bWU6czNjcmV0";

/// An HTTP proxy that connects every authenticated client to port `to` of this machine.
async fn proxy(to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(join(stream, to));
        }
    });
    port
}

async fn join(stream: TcpStream, to: u16) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        stream.read_line(&mut head).await?;
    }
    let known = head.to_lowercase().contains(&CREDENTIALS.to_lowercase());
    let status = match head.starts_with(&format!("CONNECT {NAME}:")) {
        _ if !known => "407 Proxy Authentication Required",
        false => "403 Forbidden",
        true => "200 Connection established",
    };
    let answer = format!("HTTP/1.1 {status}\r\n\r\n");
    stream.write_all(answer.as_bytes()).await?;
    if status.starts_with("200") {
        let mut out = TcpStream::connect(("127.0.0.1", to)).await?;
        copy_bidirectional(&mut stream, &mut out).await?;
    }
    Ok(())
}

fn forward(host: &str, port: u16, environment: &[(&str, &str)]) -> Program {
    let (url, port) = (format!("ws://{host}:8000"), port.to_string());
    let args = ["42", &port, "--local-port", "0", "--host", &url];
    Program::start_with("forward", &args, environment)
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_and_agent_go_through_the_proxy() {
    let port = service(echo).await.port();
    let chain = Chain::for_agents();
    let to_runner = proxy(chain.runner.port()).await;
    let through = format!("http://me:s3cret@127.0.0.1:{to_runner}");
    let url = format!("ws://{NAME}:8001");
    let args = ["--runner-url", &url, "--container-id", CONTAINER];
    let agent = Program::start_with("agent", &args, &[("ALL_PROXY", &through)]);
    agent.complaint("registered at");

    let to_host = proxy(chain.host.port()).await;
    let through = format!("http://me:s3cret@127.0.0.1:{to_host}");
    let environment = [("http_proxy", &*through), ("RUST_LOG", "trace")];
    let forward = forward(NAME, port, &environment);
    expect_echo(&mut connect(&forward).await, b"through the proxy").await;
    let log = forward.stderr().join("\n");
    assert!(!log.contains("s3cret") && !log.contains("bWU6"), "{log}");
}

/// The proxy sees the name and ciphertext: the certificate is that of the host.
#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_through_the_proxy() {
    let Certificates { ca, cert, key, .. } = &Certificates::issued(&[NAME], |_| {});
    let port = service(echo).await.port().to_string();
    let chain = Chain::direct();
    let identity = ["--cert", cert, "--key", key];
    let host = host_at("127.0.0.1:0", &chain.runner.address(), &identity);
    let proxy = proxy(host.port()).await;
    let through = format!("http://me:s3cret@127.0.0.1:{proxy}");
    let url = format!("wss://{NAME}:8000");
    let args = ["42", &port, "--local-port", "0", "--host", &url, "--ca", ca];
    // That of ws:// is not used.
    let environment = [
        ("HTTPS_PROXY", &*through),
        ("HTTP_PROXY", "http://127.0.0.1:1"),
    ];
    let forward = Program::start_with("forward", &args, &environment);
    expect_echo(&mut connect(&forward).await, b"TLS through the proxy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_proxy_is_away_for_a_while_goes_on() {
    let port = service(echo).await.port();
    let chain = Chain::for_agents();
    let proxy = proxy(chain.runner.port()).await;
    let relay = Relay::to(&format!("127.0.0.1:{proxy}")).await;
    let through = format!("http://me:s3cret@{}", relay.address());
    let url = format!("ws://{NAME}:8001");
    let args = ["--runner-url", &url, "--container-id", CONTAINER];
    let agent = Program::start_with("agent", &args, &[("ALL_PROXY", &through)]);
    agent.complaint("registered at");
    let forward = chain.forward(port, &[]);
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"before").await;

    relay.shut();
    agent.complaint("lost the runner");
    relay.cut();
    agent.complaint("the tunnel goes on after ");
    expect_echo(&mut stream, b"after").await;
    expect_echo(&mut connect(&forward).await, b"a new one").await;
    assert!(relay.begun() > 1, "it went around the proxy");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_refuses_is_said_without_its_password() {
    let proxy = proxy(1).await;
    let with = format!("http://me:s3cret@127.0.0.1:{proxy}");
    let wrong = format!("http://me:wr0ng@127.0.0.1:{proxy}");
    let without = format!("http://127.0.0.1:{proxy}");
    for (host, through, said) in [
        (
            "other.invalid",
            &*with,
            "does not allow connections to other.invalid:8000 (403)",
        ),
        (NAME, &wrong, "does not accept the name and password"),
        (NAME, &without, "wants a name and a password (407)"),
        (NAME, "http://127.0.0.1:1", "cannot be reached"),
    ] {
        let mut forward = forward(host, 80, &[("HTTP_PROXY", through)]);
        let code = tokio::task::block_in_place(|| forward.exit(LIMIT));
        assert_eq!(code, 3, "{said}");
        let line = forward.complaint(said);
        assert!(line.contains("the proxy 127.0.0.1:"), "{line}");
        assert!(
            !line.contains("s3cret") && !line.contains("wr0ng"),
            "{line}"
        );
    }
}

/// What a server answers, piece by piece.
type Answers = &'static [&'static [u8]];

/// A server that gives these answers, one to each thing that a client sends, and closes.
async fn answering(answers: Answers) -> u16 {
    let serve = move |mut stream: TcpStream| async move {
        let mut said = [0; 512];
        for answer in answers {
            let _ = stream.read(&mut said).await;
            let _ = stream.write_all(answer).await;
        }
        let _ = stream.read(&mut said).await;
    };
    service(serve).await.port()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_socks_proxy_refuses_is_said_with_its_cause() {
    let refused: Answers = &[&[5, 0], &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]];
    let no_method: Answers = &[&[5, 0xff]];
    for (login, answers, said) in [
        ("", no_method, "it wants a name and a password: put them"),
        ("me:s3cret@", no_method, "it takes no name and password"),
        ("", &[&[5, 2]], "it wants a name and a password"),
        ("me:s3cret@", &[&[5, 0]], "leave them out of its URL"),
        (
            "me:s3cret@",
            &[&[5, 2], &[1, 1]],
            "does not accept the name and password",
        ),
        (
            "",
            &[b"HTTP/1.1 400 Bad Request\r\n\r\n"],
            "does not answer as a SOCKS5 proxy",
        ),
        (
            "",
            &[&[0, 0x5b, 0, 0, 0, 0, 0, 0]],
            "does not answer as a SOCKS5 proxy",
        ),
        ("", &[], "closed the connection"),
        ("", &[&[5, 0]], "closed the connection"),
        ("", refused, "connection refused"),
    ] {
        let through = format!("socks5h://{login}127.0.0.1:{}", answering(answers).await);
        let mut forward = forward(NAME, 80, &[("ALL_PROXY", &through)]);
        let code = tokio::task::block_in_place(|| forward.exit(LIMIT));
        assert_eq!(code, 3, "{said}");
        let line = forward.complaint(said);
        assert!(line.contains("the proxy 127.0.0.1:"), "{line}");
        assert!(
            !line.contains("s3cret") && !line.contains("SOCKS error"),
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machine_and_named_hosts_are_reached_directly() {
    let port = service(echo).await.port();
    let chain = Chain::direct();
    let dead = [
        ("ALL_PROXY", "http://127.0.0.1:1"),
        ("HTTP_PROXY", "socks://no"),
    ];
    let remote = port.to_string();
    let by_name = format!("ws://localhost:{}", chain.host.port());
    for url in [&chain.host_url(), &by_name] {
        let args = ["42", &remote, "--local-port", "0", "--host", url];
        let direct = Program::start_with("forward", &args, &dead);
        expect_echo(&mut connect(&direct).await, b"direct").await;
    }

    let named = [dead[0], dead[1], ("NO_PROXY", "example.org,.invalid")];
    let mut named = forward(NAME, port, &named);
    let code = tokio::task::block_in_place(|| named.exit(LIMIT));
    assert_eq!(code, 3);
    assert!(!named.complaint(NAME).contains("proxy"));
}

#[test]
fn a_proxy_that_is_none_is_refused_without_its_password() {
    for wrong in [
        "ftp://me:s3cret@x",
        "https://me:s3cret@x",
        "http://me:s3cret@",
    ] {
        for environment in [&[("HTTPS_PROXY", wrong)][..], &[]] {
            let flag = ["42", "80", "--host", "wss://x", "--proxy", wrong];
            let args = if environment.is_empty() {
                &flag[..]
            } else {
                &flag[..4]
            };
            let mut forward = Program::start_with("forward", args, environment);
            assert_eq!(forward.exit(LIMIT), 2, "{wrong}");
            let line = forward.complaint("write http://HOST:PORT");
            assert!(!line.contains("s3cret"), "{line}");
        }
    }
}
