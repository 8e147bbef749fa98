//! The WebSocket handshake of the programs, on both sides.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use kohakuriver_tunnel::carrier;
use kohakuriver_tunnel::mux;
use kohakuriver_tunnel::resume::{self, Choice};
use kohakuriver_tunnel::session::{Version, clean_text};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tunnel_websocket::{Message, WebSocket};

use super::connection::Connection;
use super::http;
use super::net::{self, MaybeTls};
use super::route::ANY_PORT;
use super::tunnel::Upgraded;
use super::url::Url;

pub type Socket = WebSocket<MaybeTls>;

/// The WebSocket subprotocols that a client offers. If none is chosen, the tunnel speaks version 1.
const V2: HeaderValue = HeaderValue::from_static(Version::OFFER);
const V2_RESUME: HeaderValue = HeaderValue::from_static(resume::OFFER);

/// Closes an agent's WebSocket when a newer agent has replaced it (PROTOCOL.md section 4.1).
pub const REPLACED: u16 = 4001;

/// Closes a WebSocket for which there is no place now.
pub const TRY_AGAIN: u16 = 1013;

/// In an agent's request: refuse it if another agent of the name is registered.
pub const IF_FREE: HeaderName = HeaderName::from_static("kohakuriver-tunnel-if-free");

/// In the answer to an agent: the number of the runner's agents.
pub const AGENTS: HeaderName = HeaderName::from_static("kohakuriver-tunnel-agents");

/// Answers without resumption, or with 401 or 403 in a row, after which a tunnel does not go on. Of
/// several hosts behind one address some may not know it, or not know the caller yet, and a new
/// token may take a while to be read.
const DOWNGRADES_MAX: u32 = 3;

/// Longest message accepted from a peer: as long as all deployed peers accept, and longer than any
/// sends.
const MESSAGE_MAX: usize = 1 << 20;

/// The same of a peer that is refused, whose memory nobody counts: pings, or a message that it sent
/// before it knew.
const REFUSED_MESSAGE_MAX: usize = 8 << 10;

/// Time for the WebSocket handshake, and for the first text after it.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

carrier!(pub WebSocketCarrier: Message, close: CloseFrame);

/// Why there is no WebSocket, or no tunnel on it.
#[derive(Debug)]
pub enum HandshakeError {
    /// Nothing answered as a WebSocket server. Another attempt may succeed.
    Unreachable(String),
    /// Something answered, but does not let this side through to a WebSocket server: its
    /// certificate has expired, a proxy wants a password. Another attempt may succeed.
    Unusable(String),
    /// A WebSocket server answered, but closed before a session began.
    Closed(String),
    /// The other side did not choose resumption, and a tunnel was to go on.
    NotResumed(String),
    /// The other side refused. `lasting` if an immediate retry will not change that.
    Refused {
        reason: String,
        lasting: bool,
        /// The status of the HTTP answer, if there was no WebSocket yet.
        status: Option<StatusCode>,
    },
}

impl HandshakeError {
    /// Whether an immediate retry will not succeed.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Refused { lasting: true, .. })
    }

    /// Whether something answered that did not let this side through. While the network is away,
    /// nothing does.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Unusable(_))
    }

    /// Whether the caller is not allowed in. Waiting does not change that.
    pub fn is_forbidden(&self) -> bool {
        matches!(
            self.status(),
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        )
    }

    /// Whether the runner may not be there yet, and a proxy before it has answered.
    pub fn may_be_early(&self) -> bool {
        matches!(
            self.status(),
            Some(StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
        )
    }

    /// Whether the place of an agent is taken by another one.
    pub fn is_taken(&self) -> bool {
        self.status() == Some(StatusCode::CONFLICT)
    }

    /// Whether the server may not know the path. Deployed hosts answer 403 then.
    pub fn may_lack_path(&self) -> bool {
        let unknown = [
            StatusCode::FORBIDDEN,
            StatusCode::NOT_FOUND,
            StatusCode::METHOD_NOT_ALLOWED,
        ];
        let status = self.status();
        matches!(self, Self::Closed(_)) || status.is_some_and(|status| unknown.contains(&status))
    }

    fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => *status,
            Self::Unreachable(_) | Self::Unusable(_) | Self::Closed(_) | Self::NotResumed(_) => {
                None
            }
        }
    }
}

/// Counts answers since a tunnel lost its WebSocket or was in doubt.
#[derive(Debug, Default)]
pub struct Downgrades {
    /// Those without resumption.
    not_resumed: u32,
    /// Those with 401 or 403, in a row. Attempts without an answer do not interrupt it.
    forbidden: u32,
}

