//! The chain with TLS on every hop.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use tunnel_test_support::LIMIT;
use tunnel_test_support::certificates::Certificates;
use tunnel_test_support::chain::{
    CONTAINER, agent_at, connect, echo, expect_echo, pattern, service,
};
use tunnel_test_support::program::Program;

fn certificates() -> Certificates {
    Certificates::issued(&["localhost", "127.0.0.1"], |_| {})
}

#[tokio::test]
async fn every_hop_can_be_encrypted() {
    let Certificates { ca, cert, key, .. } = &certificates();
    let listen = ["--listen", "127.0.0.1:0", "--cert", cert, "--key", key];
    let runner = Program::start("runner", &listen);
    let task = format!("42={CONTAINER}@https://{}", runner.address());
    let host = Program::start(
        "host",
        &[&listen[..], &["--ca", ca, "--task", &task]].concat(),
    );
    let url = format!("wss://{}", runner.address());
    let _agent = agent_at(&url, &["--ca", ca]);

    let port = service(echo).await.port().to_string();
    let url = format!("wss://localhost:{}", host.port());
    let args = ["42", &port, "--local-port", "0", "--host", &url, "--ca", ca];
    let forward = Program::start("forward", &args);
    let mut stream = connect(&forward).await;
    for size in [1, 1000, 100_000] {
        expect_echo(&mut stream, &pattern(size as u64, size)).await;
    }
}

#[tokio::test]
async fn a_host_without_a_trusted_certificate_is_not_spoken_to() {
    let Certificates { cert, key, .. } = &certificates();
    let task = "42=box@http://127.0.0.1:1";
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--cert",
        cert,
        "--key",
        key,
        "--task",
        task,
    ];
    let host = Program::start("host", &args);
    let url = format!("wss://localhost:{}", host.port());
    let mut forward = Program::start(
        "forward",
        &["42", "80", "--local-port", "0", "--host", &url],
    );
    assert_eq!(forward.exit(Duration::from_secs(12)), 3);
    forward.complaint("nobody known here issued its certificate");
    assert_eq!(forward.stderr().len(), 1);
}

/// Where the operating system keeps its roots, as a file or a folder.
#[tokio::test]
async fn roots_of_the_system_are_believed_beside_those_built_in() {
    let Certificates { ca, cert, key, .. } = &certificates();
    let Certificates { ca: other, .. } = &certificates();
    let target = format!("{CONTAINER}=127.0.0.1");
    let runner = ["--listen", "127.0.0.1:0", "--target", &target];
    let runner = Program::start("runner", &runner);
    let task = format!("42={CONTAINER}@http://{}", runner.address());
    let listen = ["--listen", "127.0.0.1:0", "--cert", cert, "--key", key];
    let host = Program::start("host", &[&listen[..], &["--task", &task]].concat());
    let port = service(echo).await.port().to_string();
    let url = format!("wss://localhost:{}", host.port());
    let args = ["42", &port, "--local-port", "0", "--host", &url];

    let system = [
        ("SSL_CERT_FILE", ca.as_str()),
        ("SSL_CERT_DIR", "/dev/null"),
    ];
    let forward = Program::start_with("forward", &args, &system);
    expect_echo(&mut connect(&forward).await, b"through").await;

    // With another authority in its place, nobody known has issued the certificate.
    let system = [
        ("SSL_CERT_FILE", other.as_str()),
        ("SSL_CERT_DIR", "/dev/null"),
    ];
    let mut forward = Program::start_with("forward", &args, &system);
    assert_eq!(forward.exit(Duration::from_secs(12)), 3);
    forward.complaint("nobody known here issued its certificate");
}

/// A network that is away is no news; a host that cannot be used any more is.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reconnect_says_what_is_wrong_with_tls() {
    let Certificates { ca, cert, key, .. } = &certificates();
    let Certificates {
        cert: cert_of_another,
        key: key_of_another,
        ..
    } = &certificates();
    let target = format!("{CONTAINER}=127.0.0.1");
    let runner = Program::start("runner", &["--listen", "127.0.0.1:0", "--target", &target]);
    let task = format!("42={CONTAINER}@http://{}", runner.address());
    let host_at = |address: &str, identity: &[&str]| {
        let args = ["--listen", address, "--task", &task];
        let host = Program::start("host", &[&args[..], identity].concat());
        host.address();
        host
    };
    let own = ["--cert", cert, "--key", key];
    let other = ["--cert", cert_of_another, "--key", key_of_another];
    let mut host = host_at("127.0.0.1:0", &own);
    let (address, url) = (host.address(), format!("wss://localhost:{}", host.port()));
    let port = service(echo).await.port().to_string();
    let args = ["42", &port, "--local-port", "0", "--host", &url, "--ca", ca];
    let forward = Program::start("forward", &args);
    let mut stream = connect(&forward).await;
    for (identity, said) in [
        (&other[..], "is not from an issuer in the file of --ca"),
        (&[], "it speaks no TLS"),
    ] {
        expect_echo(&mut stream, b"before").await;
        host.kill();
        host = host_at(&address, identity);
        let line = forward.complaint(said);
        assert!(line.ends_with("; still trying"), "{line}");
        host.kill();
        host = host_at(&address, &own);
        expect_echo(&mut stream, b"after").await;
    }
    forward.expect_lines("still trying", 2);
    forward.expect_lines("the tunnel goes on after ", 2);
}

#[test]
fn unusable_files_are_exit_code_2() {
    for args in [
        &["42", "80", "--ca", "/does/not/exist"][..],
        &["42", "80", "--ca", "/dev/null"],
        &["42", "80", "--cert", "/dev/null"],
    ] {
        let mut forward = Program::start("forward", args);
        assert_eq!(forward.exit(LIMIT), 2, "{args:?}");
        forward.complaint("forward: ");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(
            forward.stderr().len(),
            1,
            "{args:?}: {:?}",
            forward.stderr()
        );
    }
}
