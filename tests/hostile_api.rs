//! A host that queries a cluster, under load by callers without permission.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tunnel_test_support::LIMIT;
use tunnel_test_support::chain::{CONTAINER, eventually, start_runner};
use tunnel_test_support::client::{Client, greeted};
use tunnel_test_support::files::Folder;
use tunnel_test_support::flood::{Attack, Flood};
use tunnel_test_support::program::Program;

/// Shorter than the time limit of a request, 10 s. A caller that gets no turn is refused sooner.
const BEFORE_A_TIMEOUT: Duration = Duration::from_secs(8);

const STRANGER: &[u8] = b"GET /ws/forward/42/80 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

const IMPOSTOR: &[u8] = b"GET /ws/forward/42/80 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer invented\r\n\
    Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// The REST API of a deployed host that knows task 42 and the token `mine`.
#[derive(Clone)]
struct Cluster {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    /// Queries for its nodes.
    nodes_asked: Arc<AtomicUsize>,
    nodes_fail: Arc<AtomicBool>,
    node_is_away: Arc<AtomicBool>,
    /// Most queries at a time so far.
    at_once: Arc<AtomicUsize>,
}

impl Cluster {
    /// A cluster that answers slowly.
    async fn start(runner: &Program, time: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cluster = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            nodes_asked: Arc::default(),
            nodes_fail: Arc::default(),
            node_is_away: Arc::default(),
            at_once: Arc::default(),
        };
        let (asked, at_once) = (cluster.asked.clone(), cluster.at_once.clone());
        let now = Arc::new(AtomicUsize::new(0));
        let status = move |Path(id): Path<String>, headers: HeaderMap| async move {
            asked.fetch_add(1, Ordering::Relaxed);
            at_once.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(time).await;
            now.fetch_sub(1, Ordering::Relaxed);
            let token = headers.get("authorization");
            match id.as_str() {
                _ if token.is_none_or(|token| token != "Bearer mine") => {
                    (StatusCode::UNAUTHORIZED, String::new())
                }
                "42" => (
                    StatusCode::OK,
                    r#"{"task_type":"vps","status":"running","assigned_node":"n1"}"#.to_owned(),
                ),
                // Of a task that runs, but longer than any of a cluster.
                "43" => (
                    StatusCode::OK,
                    format!(
                        r#"{{"status":"running","assigned_node":"n1","log":"{}"}}"#,
                        "x".repeat(100_000)
                    ),
                ),
                _ => (StatusCode::NOT_FOUND, String::new()),
            }
        };
        let of_nodes = cluster.clone();
        let url = format!("http://{}", runner.address());
        let nodes = move || async move {
            of_nodes.nodes_asked.fetch_add(1, Ordering::Relaxed);
            if of_nodes.nodes_fail.load(Ordering::Relaxed) {
                sleep(time).await;
                return Err(StatusCode::INTERNAL_SERVER_ERROR);
            }
            let status = match of_nodes.node_is_away.load(Ordering::Relaxed) {
                true => "offline",
                false => "online",
            };
            Ok(format!(
                r#"[{{"hostname":"n1","url":"{url}","status":"{status}"}}]"#
            ))
        };
        let app = axum::Router::new()
            .route("/api/status/{id}", get(status))
            .route("/api/nodes", get(nodes));
        tokio::spawn(async move { axum::serve(listener, app).await });
        cluster
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Asserts that each answer about the nodes was used for so long since then.
    fn shared_for(&self, time: Duration, since: Instant) {
        let asked = self.nodes_asked.load(Ordering::Relaxed) as u128;
        let most = 1 + since.elapsed().as_millis() / time.as_millis();
        assert!(asked <= most, "{asked} queries, at most {most}");
    }
}

/// A runner of task 42, a cluster that knows the task, and a host that queries the cluster.
async fn chain(answer: Duration, args: &[&str]) -> (Program, Cluster, Program) {
    let runner = start_runner(
        "127.0.0.1:0",
        &["--target", &format!("{CONTAINER}=127.0.0.1")],
    );
    let cluster = Cluster::start(&runner, answer).await;
    let api = format!("http://{}", cluster.address);
    let own = ["--listen", "127.0.0.1:0", "--api", &api];
    let host = Program::start("host", &[&own[..], args].concat());
    host.address();
    (runner, cluster, host)
}

