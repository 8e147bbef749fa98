//! Certificates and tokens that are replaced while the programs run.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;

use tunnel_test_support::LIMIT;
use tunnel_test_support::certificates::Certificates;
use tunnel_test_support::chain::{
    CONTAINER, agent_at, connect, echo, expect_echo, host_at, service, start_runner,
};
use tunnel_test_support::client;
use tunnel_test_support::files::Folder;
use tunnel_test_support::program::Program;

/// The line about files that cannot be used.
const KEPT: &str = "keeping what was read before";

fn certificates() -> Certificates {
    Certificates::issued(&["localhost", "127.0.0.1"], |_| {})
}

fn runner(listen: &str, files: &Certificates, more: &[&str]) -> Program {
    let Certificates { cert, key, .. } = files;
    start_runner(listen, &[&["--cert", cert, "--key", key], more].concat())
}

#[tokio::test]
async fn a_renewed_certificate_is_served_to_the_next_client() {
    let (old, new) = (certificates(), certificates());
    let target = format!("{CONTAINER}=127.0.0.1");
    let runner = runner("127.0.0.1:0", &old, &["--target", &target]);
    let port = service(echo).await.port();
    let url = format!(
        "wss://{}/ws/forward/{CONTAINER}/{port}?proto=tcp",
        runner.address()
    );
    let forward = |ca: &str| {
        let args = ["--host", &url, "--ca", ca, "--local-port", "0"];
        Program::start("forward", &args)
    };
    let before = forward(&old.ca);
    let mut open = connect(&before).await;
    expect_echo(&mut open, b"with the old one").await;

    fs::copy(&new.cert, &old.cert).unwrap();
    fs::copy(&new.key, &old.key).unwrap();
    let after = forward(&new.ca);
    expect_echo(&mut connect(&after).await, b"with the new one").await;
    assert_eq!(forward(&old.ca).exit(LIMIT), 3);
    expect_echo(&mut open, b"the tunnel goes on").await;
    assert_eq!(before.lines_with("lost the tunnel"), 0);
    runner.complaint(&format!("read {} and {} again", old.cert, old.key));

    // The certificate and the key do not belong together.
    fs::copy(certificates().key, &old.key).unwrap();
    for _ in 0..2 {
        expect_echo(&mut connect(&forward(&new.ca)).await, b"kept").await;
    }
    runner.expect_lines(KEPT, 1);
    let line = runner.complaint(KEPT);
    assert!(line.contains(&old.key), "{line}");
}

#[tokio::test]
async fn a_renewed_authority_is_believed() {
    let (old, new) = (certificates(), certificates());
    let mut first = runner("127.0.0.1:0", &old, &[]);
    let address = first.address();
    let url = format!("wss://{address}");
    let agent = agent_at(&url, &["--ca", &old.ca, "--reconnect-delay", "0.1"]);

    first.kill();
    let second = runner(&address, &new, &[]);
    agent.complaint("is not from an issuer in the file of --ca");
    fs::write(&old.ca, "no certificate").unwrap();
    agent.complaint(KEPT);
    fs::copy(&new.ca, &old.ca).unwrap();
    agent.complaint(&format!("read {} again", old.ca));
    second.complaint("agent registered");
}

#[tokio::test]
async fn servers_demand_a_replaced_token() {
    let folder = Folder::new();
    let write = |name: &str, token: &str| folder.write(name, token, 0o600);
    let key = |digit: &str| "0123456789abcdef".repeat(2) + digit;
    let (clients, agents) = (write("clients", "client-1"), write("agents", "agent-1"));
    let keys = write("key", &key("1"));
    let runner = start_runner(
        "127.0.0.1:0",
        &[
            "--token-file",
            &clients,
            "--agent-token-file",
            &agents,
            "--agent-key-file",
            &keys,
        ],
    );
    let host = host_at(
        "127.0.0.1:0",
        &runner.address(),
        &["--token-file", &clients],
    );
    let status = async |program: &Program, path: &str, token: &str| {
        let url = format!("ws://{}{path}", program.address());
        let header = ("authorization", &*format!("Bearer {token}"));
        match client::upgrade(&url, &[header], 1).await {
            Ok((_, response)) => response.status().as_u16(),
            Err(status) => status,
        }
    };
    let own = |key: &str| {
        let environment = [("KOHAKURIVER_TUNNEL_AGENT_KEY", key)];
        Program::start_with("runner", &["agent-token", "box"], &environment).line("")
    };
    let (own_1, own_2) = (own(&key("1")), own(&key("2")));
    let expect = async |client: [u16; 2], agent: [u16; 2], derived: [u16; 2]| {
        let session = format!("/ws/forward/{CONTAINER}/80");
        for (index, token) in ["client-1", "client-2"].into_iter().enumerate() {
            let found = status(&runner, &session, token).await;
            assert_eq!(found, client[index], "runner, {token}");
            let found = status(&host, "/ws/forward/42/80", token).await;
            assert_eq!(found, client[index], "host, {token}");
        }
        for (index, token) in ["agent-1", "agent-2"].into_iter().enumerate() {
            let found = status(&runner, "/ws/tunnel/box", token).await;
            assert_eq!(found, agent[index], "{token}");
        }
        for (index, token) in [&own_1, &own_2].into_iter().enumerate() {
            let found = status(&runner, "/ws/tunnel/box", token).await;
            assert_eq!(found, derived[index], "key {index}");
        }
    };
    expect([101, 401], [101, 401], [101, 401]).await;
    write("clients", "client-2");
    expect([401, 101], [101, 401], [101, 401]).await;
    write("agents", "agent-2");
    write("key", &key("2"));
    expect([401, 101], [401, 101], [401, 101]).await;

    // An empty file lets nobody in, and a token of clients must not be one of agents.
    write("clients", "");
    write("agents", "client-2");
    expect([401, 101], [401, 101], [401, 101]).await;
    assert!(host.complaint(KEPT).contains("is empty"));
    write("clients", "client-2");
    expect([401, 101], [401, 101], [401, 101]).await;
    runner.complaint("the token of the agents is that of the clients");
    for log in [runner.stderr(), host.stderr()] {
        let log = log.join("\n");
        for token in ["client-1", "client-2", "agent-1", "agent-2"] {
            assert!(!log.contains(token), "{log}");
        }
    }
}
