//! Finds tasks through the REST API of a deployed host. It is queried with the caller's own token
//! and decides who may forward.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use kohakuriver_tunnel::session::clean_text;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout};

use super::place::{Refusal, TaskPlace};
use crate::common::tls::Dialer;
use crate::common::url::Url;
use crate::common::{http, net};

/// Time for both queries together, well within the 10 s that a client waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// Longest status of a task in bytes.
const TASK_MAX: usize = 64 << 10;

/// Longest list of nodes in bytes, enough for a cluster of some thousand.
const NODES_MAX: usize = 4 << 20;

/// How long a list of nodes is used. They report to their cluster every few seconds.
const NODES_FOR: Duration = Duration::from_secs(2);

/// How long a failed query for the nodes counts for callers that would query too.
const FAILED_FOR: Duration = Duration::from_millis(500);

/// Most callers of whom it is known that the cluster does not list its nodes for them.
const REFUSED_MAX: usize = 64;

#[derive(Clone)]
pub struct ClusterApi {
    base: Url,
    dialer: Dialer,
    /// One query at a time asks for the nodes, whatever the number of callers, as the list may be
    /// long. Who may see a task is asked of each.
    nodes: Arc<Mutex<Nodes>>,
}

#[derive(Default)]
struct Nodes {
    last: Option<Listed>,
    /// The newest last.
    refused: VecDeque<Refused>,
}

/// The last answer to a query for the nodes, unless that was about its caller.
struct Listed {
    /// When the query began or, if it failed, ended.
    at: Instant,
    nodes: Result<Arc<Vec<Node>>, Refusal>,
}

/// An answer about a caller.
struct Refused {
    at: Instant,
    caller: HeaderValue,
    status: StatusCode,
}

#[derive(Deserialize)]
struct Task {
    status: String,
    #[serde(default)]
    task_type: String,
    #[serde(default)]
    assigned_node: Option<String>,
    #[serde(default)]
    vps_backend: Option<String>,
}

#[derive(Deserialize, Clone)]
struct Node {
    hostname: Box<str>,
    url: Box<str>,
    status: Box<str>,
}

impl Node {
    fn is_online(&self) -> bool {
        &*self.status == "online"
    }
}

impl Listed {
    fn serves(&self, since: Instant) -> bool {
        match self.nodes {
            Ok(_) => self.at >= since,
            Err(_) => self.at.elapsed() < FAILED_FOR,
        }
    }
}

impl Nodes {
    /// The answer to this caller, if it was refused a moment ago.
    fn refused(&mut self, caller: &HeaderValue) -> Option<StatusCode> {
        self.refused.retain(|one| one.at.elapsed() < FAILED_FOR);
        let refused = self.refused.iter().find(|one| one.caller == caller);
        refused.map(|one| one.status)
    }

    fn refuse(&mut self, caller: HeaderValue, status: StatusCode) {
        if self.refused.len() == REFUSED_MAX {
            self.refused.pop_front();
        }
        let at = Instant::now();
        self.refused.push_back(Refused { at, caller, status });
    }
}

impl ClusterApi {
    pub fn new(base: Url, dialer: Dialer) -> Self {
        let nodes = Arc::default();
        Self {
            base,
            dialer,
            nodes,
        }
    }

    /// Where the task runs; `None` if the cluster does not know it. `caller` is the `Authorization`
    /// header of the client.
    ///
    /// # Errors
    /// The task is known, but this caller cannot reach it now, or the cluster does not answer.
    pub async fn find(&self, id: &str, caller: &HeaderValue) -> Result<Option<TaskPlace>, Refusal> {
        timeout(ANSWER_WITHIN, self.place(id, caller))
            .await
            .map_err(|_| self.failure("does not answer"))?
    }

