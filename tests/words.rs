//! Messages to users about failures of TLS or HTTP: one line that says what to do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use tokio_tungstenite::accept_async;
use tunnel_test_support::LIMIT;
use tunnel_test_support::certificates::Certificates;
use tunnel_test_support::certificates::rcgen::{
    self, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose,
};
use tunnel_test_support::certificates::tokio_rustls::rustls::crypto::ring;
use tunnel_test_support::certificates::tokio_rustls::rustls::pki_types::CertificateDer;
use tunnel_test_support::certificates::tokio_rustls::rustls::pki_types::pem::PemObject;
use tunnel_test_support::certificates::tokio_rustls::rustls::server::{
    ClientHello, ResolvesServerCert,
};
use tunnel_test_support::certificates::tokio_rustls::rustls::sign::{
    CertifiedKey, Signer, SigningKey,
};
use tunnel_test_support::certificates::tokio_rustls::rustls::{
    Error, ServerConfig, ServerConnection, SignatureAlgorithm, SignatureScheme,
};
use tunnel_test_support::chain::service;
use tunnel_test_support::files::Folder;
use tunnel_test_support::program::Program;

/// Self-signed certificates for `localhost` that OpenSSL has made: without extensions, signed with
/// SHA-1, and with a short key; and one that the last of them has issued.
const VERSION_1: &str = include_str!("certificates/version1.pem");
const SHA_1: &str = include_str!("certificates/sha1.pem");
const RSA_1024: &str = include_str!("certificates/rsa1024.pem");
const RSA_1024_ISSUED: &str = include_str!("certificates/rsa1024-issued.pem");

/// Of a kind that TLS cannot sign with (X25519).
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEIDCtA1dkoqyiUyReNzTWMmGdB+o/vqqT0lKkC5kL3rRw
-----END PRIVATE KEY-----
";

/// Words that must not appear.
const JARGON: [&str; 13] = [
    "InvalidContentType",
    "CaUsedAsEndEntity",
    "UnknownIssuer",
    "docs.rs",
    "close_notify",
    "invalid HTTP version",
    "os error",
    "Context",
    "Unsupported",
    "Other(",
    "SOCKS error",
    "io error",
    "\\x1b",
];

/// A host with this certificate.
fn host_with(files: &Certificates) -> Program {
    let task = "42=box@http://127.0.0.1:1";
    let identity = ["--cert", &files.cert, "--key", &files.key];
    let args = ["--listen", "127.0.0.1:0", "--task", task];
    Program::start("host", &[&args[..], &identity].concat())
}

fn issued(change: impl Fn(&mut CertificateParams)) -> Certificates {
    Certificates::issued(&["localhost"], change)
}

fn self_signed(change: impl Fn(&mut CertificateParams)) -> Certificates {
    Certificates::self_signed(&["localhost"], change)
}

/// The one line that `forward` prints at its end, without such words.
fn ending(url: &str, more: &[&str]) -> String {
    let args = ["42", "80", "--local-port", "0", "--host", url];
    let mut forward = Program::start("forward", &[&args[..], more].concat());
    assert_eq!(forward.exit(LIMIT), 3);
    forward.complaint("forward: ");
    let lines = forward.stderr();
    assert_eq!(lines.len(), 1, "{lines:?}");
    fit_for_people(&lines[0]);
    lines[0].clone()
}

fn fit_for_people(line: &str) {
    for jargon in JARGON {
        assert!(!line.contains(jargon), "{jargon}: {line}");
    }
}

fn expect(line: &str, said: &str) {
    assert!(line.contains(said), "{said:?} is not in {line:?}");
}

/// Answers each connection with `answer` after the client has sent something, and closes.
fn answering(answer: &'static [u8]) -> u16 {
    answering_to(move |_| answer)
}

/// As [`answering`], by the first byte that the client has sent.
fn answering_to(answer: impl Fn(u8) -> &'static [u8] + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer(request[0]));
        }
    });
    port
}

