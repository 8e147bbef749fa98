//! Host and runner on several threads.
// What a thread has done is read from /proc.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::wire::{Kind, Proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tunnel_test_support::certificates::Certificates;
use tunnel_test_support::chain::{
    CONTAINER, Chain, connect, echo, ending, eventually, expect_echo, metric, pattern, service,
    start_runner,
};
use tunnel_test_support::client::{Client, frame, session};
use tunnel_test_support::program::Program;
use tunnel_test_support::relay::Relay;
use tunnel_test_support::{LIMIT, soon};

const MIB: usize = 1 << 20;

/// A keep that no test waits for.
const LONG: [&str; 2] = ["--resume-keep", "3600"];

fn agent(runner: &str, name: &str, more: &[&str]) -> Program {
    let args = ["--runner-url", runner, "--container-id", name];
    let agent = Program::start("agent", &[&args[..], more].concat());
    agent.complaint("registered at");
    agent
}

fn forward(host: &str, task: &str, port: u16, more: &[&str]) -> Program {
    let port = port.to_string();
    let args = [
        "--host",
        host,
        task,
        &port,
        "--local-port",
        "0",
        "--tunnels",
        "1",
    ];
    Program::start("forward", &[&args[..], more].concat())
}

/// A host for tasks with the names of their containers, all at one runner.
fn host_of(containers: &[String], runner: &str, args: &[&str]) -> Program {
    let tasks = containers
        .iter()
        .map(|name| format!("{name}={name}@{runner}"));
    let tasks: Vec<_> = tasks.collect();
    let tasks = tasks.iter().flat_map(|task| ["--task", task]);
    Program::start(
        "host",
        &args.iter().copied().chain(tasks).collect::<Vec<_>>(),
    )
}

/// Nanoseconds of CPU of each thread that carries connections.
fn work(program: &Program) -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap();
    let time = |folder: std::path::PathBuf| {
        let name = std::fs::read_to_string(folder.join("comm")).unwrap();
        let stat = std::fs::read_to_string(folder.join("schedstat")).unwrap();
        let time = stat.split(' ').next().unwrap().parse().unwrap();
        (name.trim().to_owned(), time)
    };
    let times = tasks.map(|task| time(task.unwrap().path()));
    let is_log = |name: &str| matches!(name, "stdout" | "stderr");
    times.filter(|(name, _)| !is_log(name)).collect()
}

/// The percentage of a program's work since `before` that each of its threads has done.
fn shares(program: &Program, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let spent = work(program).into_iter().map(|(name, time)| {
        let spent = time - before[&name];
        (name, spent)
    });
    let spent: BTreeMap<_, _> = spent.collect();
    let all = spent.values().sum::<u64>().max(1);
    let share = |(name, time): (String, u64)| (name, time * 100 / all);
    spent.into_iter().map(share).collect()
}

/// How many descriptors each runtime of a program watches, by the descriptors of its epoll.
fn watched(program: &Program) -> BTreeMap<String, usize> {
    let of = format!("/proc/{}", program.pid());
    let mut watched = BTreeMap::new();
    for entry in std::fs::read_dir(format!("{of}/fd")).unwrap().flatten() {
        let is_epoll = |to: std::path::PathBuf| to.to_string_lossy().contains("[eventpoll]");
        if std::fs::read_link(entry.path()).is_ok_and(is_epoll) {
            let descriptor = entry.file_name().into_string().unwrap();
            let about = std::fs::read_to_string(format!("{of}/fdinfo/{descriptor}")).unwrap();
            let count = about
                .lines()
                .filter(|line| line.starts_with("tfd:"))
                .count();
            watched.insert(descriptor, count);
        }
    }
    watched
}

/// The only thread of a program that has something to do while `working`.
async fn only_thread(program: &Program, working: impl Future<Output = ()>) -> String {
    let before = work(program);
    working.await;
    let shares = shares(program, &before);
    let (busiest, share) = shares.iter().max_by_key(|(_, share)| **share).unwrap();
    assert!(*share >= 85, "{shares:?}");
    busiest.clone()
}

