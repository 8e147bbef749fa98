//! Containers reached through their agents, and parts of the chain that die and come back.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tunnel_test_support::chain::{
    CONTAINER, Chain, SilentPort, agent_at, connect, echo, ending, eventually, expect_echo,
    expect_reverse, metric, pattern, reverse, service, service_at, start_agent, start_runner,
    udp_echo,
};
use tunnel_test_support::program::Program;
use tunnel_test_support::{LIMIT, free_port, has_ipv6, soon};

const BACK: Duration = Duration::from_secs(20);

/// Connections outlive their client by this.
const KEPT_SHORTLY: [&str; 2] = ["--resume-keep", "1"];

/// A connection that works for an application that tries once.
async fn works(forward: &Program) {
    expect_echo(&mut connect(forward).await, &pattern(3, 1000)).await;
}

#[tokio::test]
async fn a_service_is_reached_through_the_agent() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let forward = chain.forward(service(echo).await.port(), &[]);
    let mut stream = connect(&forward).await;
    for size in [1, 64, 1000, 100_000] {
        expect_echo(&mut stream, &pattern(size as u64, size)).await;
    }
}

#[tokio::test]
async fn half_close_keeps_the_reply_through_the_agent() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let forward = chain.forward(service(reverse).await.port(), &[]);
    expect_reverse(&forward, 4 << 20).await;
}

#[tokio::test]
async fn a_service_on_the_ipv6_loopback_alone_is_reached() {
    if !has_ipv6() {
        return;
    }
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    // Bound but not listening: the other loopback address refuses.
    let refusing = tokio::net::TcpSocket::new_v4().unwrap();
    refusing.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = refusing.local_addr().unwrap().port();
    service_at(&format!("[::1]:{port}"), echo).await;
    let forward = chain.forward(port, &[]);
    works(&forward).await;
}

#[tokio::test]
async fn a_port_refused_inside_the_container_is_a_reset_and_one_line() {
    let dead = free_port();
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let forward = chain.forward(dead, &[]);
    let started = Instant::now();
    let ended = ending(&mut connect(&forward).await).await;
    assert_eq!(ended, Some(ErrorKind::ConnectionReset));
    // Without an answer it would wait for 10 s.
    assert!(started.elapsed() < Duration::from_secs(5));
    forward.complaint(&format!("port {dead}: connection refused"));
    assert_eq!(forward.stderr().len(), 1);
}

#[tokio::test]
async fn two_forwards_on_one_container_never_mix_their_bytes() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let port = service(echo).await.port();
    let forwards = [chain.forward(port, &[]), chain.forward(port, &[])];
    let mut connections = JoinSet::new();
    for (user, forward) in forwards.iter().enumerate() {
        for number in 0..50 {
            let mut stream = connect(forward).await;
            connections.spawn(async move {
                for round in 0..20 {
                    let seed = (user * 1_000_000 + number * 1000 + round) as u64;
                    expect_echo(&mut stream, &pattern(seed, 5000)).await;
                }
            });
        }
    }
    soon("connections", connections.join_all()).await;
}

#[tokio::test]
async fn an_agent_killed_and_back_costs_only_its_live_connections() {
    let chain = Chain::for_agents();
    let mut agent = chain.agent();
    let mut forward = chain.forward(service(echo).await.port(), &[]);
    let mut open = connect(&forward).await;
    expect_echo(&mut open, b"before").await;

    agent.kill();
    // An application that connects too early waits for the agent instead of failing.
    let mut early = connect(&forward).await;
    early.write_all(b"early").await.unwrap();
    let _agent = chain.agent();
    let back = Instant::now();
    assert_eq!(ending(&mut open).await, Some(ErrorKind::ConnectionReset));
    assert!(back.elapsed() < Duration::from_secs(10));
    let mut reply = [0; 5];
    soon("early echo", early.read_exact(&mut reply))
        .await
        .unwrap();
    assert_eq!(&reply, b"early");
    works(&forward).await;
    assert!(forward.is_running());
}

#[tokio::test]
async fn a_newer_agent_replaces_the_older_and_outlives_its_end() {
    let chain = Chain::for_agents();
    let port = service(echo).await.port();
    let mut old = chain.agent();
    chain.runner.expect_lines("agent registered", 1);
    // SIGSTOP: the runner cannot detect that it is dead.
    old.signal("STOP");
    let _new = chain.agent();
    // Until the new one has answered, the old one is registered.
    chain.runner.expect_lines("agent registered", 2);
    let forward = chain.forward(port, &[]);
    works(&forward).await;
    old.kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    works(&forward).await;
}

