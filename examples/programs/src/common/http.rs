//! Plain-text HTTP answers, and the WebSocket upgrade on both sides.

use std::io;
use std::mem;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::uri::Authority;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kohakuriver_tunnel::session::clean_text;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

use super::net::{self, MaybeTls};
use super::turns::Turns;
use super::url::unbracketed;

/// Longest head of a request, in bytes; a longer one is refused (431).
pub const HEAD_MAX: usize = 16 * 1024;

/// Most bytes read before the head of an answer: interim answers (1xx), of which hyper passes over
/// any number.
const INTERIM_MAX: usize = 32 * 1024;

/// Most bytes of heads that are read before other tasks run. An interim answer may have 25.
const HEAD_TURN: u64 = 2048;

/// Most bytes read of the body of an error answer.
const PAGE_MAX: usize = 4096;

pub type Answer = Response<Full<Bytes>>;

/// A plain-text answer of one line. One with 401 says that a bearer token is needed.
pub fn text(status: StatusCode, line: impl Into<String>) -> Answer {
    let mut line = line.into();
    if !line.ends_with('\n') {
        line.push('\n');
    }
    let mut answer = Response::new(Full::new(Bytes::from(line)));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, plain);
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

/// An answer to a request that cannot be served.
#[derive(Debug, Clone)]
pub struct BadRequest {
    status: StatusCode,
    line: &'static str,
    header: Option<(header::HeaderName, &'static str)>,
}

impl BadRequest {
    pub fn new(status: StatusCode, line: &'static str) -> Self {
        let header = None;
        Self {
            status,
            line,
            header,
        }
    }

    /// There is no place now (503).
    pub fn busy(line: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, line)
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The one line of the answer.
    pub fn line(&self) -> &'static str {
        self.line
    }

    /// Adds a header that says what would be right.
    #[must_use]
    pub fn with(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }
}

impl From<BadRequest> for Answer {
    fn from(bad: BadRequest) -> Self {
        let mut answer = text(bad.status, bad.line);
        if let Some((name, value)) = bad.header {
            let value = HeaderValue::from_static(value);
            answer.headers_mut().insert(name, value);
        }
        answer
    }
}

/// The key of a WebSocket upgrade request.
///
/// # Errors
/// What is wrong with the request.
pub fn upgrade_key<B>(request: &Request<B>) -> Result<HeaderValue, BadRequest> {
    let headers = request.headers();
    if request.method() != Method::GET {
        let line = "only GET is served here";
        return Err(
            BadRequest::new(StatusCode::METHOD_NOT_ALLOWED, line).with(header::ALLOW, "GET")
        );
    }
    if !has_token(headers, &header::CONNECTION, "upgrade")
        || !has_token(headers, &header::UPGRADE, "websocket")
    {
        let line = "this path speaks WebSocket: connect with ws:// or wss://, or let the reverse \
                    proxy pass Upgrade and Connection on";
        let bad = BadRequest::new(StatusCode::UPGRADE_REQUIRED, line);
        return Err(bad.with(header::UPGRADE, "websocket"));
    }
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version != "13") {
        let line = "only WebSocket version 13 is served";
        let bad = BadRequest::new(StatusCode::UPGRADE_REQUIRED, line);
        return Err(bad.with(header::SEC_WEBSOCKET_VERSION, "13"));
    }
    match headers.get(header::SEC_WEBSOCKET_KEY) {
        // 16 bytes in base64.
        Some(key) if key.len() == 24 => Ok(key.clone()),
        _ => Err(BadRequest::new(
            StatusCode::BAD_REQUEST,
            "the Sec-WebSocket-Key header is missing or not 24 letters long",
        )),
    }
}

/// Refuses the requests of web pages from other origins, which the browser names. Without it, and
/// without a token, any page that the user of this machine visits could connect.
///
/// A page can have its own name resolve to this server, and then is of the same origin. So a page
/// of this origin has to have come from an address or from `localhost`.
///
/// # Errors
/// The request comes from a page of another origin, or of one that anybody can name.
pub fn same_origin(headers: &HeaderMap) -> Result<(), BadRequest> {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let refused = |line| Err(BadRequest::new(StatusCode::FORBIDDEN, line));
    let authority = origin.to_str().ok().and_then(|text| text.split_once("://"));
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    match (authority, host) {
        (Some((_, from)), Some(host)) if from.eq_ignore_ascii_case(host) => {
            match host.parse().is_ok_and(|host| is_own_name(&host)) {
                true => Ok(()),
                false => refused(
                    "a name in the URL of a web page proves nothing here: open the page by the IP \
                     address of this server, or start the server with a token",
                ),
            }
        }
        _ => refused(
            "web pages of other origins are refused here: start this server with a token to serve \
             them",
        ),
    }
}

