//! The tokens of clients and agents, through the whole chain.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use tunnel_test_support::LIMIT;
use tunnel_test_support::chain::{CONTAINER, connect, echo, expect_echo, metric, service};
use tunnel_test_support::client;
use tunnel_test_support::program::Program;

#[tokio::test]
async fn one_token_opens_the_whole_chain() {
    let token = [("KOHAKURIVER_TUNNEL_TOKEN", "s3cret-of-the-test")];
    let port = service(echo).await.port().to_string();
    let target = format!("{CONTAINER}=127.0.0.1");
    let args = ["--listen", "127.0.0.1:0", "--target", &target];
    let runner = Program::start_with("runner", &args, &token);
    let task = format!("42={CONTAINER}@http://{}", runner.address());
    let host = Program::start_with(
        "host",
        &["--listen", "127.0.0.1:0", "--task", &task],
        &token,
    );
    let url = format!("ws://{}", host.address());
    let args = ["--host", &url, "42", &port, "--local-port", "0"];

    let mut stranger = Program::start("forward", &args);
    assert_eq!(stranger.exit(LIMIT), 3);
    stranger.complaint("401");

    let loud = [token[0], ("RUST_LOG", "trace")];
    let forward = Program::start_with("forward", &args, &loud);
    expect_echo(&mut connect(&forward).await, b"let in").await;
    let log = forward.stderr().join("\n");
    assert!(!log.contains(token[0].1), "the token was logged");
}

/// A user could do nothing about it, and later it may be right.
#[tokio::test]
async fn a_runner_that_refuses_the_hosts_own_token_is_a_failure_that_the_host_logs() {
    let token = |token| [("KOHAKURIVER_TUNNEL_TOKEN", token)];
    let listen = ["--listen", "127.0.0.1:0"];
    let runner = Program::start_with("runner", &listen, &token("of-the-runner"));
    let task = format!("42={CONTAINER}@http://{}", runner.address());
    let args = [&listen[..], &["--task", &task]].concat();
    let host = Program::start_with("host", &args, &token("of-the-host"));
    let url = format!("ws://{}", host.address());
    let args = ["--host", &url, "42", "80", "--local-port", "0"];
    let mut forward = Program::start_with("forward", &args, &token("of-the-host"));
    assert_eq!(forward.exit(LIMIT), 3);
    forward.complaint("the runner does not let the host in");
    host.complaint(&format!(
        "the runner {} does not let this host in: the runner answered HTTP 401",
        runner.address()
    ));
    let failed = "host_sessions_total{outcome=\"unreachable\"}";
    assert_eq!(metric(&host, failed).await, 1);
}

#[tokio::test]
async fn the_tokens_of_clients_and_agents_do_not_stand_for_each_other() {
    let tokens = [
        ("KOHAKURIVER_TUNNEL_TOKEN", "of-clients"),
        ("KOHAKURIVER_TUNNEL_AGENT_TOKEN", "of-agents"),
    ];
    let runner = Program::start_with("runner", &["--listen", "127.0.0.1:0"], &tokens);
    let url = format!("ws://{}", runner.address());
    let agent = |token| {
        let args = ["--runner-url", &url, "--container-id", CONTAINER];
        Program::start_with("agent", &args, &[("KOHAKURIVER_TUNNEL_TOKEN", token)])
    };
    let mut impostor = agent("of-clients");
    assert_eq!(impostor.exit(LIMIT), 3);
    impostor.complaint("401");
    let registered = agent("of-agents");
    registered.complaint("registered at");

    for (token, expected) in [("of-agents", 401), ("of-clients", 101)] {
        let url = format!("{url}/ws/forward/{CONTAINER}/80");
        let header = ("authorization", &*format!("Bearer {token}"));
        let status = match client::upgrade(&url, &[header], 1).await {
            Ok((_, response)) => response.status().as_u16(),
            Err(status) => status,
        };
        assert_eq!(status, expected, "{token}");
    }

    let mut same = tokens;
    same[1].1 = same[0].1;
    let mut runner = Program::start_with("runner", &["--listen", "127.0.0.1:0"], &same);
    assert_eq!(runner.exit(LIMIT), 2);
    let told = runner.complaint("give two different ones");
    assert!(!told.contains(same[0].1), "{told}");
}

#[test]
fn an_empty_token_file_does_not_let_everybody_in() {
    for flag in ["--token-file", "--agent-token-file"] {
        let args = ["--listen", "127.0.0.1:0", flag, "/dev/null"];
        let mut runner = Program::start("runner", &args);
        assert_eq!(runner.exit(LIMIT), 2);
        runner.complaint("/dev/null");
    }
}
