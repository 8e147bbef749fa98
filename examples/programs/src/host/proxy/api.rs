//! Finds tasks through the REST API of a deployed host. It is queried with the caller's own token
//! and decides who may forward.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use kohakuriver_tunnel::session::clean_text;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
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

pub struct ClusterApi {
    base: Url,
    dialer: Dialer,
    /// One caller at a time asks for the nodes, whatever their number, as the list may be long. Who
    /// may see a task is asked of each.
    nodes: Mutex<Option<Listed>>,
}

/// The last answer to a query for the nodes, unless that was for its caller alone.
struct Listed {
    /// When the query began or, if it failed, ended.
    at: Instant,
    nodes: Result<Arc<Vec<Node>>, Refusal>,
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

impl ClusterApi {
    pub fn new(base: Url, dialer: Dialer) -> Self {
        let nodes = Mutex::default();
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
        let Some(task) = self.get::<Task>(id, (&path, TASK_MAX), caller).await? else {
            return Ok(None);
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
        let mut last = self.nodes.lock().await;
        if let Some(listed) = last.as_ref().filter(|listed| listed.serves(since)) {
            return listed.nodes.clone();
        }
        // The old list goes before the new one comes.
        *last = None;
        let mut at = Instant::now();
        let answer: Result<Option<Vec<Node>>, _> =
            self.get(id, ("/api/nodes", NODES_MAX), caller).await;
        let known = |nodes: Option<_>| nodes.ok_or_else(|| self.answered(StatusCode::NOT_FOUND));
        let nodes = answer.and_then(known).map(Arc::new);
        if let Err(refusal) = &nodes {
            if refusal.status.is_some() {
                return nodes;
            }
            at = Instant::now();
        }
        let listed = last.insert(Listed { at, nodes });
        listed.nodes.clone()
    }

    /// The answer to a query about task `id`, of a path and at most so many bytes; `None` if the
    /// cluster does not know the path.
    async fn get<T: DeserializeOwned>(
        &self,
        id: &str,
        (path, longest): (&str, usize),
        caller: &HeaderValue,
    ) -> Result<Option<T>, Refusal> {
        let cannot = |reason: String| self.failure(&format!("cannot be asked: {reason}"));
        let failed = |error: io::Error| cannot(net::plain(&error));
        let url = self.base.join(path);
        let request = url.get().header(header::ACCEPT, "application/json");
        let request = request.header(header::AUTHORIZATION, caller);
        let request = request.body(Empty::new());
        let request = request.map_err(|error| cannot(error.to_string()))?;
        let response = self.dialer.send(&url, ANSWER_WITHIN, request).await;
        let response = response.map_err(failed)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status @ StatusCode::UNAUTHORIZED => {
                let line = "the cluster wants a valid token: give --token-file or \
                            KOHAKURIVER_TUNNEL_TOKEN";
                return Err(Refusal::of_caller(status, line));
            }
            status @ StatusCode::FORBIDDEN => {
                let line = format!("task {id} belongs to someone else");
                return Err(Refusal::of_caller(status, line));
            }
            status => return Err(self.answered(status)),
        }
        let body = http::body(response.into_body(), longest).await;
        let body = body.map_err(failed)?;
        serde_json::from_slice(&body).map(Some).map_err(|error| {
            let error = clean_text(error.to_string().as_bytes());
            cannot(format!("{path} is not as expected: {error}"))
        })
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
