//! A client that opens further tunnels.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tunnel_test_support::chain::{
    Chain, connect, echo, echoed, eventually, expect_echo, expect_metric, host_at, metric, pattern,
    service, udp_echo,
};
use tunnel_test_support::program::Program;
use tunnel_test_support::{LIMIT, soon};

const SESSIONS: &str = "runner_sessions";
const DETACHED: &str = "runner_tunnels_detached";

/// Sends to an echo and verifies what comes back, until it is aborted.
async fn bulk(forward: &Program) -> JoinHandle<()> {
    let stream = connect(forward).await;
    let (mut read, mut write) = stream.into_split();
    let block = pattern(9, 1 << 20);
    let expected = block.clone();
    tokio::spawn(async move {
        let sending = async { while write.write_all(&block).await.is_ok() {} };
        let receiving = async {
            let mut received = vec![0; expected.len()];
            while read.read_exact(&mut received).await.is_ok() {
                assert!(received == expected, "the echo differs");
            }
        };
        tokio::join!(sending, receiving);
        panic!("the connection ended");
    })
}

/// A forward that says when it opens a further tunnel, and which one a connection takes.
fn talkative(chain: &Chain, remote: u16, threads: &str) -> Program {
    let ports = format!("{remote}:0");
    start_talkative(chain, &[&ports, "--threads", threads])
}

fn start_talkative(chain: &Chain, more: &[&str]) -> Program {
    let url = chain.host_url();
    let args = [&["--host", &url, "42"], more].concat();
    Program::start_with("forward", &args, &[("RUST_LOG", "debug")])
}

/// A forward for an echo service of each protocol.
async fn of_both(chain: &Chain, more: &[&str]) -> Program {
    let tcp = format!("{}:0", service(echo).await.port());
    let udp = format!("{}:0/udp", udp_echo().await.port());
    start_talkative(
        chain,
        &[&[&*tcp, &udp, "--threads", "2", "--tunnels", "2"], more].concat(),
    )
}

/// A peer of its UDP port.
async fn udp_peer(forward: &Program) -> UdpSocket {
    let line = forward.line_with("(udp)");
    let address = line.split(' ').nth(2).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    socket
}

/// Until it has a further tunnel. The runner counts the tunnel before the forward can use it.
async fn opened(talkative: &Program) {
    eventually("a further tunnel", LIMIT, || async {
        (talkative.lines_with("another tunnel") > 0).then_some(())
    })
    .await;
}

async fn echoes(forward: &Program) -> TcpStream {
    let mut stream = connect(forward).await;
    expect_echo(&mut stream, b"hello").await;
    stream
}

#[tokio::test]
async fn a_busy_tunnel_gets_a_second_beside_it_until_that_is_idle() {
    let chain = Chain::direct();
    let remote = service(echo).await.port();
    let forward = talkative(&chain, remote, "1");
    let mut first = echoes(&forward).await;
    expect_metric(&chain.runner, SESSIONS, 1).await;

    let bulk = bulk(&forward).await;
    opened(&forward).await;
    let mut second = echoes(&forward).await;
    forward.complaint("tunnel=1");
    assert_eq!(metric(&chain.runner, SESSIONS).await, 2);

    bulk.abort();
    let _ = bulk.await;
    // It has a connection, so it stays.
    tokio::time::sleep(Duration::from_secs(12)).await;
    expect_echo(&mut second, b"still there").await;
    assert_eq!(metric(&chain.runner, SESSIONS).await, 2);
    expect_echo(&mut first, b"and the first too").await;
    drop((first, second));
    expect_metric(&chain.runner, SESSIONS, 1).await;
    assert_eq!(forward.lines_with("lost"), 0, "{:?}", forward.stderr());
}

#[tokio::test]
async fn bulk_does_not_join_a_connection_that_was_there_before() {
    let chain = Chain::direct();
    let forward = talkative(&chain, service(echo).await.port(), "1");
    let mut shell = echoes(&forward).await;
    opened(&forward).await;
    let bulk = bulk(&forward).await;
    forward.complaint("tunnel=1");
    // It is busy by now, and the shell is alone until another one comes.
    tokio::time::sleep(Duration::from_secs(2)).await;
    expect_echo(&mut shell, b"beside it").await;
    forward.expect_lines("tunnel=0", 1);
    drop(echoes(&forward).await);
    forward.expect_lines("tunnel=0", 2);

    assert!(!bulk.is_finished());
    bulk.abort();
    let _ = bulk.await;
    // Empty, it awaits the next ones for as long as the shell is there.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(metric(&chain.runner, SESSIONS).await, 2);
    drop(shell);
    expect_metric(&chain.runner, SESSIONS, 1).await;
}

