//! What people are told when TLS or HTTP goes wrong: one line, with what to do.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use support::LIMIT;
use support::program::Program;

/// Words that no person should have to read.
const JARGON: [&str; 9] = [
    "InvalidContentType",
    "CaUsedAsEndEntity",
    "UnknownIssuer",
    "docs.rs",
    "close_notify",
    "invalid HTTP version",
    "os error",
    "Context",
    "\\x1b",
];

/// A folder with `cert.pem`, `key.pem` and `ca.pem`; removed when dropped.
struct Certificates(PathBuf);

impl Certificates {
    /// A certificate of an authority, changed by `change`.
    fn issued(name: &str, change: impl Fn(&mut CertificateParams)) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let mut certificate = CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut certificate);
        let certificate = certificate.signed_by(&key, &issuer).unwrap().pem();
        Self::written(name, &certificate, &key.serialize_pem(), &ca_pem)
    }

    /// As `openssl req -x509` makes it: self-signed, and it says that it is an authority.
    fn self_signed(name: &str, change: impl Fn(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut certificate = CertificateParams::new(["localhost".to_owned()]).unwrap();
        certificate.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut certificate);
        let pem = certificate.self_signed(&key).unwrap().pem();
        Self::written(&format!("{name}-self"), &pem, &key.serialize_pem(), &pem)
    }

    fn written(name: &str, certificate: &str, key: &str, ca: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("words-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (file, text) in [("cert.pem", certificate), ("key.pem", key), ("ca.pem", ca)] {
            let path = folder.join(file);
            std::fs::write(&path, text).unwrap();
            support::make_private(&path);
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn host(&self) -> Program {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        let task = "42=box@http://127.0.0.1:1";
        let args = [
            "--listen",
            "127.0.0.1:0",
            "--task",
            task,
            "--cert",
            &cert,
            "--key",
            &key,
        ];
        Program::start("host", &args)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The one line with which `forward` ends, which is fit for people.
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

/// Answers each connection, after it has said something, with `answer`, and closes.
fn answering(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
        }
    });
    port
}

#[test]
fn plain_to_tls_and_tls_to_plain() {
    let files = Certificates::issued("plain", |_| {});
    let host = files.host();
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
    let files = Certificates::self_signed("given", |_| {});
    let host = files.host();
    let url = format!("wss://localhost:{}", host.port());
    expect(&ending(&url, &[]), "self-signed: give it with --ca FILE");
    // The host is spoken to: what fails is behind it.
    let ca = files.path("ca.pem");
    expect(&ending(&url, &["--ca", &ca]), "the runner 127.0.0.1:1");
    // Its name is checked all the same.
    let other = format!("wss://127.0.0.1:{}", host.port());
    expect(
        &ending(&other, &["--ca", &ca]),
        "is for localhost and not for 127.0.0.1",
    );
    let another = Certificates::self_signed("another", |_| {});
    let ca = another.path("ca.pem");
    expect(&ending(&url, &["--ca", &ca]), "not in the file of --ca");
}

#[test]
fn what_is_wrong_with_a_certificate_is_said() {
    let files = Certificates::issued("issuer", |_| {});
    let host = files.host();
    let url = format!("wss://localhost:{}", host.port());
    expect(&ending(&url, &[]), "with --ca FILE");
    let stranger = Certificates::issued("stranger", |_| {});
    let ca = stranger.path("ca.pem");
    expect(
        &ending(&url, &["--ca", &ca]),
        "not from an issuer in the file of --ca",
    );

    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change, &str); 3] = [
        (
            "expired",
            |it| it.not_after = rcgen::date_time_ymd(2020, 1, 1),
            "expired",
        ),
        (
            "early",
            |it| it.not_before = rcgen::date_time_ymd(2090, 1, 1),
            "valid only in",
        ),
        (
            "nameless",
            |it| it.subject_alt_names.clear(),
            "no name at all",
        ),
    ];
    for (name, change, said) in cases {
        for files in [
            Certificates::issued(name, change),
            Certificates::self_signed(name, change),
        ] {
            let host = files.host();
            let url = format!("wss://localhost:{}", host.port());
            let ca = files.path("ca.pem");
            expect(&ending(&url, &["--ca", &ca]), said);
        }
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
fn the_agent_says_it_too() {
    let files = Certificates::self_signed("agent", |_| {});
    let (cert, key) = (files.path("cert.pem"), files.path("key.pem"));
    let args = ["--listen", "127.0.0.1:0", "--cert", &cert, "--key", &key];
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
    fit_for_people(&agent(&secure, &[]).complaint("give --ca FILE"));
    let registered = agent(&secure, &["--ca", &cert]);
    registered.complaint("registered at");
    // Gone without a word of TLS.
    drop(runner);
    fit_for_people(&registered.complaint("lost the runner"));
}

#[test]
fn a_host_says_it_of_its_runner() {
    let files = Certificates::self_signed("runner", |_| {});
    let (cert, key) = (files.path("cert.pem"), files.path("key.pem"));
    let args = ["--listen", "127.0.0.1:0", "--cert", &cert, "--key", &key];
    let runner = Program::start("runner", &args);
    for (scheme, said) in [("http", "it speaks TLS"), ("https", "self-signed")] {
        let task = format!("42=box@{scheme}://localhost:{}", runner.port());
        let host = Program::start("host", &["--listen", "127.0.0.1:0", "--task", &task]);
        let url = format!("ws://{}", host.address());
        expect(&ending(&url, &[]), said);
        fit_for_people(&host.complaint("refused"));
    }
}
