//! The chain with TLS on every hop.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use support::chain::{CONTAINER, connect, echo, expect_echo, pattern, service};
use support::program::Program;

/// A folder with `ca.pem`, `cert.pem` and `key.pem` for localhost; removed when dropped.
struct Certificates(PathBuf);

impl Certificates {
    fn new() -> Self {
        let number = std::process::id();
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default().replace(':', "-");
        let folder = std::env::temp_dir().join(format!("chain-tls-{number}-{name}"));
        std::fs::create_dir_all(&folder).unwrap();

        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);

        let key = rcgen::KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap();
        let certificate = certificate.signed_by(&key, &issuer).unwrap();

        for (name, text) in [
            ("ca.pem", ca_certificate.pem()),
            ("cert.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            support::make_private(&path);
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(Path::new(&self.0));
    }
}

#[tokio::test]
async fn every_hop_can_be_encrypted() {
    let files = Certificates::new();
    let (ca, cert, key) = (
        files.path("ca.pem"),
        files.path("cert.pem"),
        files.path("key.pem"),
    );
    let listen = ["--listen", "127.0.0.1:0", "--cert", &cert, "--key", &key];
    let runner = Program::start("runner", &listen);
    let task = format!("42={CONTAINER}@https://{}", runner.address());
    let host = Program::start(
        "host",
        &[&listen[..], &["--ca", &ca, "--task", &task]].concat(),
    );
    let url = format!("wss://{}", runner.address());
    let args = [
        "--runner-url",
        &url,
        "--container-id",
        CONTAINER,
        "--ca",
        &ca,
    ];
    let agent = Program::start("agent", &args);
    agent.complaint("registered at");

    let port = service(echo).await.port().to_string();
    let url = format!("wss://localhost:{}", host.port());
    let args = [
        "42",
        &port,
        "--local-port",
        "0",
        "--host",
        &url,
        "--ca",
        &ca,
    ];
    let forward = Program::start("forward", &args);
    let mut stream = connect(&forward).await;
    for size in [1, 1000, 100_000] {
        expect_echo(&mut stream, &pattern(size as u64, size)).await;
    }
}

#[tokio::test]
async fn a_host_without_a_trusted_certificate_is_not_spoken_to() {
    let files = Certificates::new();
    let (cert, key) = (files.path("cert.pem"), files.path("key.pem"));
    let task = "42=box@http://127.0.0.1:1";
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--cert",
        &cert,
        "--key",
        &key,
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

#[test]
fn unusable_files_are_exit_code_2() {
    for args in [
        &["42", "80", "--ca", "/does/not/exist"][..],
        &["42", "80", "--ca", "/dev/null"],
        &["42", "80", "--cert", "/dev/null"],
    ] {
        let mut forward = Program::start("forward", args);
        assert_eq!(forward.exit(Duration::from_secs(5)), 2, "{args:?}");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(
            forward.stderr().len(),
            1,
            "{args:?}: {:?}",
            forward.stderr()
        );
    }
}
