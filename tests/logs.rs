//! Logs without a reader, and peers that make a program log.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::incompatible_msrv)] // of the library: tests need pipes

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use tunnel_test_support::program::{self, Program};
use tunnel_test_support::{LIMIT, free_port};

const TASK: &str = "42=box@http://127.0.0.1:1";

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A full pipe.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filling = writer.try_clone().unwrap();
    // Blocks until the reader is dropped.
    thread::spawn(move || while filling.write(&[b'.'; 4096]).is_ok() {});
    thread::sleep(Duration::from_millis(300));
    (reader, writer)
}

fn ask(host: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 4096];
    let len = stream.read(&mut answer).expect("the host answers");
    String::from_utf8_lossy(&answer[..len]).into_owned()
}

fn is_alive(host: SocketAddr) {
    let answer = ask(
        host,
        "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Waits until a program listens there.
fn reached(host: SocketAddr) {
    let end = Instant::now() + LIMIT;
    while TcpStream::connect(host).is_err() {
        assert!(Instant::now() < end, "nobody listens on {host}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn refused(host: SocketAddr) {
    let answer = ask(
        host,
        "GET /api/tunnel/7 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
}

#[test]
fn a_host_whose_log_nobody_reads_goes_on_and_says_later_what_was_lost() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = program::command("host");
    command
        .args(["--task", TASK, "--listen", &address.to_string()])
        .env("RUST_LOG", "debug")
        .stdout(std::process::Stdio::null())
        .stderr(writer);
    let _host = Running(command.spawn().unwrap());
    drop(command);
    reached(address);
    // Each is a line at debug, which has no limit: more than fits the pipe and the queue.
    for _ in 0..3000 {
        ask(address, "NONSENSE\r\n\r\n");
    }
    is_alive(address);

    let metrics = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let lost = r#"kohakuriver_tunnel_log_lines_missing_total{cause="unread"} "#;
    let lost = metrics.lines().find_map(|line| line.strip_prefix(lost));
    assert_ne!(lost, Some("0"), "{metrics}");
    assert!(lost.is_some(), "{metrics}");

    let mut read = String::new();
    let mut buffer = [0; 4096];
    while !read.contains(" lines were lost: nobody read stderr") {
        let len = reader.read(&mut buffer).unwrap();
        assert_ne!(len, 0, "{read}");
        read.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
    is_alive(address);
}

#[test]
fn the_name_of_a_program_selects_its_lines() {
    let host = |filter| {
        let args = ["--task", TASK, "--listen", "127.0.0.1:0"];
        let host = Program::start_with("host", &args, &[("RUST_LOG", filter)]);
        let address = host.address().parse().unwrap();
        // A line at debug, then one at info or above.
        ask(address, "NONSENSE\r\n\r\n");
        refused(address);
        host
    };
    for filter in ["info,host=debug", "host=debug", "host"] {
        host(filter).complaint("HTTP phase");
    }
    for filter in ["info,runner=debug", "debug,host=info"] {
        let host = host(filter);
        host.complaint("refused");
        assert_eq!(host.stderr().len(), 1, "{filter}");
    }
}

#[test]
fn lines_of_one_kind_are_limited_and_counted() {
    const REFUSALS: usize = 3000;
    let host = Program::start("host", &["--task", TASK, "--listen", "127.0.0.1:0"]);
    let address = host.address().parse().unwrap();
    let begun = Instant::now();
    for _ in 0..REFUSALS {
        refused(address);
    }
    let seconds = begun.elapsed().as_secs() as usize + 1;

    let hidden = |line: &String| {
        let (before, _) = line.split_once(" more lines like this were not shown: refused")?;
        before.rsplit(' ').next()?.parse::<usize>().ok()
    };
    let end = Instant::now() + LIMIT;
    loop {
        let lines = host.stderr();
        let shown = lines.iter().filter(|line| line.contains("unknown"));
        let (notices, shown): (Vec<_>, Vec<_>) = shown.partition(|line| hidden(line).is_some());
        let told: usize = notices.iter().filter_map(|line| hidden(line)).sum();
        assert!(shown.len() <= 20 * (seconds + 1), "{} lines", shown.len());
        if shown.len() + told == REFUSALS {
            break;
        }
        assert!(
            Instant::now() < end,
            "{} and {told} of {REFUSALS}",
            shown.len()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_stdout_that_nobody_reads_stops_nothing() {
    let (_reader, writer) = full_pipe();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = program::command("host");
    command
        .args(["--task", TASK, "--listen", &address.to_string()])
        .stdout(writer)
        .stderr(std::process::Stdio::null());
    let _host = Running(command.spawn().unwrap());
    reached(address);
    is_alive(address);
}

#[test]
fn a_stderr_that_nobody_reads_keeps_no_program_from_ending() {
    for args in [
        &["--nonsense"][..],
        &["42", "80", "--host", "ws://127.0.0.1:1"],
    ] {
        let (_reader, writer) = full_pipe();
        let mut command = program::command("forward");
        command.args(args).stderr(writer);
        let mut forward = Running(command.spawn().unwrap());
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = forward.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "{args:?} still runs");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(matches!(status.code(), Some(2 | 3)), "{args:?}: {status}");
    }
}

#[test]
fn the_last_line_is_written_in_both_formats() {
    for (format, start) in [("text", "forward: "), ("json", "{")] {
        let args = [
            "42",
            "80",
            "--log-format",
            format,
            "--host",
            "ws://127.0.0.1:1",
        ];
        let mut forward = Program::start("forward", &[&args[..], &["--local-port", "0"]].concat());
        assert_eq!(forward.exit(LIMIT), 3);
        let line = forward.complaint("cannot reach 127.0.0.1:1");
        assert!(line.starts_with(start), "{line}");
    }
}
