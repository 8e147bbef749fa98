//! What was revoked while a tunnel had no WebSocket is not resumed.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::ErrorKind;

use kohakuriver_tunnel::resume::OFFER;
use tunnel_test_support::chain::{
    CONTAINER, Chain, agent_at, connect, echo, ending, expect_echo, expect_metric, metric, service,
};
use tunnel_test_support::client::upgrade;
use tunnel_test_support::files::Folder;
use tunnel_test_support::program::Program;
use tunnel_test_support::relay::Relay;

const LONG: [&str; 2] = ["--resume-keep", "3600"];
const EXPIRED: &str = "runner_tunnels_not_resumed_total{cause=\"expired\"}";

/// A host at an address, for the tasks in a file.
fn host_at(address: &str, tasks: &str) -> Program {
    let host = Program::start("host", &["--listen", address, "--tasks", tasks]);
    host.address();
    host
}

/// The host is away while its tasks change. A task in another container is another target, and one
/// that is not there is refused until the tunnel is not kept any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_do_not_go_on_to_a_task_that_is_gone_or_has_moved() {
    let port = service(echo).await.port();
    let folder = Folder::new();
    let targets = ["--target", &format!("{CONTAINER}=127.0.0.1")];
    let moved = ["--target", "moved=127.0.0.1"];
    let mut chain = Chain::with_runner(&[&LONG[..], &targets, &moved].concat());
    let (address, runner) = (chain.host.address(), chain.runner.address());
    let listed = format!("[tasks]\n42 = \"{CONTAINER}@http://{runner}\"\n");
    let elsewhere = format!("[tasks]\n42 = \"moved@http://{runner}\"\n");
    for (keep, tasks, told) in [
        ("3600", &*elsewhere, "connections have ended"),
        ("2", "[tasks]\n", "connections have ended"),
    ] {
        let file = folder.write("tasks.toml", &listed, 0o600);
        chain.host.kill();
        chain.host = host_at(&address, &file);
        let forward = chain.forward(port, &["--resume-keep", keep]);
        let mut stream = connect(&forward).await;
        expect_echo(&mut stream, b"before").await;

        // Nothing else was lost: it would have gone on.
        chain.host.kill();
        chain.host = host_at(&address, &file);
        forward.complaint("the tunnel goes on after ");
        expect_echo(&mut stream, b"still").await;

        chain.host.kill();
        folder.write("tasks.toml", tasks, 0o600);
        chain.host = host_at(&address, &file);
        assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
        forward.complaint(told);
        forward.expect_lines("the tunnel goes on after ", 1);
    }
}

/// An agent whose token is not taken any more does not go on. Its connections end when the runner
/// keeps its tunnel no longer: whoever is refused proves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_that_is_not_let_in_any_more_does_not_go_on() {
    let port = service(echo).await.port();
    let folder = Folder::new();
    let valid = folder.write("valid", "the-agents-token", 0o600);
    let own = folder.write("own", "the-agents-token", 0o600);
    let chain = Chain::with_runner(&["--resume-keep", "3", "--agent-token-file", &valid]);
    let to_runner = Relay::to(&chain.runner.address()).await;
    let url = format!("ws://{}", to_runner.address());
    let mut agent = agent_at(&url, &[&["--token-file", &own], &LONG[..]].concat());
    let forward = chain.forward(port, &LONG);
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"before").await;

    to_runner.cut();
    agent.complaint("the tunnel goes on after ");
    expect_echo(&mut stream, b"still").await;

    folder.write("own", "another-token", 0o600);
    to_runner.cut();
    agent.complaint("401");
    agent.expect_lines("the tunnel goes on after ", 1);
    assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
    assert_eq!(metric(&chain.runner, EXPIRED).await, 1);
    // It tries again after a minute or so, with the token that is there then.
    assert!(agent.is_running());
    let log = agent.stderr().join("\n") + &chain.runner.stderr().join("\n");
    assert!(!log.contains("the-agents-token") && !log.contains("another-token"));
}

/// Anybody can be refused in the name of an agent, also where its own next request comes from.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_refused_stranger_ends_no_tunnel() {
    let port = service(echo).await.port();
    let folder = Folder::new();
    let token = folder.write("token", "the-agents-token", 0o600);
    let chain = Chain::with_runner(&[&LONG[..], &["--agent-token-file", &token]].concat());
    let to_runner = Relay::to(&chain.runner.address()).await;
    let url = format!("ws://{}", to_runner.address());
    let agent = agent_at(&url, &[&["--token-file", &token], &LONG[..]].concat());
    let forward = chain.forward(port, &LONG);
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"before").await;

    to_runner.shut();
    expect_metric(&chain.runner, "runner_tunnels_detached", 1).await;
    let route = format!("ws://{}/ws/tunnel/{CONTAINER}", chain.runner.address());
    let offer = ("sec-websocket-protocol", OFFER);
    for authorization in ["", "Bearer another-token"] {
        let headers = [offer, ("authorization", authorization)];
        let refused = upgrade(&route, &headers, 1).await;
        assert_eq!(refused.err(), Some(401));
    }
    to_runner.cut();
    agent.complaint("the tunnel goes on after ");
    expect_echo(&mut stream, b"after").await;
}