/// Whether no DNS server of a stranger can say where this host is.
fn is_own_name(authority: &Authority) -> bool {
    let host = authority.host().to_ascii_lowercase();
    let address = unbracketed(&host);
    host == "localhost" || host.ends_with(".localhost") || address.parse::<IpAddr>().is_ok()
}

/// Whether a comma-separated header contains `wanted`, ignoring case.
pub fn has_token(headers: &HeaderMap, name: &header::HeaderName, wanted: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

/// The connection below an upgrade, and the bytes read after the head.
pub async fn upgraded(upgrade: OnUpgrade) -> io::Result<(MaybeTls, Bytes)> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let upgraded = match upgraded.downcast::<TokioIo<Asked>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner().stream.into_inner();
            return Ok((stream, parts.read_buf));
        }
        Err(upgraded) => upgraded,
    };
    match upgraded.downcast::<TokioIo<MaybeTls>>() {
        Ok(parts) => Ok((parts.io.into_inner(), parts.read_buf)),
        Err(_) => Err(io::Error::other("the connection is of another kind")),
    }
}

/// The connection of a request. Limits the bytes read before the final response head, and lets
/// other tasks run between them: hyper parses all that it can read in one poll.
struct Asked {
    stream: Take<MaybeTls>,
    left: usize,
    /// This task yields before it reads on.
    yields: bool,
    answered: Arc<AtomicBool>,
}

impl AsyncRead for Asked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.answered.load(Ordering::Relaxed) {
            self.stream.set_limit(u64::MAX);
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        if mem::take(&mut self.yields) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        self.stream.set_limit(HEAD_TURN);
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.yields = true;
        let read = buffer.filled().len() - before;
        let left = self.left.checked_sub(read);
        let endless = || net::answer("it sends interim answers (HTTP 1xx) without end");
        self.left = left.ok_or_else(endless)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Asked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}

/// Sends one request over a new connection. The answer may be a 101.
pub async fn ask(
    stream: MaybeTls,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<Response<Incoming>> {
    let answered = Arc::<AtomicBool>::default();
    let stream = Asked {
        stream: stream.take(HEAD_TURN),
        left: HEAD_MAX + INTERIM_MAX,
        yields: false,
        answered: Arc::clone(&answered),
    };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    let connection = Box::pin(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!("connection ended in its HTTP phase: {error}");
        }
    });
    tokio::spawn(Turns::newcomer().run(connection));
    let response = sender.send_request(request).await?;
    answered.store(true, Ordering::Relaxed);
    Ok(response)
}

/// A body of at most `limit` bytes. A longer one is an error.
pub async fn body(body: Incoming, limit: usize) -> io::Result<Bytes> {
    use http_body_util::{BodyExt, LengthLimitError, Limited};
    let collected = Limited::new(body, limit).collect().await;
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(net::answer("its answer is too long")),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The part of an error answer that is shown to a person: the first line with text, or the title of
/// a web page, of the first bytes of its body.
pub async fn shown(mut body: Incoming) -> String {
    use http_body_util::BodyExt;
    let mut page = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        page.extend(frame.into_data().unwrap_or_default());
        if page.len() >= PAGE_MAX {
            break;
        }
    }
    page.truncate(PAGE_MAX);
    first_line(&String::from_utf8_lossy(&page))
}

fn first_line(body: &str) -> String {
    let title = |body: &str| {
        let body = body.get(body.to_ascii_lowercase().find("<title>")?..)?;
        let (_, title) = body.split_once('>')?;
        title.split('<').next().map(str::to_owned)
    };
    let is_page = body.trim_start().starts_with('<');
    let title = is_page.then(|| title(body).unwrap_or_else(|| "a web page".to_owned()));
    let shown = title.as_deref().unwrap_or(body);
    let mut lines = shown.lines().map(str::trim);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    clean_text(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_served(origin: &str, host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        same_origin(&headers).is_ok()
    }

    #[test]
    fn a_page_of_the_same_origin_is_served_by_address_alone() {
        for host in [
            "127.0.0.1:8001",
            "127.0.0.1",
            "[::1]:8001",
            "10.0.0.7",
            "localhost:8001",
            "LocalHost",
            "box.localhost:8001",
        ] {
            assert!(is_served(&format!("http://{host}"), host), "{host}");
        }
        for host in [
            "evil.example:8001",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8001",
            "notlocalhost",
            "box",
            "",
        ] {
            assert!(!is_served(&format!("http://{host}"), host), "{host}");
        }
        assert!(!is_served("http://127.0.0.1:8002", "127.0.0.1:8001"));
        assert!(!is_served("null", "127.0.0.1:8001"));
        assert!(same_origin(&HeaderMap::new()).is_ok());
    }
}
