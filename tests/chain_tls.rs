//! The chain with TLS on every hop.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use tunnel_test_support::certificates::{Certificates, tokio_rustls};
use tunnel_test_support::chain::{
    CONTAINER, agent_at, connect, echo, expect_echo, pattern, service,
};
use tunnel_test_support::program::Program;
use tunnel_test_support::{LIMIT, soon};

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
    assert_eq!(forward.exit(LIMIT), 3);
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
    assert_eq!(forward.exit(LIMIT), 3);
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

/// A TLS server with a certificate, and with a key that need not be that of the certificate.
fn server(
    cert: &str,
    key: &str,
    version: &'static SupportedProtocolVersion,
    clients: Arc<dyn ClientCertVerifier>,
) -> ServerConfig {
    let chain = CertificateDer::pem_file_iter(cert).unwrap();
    let chain = chain.collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let key = ring::sign::any_supported_type(&key).unwrap();
    let identity = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(identity))
}

/// What `forward` asks such a server for, which answers with 404; and how it ends.
async fn asked(server: ServerConfig, args: &[&str]) -> (io::Result<String>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(stream).await?;
        let mut request = [0; 4096];
        let len = stream.read(&mut request).await?;
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        Ok(String::from_utf8_lossy(&request[..len]).into_owned())
    });
    let url = format!("wss://localhost:{port}");
    let own = ["42", "80", "--local-port", "0", "--host", &url];
    let mut forward = Program::start("forward", &[&own[..], args].concat());
    assert_eq!(forward.exit(LIMIT), 3);
    let ending = forward.complaint("forward: ");
    (soon("the server's end", serving).await.unwrap(), ending)
}

/// Anybody can copy a certificate: its key shows whose it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_host_without_the_key_of_its_certificate_is_not_spoken_to() {
    let stranger = certificates();
    let names = ["localhost"];
    for own in [
        Certificates::issued(&names, |_| {}),
        Certificates::self_signed(&names, |_| {}),
    ] {
        let Certificates { cert, ca, key, .. } = &own;
        for version in [&TLS12, &TLS13] {
            for (key, is_own) in [(key, true), (&stranger.key, false)] {
                let server = server(cert, key, version, WebPkiClientVerifier::no_client_auth());
                let (request, ending) = asked(server, &["--ca", ca]).await;
                assert_eq!(request.is_ok(), is_own, "{version:?}: {request:?}");
                assert_eq!(ending.contains("HTTP 404"), is_own, "{ending}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_host_that_wants_a_certificate_of_its_clients_gets_it() {
    let Certificates { cert, ca, key, .. } = &certificates();
    let client = Certificates::issued(&["client"], |_| {});
    for version in [&TLS12, &TLS13] {
        for given in [&["--cert", &*client.cert, "--key", &*client.key][..], &[]] {
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_file(&client.ca).unwrap())
                .unwrap();
            let provider = Arc::new(ring::default_provider());
            let clients =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let server = server(cert, key, version, clients.unwrap());
            let (request, ending) = asked(server, &[&["--ca", ca], given].concat()).await;
            let is_known = !given.is_empty();
            assert_eq!(request.is_ok(), is_known, "{version:?}: {request:?}");
            let expected = match is_known {
                true => "HTTP 404",
                false => "it wants a certificate of this side: give --cert FILE",
            };
            assert!(ending.contains(expected), "{version:?}: {ending}");
        }
    }
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
        assert_eq!(
            forward.stderr().len(),
            1,
            "{args:?}: {:?}",
            forward.stderr()
        );
    }
}