impl Downgrades {
    /// An attempt begins: the first one is number 0.
    pub fn begin(&mut self, attempt: u32) {
        if attempt == 0 {
            self.reset();
        }
    }

    /// The other side resumes tunnels.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether the tunnel ends with this failure of the attempt at `url`. With 403 a server may say
    /// that it does not know the path of all ports.
    pub fn end_with(&mut self, error: &HandshakeError, url: &Url) -> bool {
        let is_403 = error.status() == Some(StatusCode::FORBIDDEN);
        let lacks_path = is_403 && url.path.contains(ANY_PORT);
        match error {
            HandshakeError::Unreachable(_) => false,
            HandshakeError::NotResumed(_) => {
                self.forbidden = 0;
                self.not_resumed += 1;
                self.not_resumed >= DOWNGRADES_MAX
            }
            _ if error.is_forbidden() && !lacks_path => {
                self.forbidden += 1;
                self.forbidden >= DOWNGRADES_MAX
            }
            _ => {
                self.forbidden = 0;
                false
            }
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason)
            | Self::Unusable(reason)
            | Self::Closed(reason)
            | Self::NotResumed(reason)
            | Self::Refused { reason, .. } => f.write_str(reason),
        }
    }
}

/// Connects as a client that offers version 2, and resumption unless it is turned off, with `more`
/// headers in the request. Returns the headers of the answer too.
///
/// This uses hyper because tungstenite refuses a server that chooses no subprotocol.
pub async fn connect(
    connection: &Connection,
    url: &Url,
    more: HeaderMap,
) -> Result<(Upgraded, HeaderMap), HandshakeError> {
    let unreachable = |what: &str| format!("cannot reach {}: {what}", url.authority());
    let work = async {
        let stream = connection.dialer.connect(url).await;
        let stream = stream.map_err(|error| failed(&error, unreachable(&net::plain(&error))))?;
        handshake(connection, url, more, stream).await
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, work).await {
        Ok(ended) => ended,
        Err(_) => Err(HandshakeError::Unreachable(unreachable(
            "no answer within 10 s",
        ))),
    }
}

async fn handshake(
    connection: &Connection,
    url: &Url,
    more: HeaderMap,
    stream: MaybeTls,
) -> Result<(Upgraded, HeaderMap), HandshakeError> {
    let no_websocket = |what: &dyn fmt::Display| {
        format!("{} does not answer as a WebSocket: {what}", url.authority())
    };
    let broken = |what: &dyn fmt::Display| HandshakeError::Unusable(no_websocket(what));
    let key = generate_key();
    let request = request(connection, url, more, &key).await;
    let request = request.map_err(|error| broken(&error))?;
    let response = connection.dialer.ask(url, stream, request).await;
    let response = response.map_err(|error| failed(&error, no_websocket(&error)))?;

    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let location = response.headers().get(header::LOCATION).cloned();
        let line = http::shown(response.into_body()).await;
        return Err(refused(url, status, location.as_ref(), &line));
    }
    let headers = response.headers().clone();
    let resumes = connection.tunnels.resume.is_some();
    let (version, resumable) = chosen(&headers, &key, resumes).map_err(|wrong| broken(&wrong))?;
    let stream = http::upgraded(hyper::upgrade::on(response)).await;
    let (stream, read) = stream.map_err(|error| broken(&error))?;
    let socket = over(stream, read, Role::Client);
    let upgraded = Upgraded {
        socket,
        version,
        resumable,
    };
    Ok((upgraded, headers))
}

/// The request for a WebSocket.
async fn request(
    connection: &Connection,
    url: &Url,
    more: HeaderMap,
    key: &str,
) -> hyper::http::Result<Request<Empty<Bytes>>> {
    let resumes = connection.tunnels.resume.is_some();
    let mut request = url
        .get()
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, key)
        .header(
            header::SEC_WEBSOCKET_PROTOCOL,
            if resumes { V2_RESUME } else { V2 },
        );
    if let Some(token) = connection.token.current().await {
        request = request.header(header::AUTHORIZATION, token);
    }
    if let Some(headers) = request.headers_mut() {
        headers.extend(more);
    }
    request.body(Empty::new())
}

/// The version that a 101 chose, and whether the server resumes tunnels.
///
/// # Errors
/// Why it is no answer to a request with this key.
fn chosen(headers: &HeaderMap, key: &str, resumes: bool) -> Result<(Version, bool), String> {
    let accept = derive_accept_key(key.as_bytes());
    if !http::has_token(headers, &header::UPGRADE, "websocket")
        || !http::has_token(headers, &header::CONNECTION, "upgrade")
        || headers
            .get(header::SEC_WEBSOCKET_ACCEPT)
            .is_none_or(|given| given != accept.as_str())
    {
        return Err("its upgrade answer is wrong".to_owned());
    }
    if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
        return Err("it chose an extension that was not offered".to_owned());
    }
    let chosen = headers.get(header::SEC_WEBSOCKET_PROTOCOL);
    let chosen = chosen.map(|value| value.to_str().unwrap_or("?"));
    let answered = match resumes {
        true => resume::answered(chosen),
        false => Version::answered(chosen).map(|version| (version, false)),
    };
    answered.map_err(|error| error.to_string())
}

