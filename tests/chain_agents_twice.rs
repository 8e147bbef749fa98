//! Two agents of one name, and agents that come back.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tunnel_test_support::chain::{
    CONTAINER, Chain, connect, echo, eventually, expect_echo, service,
};
use tunnel_test_support::client::{Client, upgrade};
use tunnel_test_support::program::Program;
use tunnel_test_support::relay::Relay;
use tunnel_test_support::{LIMIT, soon};

/// An agent of another implementation registers; `more` is a further header.
async fn register(chain: &Chain, more: Option<&'static str>) -> Result<(Client, Response), u16> {
    let url = format!("ws://{}/ws/tunnel/{CONTAINER}", chain.runner.address());
    let header = more.map(|name| (name, "1"));
    upgrade(&url, header.as_slice(), 1).await
}

fn start_agent(runner: &str, name: &str) -> Program {
    let url = format!("ws://{runner}");
    let args = ["--runner-url", &url, "--container-id", name];
    let agent = Program::start("agent", &args);
    agent.complaint("registered at");
    agent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn of_two_agents_of_one_name_the_newer_serves_and_the_older_waits() {
    let chain = Chain::for_agents();
    let runner = chain.runner.address();
    let mut older = start_agent(&runner, CONTAINER);
    chain.runner.expect_lines("agent registered", 1);
    let newer = start_agent(&runner, CONTAINER);
    // Until the newer one has answered, the older one serves.
    chain.runner.expect_lines("agent registered", 2);
    let forward = chain.forward(service(echo).await.port(), &[]);
    let mut open = connect(&forward).await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(12) {
        expect_echo(&mut open, b"still the same connection").await;
        expect_echo(&mut connect(&forward).await, b"a new one").await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    newer.expect_lines("registered at", 1);
    assert!(older.lines_with("registered at") <= 2);
    assert!(older.is_running());
    let told = older.complaint("replaced by a newer registration");
    assert!(
        told.contains("WARN") && told.contains("--container-id"),
        "{told}"
    );
    assert_eq!(older.stderr().len(), 2);
    let warned = chain.runner.complaint("replaced by a newer one");
    assert!(warned.contains("connection, two run with the same --container-id"));
    assert!(warned.contains("older=127.0.0.1:") && warned.contains("newer=127.0.0.1:"));
    chain.runner.expect_lines("WARN", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_older_agent_that_was_cut_off_finds_the_newer_one_in_its_place_and_waits() {
    let chain = Chain::for_agents();
    let runner = chain.runner.address();
    let relay = Relay::to(&runner).await;
    let url = format!("ws://{}", relay.address());
    let args = ["--runner-url", &url, "--container-id", CONTAINER];
    let keep = ["--resume-keep", "10"];
    let older = Program::start("agent", &[&args[..], &keep].concat());
    chain.runner.complaint("agent registered");
    relay.shut();
    older.complaint("lost the runner");
    let mut newer = start_agent(&runner, CONTAINER);
    let registered = || async { (chain.runner.lines_with("agent registered") == 2).then_some(()) };
    eventually("the newer agent", LIMIT, registered).await;
    relay.cut();
    // Until its own tunnel cannot be the one that is registered.
    older.complaint("another agent is registered");
    older.complaint("replaced by a newer registration");
    older.expect_lines("registered at", 1);
    let forward = chain.forward(service(echo).await.port(), &[]);
    expect_echo(&mut connect(&forward).await, b"by the newer one").await;
    newer.signal("TERM");
    assert_eq!(newer.exit(LIMIT), 0);
    newer.expect_lines("replaced by", 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_wake_up_while_an_agent_serves_shortens_no_later_wait() {
    let chain = Chain::for_agents();
    let url = format!("ws://{}", chain.runner.address());
    let args = ["--runner-url", &url, "--container-id", CONTAINER];
    let older = Program::start_with("agent", &args, &[("RUST_LOG", "debug")]);
    older.complaint("registered at");
    older.stand_still().await;
    older.complaint("looking at the connections");
    let _newer = start_agent(&chain.runner.address(), CONTAINER);
    older.complaint("looking again in");
    // The wait is for a minute. With the hint there was none.
    tokio::time::sleep(Duration::from_secs(1)).await;
    older.expect_lines("looking again in", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_that_is_replaced_is_told_by_a_close_code_and_the_runner_warns_once() {
    let chain = Chain::for_agents();
    let (mut last, _) = register(&chain, None).await.unwrap();
    for _ in 0..5 {
        let (next, _) = register(&chain, None).await.unwrap();
        let close = loop {
            match soon("close", last.next()).await.unwrap().unwrap() {
                Message::Close(frame) => break frame.unwrap(),
                other => assert!(other.is_ping(), "{other:?}"),
            }
        };
        assert_eq!(u16::from(close.code), 4001);
        assert_eq!(close.reason, "replaced by a newer registration");
        last = next;
    }
    chain.runner.expect_lines("replaced by a newer one", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_that_yields_takes_no_place_but_a_free_one() {
    let chain = Chain::for_agents();
    let yields = Some("kohakuriver-tunnel-if-free");
    let (first, _) = register(&chain, yields).await.unwrap();
    chain.runner.complaint("agent registered");
    assert_eq!(register(&chain, yields).await.err(), Some(409));
    drop(first);
    let registered = || async { register(&chain, yields).await.ok() };
    eventually("the place", Duration::from_secs(5), registered).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn of_agents_that_yield_and_come_at_once_one_is_registered() {
    let chain = Chain::for_agents();
    let yields = Some("kohakuriver-tunnel-if-free");
    let coming = (0..20).map(|_| register(&chain, yields));
    let answers = futures_util::future::join_all(coming).await;
    let accepted: Vec<_> = answers.into_iter().flatten().collect();
    let others = accepted.len() - 1;
    let ends = accepted.into_iter().map(|(mut agent, _)| async move {
        loop {
            match agent.next().await {
                Some(Ok(Message::Close(frame))) => return u16::from(frame.unwrap().code),
                Some(Ok(_)) => {}
                ended => panic!("no close code: {ended:?}"),
            }
        }
    });
    let mut ends: futures_util::stream::FuturesUnordered<_> = ends.collect();
    for _ in 0..others {
        assert_eq!(soon("the others' end", ends.next()).await, Some(4001));
    }
    let last = tokio::time::timeout(Duration::from_millis(300), ends.next());
    assert!(last.await.is_err());
    chain.runner.expect_lines("agent registered", 1);
    assert_eq!(chain.runner.lines_with("replaced by a newer one"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_is_told_how_many_there_are() {
    let chain = Chain::for_agents();
    let told = |response: Response| {
        let value = response.headers().get("kohakuriver-tunnel-agents");
        value.unwrap().to_str().unwrap().to_owned()
    };
    let url = format!("ws://{}", chain.runner.address());
    let _agents = ["one", "two", "three"].map(|name| {
        let args = ["--runner-url", &url, "--container-id", name];
        let agent = Program::start("agent", &args);
        let line = format!("agent registered container=\"{name}\"");
        chain.runner.complaint(&line);
        agent
    });
    let (_fourth, response) = register(&chain, None).await.unwrap();
    assert_eq!(told(response), "4");
}

/// A runner that accepts an agent once, for longer than its delay, and then refuses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_that_lost_its_runner_tries_again_soon_and_then_more_slowly() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&tries);
    let runner = service(move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            // Other programs may still look for the previous owner of this port.
            let mut start = [0; 22];
            let peeked = stream.peek(&mut start).await;
            if peeked.is_err() || start != *b"GET /ws/tunnel/lonely " {
                return;
            }
            if counter.fetch_add(1, Ordering::Relaxed) == 0 {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                let _ = socket.close(None).await;
                return;
            }
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream
                .write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
                .await;
        }
    });
    let agent = start_agent(&runner.await.to_string(), "lonely");
    agent.complaint("lost the runner");
    tokio::time::sleep(Duration::from_secs(4)).await;
    // The first attempt, the second at most half a second later, and then after 1.5 and 4.5 s, plus
    // or minus half.
    let tries = tries.load(Ordering::Relaxed);
    assert!((3..=4).contains(&tries), "{tries} tries");
}