    async fn place(&self, id: &str, caller: &HeaderValue) -> Result<Option<TaskPlace>, Refusal> {
        let path = format!("/api/status/{id}");
        let task: Task = match self.get(&path, TASK_MAX, caller).await? {
            Ok(task) => task,
            Err(StatusCode::NOT_FOUND) => return Ok(None),
            Err(status) => return Err(self.refusal(id, status)),
        };
        if task.status != "running" {
            let status = clean_text(task.status.as_bytes());
            return Err(Refusal::policy(format!(
                "task {id} is not running (it is {status})"
            )));
        }
        let Some(hostname) = &task.assigned_node else {
            return Err(Refusal::policy(format!("task {id} runs on no node")));
        };
        let asked = Instant::now();
        let recently = asked.checked_sub(NODES_FOR).unwrap_or(asked);
        let mut node = self.node(hostname, recently, id, caller).await?;
        if !node.as_ref().is_some_and(Node::is_online) {
            // It may have come since.
            node = self.node(hostname, asked, id, caller).await?;
        }
        let shown_name = clean_text(hostname.as_bytes());
        let Some(node) = node else {
            return Err(Refusal::policy(format!(
                "the runner {shown_name} of task {id} is unknown to the cluster"
            )));
        };
        if !node.is_online() {
            return Err(Refusal::policy(format!(
                "the runner {shown_name} of task {id} is offline"
            )));
        }
        let runner = Url::parse(&node.url).map_err(|_| {
            Refusal::failure(format!("the cluster gives no usable URL for {shown_name}"))
        })?;
        let container = container_name(id, &task);
        Ok(Some(TaskPlace { container, runner }))
    }

    /// A node as it was listed since then; `None` if it was not.
    async fn node(
        &self,
        hostname: &str,
        since: Instant,
        id: &str,
        caller: &HeaderValue,
    ) -> Result<Option<Node>, Refusal> {
        let nodes = self.nodes(since, id, caller).await?;
        let node = nodes.iter().find(|node| *node.hostname == *hostname);
        Ok(node.cloned())
    }

    /// The nodes of the cluster, as listed since then.
    async fn nodes(
        &self,
        since: Instant,
        id: &str,
        caller: &HeaderValue,
    ) -> Result<Arc<Vec<Node>>, Refusal> {
        let mut nodes = Arc::clone(&self.nodes).lock_owned().await;
        if let Some(listed) = nodes.last.as_ref().filter(|listed| listed.serves(since)) {
            return listed.nodes.clone();
        }
        if let Some(status) = nodes.refused(caller) {
            return Err(self.refusal(id, status));
        }
        // Others wait for the answer, also when this caller has left.
        let asking = tokio::spawn(self.clone().ask_for_nodes(nodes, caller.clone()));
        match asking.await {
            Ok(Ok(nodes)) => nodes,
            Ok(Err(status)) => Err(self.refusal(id, status)),
            Err(_) => Err(self.failure("does not answer")),
        }
    }

    /// Asks for the nodes and keeps the answer. The outer error is about the caller.
    async fn ask_for_nodes(
        self,
        mut nodes: OwnedMutexGuard<Nodes>,
        caller: HeaderValue,
    ) -> Result<Result<Arc<Vec<Node>>, Refusal>, StatusCode> {
        let began = Instant::now();
        let answer = timeout(ANSWER_WITHIN, self.get("/api/nodes", NODES_MAX, &caller)).await;
        let listed: Result<Vec<Node>, _> = match answer {
            Err(_) => Err(self.failure("does not answer")),
            Ok(Ok(Err(status))) if status.is_client_error() => {
                nodes.refuse(caller, status);
                return Err(status);
            }
            Ok(Ok(Err(status))) => Err(self.answered(status)),
            Ok(Ok(Ok(listed))) => Ok(listed),
            Ok(Err(failure)) => Err(failure),
        };
        let at = match listed {
            Ok(_) => began,
            Err(_) => Instant::now(),
        };
        let listed = listed.map(Arc::new);
        nodes.last = Some(Listed {
            at,
            nodes: listed.clone(),
        });
        Ok(listed)
    }

    /// The answer to a query of a path, of at most so many bytes, or its status if that is not 200.
    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        longest: usize,
        caller: &HeaderValue,
    ) -> Result<Result<T, StatusCode>, Refusal> {
        let cannot = |reason: String| self.failure(&format!("cannot be asked: {reason}"));
        let failed = |error: io::Error| cannot(net::plain(&error));
        let url = self.base.join(path);
        let request = url.get().header(header::ACCEPT, "application/json");
        let request = request.header(header::AUTHORIZATION, caller);
        let request = request.body(Empty::new());
        let request = request.map_err(|error| cannot(error.to_string()))?;
        let response = self.dialer.send(&url, ANSWER_WITHIN, request).await;
        let response = response.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Ok(Err(response.status()));
        }
        let body = http::body(response.into_body(), longest).await;
        let body = body.map_err(failed)?;
        serde_json::from_slice(&body).map(Ok).map_err(|error| {
            let error = clean_text(error.to_string().as_bytes());
            cannot(format!("{path} is not as expected: {error}"))
        })
    }

    /// What the status of an answer means for a caller that wants task `id`.
    fn refusal(&self, id: &str, status: StatusCode) -> Refusal {
        match status {
            StatusCode::UNAUTHORIZED => {
                let line = "the cluster wants a valid token: give --token-file or \
                            KOHAKURIVER_TUNNEL_TOKEN";
                Refusal::of_caller(status, line)
            }
            StatusCode::FORBIDDEN => {
                let line = format!("task {id} belongs to someone else");
                Refusal::of_caller(status, line)
            }
            status => self.answered(status),
        }
    }

    fn answered(&self, status: StatusCode) -> Refusal {
        self.failure(&format!("answered HTTP {status}"))
    }

    fn failure(&self, what: &str) -> Refusal {
        Refusal::failure(format!("the cluster at {} {what}", self.base.authority()))
    }
}