/// The error of a connection, in these words.
fn failed(error: &io::Error, reason: String) -> HandshakeError {
    match net::is_answer(error) {
        true => HandshakeError::Unusable(reason),
        false => HandshakeError::Unreachable(reason),
    }
}

/// The error for an HTTP answer that is not a WebSocket. Its words go on after the server's name.
fn refused(
    url: &Url,
    status: StatusCode,
    location: Option<&HeaderValue>,
    line: &str,
) -> HandshakeError {
    let code = status.as_u16();
    let location = location.filter(|_| status.is_redirection());
    let wants_tls = location.is_some_and(|location| leads_to_tls(url, location));
    let reason = match location {
        Some(location) => {
            let location = clean_text(location.as_bytes());
            // What follows may be a secret.
            let location = location.split(['?', '#']).next().unwrap_or_default();
            let remedy = match location.split_once("://") {
                Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => "connect with wss://",
                _ => "connect to where it leads",
            };
            format!("redirects to {location} (HTTP {code}): {remedy}")
        }
        None if line.is_empty() => format!("refused with HTTP {status}"),
        None => format!("refused with HTTP {code}: {line}"),
    };
    HandshakeError::Refused {
        reason,
        lasting: is_lasting(status) || wants_tls,
        status: Some(status),
    }
}

/// Whether a redirect leads from `url` to the same host with TLS.
fn leads_to_tls(url: &Url, location: &HeaderValue) -> bool {
    let location = String::from_utf8_lossy(location.as_bytes());
    let to = location.split_once("://").and_then(|(scheme, rest)| {
        let authority = rest.split(['/', '?', '#']).next()?;
        Url::parse(&format!("{scheme}://{authority}")).ok()
    });
    to.is_some_and(|to| to.tls && !url.tls && to.host.eq_ignore_ascii_case(&url.host))
}

/// Whether an immediate retry will not change this answer (PROTOCOL.md section 4.1).
fn is_lasting(status: StatusCode) -> bool {
    match status {
        StatusCode::MOVED_PERMANENTLY | StatusCode::PERMANENT_REDIRECT => true,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            false
        }
        status => status.is_client_error(),
    }
}

/// Why a host refused a session.
impl From<mux::ConnectError> for HandshakeError {
    fn from(error: mux::ConnectError) -> Self {
        match error {
            mux::ConnectError::Refused { reason, code } => {
                // 1008 is a refusal by rule, for example of an unknown task. A deployed host also
                // uses it for a runner that is offline and a task that is not running, which may
                // come back.
                let passing = ["offline", "not running"];
                let passing = passing.iter().any(|words| reason.contains(words));
                Self::Refused {
                    reason,
                    lasting: code == Some(1008) && !passing,
                    status: None,
                }
            }
            closed @ mux::ConnectError::Closed(_) => Self::Closed(format!("the host {closed}")),
            mux::ConnectError::TimedOut => {
                Self::Unreachable("the host accepted but said nothing within 10 s".to_owned())
            }
            other => {
                let reason = net::without_number(other.to_string());
                Self::Unreachable(format!("the host did not begin the session: {reason}"))
            }
        }
    }
}

/// What a server selects from a client's offers. `resumes` if it resumes tunnels.
pub fn choose(headers: &HeaderMap, resumes: bool) -> Choice {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offered: Vec<_> = offered.filter_map(|value| value.to_str().ok()).collect();
    let offered = offered.join(",");
    if resumes {
        return resume::choose(&offered);
    }
    let (version, answer) = Version::choose(&offered);
    Choice {
        version,
        resumable: false,
        answer,
    }
}

/// The server's answer to an upgrade request, with the subprotocol that it selects.
pub fn accept_answer(key: &HeaderValue, protocol: Option<&'static str>) -> http::Answer {
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    switching(accept.ok(), protocol.map(HeaderValue::from_static))
}

/// A 101 with these values of `Sec-WebSocket-Accept` and `Sec-WebSocket-Protocol`.
pub fn switching(accept: Option<HeaderValue>, protocol: Option<HeaderValue>) -> http::Answer {
    let mut answer = http::Answer::default();
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.extend(accept.map(|value| (header::SEC_WEBSOCKET_ACCEPT, value)));
    headers.extend(protocol.map(|value| (header::SEC_WEBSOCKET_PROTOCOL, value)));
    answer
}