#[test]
fn plain_to_tls_and_tls_to_plain() {
    let files = issued(|_| {});
    let host = host_with(&files);
    let line = ending(&format!("ws://localhost:{}", host.port()), &[]);
    expect(&line, "it speaks TLS: use wss://");

    let task = [
        "--task",
        "42=box@http://127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
    ];
    let host = Program::start("host", &task);
    let line = ending(&format!("wss://localhost:{}", host.port()), &[]);
    expect(&line, "it speaks no TLS: write ws://");
}

#[test]
fn a_self_signed_certificate_is_believed_when_it_is_given() {
    let files = self_signed(|_| {});
    let host = host_with(&files);
    let url = format!("wss://localhost:{}", host.port());
    expect(&ending(&url, &[]), "self-signed: give it with --ca FILE");
    // The host is reached: the failure is behind it.
    let ca = &files.ca;
    expect(&ending(&url, &["--ca", ca]), "the runner 127.0.0.1:1");
    // Its name is still checked.
    let other = format!("wss://127.0.0.1:{}", host.port());
    expect(
        &ending(&other, &["--ca", ca]),
        "is for localhost and not for 127.0.0.1",
    );
    let another = self_signed(|_| {});
    let ca = &another.ca;
    expect(&ending(&url, &["--ca", ca]), "not in the file of --ca");
}

#[test]
fn what_is_wrong_with_a_certificate_is_said() {
    let files = issued(|_| {});
    let host = host_with(&files);
    let url = format!("wss://localhost:{}", host.port());
    expect(&ending(&url, &[]), "with --ca FILE");
    let stranger = issued(|_| {});
    let ca = &stranger.ca;
    expect(
        &ending(&url, &["--ca", ca]),
        "not from an issuer in the file of --ca",
    );

    type Change = fn(&mut CertificateParams);
    let cases: [(Change, &str); 4] = [
        (
            |it| it.not_after = rcgen::date_time_ymd(2020, 1, 1),
            "expired",
        ),
        (
            |it| it.not_before = rcgen::date_time_ymd(2090, 1, 1),
            "valid only in",
        ),
        (|it| it.subject_alt_names.clear(), "no name at all"),
        (for_clients, "is not for servers"),
    ];
    for (change, said) in cases {
        // One that is given itself may be for anything.
        let given = (said != "is not for servers").then(|| self_signed(change));
        for files in [issued(change)].into_iter().chain(given) {
            let host = host_with(&files);
            let url = format!("wss://localhost:{}", host.port());
            let ca = &files.ca;
            expect(&ending(&url, &["--ca", ca]), said);
        }
    }
}

fn for_clients(certificate: &mut CertificateParams) {
    certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
}

/// A key that signs nothing right.
#[derive(Debug)]
struct NoKey(Arc<CertifiedKey>);

#[derive(Debug)]
struct Wrong(SignatureScheme);

impl SigningKey for Wrong {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self(self.0)))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

impl Signer for Wrong {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(vec![1; 128])
    }

    fn scheme(&self) -> SignatureScheme {
        self.0
    }
}

impl ResolvesServerCert for NoKey {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A server that shows this certificate and has no key for it.
fn showing(pem: &str, scheme: SignatureScheme) -> u16 {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap);
    let shown = CertifiedKey::new(chain.collect(), Arc::new(Wrong(scheme)));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoKey(Arc::new(shown))));
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            let _ = tls.complete_io(&mut stream.unwrap());
        }
    });
    port
}