#[tokio::test]
async fn datagrams_do_not_share_a_tunnel_with_bulk() {
    let chain = Chain::direct();
    let forward = of_both(&chain, &["--udp-idle", "2"]).await;
    let bulk = bulk(&forward).await;
    opened(&forward).await;
    let peer = udp_peer(&forward).await;
    echoed(&peer, b"beside it").await;
    let flow = forward.complaint("flow opened");
    assert!(flow.contains("tunnel=1"), "{flow}");

    bulk.abort();
    let _ = bulk.await;
    // The tunnel stays for the flow, and ends after it.
    for _ in 0..12 {
        echoed(&peer, b"still there").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(metric(&chain.runner, SESSIONS).await, 2);
    forward.expect_lines("flow opened", 1);
    expect_metric(&chain.runner, SESSIONS, 1).await;
    forward.complaint("flow forgotten");
    echoed(&peer, b"back again").await;
}

#[tokio::test]
async fn a_flow_is_opened_again_when_its_tunnel_is_lost() {
    let mut chain = Chain::direct();
    let forward = of_both(&chain, &["--no-resume"]).await;
    let bulk = bulk(&forward).await;
    opened(&forward).await;
    let peer = udp_peer(&forward).await;
    echoed(&peer, b"beside it").await;
    forward.complaint("tunnel=1");
    bulk.abort();
    chain.restart_host();
    echoed(&peer, b"after the loss").await;
    forward.expect_lines("flow opened", 2);
    forward.complaint("others have their own tunnels");
}

#[tokio::test]
async fn the_loss_of_an_empty_tunnel_is_not_told() {
    let mut chain = Chain::direct();
    let port = format!("{}:0", service(echo).await.port());
    let args = [&*port, "--threads", "2", "--no-resume"];
    let mut forward = start_talkative(&chain, &args);
    let shell = echoes(&forward).await;
    opened(&forward).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    chain.restart_host();
    forward.complaint("reconnected to");
    drop(shell);
    forward.signal("TERM");
    assert_eq!(forward.exit(LIMIT), 0);
    forward.expect_lines("others have their own tunnels", 0);
}

#[tokio::test]
async fn with_one_tunnel_there_is_no_second() {
    let chain = Chain::direct();
    let remote = service(echo).await.port();
    let forward = chain.forward(remote, &["--tunnels", "1"]);
    let bulk = bulk(&forward).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(metric(&chain.runner, SESSIONS).await, 1);
    }
    assert!(!bulk.is_finished());
    bulk.abort();
}

#[tokio::test]
async fn all_tunnels_of_a_client_go_on_after_a_loss() {
    let mut chain = Chain::direct();
    let remote = service(echo).await.port();
    let forward = talkative(&chain, remote, "1");
    let bulk = bulk(&forward).await;
    opened(&forward).await;
    let mut second = echoes(&forward).await;

    chain.restart_host();
    forward.complaint("the tunnel goes on");
    expect_echo(&mut second, b"after the loss").await;
    expect_metric(&chain.runner, DETACHED, 0).await;
    assert!(!bulk.is_finished());
    bulk.abort();
    // One line for all of them.
    forward.expect_lines("reconnecting to", 1);
    assert_eq!(metric(&chain.runner, SESSIONS).await, 2);
}

#[tokio::test]
async fn new_connections_do_without_a_second_tunnel_that_is_refused() {
    let chain = Chain::direct();
    let remote = service(echo).await.port();
    let host = host_at(
        "127.0.0.1:0",
        &chain.runner.address(),
        &["--max-sessions", "1"],
    );
    let url = format!("ws://{}", host.address());
    let forward = Program::start(
        "forward",
        &[
            "--host",
            &url,
            "42",
            &remote.to_string(),
            "--local-port",
            "0",
            "--threads",
            "2",
        ],
    );
    let bulk = bulk(&forward).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(soon("an echo beside bulk", echoes(&forward)).await);
    }
    assert_eq!(metric(&chain.runner, SESSIONS).await, 1);
    assert!(!bulk.is_finished());
    bulk.abort();
    assert_eq!(forward.stderr().len(), 0, "{:?}", forward.stderr());
}