/// Tells the peer why it gets no session, and waits a moment for its close.
pub async fn refuse(mut socket: Socket, code: u16, reason: &str) {
    socket.set_message_max(REFUSED_MESSAGE_MAX);
    mux::builder()
        .refuse(socket, WebSocketCarrier, code, reason)
        .await;
}

/// A WebSocket on an upgraded connection.
pub fn over(stream: MaybeTls, read: Bytes, role: Role) -> Socket {
    WebSocket::new(stream, read, role, MESSAGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_answers_without_resumption_end_a_tunnel_and_no_other_failure_does() {
        let downgraded = HandshakeError::NotResumed(String::new());
        let away = HandshakeError::Unreachable(String::new());
        let url = Url::parse("ws://x/ws/forward/42/80").unwrap();
        let mut downgrades = Downgrades::default();
        downgrades.begin(0);
        for (attempt, error, ends) in [
            (1, &downgraded, false),
            (2, &downgraded, false),
            (3, &away, false),
            (4, &downgraded, true),
            (5, &away, false),
            // The next tunnel, or the next outage.
            (0, &away, false),
            (1, &downgraded, false),
            (2, &downgraded, false),
            (3, &downgraded, true),
        ] {
            downgrades.begin(attempt);
            assert_eq!(downgrades.end_with(error, &url), ends, "{attempt}");
        }
    }

    #[test]
    fn some_answers_pass() {
        let url = Url::parse("ws://x").unwrap();
        for (status, lasting) in [
            (301, true),
            (302, false),
            (303, false),
            (307, false),
            (308, true),
            (401, true),
            (404, true),
            (408, false),
            (425, false),
            (429, false),
            (500, false),
            (503, false),
        ] {
            let error = refused(&url, StatusCode::from_u16(status).unwrap(), None, "");
            assert_eq!(error.is_lasting(), lasting, "{status}");
        }
    }

    #[test]
    fn a_redirect_to_the_same_host_with_tls_is_lasting() {
        for (url, location, lasting) in [
            ("ws://box", "https://box/ws/tunnel/a?b", true),
            ("ws://box:8001", "https://BOX:8443", true),
            ("ws://[::1]", "https://[::1]/", true),
            ("ws://box", "HTTPS://box/#/login", true),
            ("wss://box", "https://box/", false),
            ("ws://box", "http://box/", false),
            ("ws://box", "https://sorry/", false),
            ("ws://box", "https://box.sorry/", false),
            ("ws://box", "https://box@sorry/", false),
            ("ws://box", "/sorry", false),
            ("ws://box", "", false),
        ] {
            let location = HeaderValue::from_static(location);
            let url = Url::parse(url).unwrap();
            let error = refused(&url, StatusCode::FOUND, Some(&location), "");
            assert_eq!(error.is_lasting(), lasting, "{url} {location:?}");
        }
    }

    #[test]
    fn only_refusals_of_the_caller_in_a_row_end_a_tunnel() {
        let away = HandshakeError::Unreachable(String::new());
        let one = Url::parse("ws://x/ws/forward/42/80").unwrap();
        let unknown = refused(&one, StatusCode::UNAUTHORIZED, None, "");
        let forbidden = refused(&one, StatusCode::FORBIDDEN, None, "");
        let full = refused(&one, StatusCode::SERVICE_UNAVAILABLE, None, "");
        let downgraded = HandshakeError::NotResumed(String::new());
        let whole = Url::parse("ws://x/api/tunnel/42").unwrap();
        for (url, errors, ends) in [
            (&one, [&forbidden, &away, &forbidden, &forbidden], true),
            (&one, [&unknown, &away, &unknown, &unknown], true),
            (&one, [&full, &unknown, &forbidden, &unknown], true),
            (&one, [&unknown, &unknown, &full, &unknown], false),
            (&whole, [&full, &unknown, &unknown, &unknown], true),
            (
                &one,
                [&downgraded, &forbidden, &forbidden, &forbidden],
                true,
            ),
            (&one, [&forbidden, &forbidden, &full, &forbidden], false),
            (
                &one,
                [&forbidden, &forbidden, &downgraded, &forbidden],
                false,
            ),
            (&one, [&forbidden, &downgraded, &downgraded, &full], false),
            (&whole, [&forbidden; 4], false),
        ] {
            let mut downgrades = Downgrades::default();
            let ended = errors.map(|error| downgrades.end_with(error, url));
            assert_eq!(ended, [false, false, false, ends], "{errors:?}");
        }
    }
}