#[test]
fn a_certificate_that_no_library_accepts_is_refused_for_its_true_cause() {
    let folder = Folder::new();
    let fine = self_signed(|_| {});
    let fine = std::fs::read_to_string(&fine.cert).unwrap();
    let (rsa, curve) = (
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::ECDSA_NISTP256_SHA256,
    );
    for (shown, scheme, ca, said) in [
        (VERSION_1, curve, VERSION_1, "X.509 version 1"),
        (SHA_1, curve, SHA_1, "signed with SHA-1"),
        (
            RSA_1024,
            rsa,
            RSA_1024,
            "RSA key of its certificate has fewer than 2048 bits",
        ),
        (
            RSA_1024_ISSUED,
            curve,
            RSA_1024,
            "an issuer of its certificate has an RSA key of fewer",
        ),
        (&fine, curve, &fine, "does not prove that it has the key"),
    ] {
        let url = format!("wss://localhost:{}", showing(shown, scheme));
        let ca = folder.write("ca.pem", ca, 0o600);
        expect(&ending(&url, &["--ca", &ca]), said);
    }
}

#[test]
fn a_critical_extension_that_is_not_known_is_named() {
    let strange = |it: &mut CertificateParams| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        it.custom_extensions.push(extension);
    };
    for files in [issued(strange), self_signed(strange)] {
        let pem = std::fs::read_to_string(&files.cert).unwrap();
        let port = showing(&pem, SignatureScheme::ECDSA_NISTP256_SHA256);
        let line = ending(&format!("wss://localhost:{port}"), &["--ca", &files.ca]);
        expect(&line, "its certificate has a critical extension");
    }
}

#[test]
fn a_server_says_what_is_wrong_with_its_own_certificate() {
    let folder = Folder::new();
    let fine = self_signed(|_| {});
    let (old, strange) = (
        folder.write("old.pem", VERSION_1, 0o600),
        folder.write("strange.pem", KEY, 0o600),
    );
    for (cert, key, said) in [
        (&old, &fine.key, "the certificate is of X.509 version 1"),
        (&fine.cert, &strange, "the key has to be RSA of 2048"),
    ] {
        let mut runner = Program::start("runner", &["--cert", cert, "--key", key]);
        assert_eq!(runner.exit(LIMIT), 2);
        fit_for_people(&runner.complaint(said));
    }
}

#[test]
fn whoever_is_no_websocket_server_is_called_that() {
    let page = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 77\r\nConnection: close\r\n\r\n\
        <html><head><title>No such thing</title></head><body><h1>x</h1></body></html>";
    for (answer, plain, secure) in [
        (
            &b""[..],
            "closed the connection without an answer",
            "in the TLS handshake",
        ),
        (b"SSH-2.0-OpenSSH_9\r\n", "is no HTTP", "speaks no TLS"),
        (page, "HTTP 400: No such thing", "speaks no TLS"),
    ] {
        let port = answering(answer);
        expect(&ending(&format!("ws://127.0.0.1:{port}"), &[]), plain);
        let port = answering(answer);
        expect(&ending(&format!("wss://localhost:{port}"), &[]), secure);
    }
}

#[test]
fn an_answer_that_begins_as_http_is_not_tried_as_tls() {
    let head = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"a: b\r\n".repeat(1000)].concat();
    let head: &[u8] = head.leak();
    let port = answering_to(move |first| if first == 0x16 { b"\x15" } else { head });
    let line = ending(&format!("ws://127.0.0.1:{port}"), &[]);
    expect(&line, "the head of its answer is too large");
}

#[test]
fn interim_answers_without_end_are_called_that() {
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    let few: &[u8] = [&interim.repeat(20), &b"HTTP/1.1 400 No\r\n\r\n"[..]]
        .concat()
        .leak();
    let line = ending(&format!("ws://127.0.0.1:{}", answering(few)), &[]);
    expect(&line, "refused with HTTP 400");
    let many = answering(interim.repeat(1 << 16).leak());
    let line = ending(&format!("ws://127.0.0.1:{many}"), &[]);
    expect(&line, "it sends interim answers (HTTP 1xx) without end");
}

