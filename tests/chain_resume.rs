//! Connections that outlive the WebSockets of their tunnels, and those that must not.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use kohakuriver_tunnel::resume::{EndReason, Message, OFFER, Open, Opened, Secret};
use kohakuriver_tunnel::wire::{Kind, Proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tunnel_test_support::chain::{
    CONTAINER, Chain, SilentPort, connect, echo, ending, eventually, expect_echo, expect_metric,
    host_at, metric, pattern, service, start_runner,
};
use tunnel_test_support::client::{Client, frame, greeted, upgrade};
use tunnel_test_support::files::Folder;
use tunnel_test_support::program::{self, Program};
use tunnel_test_support::relay::Relay;
use tunnel_test_support::{LIMIT, soon};

/// A keep that no test waits for.
const LONG: [&str; 2] = ["--resume-keep", "3600"];

/// The same for a forward with one tunnel, however busy it is.
const LONG_IN_ONE: [&str; 4] = ["--resume-keep", "3600", "--tunnels", "1"];

const OF_CLIENTS: &str = "runner_tunnels_resumed_total{of=\"client\"}";
const OF_AGENTS: &str = "runner_tunnels_resumed_total{of=\"agent\"}";

/// An agent of the runner at this address, with the keep [`LONG`]. It has registered.
fn agent_at(runner: &str) -> Program {
    let url = format!("ws://{runner}");
    let args = ["--runner-url", &url, "--container-id", CONTAINER];
    let agent = Program::start("agent", &[&args[..], &LONG].concat());
    agent.complaint("registered at");
    agent
}

/// A runner that keeps tunnels as long as forwards want, and dials 127.0.0.1.
fn direct() -> Chain {
    let target = format!("{CONTAINER}=127.0.0.1");
    Chain::with_runner(&[&LONG[..], &["--target", &target]].concat())
}

/// Waits for this many lines on a program's stderr.
async fn lines(program: &Program, part: &str, count: usize) {
    eventually(&format!("{count} lines with {part:?}"), LIMIT, || async {
        (program.lines_with(part) >= count).then_some(())
    })
    .await;
}

/// Connections that send verified data both ways until they are told to stop.
struct Traffic {
    stop: Arc<AtomicBool>,
    connections: JoinSet<usize>,
}

impl Traffic {
    async fn start(forward: &Program, connections: u64) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let mut traffic = JoinSet::new();
        for seed in 0..connections {
            let (mut stream, stop) = (connect(forward).await, Arc::clone(&stop));
            // A tunnel that is lost before its OPENED comes cannot be resumed.
            expect_echo(&mut stream, b"first").await;
            traffic.spawn(async move {
                let mut sent = 0;
                let mut round = seed;
                loop {
                    // The last exchange begins after everything else.
                    let last = stop.load(Ordering::Acquire);
                    round = round
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let size = 1 + (round >> 33) as usize % 50_000;
                    expect_echo(&mut stream, &pattern(round, size)).await;
                    sent += size;
                    if last {
                        return sent;
                    }
                }
            });
        }
        let connections = traffic;
        Self { stop, connections }
    }

    /// Waits for one more exchange of each connection.
    async fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        while let Some(ended) = self.connections.join_next().await {
            assert!(ended.unwrap() > 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_outlive_a_host_that_is_killed_again_and_again() {
    let port = service(echo).await.port();
    let mut chain = direct();
    let forward = chain.forward(port, &LONG_IN_ONE);
    let traffic = Traffic::start(&forward, 64).await;
    for round in 1..=4 {
        chain.restart_host();
        lines(&forward, "the tunnel goes on after ", round).await;
    }
    traffic.stop().await;
    forward.expect_lines("reconnecting to", 4);
    assert_eq!(forward.stderr().len(), 8, "{:?}", forward.stderr());
    expect_metric(&chain.runner, OF_CLIENTS, 4).await;
    expect_metric(&chain.runner, "runner_tunnels_detached", 0).await;
    assert_eq!(metric(&chain.runner, "runner_sessions").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_outlive_the_websockets_of_both_legs() {
    let port = service(echo).await.port();
    let mut chain = Chain::with_runner(&LONG);
    let to_runner = Relay::to(&chain.runner.address()).await;
    let agent = agent_at(&to_runner.address());
    let forward = chain.forward(port, &LONG_IN_ONE);
    let traffic = Traffic::start(&forward, 16).await;
    for round in 1..=3 {
        to_runner.cut();
        lines(&agent, "the tunnel goes on after ", round).await;
    }
    for round in 1..=3 {
        to_runner.cut();
        chain.restart_host();
        lines(&agent, "the tunnel goes on after ", 3 + round).await;
        lines(&forward, "the tunnel goes on after ", round).await;
    }
    traffic.stop().await;
    agent.expect_lines("registered at", 1);
    chain.runner.expect_lines("agent registered", 1);
    assert_eq!(metric(&chain.runner, OF_CLIENTS).await, 3);
    assert_eq!(metric(&chain.runner, OF_AGENTS).await, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_new_connection_waits_for_the_next_websocket_of_its_agent() {
    let port = service(echo).await.port();
    let chain = Chain::with_runner(&LONG);
    let to_runner = Relay::to(&chain.runner.address()).await;
    let agent = agent_at(&to_runner.address());
    let forward = chain.forward(port, &LONG);
    expect_echo(&mut connect(&forward).await, b"before").await;
    to_runner.shut();
    expect_metric(&chain.runner, DETACHED, 1).await;
    let mut stream = connect(&forward).await;
    stream.write_all(b"meanwhile").await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    to_runner.cut();
    let mut reply = [0; 9];
    soon("echo", stream.read_exact(&mut reply)).await.unwrap();
    assert_eq!(&reply, b"meanwhile");
    agent.expect_lines("registered at", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_restarted_runner_ends_connections_at_once() {
    let port = service(echo).await.port();
    let target = format!("{CONTAINER}=127.0.0.1");
    let mut chain = direct();
    let forward = chain.forward(port, &LONG);
    for signal in ["KILL", "TERM"] {
        let mut stream = connect(&forward).await;
        expect_echo(&mut stream, b"before").await;
        let address = chain.runner.address();
        chain.runner.signal(signal);
        chain.runner.exit(LIMIT);
        chain.runner = start_runner(&address, &["--target", &target]);
        assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
        expect_echo(&mut connect(&forward).await, b"after").await;
    }
    lines(&forward, "reconnected to", 2).await;
}

/// The runner does not wait for an agent before it says that the tunnel is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_restarted_runner_whose_agent_stays_away_ends_connections_at_once() {
    let port = service(echo).await.port();
    let mut chain = Chain::with_runner(&LONG);
    let mut agent = agent_at(&chain.runner.address());
    let forward = chain.forward(port, &LONG);
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"before").await;
    let address = chain.runner.address();
    agent.kill();
    chain.runner.kill();
    chain.runner = start_runner(&address, &LONG);
    assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
    let line = format!("refused: no agent is connected for {CONTAINER}");
    forward.complaint(&line);
    chain.runner.complaint(&line);
    let _agent = agent_at(&address);
    lines(&forward, "reconnected to", 1).await;
    expect_echo(&mut connect(&forward).await, b"after").await;
}

/// A stopped host or proxy may hold an OPEN and let it go when its agent is long gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_is_replaced_by_one_that_answers_alone() {
    let port = service(echo).await.port();
    let chain = Chain::with_runner(&LONG);
    let agent = agent_at(&chain.runner.address());
    chain.runner.complaint("agent registered");
    let forward = chain.forward(port, &LONG);
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"before").await;

    let url = format!("ws://{}/ws/tunnel/{CONTAINER}", chain.runner.address());
    let mut late = Vec::new();
    for _ in 0..3 {
        let (mut client, _) = upgrade(&url, &[("sec-websocket-protocol", OFFER)], 1)
            .await
            .unwrap();
        let open = WsMessage::binary(Message::Open(new_tunnel()).to_bytes());
        soon("OPEN", client.send(open)).await.unwrap();
        assert!(matches!(layer(&mut client).await, Message::Opened(_)));
        late.push(client);
    }
    expect_echo(&mut stream, b"nobody took its place").await;
    expect_echo(&mut connect(&forward).await, b"nor is anybody else asked").await;
    drop(late.pop());
    answer(&mut late[1]).await;
    assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
    agent.complaint("replaced by a newer registration");
    // This one came before the one that is registered now.
    answer(&mut late[0]).await;
    let close = soon("close", async {
        loop {
            if let WsMessage::Close(frame) = late[0].next().await.unwrap().unwrap() {
                break frame.unwrap();
            }
        }
    });
    assert_eq!(u16::from(close.await.code), 4001);
    chain.runner.expect_lines("agent registered", 2);
}

/// That another client's tunnel is kept says nothing about a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_new_tunnel_is_refused_without_an_agent_also_beside_another() {
    let port = service(echo).await.port();
    let chain = Chain::with_runner(&LONG);
    let mut agent = agent_at(&chain.runner.address());
    let first = chain.forward(port, &LONG);
    expect_echo(&mut connect(&first).await, b"here").await;
    agent.kill();
    chain.runner.complaint("waits for its next WebSocket");
    let mut second = chain.start_forward(port, &LONG);
    assert_eq!(second.exit(LIMIT), 3);
    let line = format!("refused: no agent is connected for {CONTAINER}");
    second.expect_lines(&line, 1);
    chain.runner.expect_lines(&line, 1);
    expect_metric(&chain.runner, "runner_sessions", 1).await;
}

/// A runner in whose place a test speaks: the WebSockets of its agent, and their OPENs.
async fn scripted_runner() -> (Program, tokio::sync::mpsc::Receiver<(Client, Open)>) {
    let (url, came) = scripted(&[], "2500").await;
    // Its waits are long enough to be told from none.
    (lonely_agent(&url, &["--reconnect-delay", "60"]), came)
}

fn lonely_agent(url: &str, more: &[&str]) -> Program {
    let args = ["--runner-url", url, "--container-id", "lonely"];
    Program::start("agent", &[&args[..], more].concat())
}

/// The URL of a runner that says how many agents it has. It selects the first of these subprotocols
/// on its first connection, and so on, later that of resumption. It drops a connection for which
/// there is none.
async fn scripted(
    protocols: &'static [Option<&'static str>],
    number: &'static str,
) -> (String, tokio::sync::mpsc::Receiver<(Client, Open)>) {
    let (agents, came) = tokio::sync::mpsc::channel(16);
    let connections = AtomicUsize::new(0);
    let runner = service(move |stream| {
        let agents = agents.clone();
        let connection = connections.fetch_add(1, Ordering::Relaxed);
        let protocol = protocols.get(connection).unwrap_or(&Some(RESUMES));
        async move {
            let Some(protocol) = protocol else { return };
            #[allow(clippy::result_large_err)] // tungstenite's own
            let selects = |_: &Request, mut response: Response| {
                let headers = response.headers_mut();
                let chosen = HeaderValue::from_static(protocol);
                headers.insert("sec-websocket-protocol", chosen);
                let number = HeaderValue::from_static(number);
                headers.insert("kohakuriver-tunnel-agents", number);
                Ok(response)
            };
            let mut socket = accept_hdr_async(stream, selects).await.unwrap();
            if *protocol != RESUMES {
                return;
            }
            if let Message::Open(open) = layer(&mut socket).await {
                agents.send((socket, open)).await.unwrap();
            }
        }
    });
    (format!("ws://{}", runner.await), came)
}

/// The subprotocol of a server that resumes tunnels.
const RESUMES: &str = "kohakuriver-tunnel.v2.resume";

async fn send(socket: &mut Client, message: Message) {
    let message = WsMessage::binary(message.to_bytes());
    soon("a message", socket.send(message)).await.unwrap();
}

const OPENED: Message = Message::Opened(Opened {
    instance: 1,
    tunnel: 2,
    secret: Secret::new([3; Secret::LEN]),
    received: 0,
    keep: 120,
    ring: 1 << 20,
});

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_registers_at_once_where_its_tunnel_is_not_known_any_more() {
    let (agent, mut came) = scripted_runner().await;
    let (mut socket, open) = soon("an agent", came.recv()).await.unwrap();
    assert_eq!(open.tunnel, 0);
    send(&mut socket, OPENED).await;
    assert_eq!(layer(&mut socket).await, Message::Ack { received: 0 });
    drop(socket);
    let (mut socket, open) = soon("the same again", came.recv()).await.unwrap();
    assert_eq!(open.tunnel, 2);
    let (reason, text) = (EndReason::Unknown, String::new());
    send(&mut socket, Message::End { reason, text }).await;
    drop(socket);
    let next = tokio::time::timeout(Duration::from_secs(6), came.recv());
    let (_socket, open) = next.await.expect("at once").unwrap();
    assert_eq!(open.tunnel, 0);
    agent.expect_lines("registered at", 2);
}

/// A hostile runner takes no tunnel. It must not get them as fast as the network allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_whose_new_tunnels_are_refused_waits_and_may_give_up() {
    let (url, mut came) = scripted(&[], "1").await;
    let mut agent = lonely_agent(&url, &["--max-reconnect", "2"]);
    for _ in 0..2 {
        let (mut socket, open) = soon("an agent", came.recv()).await.unwrap();
        assert_eq!(open.tunnel, 0);
        let (reason, text) = (EndReason::Unknown, String::new());
        send(&mut socket, Message::End { reason, text }).await;
    }
    assert_eq!(agent.exit(LIMIT), 3);
    agent.expect_lines("registered at", 2);

    let _agent = lonely_agent(&url, &["--reconnect-delay", "60"]);
    let refusing = async {
        let mut count = 0;
        while let Some((mut socket, _)) = came.recv().await {
            // If it ends after OPENED, too.
            if count % 2 == 1 {
                send(&mut socket, OPENED).await;
            }
            let (reason, text) = (EndReason::Unknown, String::new());
            send(&mut socket, Message::End { reason, text }).await;
            count += 1;
            assert!(count < 10, "it does not wait");
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), refusing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answers_without_resumption_count_for_one_outage_alone() {
    const V2: Option<&str> = Some("kohakuriver-tunnel.v2");
    const ANSWERS: [Option<&str>; 6] = [Some(RESUMES), V2, V2, V2, Some(RESUMES), None];
    let (url, mut came) = scripted(&ANSWERS, "1").await;
    let agent = lonely_agent(&url, &["--reconnect-delay", "0.1"]);
    for _ in 0..2 {
        let (mut socket, open) = soon("an agent", came.recv()).await.unwrap();
        assert_eq!(open.tunnel, 0);
        send(&mut socket, OPENED).await;
        assert_eq!(layer(&mut socket).await, Message::Ack { received: 0 });
    }
    let (_socket, open) = soon("the same again", came.recv()).await.unwrap();
    assert_eq!(open.tunnel, 2, "{:?}", agent.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_that_was_replaced_knows_it_without_the_close() {
    let (agent, mut came) = scripted_runner().await;
    let (mut socket, _) = soon("an agent", came.recv()).await.unwrap();
    send(&mut socket, OPENED).await;
    assert_eq!(layer(&mut socket).await, Message::Ack { received: 0 });
    let (reason, text) = (EndReason::Replaced, String::new());
    send(&mut socket, Message::End { reason, text }).await;
    drop(socket);
    agent.complaint("replaced by a newer registration");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_restarted_agent_ends_connections_at_once() {
    let port = service(echo).await.port();
    let chain = Chain::with_runner(&LONG);
    let mut agent = agent_at(&chain.runner.address());
    let forward = chain.forward(port, &LONG);
    for signal in ["KILL", "TERM"] {
        let mut stream = connect(&forward).await;
        expect_echo(&mut stream, b"before").await;
        agent.signal(signal);
        agent.exit(LIMIT);
        agent = agent_at(&chain.runner.address());
        assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
        expect_echo(&mut connect(&forward).await, b"after").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn it_is_off_where_either_side_turns_it_off() {
    let port = service(echo).await.port();
    let target = format!("{CONTAINER}=127.0.0.1");
    for (runner, forward) in [
        (&["--no-resume"][..], &LONG[..]),
        (&LONG[..], &["--no-resume"][..]),
    ] {
        let args = [runner, &["--target", &target]].concat();
        let mut chain = Chain::with_runner(&args);
        let forward = chain.forward(port, forward);
        let mut stream = connect(&forward).await;
        expect_echo(&mut stream, b"before").await;
        chain.restart_host();
        assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
        forward.complaint("reconnected to");
        expect_echo(&mut connect(&forward).await, b"after").await;
        assert_eq!(metric(&chain.runner, OF_CLIENTS).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_is_not_let_in_any_more_does_not_go_on() {
    let port = service(echo).await.port();
    let folder = Folder::new();
    let mut chain = direct();
    let (address, runner) = (chain.host.address(), chain.runner.address());
    chain.host.kill();
    let old = folder.write("old", "the-old-token", 0o600);
    let new = folder.write("new", "the-new-token", 0o600);
    let own = folder.write("own", "the-old-token", 0o600);
    // The runner demands no token, so it takes that of the host.
    chain.host = host_at(&address, &runner, &["--token-file", &old]);
    let forward = chain.forward(port, &[&LONG[..], &["--token-file", &own]].concat());
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"before").await;

    // Where the file of the client has the new token too, the tunnel goes on.
    folder.write("own", "the-new-token", 0o600);
    chain.host.kill();
    chain.host = host_at(&address, &runner, &["--token-file", &new]);
    forward.complaint("the tunnel goes on after ");
    expect_echo(&mut stream, b"still").await;

    chain.host.kill();
    chain.host = host_at(&address, &runner, &["--token-file", &old]);
    assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
    let told = forward.complaint("connections have ended");
    assert!(told.contains("HTTP 401"), "{told}");

    folder.write("own", "the-old-token", 0o600);
    forward.complaint("reconnected to");
    expect_echo(&mut connect(&forward).await, b"after").await;
    let log = forward.stderr().join("\n");
    assert!(!log.contains("the-old-token") && !log.contains("the-new-token"));
}

/// The service of a connection, which tells when its client is gone.
async fn watched() -> (u16, tokio::sync::mpsc::Receiver<()>) {
    let (gone, told) = tokio::sync::mpsc::channel(16);
    let service = service(move |stream| {
        let gone = gone.clone();
        async move {
            echo(stream).await;
            let _ = gone.send(()).await;
        }
    });
    (service.await.port(), told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_is_freed_soon_after_its_client_vanished() {
    let (port, mut gone) = watched().await;
    let chain = direct();
    for (keep, signal) in [("1", "KILL"), ("3600", "TERM")] {
        let mut forward = chain.forward(port, &["--resume-keep", keep]);
        let mut stream = connect(&forward).await;
        expect_echo(&mut stream, b"here").await;
        forward.signal(signal);
        forward.exit(LIMIT);
        soon("the end at the service", gone.recv()).await.unwrap();
        expect_metric(&chain.runner, "runner_sessions", 0).await;
    }
    assert_eq!(
        metric(
            &chain.runner,
            "runner_tunnels_not_resumed_total{cause=\"expired\"}"
        )
        .await,
        1
    );
}

/// Shell and kernel each send SIGHUP when a terminal closes, a service manager sends it right after
/// SIGTERM, and users press Ctrl-C twice.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_is_freed_at_a_second_signal_too() {
    let (port, mut gone) = watched().await;
    let chain = direct();
    let (url, remote) = (chain.host_url(), port.to_string());
    for (first, then, second) in [
        ("HUP", Duration::ZERO, "HUP"),
        ("TERM", Duration::ZERO, "HUP"),
        ("INT", Duration::ZERO, "INT"),
        ("TERM", Duration::from_millis(300), "INT"),
    ] {
        // The tests themselves may run under nohup.
        let hears = ["--default-signal=HUP"];
        let mut command = program::command_through("env", &hears, "forward");
        command
            .args(["--host", &url, "42", &remote, "--local-port", "0"])
            .args(LONG);
        let mut forward = Program::spawn("forward", command);
        let mut stream = connect(&forward).await;
        expect_echo(&mut stream, b"here").await;
        forward.signal(first);
        forward.complaint(&format!("SIG{first}: ending"));
        tokio::time::sleep(then).await;
        forward.signal(second);
        assert_eq!(forward.exit(LIMIT), 0, "{first} {second}");
        soon("the end at the service", gone.recv()).await.unwrap();
        expect_metric(&chain.runner, "runner_sessions", 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn new_connections_do_not_wait_longer_than_before() {
    let port = service(echo).await.port();
    let mut chain = direct();
    let (address, runner) = (chain.host.address(), chain.runner.address());
    let forward = chain.forward(port, &[&LONG[..], &["--wait", "1"]].concat());
    let mut old = connect(&forward).await;
    expect_echo(&mut old, b"before").await;
    chain.host.kill();
    forward.complaint("reconnecting to");
    let ended = ending(&mut connect(&forward).await).await;
    assert_eq!(ended, Some(ErrorKind::ConnectionReset));
    chain.host = host_at(&address, &runner, &[]);
    forward.complaint("the tunnel goes on after ");
    expect_echo(&mut old, b"after").await;
    expect_echo(&mut connect(&forward).await, b"new").await;
}

/// A forward that logs what it does.
fn talkative(chain: &Chain, port: u16, wait: &str) -> Program {
    let (url, port) = (chain.host_url(), port.to_string());
    let args = ["--host", &url, "42", &port, "--local-port", "0"];
    let args = [&args[..], &LONG, &["--tunnels", "1", "--wait", wait]].concat();
    Program::start_with("forward", &args, &[("RUST_LOG", "debug")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_whose_service_has_not_answered_does_not_wait_longer_either() {
    let mut chain = direct();
    let silent = SilentPort::open();
    let forward = talkative(&chain, silent.port(), "1");
    let mut stream = connect(&forward).await;
    forward.complaint(" connected");
    chain.host.kill();
    forward.complaint("reconnecting to");
    assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
    forward.complaint("the tunnel was lost before the service had answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn new_connections_are_not_put_on_a_tunnel_in_doubt() {
    let port = service(echo).await.port();
    let mut chain = direct();
    let forward = talkative(&chain, port, "60");
    let mut old = connect(&forward).await;
    expect_echo(&mut old, b"before").await;
    // Nobody answers, and meanwhile the other side has forgotten the tunnel.
    chain.host.signal("STOP");
    forward.stand_still().await;
    forward.complaint("asleep: looking at the connections");
    let mut new = connect(&forward).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (runner, host) = (chain.runner.address(), chain.host.address());
    chain.runner.kill();
    let target = format!("{CONTAINER}=127.0.0.1");
    chain.runner = start_runner(&runner, &[&LONG[..], &["--target", &target]].concat());
    chain.host.kill();
    chain.host = host_at(&host, &runner, &[]);
    assert_eq!(ending(&mut old).await, Some(ErrorKind::ConnectionReset));
    expect_echo(&mut new, b"on the next one").await;
}

/// A session of a scripted client that resumes tunnels: its first OPEN was answered.
async fn opened(url: &str) -> (Client, Opened) {
    opened_from(url, 1).await
}

/// The same from 127.0.0.`last`.
async fn opened_from(url: &str, last: u8) -> (Client, Opened) {
    let mut client = asking_from(url, new_tunnel(), last).await;
    match layer(&mut client).await {
        Message::Opened(opened) => {
            answer(&mut client).await;
            (client, opened)
        }
        other => panic!("not opened: {other:?}"),
    }
}

const fn new_tunnel() -> Open {
    Open {
        tunnel: 0,
        secret: Secret::new([0; Secret::LEN]),
        attempt: 1,
        received: 0,
        keep: 3600,
        ring: 1 << 20,
    }
}

/// The client of a new tunnel shows that it is there.
async fn answer(client: &mut Client) {
    let ack = Message::Ack { received: 0 };
    let ack = WsMessage::binary(ack.to_bytes());
    soon("ACK", client.send(ack)).await.unwrap();
}

/// A WebSocket that has sent this OPEN.
async fn asking(url: &str, open: Open) -> Client {
    asking_from(url, open, 1).await
}

async fn asking_from(url: &str, open: Open, last: u8) -> Client {
    let offer = [("sec-websocket-protocol", OFFER)];
    let (mut client, text) = greeted(url, &offer, last).await.unwrap();
    assert_eq!(text, "CONNECTED");
    let open = WsMessage::binary(Message::Open(open).to_bytes());
    soon("OPEN", client.send(open)).await.unwrap();
    client
}

/// The next message, which is of the layer.
async fn layer(client: &mut Client) -> Message {
    let message = soon("an answer", client.next()).await.unwrap().unwrap();
    Message::decode(&message.into_data()).unwrap()
}

/// Opens a connection to a port and waits until it is there.
async fn connected(client: &mut Client, port: u16) {
    let connect = frame(Kind::Connect, Proto::Tcp, 1, port, b"");
    soon("CONNECT", client.send(connect)).await.unwrap();
    loop {
        let message = soon("CONNECTED", client.next()).await.unwrap().unwrap();
        if message.into_data().first() == Some(&(Kind::Connected as u8)) {
            return;
        }
    }
}

/// The connection still echoes.
async fn expect_connection(client: &mut Client, port: u16) {
    let say = frame(Kind::Data, Proto::Tcp, 1, port, b"still here");
    soon("data", client.send(say)).await.unwrap();
    loop {
        let message = soon("echo", client.next()).await.unwrap().unwrap();
        if message.into_data().ends_with(b"still here") {
            return;
        }
    }
}

/// A runner that dials 127.0.0.1, and the URL of its sessions.
fn bare_runner(args: &[&str]) -> (Program, String) {
    let target = format!("{CONTAINER}=127.0.0.1");
    let runner = start_runner("127.0.0.1:0", &[args, &["--target", &target]].concat());
    let url = format!("ws://{}/api/tunnel/{CONTAINER}", runner.address());
    (runner, url)
}

const EVICTED: &str = "runner_tunnels_not_resumed_total{cause=\"evicted\"}";
const EXPIRED: &str = "runner_tunnels_not_resumed_total{cause=\"expired\"}";
const DETACHED: &str = "runner_tunnels_detached";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_oldest_of_too_many_kept_tunnels_ends() {
    let port = service(echo).await.port();
    for flag in [
        "--max-detached",
        "--max-detached-per-container",
        "--max-detached-per-address",
    ] {
        let (runner, url) = bare_runner(&[&LONG[..], &[flag, "3"]].concat());
        let mut kept = Vec::new();
        for number in 1..=5 {
            let (mut client, opened) = opened(&url).await;
            connected(&mut client, port).await;
            drop(client);
            kept.push(opened);
            expect_metric(&runner, DETACHED, number.min(3)).await;
            expect_metric(&runner, EVICTED, number.saturating_sub(3)).await;
        }
        expect_metric(&runner, "runner_sessions", 3).await;
        for (number, old) in kept.iter().enumerate() {
            let answer = layer(&mut asking(&url, again(old, 2)).await).await;
            let goes_on = matches!(answer, Message::Opened(_));
            assert_eq!(goes_on, number >= 2, "{flag} {number}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tunnels_of_another_container_or_address_are_not_counted_together() {
    let port = service(echo).await.port();
    for (flag, containers, addresses) in [
        ("--max-detached-per-container", [CONTAINER, "other"], [1, 1]),
        ("--max-detached-per-address", [CONTAINER; 2], [1, 10]),
    ] {
        let args = [flag, "3", "--target", "other=127.0.0.1"];
        let (runner, _) = bare_runner(&[&LONG[..], &args].concat());
        for (container, last) in containers.into_iter().zip(addresses) {
            let url = format!("ws://{}/api/tunnel/{container}", runner.address());
            for _ in 0..2 {
                let (mut client, _) = opened_from(&url, last).await;
                connected(&mut client, port).await;
            }
        }
        expect_metric(&runner, DETACHED, 4).await;
        assert_eq!(metric(&runner, EVICTED).await, 0, "{flag}");
    }
}

/// The OPEN with which a tunnel goes on that has received nothing but CONNECTED.
fn again(opened: &Opened, attempt: u32) -> Open {
    Open {
        tunnel: opened.tunnel,
        secret: opened.secret,
        attempt,
        received: 1,
        keep: 3600,
        ring: 1 << 20,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_new_session_takes_the_place_of_the_oldest_kept_one() {
    let port = service(echo).await.port();
    let (runner, url) = bare_runner(&[&LONG[..], &["--max-sessions", "2"]].concat());
    let (mut first, kept) = opened(&url).await;
    connected(&mut first, port).await;
    let (mut second, _) = opened(&url).await;
    connected(&mut second, port).await;
    drop(first);
    expect_metric(&runner, DETACHED, 1).await;
    // It goes on although all places are taken.
    let mut first = asking(&url, again(&kept, 2)).await;
    let Message::Opened(kept) = layer(&mut first).await else {
        panic!("it does not go on");
    };
    expect_metric(&runner, DETACHED, 0).await;
    // A session without a tunnel to go on with is not let in beyond the places.
    let offer = [("sec-websocket-protocol", OFFER)];
    let other = format!("ws://{}/ws/forward/{CONTAINER}/{port}", runner.address());
    assert_eq!(greeted(&other, &offer, 1).await.err(), Some(503));
    drop(first);
    expect_metric(&runner, DETACHED, 1).await;
    let (_third, _) = opened(&other).await;
    expect_metric(&runner, EVICTED, 1).await;
    // The evicted one does not come back.
    let answer = layer(&mut asking(&url, again(&kept, 3)).await).await;
    assert!(matches!(answer, Message::End { .. }), "{answer:?}");
    assert_eq!(metric(&runner, "runner_sessions").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_tunnel_that_goes_on_takes_no_other_place() {
    let port = service(echo).await.port();
    let (runner, url) = bare_runner(&[&LONG[..], &["--max-sessions", "2"]].concat());
    let (mut first, kept) = opened(&url).await;
    connected(&mut first, port).await;
    drop(first);
    expect_metric(&runner, DETACHED, 1).await;
    // Before its OPEN nobody knows whether it goes on.
    let offer = [("sec-websocket-protocol", OFFER)];
    let (mut next, _) = greeted(&url, &offer, 1).await.unwrap();
    let other = format!("ws://{}/ws/forward/{CONTAINER}/{port}", runner.address());
    let (_second, _) = opened(&other).await;
    let open = WsMessage::binary(Message::Open(again(&kept, 2)).to_bytes());
    soon("OPEN", next.send(open)).await.unwrap();
    let answer = layer(&mut next).await;
    assert!(matches!(answer, Message::Opened(_)), "{answer:?}");
    expect_metric(&runner, EVICTED, 0).await;
    assert_eq!(metric(&runner, "runner_sessions").await, 2);
}

/// An agent's tunnel of this container, whose OPEN was answered.
async fn agent_opened(runner: &Program, container: &str, open: Open) -> Result<Client, u16> {
    let url = format!("ws://{}/ws/tunnel/{container}", runner.address());
    let (mut client, _) = upgrade(&url, &[("sec-websocket-protocol", OFFER)], 1).await?;
    let open = WsMessage::binary(Message::Open(open).to_bytes());
    soon("OPEN", client.send(open)).await.unwrap();
    Ok(client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_new_agent_takes_the_place_of_the_oldest_kept_one() {
    let args = ["--max-agents", "2", "--proxy", "127.0.0.1"];
    let runner = start_runner("127.0.0.1:0", &[&LONG[..], &args].concat());
    let mut agents = Vec::new();
    for number in 1..=2 {
        let name = format!("box-{number}");
        let agent = agent_opened(&runner, &name, new_tunnel()).await;
        let mut agent = agent.unwrap();
        let Message::Opened(opened) = layer(&mut agent).await else {
            panic!("not opened");
        };
        answer(&mut agent).await;
        expect_metric(&runner, "runner_agents", number).await;
        agents.push((agent, opened));
    }
    let third = async || agent_opened(&runner, "box-3", new_tunnel()).await;
    assert_eq!(third().await.err(), Some(503));
    let (first, _) = agents.remove(0);
    drop(first);
    expect_metric(&runner, DETACHED, 1).await;
    let mut third = third().await.unwrap();
    assert!(matches!(layer(&mut third).await, Message::Opened(_)));
    answer(&mut third).await;
    expect_metric(&runner, EVICTED, 1).await;
    expect_metric(&runner, "runner_agents", 2).await;

    // The second one goes on although all places are taken, and evicts nobody.
    let (second, opened) = agents.remove(0);
    drop(second);
    expect_metric(&runner, DETACHED, 1).await;
    let again = Open {
        received: 0,
        ..again(&opened, 2)
    };
    let mut second = agent_opened(&runner, "box-2", again).await.unwrap();
    assert!(matches!(layer(&mut second).await, Message::Opened(_)));
    assert_eq!(metric(&runner, EVICTED).await, 1);
    assert_eq!(metric(&runner, "runner_agents").await, 2);
}

/// All may come from one address, for instance through one proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn as_many_agents_are_kept_as_there_may_be() {
    let args = [&LONG[..], &["--resume-idle-keep", "3600"]].concat();
    let runner = start_runner("127.0.0.1:0", &args);
    let mut agents = Vec::new();
    for number in 1..=70 {
        let name = format!("box-{number}");
        let mut agent = agent_opened(&runner, &name, new_tunnel()).await.unwrap();
        assert!(matches!(layer(&mut agent).await, Message::Opened(_)));
        answer(&mut agent).await;
        agents.push(agent);
    }
    expect_metric(&runner, "runner_agents", 70).await;
    drop(agents);
    expect_metric(&runner, DETACHED, 70).await;
    assert_eq!(metric(&runner, EVICTED).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn forged_stale_and_replayed_opens_change_nothing() {
    let port = service(echo).await.port();
    let (runner, url) = bare_runner(&LONG);
    let (mut client, first) = opened(&url).await;
    connected(&mut client, port).await;
    drop(client);
    let mut client = asking(&url, again(&first, 7)).await;
    let Message::Opened(now) = layer(&mut client).await else {
        panic!("it does not go on");
    };
    expect_connection(&mut client, port).await;
    let other = format!("ws://{}/ws/forward/{CONTAINER}/{port}", runner.address());
    for number in 0..250_u32 {
        let mut guess = [0; Secret::LEN];
        guess[..4].copy_from_slice(&number.to_be_bytes());
        let forged = Open {
            secret: Secret::new(guess),
            ..again(&now, 1000 + number)
        };
        let unknown = Open {
            tunnel: now.tunnel.wrapping_add(u64::from(number) + 1),
            ..again(&now, 1000 + number)
        };
        for (url, open, reason) in [
            (&url, forged, EndReason::Unknown),
            (&url, unknown, EndReason::Unknown),
            // The first secret is not valid any more since this client spoke.
            (&url, again(&first, 1000 + number), EndReason::Unknown),
            // Right in all but the route.
            (&other, again(&now, 1000 + number), EndReason::Unknown),
        ] {
            match layer(&mut asking(url, open).await).await {
                Message::End { reason: told, .. } => assert_eq!(told, reason),
                answer => panic!("{answer:?}"),
            }
        }
    }
    let stale = layer(&mut asking(&url, again(&now, 7)).await).await;
    assert!(
        matches!(
            stale,
            Message::End {
                reason: EndReason::Stale,
                ..
            }
        ),
        "{stale:?}"
    );
    expect_connection(&mut client, port).await;
    assert_eq!(metric(&runner, "runner_sessions").await, 1);
    let refused = "runner_resume_refused_total{reason=\"unknown\"}";
    assert_eq!(metric(&runner, refused).await, 1000);
    assert_eq!(metric(&runner, OF_CLIENTS).await, 1);
}

/// The client has OPENED, and its WebSocket is lost before the runner hears so. It is away for
/// longer than a tunnel without connections is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_whose_first_acknowledgement_is_lost_goes_on() {
    let port = service(echo).await.port();
    let (runner, url) = bare_runner(&LONG);
    let mut client = asking(&url, new_tunnel()).await;
    let Message::Opened(kept) = layer(&mut client).await else {
        panic!("not opened");
    };
    connected(&mut client, port).await;
    drop(client);
    expect_metric(&runner, DETACHED, 1).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let mut client = asking(&url, again(&kept, 2)).await;
    let answer = layer(&mut client).await;
    assert!(matches!(answer, Message::Opened(_)), "{answer:?}");
    expect_connection(&mut client, port).await;
    assert_eq!(metric(&runner, EXPIRED).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_memory_of_tunnels_that_nobody_comes_back_for_is_freed() {
    /// Bytes on their way to each client when it vanishes.
    const UNREAD: usize = 64 << 10;
    let block = vec![7; UNREAD];
    let port = service(move |mut stream| {
        let block = block.clone();
        async move {
            let _ = stream.write_all(&block).await;
            let _ = stream.read(&mut [0]).await;
        }
    });
    let port = port.await.port();
    let (runner, url) =
        bare_runner(&["--resume-keep", "3", "--max-detached-per-container", "1000"]);
    let mut before = 0;
    // The first round warms the allocator up.
    for round in 1..=2 {
        let mut clients = JoinSet::new();
        for _ in 0..1000 {
            let url = url.clone();
            clients.spawn(async move {
                let (mut client, _) = opened(&url).await;
                connected(&mut client, port).await;
            });
            if clients.len() >= 50 {
                clients.join_next().await.unwrap().unwrap();
            }
        }
        while let Some(done) = clients.join_next().await {
            done.unwrap();
        }
        expect_metric(&runner, EXPIRED, 1000 * round).await;
        expect_metric(&runner, "runner_sessions", 0).await;
        expect_metric(&runner, "runner_tunnels_ring_bytes", 0).await;
        if round == 1 {
            // Free memory is returned within a few seconds.
            tokio::time::sleep(Duration::from_secs(5)).await;
            before = runner.resident();
        }
    }
    let limit = before + before / 4 + (4 << 20);
    eventually("the memory of before", LIMIT, || async {
        (runner.resident() <= limit).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_process_that_goes_on_after_a_stop_looks_at_its_connections() {
    let port = service(echo).await.port();
    let chain = direct();
    let url = chain.host_url();
    let port = port.to_string();
    let args = ["--host", &url, "42", &port, "--local-port", "0"];
    let forward = Program::start_with("forward", &args, &[("RUST_LOG", "debug")]);
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"before").await;
    forward.stand_still().await;
    forward.complaint("asleep: looking at the connections");
    expect_echo(&mut stream, b"after").await;
}

/// The one who closes waits for an answer (RFC 6455 section 5.5.1), also where the tunnel outlives
/// its WebSocket.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_close_of_a_resumable_websocket_is_answered() {
    let chain = direct();
    let url = format!("ws://{}/api/tunnel/42", chain.host.address());
    let (mut client, _) = opened(&url).await;
    soon("close", client.send(WsMessage::Close(None)))
        .await
        .unwrap();
    loop {
        match soon("an answer", client.next()).await {
            Some(Ok(WsMessage::Close(_))) => break,
            Some(Ok(_)) => {}
            ended => panic!("no close frame: {ended:?}"),
        }
    }
}

/// A way to `to`. The first connection ends when the session has begun on it, and nothing has come
/// after the greeting.
async fn cut_after_the_greeting(to: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut is_first = true;
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&to).await.unwrap();
            if !core::mem::take(&mut is_first) {
                tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
                continue;
            }
            let (mut from_client, mut to_client) = near.split();
            let (mut from_host, mut to_host) = far.split();
            let greeted = async {
                let mut buffer = [0; 4096];
                loop {
                    let len = from_host.read(&mut buffer).await.unwrap();
                    to_client.write_all(&buffer[..len]).await.unwrap();
                    if buffer[..len].windows(9).any(|part| part == b"CONNECTED") {
                        return;
                    }
                }
            };
            tokio::select! {
                _ = copy(&mut from_client, &mut to_host) => {}
                () = greeted => {}
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_websocket_that_is_lost_at_once_keeps_nobody_out() {
    let port = service(echo).await.port();
    let chain = direct();
    let url = format!(
        "ws://{}",
        cut_after_the_greeting(chain.host.address()).await
    );
    let forward = Program::start(
        "forward",
        &["42", &port.to_string(), "--local-port", "0", "--host", &url],
    );
    expect_echo(&mut connect(&forward).await, b"all the same").await;
}

/// One address for several hosts: the first connection goes to the first of them, and so on, and
/// all others to the last.
async fn balancer(hosts: &[&str]) -> String {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut next = 0;
        while let Ok((mut near, _)) = listener.accept().await {
            let host = hosts[next].clone();
            next = (next + 1).min(hosts.len() - 1);
            tokio::spawn(async move {
                // A host may be away.
                let mut far = TcpStream::connect(host).await?;
                copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_host_of_several_that_does_not_know_resumption_ends_nothing() {
    let port = service(echo).await.port();
    let mut chain = direct();
    let target = format!("{CONTAINER}=127.0.0.1");
    let without = start_runner("127.0.0.1:0", &["--no-resume", "--target", &target]);
    let other = host_at("127.0.0.1:0", &without.address(), &[]);
    let own = chain.host.address();
    let url = format!("ws://{}", balancer(&[&own, &other.address(), &own]).await);
    let (port, place) = (port.to_string(), ["--local-port", "0", "--host", &url]);
    let args = [&["42", &*port][..], &place, &LONG_IN_ONE].concat();
    let forward = Program::start("forward", &args);
    let mut stream = connect(&forward).await;
    expect_echo(&mut stream, b"before").await;
    chain.restart_host();
    forward.complaint("the tunnel goes on after ");
    expect_echo(&mut stream, b"after").await;
}

/// The address of a server that answers with this status.
async fn refusing(status: u16) -> String {
    let server = service(move |mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes()).await;
    });
    server.await.to_string()
}

/// A proxy answers with 403 while it reloads its rules, and a deployed host to a path that it does
/// not know. 401 is the answer to an old token while the new one in the file is not read yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_401_or_403_again_and_again_ends_connections() {
    let port = service(echo).await.port();
    let mut chain = direct();
    let own = chain.host.address();
    let (old, no) = (&*refusing(401).await, &*refusing(403).await);
    let (one, two) = (port.to_string(), format!("{}:0", SilentPort::open().port()));
    for (hosts, ports, goes_on) in [
        (&[&own, no, no, &own][..], &[&*one][..], true),
        (&[&own, no, no, no, &own], &[&one], false),
        (&[&own, old, old, &own], &[&one], true),
        (&[&own, no, old, old, &own], &[&one], false),
        (
            &[&own, no, no, no, no, &own],
            &[&format!("{one}:0"), &two],
            true,
        ),
    ] {
        let url = format!("ws://{}", balancer(hosts).await);
        let place = ["--host", &url, "42"];
        let local: &[&str] = if ports.len() == 1 {
            &["--local-port", "0"]
        } else {
            &[]
        };
        let args = [&place[..], ports, local, &LONG_IN_ONE].concat();
        let forward = Program::start("forward", &args);
        let mut stream = connect(&forward).await;
        expect_echo(&mut stream, b"before").await;
        chain.restart_host();
        if goes_on {
            forward.complaint("the tunnel goes on after ");
            expect_echo(&mut stream, b"after").await;
        } else {
            assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));
            let told = forward.complaint("connections have ended");
            assert!(told.contains("HTTP 40"), "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_killed_program_carried_is_reset_and_does_not_seem_whole() {
    let (told, mut endings) = tokio::sync::mpsc::unbounded_channel();
    let port = service(move |mut stream: TcpStream| {
        let told = told.clone();
        async move {
            stream.write_all(b"part").await.unwrap();
            let _ = told.send(ending(&mut stream).await);
        }
    });
    let port = port.await.port();
    let mut chain = direct();
    let mut forward = chain.forward(port, &[]);
    let mut stream = connect(&forward).await;
    let mut part = [0; 4];
    soon("a part", stream.read_exact(&mut part)).await.unwrap();
    forward.kill();
    assert_eq!(ending(&mut stream).await, Some(ErrorKind::ConnectionReset));

    let forward = chain.forward(port, &[]);
    let mut stream = connect(&forward).await;
    soon("a part", stream.read_exact(&mut part)).await.unwrap();
    chain.runner.kill();
    let ended = soon("an ending", endings.recv()).await.unwrap();
    assert_eq!(ended, Some(ErrorKind::ConnectionReset));
}
