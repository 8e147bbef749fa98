//! One session, from the client's upgrade request to two joined sockets.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::place::{Refusal, TaskPlace};
use super::{Host, Settings};
use crate::common::front::Caller;
use crate::common::http::{self, Answer, BadRequest};
use crate::common::route::{Session, Target};
use crate::common::turns::Turns;
use crate::common::ws;
use crate::common::{net, token};

/// Time to reach the runner and get its answer. The client waits 10 s in all.
const RUNNER_WITHIN: Duration = Duration::from_secs(5);

/// Time that a host may need to answer: a turn to query the cluster, its answer, and two
/// requests to the runner.
pub const ANSWERING: Duration = Duration::from_secs(16);

/// Headers of the client that the runner needs for the handshake.
const PASSED_ON: [header::HeaderName; 3] = [
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
];

/// Answers an upgrade request with the runner's 101, or with a WebSocket that says why not.
pub async fn join(
    host: Arc<Host>,
    mut request: Request<Incoming>,
    session: Session,
    asker: Caller,
) -> Answer {
    let peer = asker.address;
    let key = match http::upgrade_key(&request) {
        Ok(key) => key,
        Err(bad) => return bad.into(),
    };
    let caller = request.headers().get(header::AUTHORIZATION);
    let own = host.settings.token.current().await;
    let trusted = own.as_ref().is_none_or(|own| token::same(own, caller));
    let allowed = match own {
        None => http::same_origin(request.headers()),
        Some(_) if !trusted && !host.checks_callers() => Err(token::demanded()),
        Some(_) => Ok(()),
    };
    if let Err(bad) = allowed {
        let target = Target::Client(session);
        return host.front.shut_out(&target, peer, bad).into();
    }

    let joined = async {
        let place_of_task = find(&host, &session.name, &asker, caller, trusted).await?;
        let place = host.sessions.take(&asker, || false).await?;
        let response = ask_runner(&host, own.as_ref(), &request, &session, &place_of_task).await?;
        Ok::<_, NoSession>((place_of_task, place, response))
    };
    match joined.await {
        Ok((place_of_task, place, response)) => {
            tracing::debug!(%peer, task = %session, container = place_of_task.container, "joined");
            host.counters.joined.add(1);
            // With only those of the runner's headers that the client needs.
            let header = |name| response.headers().get(name).cloned();
            let answer = ws::switching(
                header(header::SEC_WEBSOCKET_ACCEPT),
                header(header::SEC_WEBSOCKET_PROTOCOL),
            );
            let client = hyper::upgrade::on(&mut request);
            let thread = host.settings.threads.clone();
            thread.here().spawn(async move {
                let ended = run(&host, client, response).await;
                match ended {
                    Ok(()) => tracing::debug!(%peer, task = %session, "ended"),
                    Err(error) => tracing::debug!(%peer, task = %session, "broke: {error}"),
                }
                drop(place);
            });
            answer
        }
        Err(NoSession::Answer(bad)) => bad.into(),
        Err(NoSession::Refusal(refusal)) => {
            tracing::info!(%peer, task = %session, "refused: {}", refusal.reason);
            let counter = if refusal.code == 1008 {
                &host.counters.refused
            } else {
                &host.counters.unreachable
            };
            counter.add(1);
            if let Some(status) = refusal.status {
                return http::text(status, refusal.reason);
            }
            let client = hyper::upgrade::on(&mut request);
            // A refused client gets no session's place.
            let farewell = host.front.farewell(asker.source);
            tokio::spawn(async move {
                let told = async {
                    if let Ok((stream, read)) = http::upgraded(client).await {
                        let socket = ws::over(stream, read, Role::Server);
                        let Refusal { reason, code, .. } = &refusal;
                        ws::refuse(socket, *code, reason).await;
                    }
                };
                farewell.unless_displaced(told).await;
            });
            ws::accept_answer(&key, None)
        }
    }
}

/// Why an upgrade request does not lead to a session.
enum NoSession {
    /// Answered in HTTP.
    Answer(BadRequest),
    /// Answered on the WebSocket, as a deployed host does.
    Refusal(Refusal),
}

impl From<BadRequest> for NoSession {
    fn from(bad: BadRequest) -> Self {
        Self::Answer(bad)
    }
}