#[test]
fn what_a_reverse_proxy_does_is_said() {
    let moved = b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://cluster/x?key=s3cret\r\n\
        Content-Length: 0\r\n\r\n";
    let port = answering(moved);
    let line = ending(&format!("ws://127.0.0.1:{port}"), &[]);
    expect(
        &line,
        "redirects to https://cluster/x (HTTP 301): connect with wss://",
    );
    assert!(!line.contains("s3cret"), "{line}");

    // A page of which only the beginning is read.
    let head = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 100000\r\n\r\n\
        <html><title>Bad Gateway of a proxy</title>";
    let page = [&head[..], &[b' '; 100_000]].concat();
    let port = answering(page.leak());
    let line = ending(&format!("ws://127.0.0.1:{port}"), &[]);
    expect(
        &line,
        &format!("the host 127.0.0.1:{port} refused with HTTP 502: Bad Gateway of a proxy"),
    );
}

/// As through a reverse proxy that drops the headers of a hop.
#[test]
fn an_upgrade_without_its_headers_leads_to_the_reverse_proxy() {
    let runner = Program::start("runner", &["--listen", "127.0.0.1:0"]);
    let mut stream = TcpStream::connect(runner.address()).unwrap();
    stream
        .write_all(b"GET /ws/forward/box/80 HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    expect(&answer, "HTTP/1.1 426");
    expect(
        &answer,
        "let the reverse proxy pass Upgrade and Connection on",
    );
}

#[test]
fn the_agent_says_it_too() {
    let files = self_signed(|_| {});
    let Certificates { cert, key, .. } = &files;
    let args = ["--listen", "127.0.0.1:0", "--cert", cert, "--key", key];
    let runner = Program::start("runner", &args);
    let agent = |url: &str, more: &[&str]| {
        let args = [
            "--container-id",
            "box",
            "--reconnect-delay",
            "0.1",
            "--runner-url",
            url,
        ];
        Program::start("agent", &[&args[..], more].concat())
    };
    let (plain, secure) = (
        format!("ws://localhost:{}", runner.port()),
        format!("wss://localhost:{}", runner.port()),
    );
    fit_for_people(&agent(&plain, &[]).complaint("it speaks TLS: use wss://"));
    let registered = agent(&secure, &["--ca", cert]);
    registered.complaint("registered at");
    // Closed without any TLS.
    drop(runner);
    fit_for_people(&registered.complaint("lost the runner"));
}

#[test]
fn a_host_says_it_of_its_runner() {
    let files = self_signed(|_| {});
    let Certificates { cert, key, .. } = &files;
    let args = ["--listen", "127.0.0.1:0", "--cert", cert, "--key", key];
    let runner = Program::start("runner", &args);
    for (scheme, said) in [("http", "it speaks TLS"), ("https", "self-signed")] {
        let task = format!("42=box@{scheme}://localhost:{}", runner.port());
        let host = Program::start("host", &["--listen", "127.0.0.1:0", "--task", &task]);
        let url = format!("ws://{}", host.address());
        expect(&ending(&url, &[]), said);
        fit_for_people(&host.complaint("refused"));
    }
}

#[test]
fn a_file_that_is_not_there_is_called_that() {
    for (name, args) in [
        ("forward", &["42", "80", "--token-file", "/none"][..]),
        ("host", &["--tasks", "/none"]),
    ] {
        let mut program = Program::start(name, args);
        assert_eq!(program.exit(LIMIT), 2);
        let line = program.complaint("no such file or directory");
        fit_for_people(&line);
    }
}

/// A host that dies between the upgrade and the greeting.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_that_breaks_before_the_session_is_called_that() {
    let host = service(|stream| async {
        let socket = accept_async(stream).await.unwrap();
        socket.get_ref().set_zero_linger().unwrap();
    });
    let url = format!("ws://{}", host.await);
    let line = tokio::task::block_in_place(|| ending(&url, &[]));
    expect(&line, "the host did not begin the session: ");
}