/// The name under which the agent registers or the runner knows the VM.
fn container_name(id: &str, task: &Task) -> String {
    match (task.task_type.as_str(), task.vps_backend.as_deref()) {
        (_, Some("qemu")) => format!("vm-{id}"),
        ("vps", _) => format!("kohakuriver-vps-{id}"),
        _ => format!("kohakuriver-task-{id}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::extract::State;
    use axum::http::HeaderMap;
    use axum::routing::get;
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::common::names::Names;
    use crate::common::proxies::Proxies;
    use crate::common::tls::ClientTlsArgs;

    const TASK: &str = r#"{"status":"running","assigned_node":"n"}"#;
    const NODES: &str = r#"[{"hostname":"n","url":"http://n:1","status":"online"}]"#;

    static MINE: HeaderValue = HeaderValue::from_static("mine");
    static BARRED: HeaderValue = HeaderValue::from_static("barred");
    static OFTEN: HeaderValue = HeaderValue::from_static("often");

    struct Cluster {
        nodes_asked: AtomicUsize,
        /// Answers about its nodes that it may give.
        answers: Semaphore,
    }

    impl Cluster {
        fn nodes_asked(&self) -> usize {
            self.nodes_asked.load(Ordering::SeqCst)
        }

        async fn is_asked_for_nodes(&self) {
            while self.nodes_asked() == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn nodes(
        State(cluster): State<Arc<Cluster>>,
        headers: HeaderMap,
    ) -> Result<&'static str, StatusCode> {
        cluster.nodes_asked.fetch_add(1, Ordering::SeqCst);
        cluster.answers.acquire().await.unwrap().forget();
        match headers.get(header::AUTHORIZATION) {
            Some(token) if token == BARRED => Err(StatusCode::FORBIDDEN),
            Some(token) if token == OFTEN => Err(StatusCode::TOO_MANY_REQUESTS),
            _ => Ok(NODES),
        }
    }

    async fn start(answers: usize) -> (Arc<Cluster>, ClusterApi) {
        let cluster = Arc::new(Cluster {
            nodes_asked: AtomicUsize::new(0),
            answers: Semaphore::new(answers),
        });
        let router = Router::new()
            .route("/api/status/{id}", get(|| async { TASK }))
            .route("/api/nodes", get(nodes))
            .with_state(Arc::clone(&cluster));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let base = Url::parse_base(&format!("http://{address}")).unwrap();
        let args = ClientTlsArgs { ca: None };
        let dialer = Dialer::new(&args, None, None, Proxies::none(), Names::default()).unwrap();
        (cluster, ClusterApi::new(base, dialer))
    }

    #[tokio::test]
    async fn a_query_for_the_nodes_outlives_the_caller_that_began_it() {
        let (cluster, api) = start(0).await;
        for _ in 0..5 {
            tokio::select! {
                found = api.find("42", &MINE) => panic!("{found:?}"),
                () = cluster.is_asked_for_nodes() => {}
            }
        }
        cluster.answers.add_permits(1);
        assert!(api.find("42", &MINE).await.unwrap().is_some());
        assert_eq!(cluster.nodes_asked(), 1);
    }

    #[tokio::test]
    async fn an_answer_about_a_caller_is_for_that_caller_and_is_not_asked_for_again() {
        let (cluster, api) = start(10).await;
        for (caller, status) in [(&BARRED, "403"), (&OFTEN, "429")] {
            let before = cluster.nodes_asked();
            for _ in 0..5 {
                let refusal = api.find("42", caller).await.unwrap_err();
                match refusal.status {
                    Some(shown) => assert_eq!(shown.as_str(), status),
                    None => assert!(refusal.reason.contains(status), "{}", refusal.reason),
                }
            }
            assert_eq!(cluster.nodes_asked(), before + 1, "{status}");
        }
        assert!(api.find("42", &MINE).await.unwrap().is_some());
    }
}