impl From<Refusal> for NoSession {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

/// Where a task runs. Tasks that are given to the host are for callers with its token. A cluster
/// checks its callers itself.
async fn find(
    host: &Host,
    task: &str,
    asker: &Caller,
    caller: Option<&HeaderValue>,
    trusted: bool,
) -> Result<TaskPlace, NoSession> {
    if trusted {
        let Settings { tasks, file, .. } = &host.settings;
        let listed = match (tasks.get(task), file) {
            (Some(place), _) => Some(place.clone()),
            (None, Some(file)) => file.find(task).await,
            (None, None) => None,
        };
        if let Some(place) = listed {
            return Ok(place);
        }
    }
    let unknown = || Refusal::policy(format!("task {task} is unknown"));
    let api = host.settings.api.as_ref().ok_or_else(unknown)?;
    // The cluster would refuse a caller without a header.
    let Some(caller) = caller else {
        host.counters.nameless.add(1);
        return Err(token::demanded().into());
    };
    let _turn = host.questions.turn(asker).await?;
    let found = api.find(task, caller).await?;
    Ok(found.ok_or_else(unknown)?)
}

/// Sends the client's request to the runner.
async fn ask_runner(
    host: &Host,
    own: Option<&HeaderValue>,
    request: &Request<Incoming>,
    session: &Session,
    place: &TaskPlace,
) -> Result<Response<Incoming>, Refusal> {
    let caller = request.headers().get(header::AUTHORIZATION);
    // A caller's token that a cluster checks is a secret between the caller and the cluster.
    let passes_on = own.is_none() && !host.checks_callers();
    let token = own.or(caller.filter(|_| passes_on));
    let mut path = session.path(&place.container);
    let mut response = ask_path(host, token, request, &path, place).await?;
    let unknown_path = matches!(
        response.status(),
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN
    );
    if session.only.is_none() && unknown_path {
        // A deployed runner does not serve that path. It wants a port in the path, but uses the
        // port of each CONNECT.
        path = format!("/ws/forward/{}/1?proto=tcp", place.container);
        response = ask_path(host, token, request, &path, place).await?;
    }
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        if response
            .headers()
            .contains_key(header::SEC_WEBSOCKET_EXTENSIONS)
        {
            return Err(Refusal::failure(
                "the runner chose a WebSocket extension that was not offered",
            ));
        }
        return Ok(response);
    }
    let line = http::shown(response.into_body()).await;
    let reason = format!("the runner answered HTTP {}: {line}", status.as_u16());
    let shut_out = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    Err(if shut_out && passes_on {
        Refusal::of_caller(status, reason)
    } else if shut_out {
        // Nothing that the caller could mend.
        let runner = place.runner.authority();
        tracing::warn!("the runner {runner} does not let this host in: {reason}");
        Refusal::failure("the runner does not let the host in")
    } else if status.is_client_error() {
        Refusal::policy(reason)
    } else {
        Refusal::failure(reason)
    })
}

async fn ask_path(
    host: &Host,
    token: Option<&HeaderValue>,
    request: &Request<Incoming>,
    path: &str,
    place: &TaskPlace,
) -> Result<Response<Incoming>, Refusal> {
    let url = place.runner.join(path);
    let unreachable = |error: std::io::Error| {
        let reason = net::plain(&error);
        Refusal::failure(format!(
            "the runner {} is unreachable: {reason}",
            url.authority()
        ))
    };
    let mut forwarded = url
        .get()
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket");
    for name in &PASSED_ON {
        for value in request.headers().get_all(name) {
            forwarded = forwarded.header(name, value);
        }
    }
    if let Some(token) = token {
        forwarded = forwarded.header(header::AUTHORIZATION, token);
    }
    let forwarded = forwarded
        .body(http_body_util::Empty::new())
        .map_err(|error| Refusal::failure(error.to_string()))?;
    let dialer = &host.settings.dialer;
    let asked = dialer.send(&url, RUNNER_WITHIN, forwarded).await;
    asked.map_err(unreachable)
}

/// Joins the two sockets until both directions have ended.
async fn run(host: &Host, client: OnUpgrade, response: Response<Incoming>) -> std::io::Result<()> {
    let _open = host.counters.open.enter();
    let both = async {
        let client = http::upgraded(client).await?;
        let runner = http::upgraded(hyper::upgrade::on(response)).await?;
        Ok((client, runner))
    };
    let (client, runner) = net::within(ws::HANDSHAKE_TIMEOUT, both).await?;
    let relay = pin!(host.relays.here().join(client, runner));
    Turns::session().run(relay).await
}
