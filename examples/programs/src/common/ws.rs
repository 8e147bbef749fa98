//! The WebSockets of the programs: handshakes, the first text, refusals, and the library's carrier.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, StatusCode};
use kohakuriver_tunnel::carrier;
use kohakuriver_tunnel::session::{Version, clean_text};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tunnel_websocket::{Error, Message, WebSocket};

use super::connection::Connection;
use super::http;
use super::net::{self, Link};
use super::url::Url;

pub type Socket = WebSocket<Link>;

/// The WebSocket subprotocol that means version 2; not chosen means version 1.
pub const V2: HeaderValue = HeaderValue::from_static(Version::OFFER);

/// Closes an agent's WebSocket when a newer one of its name has registered (PROTOCOL.md section 4.1).
pub const REPLACED: u16 = 4001;

/// In an agent's request: register only if no other agent of the name is registered.
pub const IF_FREE: HeaderName = HeaderName::from_static("kohakuriver-tunnel-if-free");

/// In the answer to an agent: how many agents the runner has.
pub const AGENTS: HeaderName = HeaderName::from_static("kohakuriver-tunnel-agents");

/// Largest message taken from a peer: as much as all deployed parts take, and more than any sends.
const MESSAGE_MAX: usize = 1 << 20;

/// Time for the WebSocket handshake, and for the first text after it.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most of an error answer's body that is shown.
const REFUSAL_TEXT_MAX: usize = 4096;

carrier!(pub Tungstenite: Message, close: CloseFrame);

/// Why no WebSocket, or no tunnel on it, came about.
#[derive(Debug)]
pub enum ConnectError {
    /// Nothing answered as a WebSocket server: worth another try.
    Unreachable(String),
    /// It answered as one, and closed before a session began.
    Closed(String),
    /// The other side said no. `lasting` when asking again at once will not change it.
    Refused {
        reason: String,
        lasting: bool,
        /// Of the HTTP answer, where there was no WebSocket yet.
        status: Option<StatusCode>,
    },
}

impl ConnectError {
    /// Whether another try is pointless, or may be for long.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Refused { lasting: true, .. })
    }

    /// Whether it is about who asks: no wait changes that.
    pub fn is_forbidden(&self) -> bool {
        matches!(
            self.status(),
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        )
    }

    /// Whether an agent that would not take another's place found it taken.
    pub fn is_taken(&self) -> bool {
        self.status() == Some(StatusCode::CONFLICT)
    }

    /// Whether the server may just not know the path: deployed hosts answer 403 then.
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
            Self::Unreachable(_) | Self::Closed(_) => None,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason) | Self::Closed(reason) | Self::Refused { reason, .. } => {
                f.write_str(reason)
            }
        }
    }
}

/// Connects as a client and offers version 2; says whether it was chosen.
///
/// Done on hyper and not by tungstenite, which takes a server that chooses no subprotocol for a faulty one.
pub async fn connect(connection: &Connection, url: &Url) -> Result<(Socket, bool), ConnectError> {
    let nothing_more = HeaderMap::new();
    let (socket, v2, _) = connect_with(connection, url, &nothing_more).await?;
    Ok((socket, v2))
}

/// As [`connect`], with more headers in the request; gives those of the answer too.
pub async fn connect_with(
    connection: &Connection,
    url: &Url,
    more: &HeaderMap,
) -> Result<(Socket, bool, HeaderMap), ConnectError> {
    let unreachable = |what: &dyn fmt::Display| {
        ConnectError::Unreachable(format!("cannot reach {}: {what}", url.authority()))
    };
    let work = async {
        let link = connection.dialer.connect(url, HANDSHAKE_TIMEOUT).await;
        let link = link.map_err(|error| unreachable(&net::plain(&error)))?;
        handshake(connection, url, more, link).await
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, work).await {
        Ok(ended) => ended,
        Err(_) => Err(unreachable(&"no answer within 10 s")),
    }
}

async fn handshake(
    connection: &Connection,
    url: &Url,
    more: &HeaderMap,
    link: Link,
) -> Result<(Socket, bool, HeaderMap), ConnectError> {
    let broken = |what: &dyn fmt::Display| {
        ConnectError::Unreachable(format!(
            "{} does not answer as a WebSocket: {what}",
            url.authority()
        ))
    };
    let key = generate_key();
    let mut request = Request::get(url.target())
        .header(header::HOST, url.authority())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, V2);
    if let Some(token) = &connection.token {
        request = request.header(header::AUTHORIZATION, token);
    }
    for (name, value) in more {
        request = request.header(name, value);
    }
    let request = request.body(Empty::new()).map_err(|error| broken(&error))?;
    let response = connection.dialer.ask(url, link, request).await;
    let response = response.map_err(|error| broken(&error))?;

    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = http::body_text(response.into_body(), REFUSAL_TEXT_MAX).await;
        return Err(refused(status, &body.unwrap_or_default()));
    }
    let headers = response.headers();
    let accept = derive_accept_key(key.as_bytes());
    if !http::has_token(headers, &header::UPGRADE, "websocket")
        || headers
            .get(header::SEC_WEBSOCKET_ACCEPT)
            .is_none_or(|given| given != accept.as_str())
    {
        return Err(broken(&"its upgrade answer is wrong"));
    }
    if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
        return Err(broken(&"it chose an extension that was not offered"));
    }
    let v2 = match headers.get(header::SEC_WEBSOCKET_PROTOCOL) {
        None => false,
        Some(chosen) if chosen == V2 => true,
        Some(_) => return Err(broken(&"it chose a subprotocol that was not offered")),
    };
    let headers = headers.clone();
    let (link, read) = http::upgraded(response)
        .await
        .map_err(|error| broken(&error))?;
    Ok((over(link, read, Role::Client), v2, headers))
}

