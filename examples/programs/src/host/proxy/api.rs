//! Finds tasks through the REST API of a deployed host. It is queried with the caller's own token
//! and decides who may forward.

use std::time::Duration;

use http_body_util::Empty;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use kohakuriver_tunnel::session::clean_text;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::place::{Refusal, TaskPlace};
use crate::common::tls::Dialer;
use crate::common::url::Url;
use crate::common::{http, net};

/// Time for both queries together, well within the 10 s that a client waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// Longest answer in bytes, enough for a cluster of some thousand nodes.
const ANSWER_MAX: usize = 4 << 20;

pub struct ClusterApi {
    base: Url,
    dialer: Dialer,
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

#[derive(Deserialize)]
struct Node {
    hostname: String,
    url: String,
    status: String,
}

/// Why a query had no usable answer.
enum Unanswered {
    Status(StatusCode),
    Failed(String),
}

impl ClusterApi {
    pub fn new(base: Url, dialer: Dialer) -> Self {
        Self { base, dialer }
    }

    /// Where the task runs; `None` if the cluster does not know it. `caller` is the `Authorization`
    /// header of the client.
    ///
    /// # Errors
    /// The task is known, but this caller cannot reach it now, or the cluster does not answer.
    pub async fn find(&self, id: &str, caller: &HeaderValue) -> Result<Option<TaskPlace>, Refusal> {
        let silent = |_| {
            let cluster = self.base.authority();
            Refusal::failure(format!("the cluster at {cluster} does not answer"))
        };
        timeout(ANSWER_WITHIN, self.place(id, caller))
            .await
            .map_err(silent)?
    }

    async fn place(&self, id: &str, caller: &HeaderValue) -> Result<Option<TaskPlace>, Refusal> {
        let task: Task = match self.get(&format!("/api/status/{id}"), caller).await {
            Err(Unanswered::Status(StatusCode::NOT_FOUND)) => return Ok(None),
            answered => answered.map_err(|other| self.refusal(id, other))?,
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
        let nodes = self.get("/api/nodes", caller).await;
        let nodes: Vec<Node> = nodes.map_err(|other| self.refusal(id, other))?;
        let shown_name = clean_text(hostname.as_bytes());
        let Some(node) = nodes.into_iter().find(|node| node.hostname == *hostname) else {
            return Err(Refusal::policy(format!(
                "the runner {shown_name} of task {id} is unknown to the cluster"
            )));
        };
        if node.status != "online" {
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

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        caller: &HeaderValue,
    ) -> Result<T, Unanswered> {
        let failed = |error: std::io::Error| Unanswered::Failed(net::plain(&error));
        let url = self.base.join(path);
        let request = url.get().header(header::ACCEPT, "application/json");
        let request = request.header(header::AUTHORIZATION, caller);
        let request = request.body(Empty::new());
        let request = request.map_err(|error| Unanswered::Failed(error.to_string()))?;
        let response = self.dialer.send(&url, ANSWER_WITHIN, request).await;
        let response = response.map_err(failed)?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(Unanswered::Status(status));
        }
        let body = http::body_text(response.into_body(), ANSWER_MAX).await;
        let body = body.map_err(failed)?;
        serde_json::from_str(&body).map_err(|error| {
            let error = clean_text(error.to_string().as_bytes());
            Unanswered::Failed(format!("{path} is not as expected: {error}"))
        })
    }

    fn refusal(&self, id: &str, unanswered: Unanswered) -> Refusal {
        match unanswered {
            Unanswered::Status(status @ StatusCode::UNAUTHORIZED) => Refusal::of_caller(
                status,
                "the cluster wants a valid token: give --token-file or KOHAKURIVER_TUNNEL_TOKEN",
            ),
            Unanswered::Status(status @ StatusCode::FORBIDDEN) => {
                Refusal::of_caller(status, format!("task {id} belongs to someone else"))
            }
            Unanswered::Status(status) => Refusal::failure(format!(
                "the cluster at {} answered HTTP {status}",
                self.base.authority()
            )),
            Unanswered::Failed(reason) => Refusal::failure(format!(
                "the cluster at {} cannot be asked: {reason}",
                self.base.authority()
            )),
        }
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