/// Sends this much there and back.
async fn carry(stream: &mut TcpStream, bytes: usize) {
    let message = pattern(bytes as u64, 256 * 1024);
    let (mut read, mut write) = stream.split();
    let rounds = bytes / message.len();
    let sending = async {
        for _ in 0..rounds {
            write.write_all(&message).await.unwrap();
        }
    };
    let receiving = async {
        let mut came = vec![0; message.len()];
        for _ in 0..rounds {
            read.read_exact(&mut came).await.unwrap();
            assert!(came == message, "the echo differs");
        }
    };
    soon("an echo", async { tokio::join!(sending, receiving) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_are_spread_over_the_threads_and_counted_together() {
    let target = format!("{CONTAINER}=127.0.0.1");
    let runner = start_runner("127.0.0.1:0", &["--target", &target, "--threads", "4"]);
    let task = format!("42={CONTAINER}@http://{}", runner.address());
    let args = ["--listen", "127.0.0.1:0", "--task", &task, "--threads", "4"];
    let host = Program::start("host", &args);
    let url = format!("ws://{}", host.address());
    let port = service(echo).await.port();
    let before = (watched(&host), watched(&runner));
    let (mut forwards, mut streams) = (Vec::new(), Vec::new());
    // One after the other: for a moment a new session counts twice.
    for _ in 0..8 {
        let forward = forward(&url, "42", port, &[]);
        let mut stream = connect(&forward).await;
        expect_echo(&mut stream, b"first").await;
        forwards.push(forward);
        streams.push(stream);
    }
    // Two sessions a thread, of two sockets each.
    for (program, before) in [(&host, before.0), (&runner, before.1)] {
        for (descriptor, sockets) in watched(program) {
            assert_eq!(sockets - before[&descriptor], 4, "{descriptor}");
        }
    }
    let mut seen = BTreeSet::new();
    for stream in &mut streams {
        seen.insert(only_thread(&runner, carry(stream, 8 * MIB)).await);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert_eq!(metric(&host, "host_sessions").await, 8);
    assert_eq!(metric(&runner, "runner_sessions").await, 8);
    let bytes = metric(&host, "host_bytes_total{to=\"client\"}").await;
    assert!(bytes >= 8 * 8 * MIB as u64, "{bytes}");
    drop(streams);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn containers_with_agents_are_served_on_any_thread() {
    for threads in ["2", "4"] {
        let mut seen = BTreeSet::new();
        let runner = start_runner("127.0.0.1:0", &["--threads", threads]);
        let url = format!("ws://{}", runner.address());
        let names: Vec<_> = (0..6).map(|number| format!("box-{number}")).collect();
        let args = ["--listen", "127.0.0.1:0", "--threads", threads];
        let host = host_of(&names, &format!("http://{}", runner.address()), &args);
        let host = format!("ws://{}", host.address());
        let port = service(echo).await.port();
        let mut chains = Vec::new();
        for name in &names {
            let agent = agent(&url, name, &[]);
            let forward = forward(&host, name, port, &[]);
            let mut stream = connect(&forward).await;
            expect_echo(&mut stream, b"first").await;
            seen.insert(only_thread(&runner, carry(&mut stream, 16 * MIB)).await);
            chains.push((agent, forward, stream));
        }
        // Each is replaced by a newer one.
        for (name, (old, forward, stream)) in names.iter().zip(&mut chains) {
            let newer = agent(&url, name, &[]);
            old.complaint("replaced by a newer registration");
            assert!(ending(stream).await.is_some());
            *stream = connect(forward).await;
            expect_echo(stream, &pattern(2, MIB)).await;
            *old = newer;
        }
        assert!(seen.len() > 1, "{seen:?}");
        assert_eq!(metric(&runner, "runner_agents").await, names.len() as u64);
    }
}

/// The next WebSocket of a tunnel is accepted on whichever thread, and works on that of the tunnel.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_tunnel_goes_on_on_its_own_thread() {
    let target = format!("{CONTAINER}=127.0.0.1");
    let args = ["--target", &target, "--threads", "3"];
    let runner = start_runner("127.0.0.1:0", &[&args[..], &LONG].concat());
    let task = format!("42={CONTAINER}@http://{}", runner.address());
    let host = Program::start("host", &["--listen", "127.0.0.1:0", "--task", &task]);
    let port = service(echo).await.port();
    let before = watched(&runner);
    let mut cuts = 0;
    let mut chains = Vec::new();
    for _ in 0..3 {
        let relay = Relay::to(&host.address()).await;
        let url = format!("ws://{}", relay.address());
        let forward = forward(&url, "42", port, &LONG);
        let mut stream = connect(&forward).await;
        expect_echo(&mut stream, b"first").await;
        chains.push((relay, forward, stream));
    }
    let mut seen = BTreeSet::new();
    for (relay, forward, stream) in &mut chains {
        relay.cut();
        cuts += 1;
        forward.complaint("the tunnel goes on after ");
        expect_echo(stream, b"it goes on").await;
        seen.insert(only_thread(&runner, carry(stream, 16 * MIB)).await);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    for (descriptor, sockets) in watched(&runner) {
        assert_eq!(sockets - before[&descriptor], 2, "{descriptor}");
    }
    let resumed = "runner_tunnels_resumed_total{of=\"client\"}";
    assert_eq!(metric(&runner, resumed).await, cuts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_tunnel_to_an_agent_goes_on_beside_its_clients() {
    let runner = start_runner("127.0.0.1:0", &[&["--threads", "4"], &LONG[..]].concat());
    let task = format!("42={CONTAINER}@http://{}", runner.address());
    let host = Program::start("host", &["--listen", "127.0.0.1:0", "--task", &task]);
    let to_runner = Relay::to(&runner.address()).await;
    let agent = agent(&format!("ws://{}", to_runner.address()), CONTAINER, &LONG);
    let to_host = Relay::to(&host.address()).await;
    let port = service(echo).await.port();
    let forward = forward(&format!("ws://{}", to_host.address()), "42", port, &LONG);
    let mut stream = connect(&forward).await;
    for round in 1..=3 {
        expect_echo(&mut stream, &pattern(round, MIB)).await;
        to_runner.cut();
        to_host.cut();
        let resumed = |program: &Program| program.lines_with("the tunnel goes on after ");
        let both = async {
            while resumed(&agent).min(resumed(&forward)) < round as usize {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        soon("both to go on", both).await;
    }
    only_thread(&runner, carry(&mut stream, 16 * MIB)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sockets_with_tls_move_too() {
    let Certificates { ca, cert, key, .. } =
        &Certificates::issued(&["localhost", "127.0.0.1"], |_| {});
    let listen = [
        "--listen",
        "127.0.0.1:0",
        "--cert",
        cert,
        "--key",
        key,
        "--threads",
        "4",
    ];
    let runner = Program::start("runner", &listen);
    let url = format!("wss://{}", runner.address());
    let names: Vec<_> = (0..4).map(|number| format!("box-{number}")).collect();
    let args = [&listen[..], &["--ca", ca]].concat();
    let host = host_of(&names, &format!("https://{}", runner.address()), &args);
    let host = format!("wss://localhost:{}", host.port());
    let port = service(echo).await.port();
    for name in &names {
        let _agent = agent(&url, name, &["--ca", ca]);
        let forward = forward(&host, name, port, &["--ca", ca]);
        let mut stream = connect(&forward).await;
        for size in [1, 1000, MIB] {
            expect_echo(&mut stream, &pattern(size as u64, size)).await;
        }
    }
}

async fn not_a_ping(client: &mut Client) -> Message {
    loop {
        let next = soon("a message", client.next()).await.unwrap().unwrap();
        if !next.is_ping() && next.clone().into_data().first() != Some(&(Kind::Ping as u8)) {
            return next;
        }
    }
}

#[tokio::test]
async fn a_signal_lets_the_connections_of_all_threads_finish() {
    let port = service(echo).await.port();
    let target = format!("{CONTAINER}=127.0.0.1");
    let mut chain = Chain::with_runner(&["--target", &target, "--threads", "4"]);
    let url = format!("ws://{}/api/tunnel/{CONTAINER}", chain.runner.address());
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = session(&url, true).await;
        let connect = frame(Kind::Connect, Proto::Tcp, 1, port, b"");
        client.send(connect).await.unwrap();
        let connected = not_a_ping(&mut client).await.into_data();
        assert_eq!(connected[0], Kind::Connected as u8);
        clients.push(client);
    }
    chain.runner.signal("TERM");
    for client in &mut clients {
        let goaway = not_a_ping(client).await.into_data();
        assert_eq!(goaway[0], Kind::GoAway as u8);
        let data = frame(Kind::Data, Proto::Tcp, 1, 0, b"last");
        client.send(data).await.unwrap();
        let data = not_a_ping(client).await.into_data();
        assert_eq!(data[8..], *b"last");
        let close = frame(Kind::Close, Proto::Tcp, 1, 0, b"");
        client.send(close).await.unwrap();
    }
    assert_eq!(chain.runner.exit(LIMIT), 0);
    for mut client in clients {
        while let Some(Ok(_)) = soon("the end", client.next()).await {}
    }
}

#[tokio::test]
async fn one_thread_is_no_thread_more() {
    for (count, expected) in [
        ("1", &["runner"][..]),
        ("3", &["runner", "thread-1", "thread-2"]),
    ] {
        let runner = start_runner("127.0.0.1:0", &["--threads", count]);
        // A thread gives itself its name once it runs.
        eventually("the threads", LIMIT, || async {
            (work(&runner).into_keys().eq(expected.iter().copied())).then_some(())
        })
        .await;
    }
}