#[tokio::test]
async fn a_runner_killed_and_back_is_survived_by_agent_and_forward() {
    let port = service(echo).await.port();
    let mut chain = Chain::for_agents();
    let address = chain.runner.address();
    let _agent = start_agent(&address);
    let mut forward = chain.forward(port, &[]);
    let mut open = connect(&forward).await;
    expect_echo(&mut open, b"before").await;

    chain.runner.kill();
    // A connection that comes before the loss is noticed belongs to the tunnel that ends.
    forward.complaint("lost the tunnel");
    let mut early = connect(&forward).await;
    early.write_all(b"early").await.unwrap();
    chain.runner = start_runner(&address, &[]);
    assert!(ending(&mut open).await.is_some());
    let mut reply = [0; 5];
    soon("early echo", early.read_exact(&mut reply))
        .await
        .unwrap();
    works(&forward).await;
    assert!(forward.is_running());
}

#[tokio::test]
async fn a_host_killed_and_back_is_survived_by_the_forward() {
    let port = service(echo).await.port();
    let mut chain = Chain::direct();
    let address = chain.host.address();
    let mut forward = chain.forward(port, &[]);
    works(&forward).await;
    chain.host.kill();
    forward.complaint("reconnecting");
    let task = format!("42={CONTAINER}@http://{}", chain.runner.address());
    chain.host = Program::start("host", &["--listen", &address, "--task", &task]);
    works(&forward).await;
    assert!(forward.is_running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_task_that_does_not_run_for_a_moment_is_waited_for_once_it_was_there() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let host = service(move |stream| {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        async move {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            let refused = matches!(number, 1 | 3);
            let text = match refused {
                true => "Error: task 42 is not running (it is stopped)",
                false => "CONNECTED",
            };
            socket.send(Message::text(text)).await.unwrap();
            let code = match refused {
                true => CloseCode::Policy,
                false => CloseCode::Away,
            };
            if number < 2 || refused {
                let reason = "".into();
                let _ = socket.close(Some(CloseFrame { code, reason })).await;
            }
            while let Some(Ok(_)) = socket.next().await {}
        }
    });
    let url = format!("ws://{}", host.await);
    let args = ["--host", &url, "42", "80", "--local-port", "0"];
    let mut forward = Program::start("forward", &args);
    forward.complaint("reconnected to");
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    assert!(forward.is_running());
    // A second agent is told at once.
    let mut late = Program::start("forward", &args);
    assert_eq!(late.exit(BACK), 3);
    late.complaint("not running");
}

#[tokio::test]
async fn a_connection_made_while_the_tunnel_is_down_waits_a_bounded_time() {
    let mut chain = Chain::direct();
    let forward = chain.forward(80, &["--wait", "1"]);
    chain.host.kill();
    forward.complaint("reconnecting");
    let started = Instant::now();
    let ended = ending(&mut connect(&forward).await).await;
    assert_eq!(ended, Some(ErrorKind::ConnectionReset));
    // Without the flag it would wait for 15 s.
    let took = started.elapsed();
    assert!(
        took > Duration::from_millis(900) && took < Duration::from_secs(12),
        "{took:?}"
    );
}

#[tokio::test]
async fn sessions_and_connections_are_counted_by_what_became_of_them() {
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    works(&chain.forward(service(echo).await.port(), &[])).await;
    let udp = chain.forward(udp_echo().await.port(), &["--proto", "udp"]);
    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    peer.send_to(b"?", udp.address()).await.unwrap();
    soon("echo", peer.recv(&mut [0])).await.unwrap();
    let refused = chain.forward(free_port(), &[]);
    let ended = ending(&mut connect(&refused).await).await;
    assert_eq!(ended, Some(ErrorKind::ConnectionReset));
    let url = chain.host_url();
    let unknown = ["--host", &url, "43", "80", "--local-port", "0"];
    assert_eq!(Program::start("forward", &unknown).exit(LIMIT), 3);

    for (program, name, outcome, count) in [
        (&chain.host, "host_sessions", "joined", 3),
        (&chain.host, "host_sessions", "refused", 1),
        (&chain.runner, "runner_sessions", "served", 3),
        (&chain.runner, "runner_connections", "agent", 2),
        (&chain.runner, "runner_connections", "refused", 1),
    ] {
        let name = format!("{name}_total{{outcome=\"{outcome}\"}}");
        assert_eq!(metric(program, &name).await, count, "{name}");
    }
}

#[tokio::test]
async fn connections_without_an_agent_are_counted() {
    let chain = Chain::for_agents();
    let mut agent = chain.agent();
    let forward = chain.forward(service(echo).await.port(), &[]);
    works(&forward).await;
    agent.kill();
    let ended = ending(&mut connect(&forward).await).await;
    assert_eq!(ended, Some(ErrorKind::ConnectionReset));
    let no_agent = "runner_connections_total{outcome=\"no_agent\"}";
    assert_eq!(metric(&chain.runner, no_agent).await, 1);
}

#[tokio::test]
async fn an_agent_gives_up_where_it_is_told_to() {
    let url = format!("ws://127.0.0.1:{}", free_port());
    let args = ["--runner-url", &url, "--container-id", "box"];
    let few = ["--reconnect-delay", "0.05", "--max-reconnect", "3"];
    let mut agent = Program::start("agent", &[args, [few[0], few[1], few[2], few[3]]].concat());
    assert_eq!(agent.exit(BACK), 3);
    agent.complaint("giving up after 3 tries");
}

/// It tries for its tunnel at first, and to register again once the tunnel is given up.
#[tokio::test]
async fn an_agent_that_was_registered_gives_up_after_as_many_tries_in_a_row() {
    for (keep, most, warnings) in [("120", 3, 2), ("1", 12, 12)] {
        let mut runner = start_runner("127.0.0.1:0", &[]);
        let url = format!("ws://{}", runner.address());
        let tries = most.to_string();
        let few = ["--reconnect-delay", "0.05", "--max-reconnect", &tries];
        let mut agent = agent_at(&url, &[&few[..], &["--resume-keep", keep]].concat());
        // Its registration holds for longer than the delay.
        tokio::time::sleep(Duration::from_millis(200)).await;
        runner.kill();
        assert_eq!(agent.exit(BACK), 3);
        agent.complaint(&format!("giving up after {most} tries"));
        agent.expect_lines("WARN cannot reach", warnings);
    }
}

#[tokio::test]
async fn an_agent_stops_for_good_when_it_is_refused_for_good() {
    let token = [("KOHAKURIVER_TUNNEL_TOKEN", "secret")];
    let runner = Program::start_with("runner", &["--listen", "127.0.0.1:0"], &token);
    let url = format!("ws://{}", runner.address());
    let environment = [("RUNNER_URL", &*url), ("CONTAINER_ID", "box")];
    let mut agent = Program::start_with("agent", &[], &environment);
    assert_eq!(agent.exit(BACK), 3);
    agent.complaint("401");
}

/// So a proxy answers whose runner is not there yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_that_is_not_known_yet_tries_again() {
    for status in [403, 404] {
        let answer = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
        let proxy = service(move |mut stream| {
            let answer = answer.clone();
            async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let url = format!("ws://{}", proxy.await);
        let args = ["--runner-url", &url, "--container-id", "box"];
        let mut agent = Program::start("agent", &args);
        agent.complaint(&format!("WARN the runner refused with HTTP {status}"));
        assert!(agent.is_running());
    }
}

/// A load balancer redirects to a page while the runner restarts, or for good, as to its own TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_tries_again_after_a_redirect_that_is_not_for_good() {
    for (status, location, lasting) in [
        (302, "http://sorry/", false),
        (301, "http://sorry/", true),
        (302, "https://127.0.0.1/", true),
    ] {
        let answer =
            format!("HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
        let balancer = service(move |mut stream| {
            let answer = answer.clone();
            async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let url = format!("ws://{}", balancer.await);
        let args = ["--runner-url", &url, "--container-id", "box"];
        let few = ["--reconnect-delay", "0.05", "--max-reconnect", "3"];
        let mut agent = Program::start("agent", &[&args[..], &few].concat());
        assert_eq!(agent.exit(BACK), 3);
        agent.complaint(&format!("redirects to {location} (HTTP {status})"));
        agent.expect_lines("giving up after 3 tries", usize::from(!lasting));
    }
}

#[tokio::test]
async fn the_deployed_environment_names_are_understood() {
    let runner = start_runner("127.0.0.1:0", &[]);
    let url = format!("ws://{}", runner.address());
    for names in [
        ["RUNNER_URL", "CONTAINER_ID"],
        ["KOHAKURIVER_TUNNEL_URL", "KOHAKURIVER_CONTAINER_ID"],
    ] {
        let environment = [(names[0], &*url), (names[1], "box"), ("LOG_LEVEL", "INFO")];
        let agent = Program::start_with("agent", &[], &environment);
        agent.complaint("registered at");
    }
}

/// The agent runs in the images of others, whose variables are not for it.
#[tokio::test]
async fn variables_of_another_application_do_not_end_the_agent() {
    let runner = start_runner("127.0.0.1:0", &[]);
    let url = format!("ws://{}", runner.address());
    let usual = [
        ("RUNNER_URL", ""),
        ("CONTAINER_ID", ""),
        ("KOHAKURIVER_TUNNEL_URL", &*url),
        ("KOHAKURIVER_CONTAINER_ID", "box"),
        ("RECONNECT_DELAY", ""),
        ("MAX_RECONNECT", ""),
    ];
    for (name, value) in [
        ("LOG_LEVEL", "verbose"),
        ("LOG_LEVEL", "20"),
        ("RUST_LOG", "info,my_app[request{id=5}]=debug"),
        ("RUST_LOG", "my_app=debug"),
        ("RUST_LOG", "warning"),
    ] {
        let environment = [&usual[..], &[(name, value)]].concat();
        let agent = Program::start_with("agent", &[], &environment);
        agent.complaint("registered at");
        agent.expect_lines(&format!("{name}={value:?}"), 1);
    }
    for name in ["LOG_LEVEL", "RUST_LOG"] {
        let environment = [&usual[..], &[(name, "")]].concat();
        let agent = Program::start_with("agent", &[], &environment);
        agent.complaint("registered at");
        assert_eq!(agent.lines_with("cannot read"), 0);
    }
    let environment = [&usual[..], &[("RUST_LOG", "my_app=debug")]].concat();
    let agent = Program::start_with("agent", &["--log-level", "warn"], &environment);
    agent.complaint("RUST_LOG=");
    runner.complaint("agent registered");
    assert_eq!(agent.lines_with("registered at"), 0);
    let mut agent = Program::start_with("agent", &["--log-level", "verbose"], &usual);
    assert_eq!(agent.exit(BACK), 2);
}

#[tokio::test]
async fn a_streaming_service_learns_that_its_client_has_vanished() {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let service = service(move |mut stream| {
        let tell = tell.clone();
        async move {
            let block = vec![7; 65_536];
            while stream.write_all(&block).await.is_ok() {}
            tell.send(()).await.unwrap();
        }
    });
    let chain = Chain::for_agents();
    let _agent = chain.agent();
    let mut forward = chain.forward(service.await.port(), &KEPT_SHORTLY);
    let mut stream = connect(&forward).await;
    let mut some = vec![0; 1 << 20];
    soon("some", stream.read_exact(&mut some)).await.unwrap();
    forward.kill();
    soon("the end at the service", told.recv()).await.unwrap();
}

#[tokio::test]
async fn a_stalled_service_does_not_keep_connections_whose_clients_are_gone() {
    let service = service(|stream| async move {
        // Never reads.
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(stream);
    });
    let chain = Chain::for_agents();
    let agent = chain.agent();
    let before = agent.descriptors();
    let mut forward = chain.forward(service.await.port(), &KEPT_SHORTLY);
    let mut stream = connect(&forward).await;
    let block = vec![7; 1 << 20];
    let stalled = async { while stream.write_all(&block).await.is_ok() {} };
    let stalled = tokio::time::timeout(Duration::from_secs(2), stalled).await;
    assert!(stalled.is_err(), "the service should not take everything");
    assert_eq!(agent.descriptors(), before + 1);
    forward.kill();
    eventually("the connection's end", Duration::from_secs(25), || async {
        (agent.descriptors() == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_attempt_of_the_agent_ends_with_the_client() {
    let silent = SilentPort::open();
    let chain = Chain::for_agents();
    let agent = chain.agent();
    let before = agent.descriptors();
    let mut forward = chain.forward(silent.port(), &KEPT_SHORTLY);
    let _waiting = connect(&forward).await;
    eventually("an attempt", Duration::from_secs(5), || async {
        (agent.descriptors() > before).then_some(())
    })
    .await;
    forward.kill();
    // By itself it would end after 10 s.
    eventually("its end", Duration::from_secs(8), || async {
        (agent.descriptors() == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn everything_ends_well_at_sigterm() {
    let mut chain = Chain::for_agents();
    let mut agent = chain.agent();
    let mut forward = chain.forward(service(echo).await.port(), &[]);
    let mut open = connect(&forward).await;
    expect_echo(&mut open, b"in use").await;
    for program in [&mut forward, &mut agent, &mut chain.host, &mut chain.runner] {
        program.signal("TERM");
        assert_eq!(program.exit(LIMIT), 0);
    }
}

#[tokio::test]
async fn many_agents_of_one_runner_are_kept_apart() {
    let chain = Chain::for_agents();
    let address = chain.runner.address();
    let url = format!("ws://{address}");
    let agents: Vec<Program> = (0..20)
        .map(|n| {
            let name = format!("box-{n}");
            let args = ["--runner-url", &url, "--container-id", &name];
            let agent = Program::start("agent", &args);
            agent.complaint("registered at");
            agent
        })
        .collect();
    let metric = "kohakuriver_tunnel_runner_agents 20";
    eventually("20 agents", BACK, || async {
        let mut stream = tokio::net::TcpStream::connect(&address).await.ok()?;
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\n\r\n")
            .await
            .ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await.ok()?;
        page.contains(metric).then_some(())
    })
    .await;
    drop(agents);
}