/// An HTTP answer where a WebSocket was asked for.
fn refused(status: StatusCode, body: &str) -> ConnectError {
    let reason = match http::first_line(body) {
        line if line.is_empty() => format!("refused with HTTP {status}"),
        line => format!("refused with HTTP {}: {line}", status.as_u16()),
    };
    let passing = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
    );
    ConnectError::Refused {
        reason,
        lasting: status.is_client_error() && !passing,
        status: Some(status),
    }
}

/// Waits for the text that starts a forwarding session.
///
/// # Errors
/// The server's `Error: …`, or what came instead of a text.
pub async fn expect_connected(socket: &mut Socket) -> Result<(), ConnectError> {
    let unreachable = |what: String| Err(ConnectError::Unreachable(what));
    let first = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => return other,
            }
        }
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, first).await {
        Err(_) => unreachable("the host accepted but said nothing within 10 s".to_owned()),
        Ok(Some(Ok(Message::Text(text)))) if text.as_str() == "CONNECTED" => Ok(()),
        Ok(Some(Ok(Message::Text(text)))) => {
            let code = close_code(socket).await;
            let text = clean_text(text.as_bytes());
            let reason = text.strip_prefix("Error: ").unwrap_or(&text).to_owned();
            // 1008 is the refusal by rule, such as an unknown task. A runner that is merely offline and a task
            // that is not running at the moment have the same code in the deployed host and come back.
            let passing = ["offline", "not running"];
            let passing = passing.iter().any(|words| reason.contains(words));
            let lasting = code == Some(CloseCode::Policy) && !passing;
            Err(ConnectError::Refused {
                reason,
                lasting,
                status: None,
            })
        }
        Ok(Some(Ok(Message::Close(frame)))) => {
            let said = frame.filter(|frame| !frame.reason.is_empty());
            let said = said.map_or_else(
                || "no reason".to_owned(),
                |frame| clean_text(frame.reason.as_bytes()),
            );
            Err(ConnectError::Closed(format!(
                "the host closed before the session began: {said}"
            )))
        }
        Ok(Some(Ok(_))) => unreachable("the host sent data before CONNECTED".to_owned()),
        Ok(Some(Err(error))) => unreachable(format!(
            "the connection broke before the session began: {error}"
        )),
        Ok(None) => unreachable("the host closed before the session began".to_owned()),
    }
}

/// The code of the close that follows an error text.
async fn close_code(socket: &mut Socket) -> Option<CloseCode> {
    let close = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Close(frame) = message {
                return frame.map(|frame| frame.code);
            }
        }
        None
    };
    let limit = Duration::from_secs(2);
    tokio::time::timeout(limit, close).await.ok().flatten()
}

/// The server's answer to an upgrade request.
pub fn accept_answer(key: &HeaderValue, protocol: Option<HeaderValue>) -> http::Answer {
    let mut answer = http::Answer::default();
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    let headers: [(HeaderName, Option<HeaderValue>); 4] = [
        (
            header::CONNECTION,
            Some(HeaderValue::from_static("Upgrade")),
        ),
        (header::UPGRADE, Some(HeaderValue::from_static("websocket"))),
        (header::SEC_WEBSOCKET_ACCEPT, accept.ok()),
        (header::SEC_WEBSOCKET_PROTOCOL, protocol),
    ];
    for (name, value) in headers {
        if let Some(value) = value {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}

/// A WebSocket on an upgraded connection.
pub fn over(link: Link, read: Bytes, role: Role) -> Socket {
    WebSocket::new(link, read, role, MESSAGE_MAX)
}

/// Ends a fresh server socket the way the deployed parts do: a text, a close code, a short wait for the
/// other side's close.
pub async fn refuse(mut socket: Socket, reason: &str, code: u16) {
    let goodbye = async {
        let text = Message::text(format!("Error: {reason}"));
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: shorten(reason).into(),
        };
        socket.send(text).await?;
        socket.send(Message::Close(Some(frame))).await?;
        while let Some(message) = socket.next().await {
            message?;
        }
        Ok::<_, Error>(())
    };
    let limit = Duration::from_secs(5);
    let _ = tokio::time::timeout(limit, goodbye).await;
}

/// A close reason has room for 123 bytes.
fn shorten(reason: &str) -> String {
    reason
        .char_indices()
        .take_while(|(at, letter)| at + letter.len_utf8() <= 123)
        .map(|(_, letter)| letter)
        .collect()
}