/// A session after its first text, or the status of its refusal.
async fn session(host: &Program, task: &str, token: Option<&str>) -> Result<(Client, String), u16> {
    let url = format!("ws://{}/ws/forward/{task}/80", host.address());
    let value = token.map(|token| format!("Bearer {token}"));
    let header = value
        .as_ref()
        .map(|value| ("authorization", value.as_str()));
    greeted(&url, header.as_slice(), 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_shows_no_token_is_refused_and_not_asked_about() {
    let runner = start_runner("127.0.0.1:0", &["--target", "box=127.0.0.1"]);
    let task = format!("7=box@http://{}", runner.address());
    for args in [&[][..], &["--task", &task]] {
        let (_runner, cluster, host) = chain(Duration::ZERO, args).await;
        assert_eq!(session(&host, "42", None).await.err(), Some(401));
        assert_eq!(session(&host, "8", None).await.err(), Some(401));
        assert_eq!(cluster.asked(), 0);
        // Tasks known without the cluster are served without a token.
        let expected = if args.is_empty() { Some(401) } else { None };
        assert_eq!(session(&host, "7", None).await.err(), expected, "{args:?}");
        assert_eq!(
            session(&host, "42", Some("mine")).await.unwrap().1,
            "CONNECTED"
        );
        let stolen = session(&host, "42", Some("stolen")).await;
        assert_eq!(stolen.err(), Some(401));
        assert_eq!(cluster.asked(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tasks_of_the_hosts_own_list_are_for_callers_with_its_own_token() {
    let runner = start_runner("127.0.0.1:0", &["--target", "box=127.0.0.1"]);
    let task = format!("7=box@http://{}", runner.address());
    let folder = Folder::new();
    let own = folder.write("own", "own", 0o600);
    let args = ["--task", &task, "--token-file", &own];
    let (_runner, cluster, host) = chain(Duration::ZERO, &args).await;
    for (task, token, expected) in [
        ("7", None, Err(401)),
        ("7", Some("stolen"), Err(401)),
        ("7", Some("mine"), Ok("Error: task 7 is unknown")),
        ("42", Some("mine"), Ok("CONNECTED")),
        ("7", Some("own"), Ok("CONNECTED")),
    ] {
        let told = session(&host, task, token).await.map(|(_, text)| text);
        let expected = expected.map(str::to_owned);
        assert_eq!(told, expected, "{task} {token:?}");
    }
    assert_eq!(cluster.asked(), 3);
}

/// Unknown callers at a host with few places, beside a caller known to the cluster.
async fn strangers(attack: Attack, answer: Duration) -> Cluster {
    let (_runner, cluster, host) = chain(answer, &["--max-sessions", "64"]).await;
    session(&host, "42", Some("mine")).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    let idle = host.descriptors();
    let flood = Flood::start(&host.address(), 400, 20, attack).await;
    for attempt in 0..5 {
        let session = timeout(BEFORE_A_TIMEOUT, session(&host, "42", Some("mine")));
        let (_client, text) = session.await.expect("in time").expect("a session");
        assert_eq!(text, "CONNECTED", "attempt {attempt}");
    }
    // Later the cluster may still be at work for callers that have left.
    assert!(cluster.at_once.load(Ordering::Relaxed) <= 64);
    drop(flood);
    eventually("the descriptors' return", LIMIT, || async {
        (host.descriptors() <= idle).then_some(())
    })
    .await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn strangers_without_a_token_take_no_places() {
    let cluster = strangers(Attack::Says(STRANGER), Duration::ZERO).await;
    assert_eq!(cluster.asked(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn strangers_with_an_invented_token_take_no_places() {
    let cluster = strangers(Attack::Says(IMPOSTOR), Duration::from_millis(500)).await;
    assert!(cluster.asked() > 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn callers_share_a_query_for_the_nodes_and_no_status_is_long() {
    let (_runner, cluster, host) = chain(Duration::from_millis(100), &[]).await;
    let long = session(&host, "43", Some("mine")).await.unwrap();
    assert!(long.1.contains("too long"), "{}", long.1);
    assert_eq!(cluster.nodes_asked.load(Ordering::Relaxed), 0);
    let began = Instant::now();
    let sessions = (0..10).map(|_| session(&host, "42", Some("mine")));
    for session in futures_util::future::join_all(sessions).await {
        assert_eq!(session.unwrap().1, "CONNECTED");
    }
    cluster.shared_for(Duration::from_secs(2), began);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_runner_that_came_after_the_last_list_is_found() {
    let (_runner, cluster, host) = chain(Duration::ZERO, &[]).await;
    for away in [true, false, false] {
        cluster.node_is_away.store(away, Ordering::Relaxed);
        let expected = match away {
            true => "Error: the runner n1 of task 42 is offline",
            false => "CONNECTED",
        };
        let told = session(&host, "42", Some("mine")).await.unwrap().1;
        assert_eq!(told, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn callers_share_a_failed_query_for_the_nodes() {
    let (_runner, cluster, host) = chain(Duration::from_millis(100), &[]).await;
    cluster.nodes_fail.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let sessions = (0..20).map(|_| session(&host, "42", Some("mine")));
    for session in futures_util::future::join_all(sessions).await {
        let told = session.unwrap().1;
        assert!(told.contains("answered HTTP 500"), "{told}");
    }
    cluster.shared_for(Duration::from_millis(500), began);
    // It is not kept.
    cluster.nodes_fail.store(false, Ordering::Relaxed);
    eventually("a session", LIMIT, || async {
        let told = session(&host, "42", Some("mine")).await.unwrap().1;
        (told == "CONNECTED").then_some(())
    })
    .await;
}
