//! Connects through a proxy, by HTTP CONNECT or SOCKS5.

use std::fmt;
use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http_body_util::Empty;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::connect::proxy::SocksV5;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tower::{Service, service_fn};

use super::names::Names;
use super::net;
use super::program::Failure;
use super::url::{Url, unbracketed};
use super::{http, words};

/// How to write a proxy.
const FORM: &str = "write http://HOST:PORT, socks5://HOST:PORT or socks5h://HOST:PORT";

/// Less than a whole attempt may take, so that the proxy is named and not the server.
const REACHED_WITHIN: Duration = Duration::from_secs(5);

/// The same for all that the proxy has to do, for all addresses of the server.
const CONNECTED_WITHIN: Duration = Duration::from_secs(8);

/// Time for each address, at least: several round trips to a distant proxy.
const EACH_MIN: Duration = Duration::from_secs(3);

#[derive(Args, Debug, Clone, PartialEq)]
pub struct ProxyArgs {
    /// Proxy to connect through: http://[NAME:PASSWORD@]HOST:PORT, socks5:// or socks5h:// (which
    /// resolves names itself), or none [default: HTTPS_PROXY for wss://, HTTP_PROXY for ws://, else
    /// ALL_PROXY; hosts in NO_PROXY, localhost and loopback addresses are reached directly].
    #[arg(long, value_name = "URL", hide_env_values = true)]
    proxy: Option<String>,
}

impl ProxyArgs {
    /// # Errors
    /// The URL of a proxy is not usable.
    pub fn proxies(&self) -> Result<Proxies, Failure> {
        match self.proxy.as_deref() {
            None => Ok(Proxies::from_environment()),
            Some("none") => Ok(Proxies::none()),
            Some(url) => {
                check("--proxy", url).map_err(Failure::usage)?;
                Ok(Proxies::of(Matcher::builder().all(url).build()))
            }
        }
    }
}

/// Chooses the proxy for a server.
#[derive(Debug, Clone)]
pub struct Proxies {
    matcher: Arc<Matcher>,
    from_environment: bool,
}

impl Proxies {
    /// The proxies that the usual variables name.
    pub fn from_environment() -> Self {
        Self {
            from_environment: true,
            ..Self::of(Matcher::from_env())
        }
    }

    pub fn none() -> Self {
        Self::of(Matcher::builder().build())
    }

    fn of(matcher: Matcher) -> Self {
        Self {
            matcher: Arc::new(matcher),
            from_environment: false,
        }
    }

    /// The proxy for a server. `localhost` and loopback addresses are reached without one.
    ///
    /// # Errors
    /// The variable that counts for this server does not name a usable proxy. Others may be meant
    /// for other programs.
    pub fn before(&self, url: &Url) -> Result<Option<Proxy>, String> {
        let address = url.host.parse::<IpAddr>();
        let is_here = url.host.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address| address.is_loopback());
        let scheme = if url.tls { "https" } else { "http" };
        let uri = format!("{scheme}://{}/", url.authority()).parse::<Uri>();
        let Some(uri) = uri.ok().filter(|_| !is_here) else {
            return Ok(None);
        };
        let proxy = self.matcher.intercept(&uri);
        if self.from_environment && (proxy.is_some() || !is_excepted(&uri)) {
            let of_scheme = match url.tls {
                true => ["HTTPS_PROXY", "https_proxy"],
                false => ["HTTP_PROXY", "http_proxy"],
            };
            let names = of_scheme.into_iter().chain(["ALL_PROXY", "all_proxy"]);
            if let Some((name, url)) = first_set(names) {
                check(&format!("the variable {name}"), &url)?;
            }
        }
        Ok(proxy.map(Proxy))
    }
}

/// The first variable that is set. One that is empty counts too, and means that there is none.
fn first_set(names: impl IntoIterator<Item = &'static str>) -> Option<(&'static str, String)> {
    let set = |name| Some((name, std::env::var(name).ok()?));
    let first = names.into_iter().find_map(set);
    first.filter(|(_, value)| !value.is_empty())
}

/// Whether `NO_PROXY` names this server.
fn is_excepted(uri: &Uri) -> bool {
    let (_, names) = first_set(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    let proxied = Matcher::builder().all("http://proxy.invalid").no(names);
    proxied.build().intercept(uri).is_none()
}

/// Checks the URL of a proxy. The error does not repeat it, because it may hold a password.
fn check(origin: &str, url: &str) -> Result<(), String> {
    let known = Uri::from_static("http://host.invalid/");
    let proxy = Matcher::builder()
        .all(url.to_owned())
        .build()
        .intercept(&known);
    let scheme = proxy.as_ref().and_then(|proxy| proxy.uri().scheme_str());
    match scheme {
        Some("http" | "socks5" | "socks5h") => Ok(()),
        Some(other) => Err(format!(
            "{origin} names a proxy of {other}://, which is not spoken here: {FORM}"
        )),
        None => Err(format!("{origin} is no URL of a proxy: {FORM}")),
    }
}

/// A proxy, shown without its credentials.
pub struct Proxy(Intercept);

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy {}:{}", self.host(), self.port())
    }
}

impl Proxy {
    /// Connects to the server of a URL.
    ///
    /// # Errors
    /// Names the proxy and what went wrong.
    pub async fn connect(&self, names: &Names, url: &Url) -> io::Result<TcpStream> {
        let targets = self.targets(names, url).await?;
        self.connect_any(names, &targets).await
    }

    /// What the proxy is asked to connect to: several addresses if names are looked up here.
    async fn targets(&self, names: &Names, url: &Url) -> io::Result<Vec<String>> {
        if self.scheme() != "socks5" {
            return Ok(vec![url.authority()]);
        }
        let mut addresses = net::resolve(names, &url.host, url.port).await?;
        // One of each family comes first: there may be no time for more than two.
        let is_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
        let mut families = addresses.iter().map(SocketAddr::is_ipv4);
        if let Some(other) = families.position(|family| family != is_ipv4) {
            let other = addresses.remove(other);
            addresses.insert(1, other);
        }
        Ok(addresses.iter().map(SocketAddr::to_string).collect())
    }

    /// Tries one target after the other, as many as there is time for.
    async fn connect_any(&self, names: &Names, targets: &[String]) -> io::Result<TcpStream> {
        let until = Instant::now() + CONNECTED_WITHIN;
        let left = || until.saturating_duration_since(Instant::now());
        let mut failure = None;
        for (target, others) in targets.iter().zip((1..=targets.len()).rev()) {
            if failure.is_some() && left() < EACH_MIN {
                break;
            }
            let stream = match self.reach(names, REACHED_WITHIN.min(left())).await {
                Ok(stream) => stream,
                Err(error) => return Err(failure.unwrap_or(error)),
            };
            let share = left() / u32::try_from(others).unwrap_or(u32::MAX);
            let limit = share.max(EACH_MIN).min(left());
            let connecting = async {
                match self.scheme() {
                    "http" => self.by_http(stream, target).await,
                    _ => self.by_socks(stream, target).await,
                }
            };
            let error = match timeout(limit, connecting).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => error,
                Err(_) => {
                    let seconds = limit.as_secs_f64();
                    let text = format!(
                        "{self} does not connect to {target}: no answer within {seconds:.0} s"
                    );
                    io::Error::new(io::ErrorKind::TimedOut, text)
                }
            };
            failure.get_or_insert(error);
        }
        Err(failure.unwrap_or_else(net::no_address))
    }

    async fn reach(&self, names: &Names, limit: Duration) -> io::Result<TcpStream> {
        let host = unbracketed(self.host());
        let stream = net::within(limit, net::connect(names, host, self.port())).await;
        let stream = stream.map_err(|error| {
            let reason = net::plain(&error);
            let text = format!("{self} cannot be reached: {reason}");
            io::Error::new(error.kind(), text)
        })?;
        net::tune_link(&stream);
        Ok(stream)
    }

    async fn by_http(&self, stream: TcpStream, target: &str) -> io::Result<TcpStream> {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(target)
            .header(header::HOST, target);
        if let Some(credentials) = self.0.basic_auth() {
            let mut credentials: HeaderValue = credentials.clone();
            credentials.set_sensitive(true);
            request = request.header(header::PROXY_AUTHORIZATION, credentials);
        }
        let request = request.body(Empty::new()).map_err(io::Error::other)?;
        let response = http::ask(stream.into(), request).await;
        let response = response
            .map_err(|error| io::Error::other(format!("{self}: {}", words::http(&error))))?;
        let status = response.status();
        if !status.is_success() {
            let line = http::shown(response.into_body()).await;
            return Err(net::answer(self.refusal(status, target, &line)));
        }
        match http::upgraded(hyper::upgrade::on(response)).await? {
            (socket, early) if early.is_empty() => socket.into_tcp(),
            _ => Err(net::answer(format!(
                "{self} sent data that nobody asked for"
            ))),
        }
    }

    fn refusal(&self, status: StatusCode, target: &str, line: &str) -> String {
        let code = status.as_u16();
        match status {
            StatusCode::PROXY_AUTHENTICATION_REQUIRED if self.0.basic_auth().is_some() => {
                format!("{self} does not accept the name and password in its URL ({code})")
            }
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => format!(
                "{self} wants a name and a password ({code}): put them into its URL, \
                 as in http://NAME:PASSWORD@HOST:PORT"
            ),
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED => format!(
                "{self} does not allow connections to {target} ({code}): many allow port 443 alone"
            ),
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                format!("{self} cannot reach {target} ({code}): {line}")
            }
            _ => format!("{self} does not connect to {target}: HTTP {code}: {line}"),
        }
    }

    async fn by_socks(&self, stream: TcpStream, target: &str) -> io::Result<TcpStream> {
        let uri: Uri = format!("tunnel://{target}/")
            .parse()
            .map_err(io::Error::other)?;
        // The connection to the proxy is there already.
        let mut stream = Some(TokioIo::new(stream));
        let connected = service_fn(move |_: Uri| {
            ready(
                stream
                    .take()
                    .ok_or(io::Error::from(io::ErrorKind::NotConnected)),
            )
        });
        let mut socks = SocksV5::new(self.0.uri().clone(), connected);
        if let Some((name, password)) = self.0.raw_auth() {
            socks = socks.with_auth(name.to_owned(), password.to_owned());
        }
        let stream = socks.call(uri).await.map_err(|error| {
            let (why, is_answer) = socks_failure(&error.to_string(), self.0.raw_auth().is_some());
            let text = format!("{self} does not connect to {target}: {why}");
            match is_answer {
                true => net::answer(text),
                false => io::Error::other(text),
            }
        })?;
        Ok(stream.into_inner())
    }

    fn scheme(&self) -> &str {
        self.0.uri().scheme_str().unwrap_or("http")
    }

    fn host(&self) -> &str {
        self.0.uri().host().unwrap_or_default()
    }

    fn port(&self) -> u16 {
        let usual = if self.scheme() == "http" { 80 } else { 1080 };
        self.0.uri().port_u16().unwrap_or(usual)
    }
}

/// What a text of the SOCKS client means, and whether it is about an answer of the proxy. It shows
/// its errors as texts only.
fn socks_failure(text: &str, has_password: bool) -> (&'static str, bool) {
    let text = text.trim_start_matches("SOCKS error: ");
    let why = match text {
        "server does not support user/pass authentication" if has_password => {
            "it takes no name and password: leave them out of its URL"
        }
        "server does not support user/pass authentication" => {
            "it wants a name and a password: put them into its URL, \
             as in socks5h://NAME:PASSWORD@HOST:PORT"
        }
        "server implements authentication incorrectly" if has_password => {
            "it does not ask for a name and a password: leave them out of its URL"
        }
        "server implements authentication incorrectly" => {
            "it wants a name and a password although none was offered: put them into its URL, \
             as in socks5h://NAME:PASSWORD@HOST:PORT"
        }
        "credentials not accepted" => "it does not accept the name and password in its URL",
        "failed parsing server response" => {
            "it does not answer as a SOCKS5 proxy: see whether its port is right, and write \
             http:// if it is an HTTP proxy"
        }
        "io error during SOCKS handshake" => {
            let why = "it closed the connection before it had answered: \
                       see whether it is a SOCKS5 proxy";
            return (why, false);
        }
        "general server failure" => "it has failed",
        "connection not allowed" => "its rules do not allow it",
        "network unreachable" => "network unreachable",
        "host unreachable" => "host unreachable",
        "connection refused" => "connection refused",
        "ttl expired" => "TTL expired",
        "command not supported" => "it does not connect to anything (command not supported)",
        "address type not supported" => "it does not take this kind of address",
        _ => "the SOCKS5 handshake failed",
    };
    (why, true)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::sleep;

    use super::*;

    /// A SOCKS5 proxy that connects to port 2 alone, which echoes. Each answer takes a while.
    async fn socks(mut stream: TcpStream, takes: Duration) -> io::Result<()> {
        let mut hello = [0; 2];
        stream.read_exact(&mut hello).await?;
        stream.read_exact(&mut vec![0; hello[1].into()]).await?;
        sleep(takes).await;
        stream.write_all(&[5, 0]).await?;
        let mut request = [0; 10];
        stream.read_exact(&mut request).await?;
        let reply = if request[9] == 2 { 0 } else { 5 };
        sleep(takes).await;
        stream
            .write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0])
            .await?;
        let mut said = [0; 4];
        stream.read_exact(&mut said).await?;
        stream.write_all(&said).await
    }

    async fn proxy(scheme: &str) -> (Proxy, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let proxies = Proxies::of(Matcher::builder().all(url).build());
        let server = Url::parse("ws://192.0.2.1:2").unwrap();
        (proxies.before(&server).unwrap().unwrap(), listener)
    }

    async fn socks_proxy(takes: Duration) -> Proxy {
        let (proxy, listener) = proxy("socks5").await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(socks(stream, takes));
            }
        });
        proxy
    }

    #[tokio::test]
    async fn a_slow_proxy_has_time_for_each_of_many_addresses() {
        let targets = |ports: [u16; 8]| ports.map(|port| format!("192.0.2.1:{port}"));
        let connected = async {
            let proxy = socks_proxy(Duration::from_millis(600)).await;
            for ports in [[2, 1, 1, 1, 1, 1, 1, 1], [1, 2, 1, 1, 1, 1, 1, 1]] {
                proxy
                    .connect_any(&Names::default(), &targets(ports))
                    .await
                    .unwrap();
            }
        };
        let silent = async {
            let (proxy, _listener) = proxy("socks5").await;
            let error = proxy
                .connect_any(&Names::default(), &targets([1; 8]))
                .await
                .unwrap_err();
            let named = format!("{proxy} does not connect to 192.0.2.1:1: no answer within 3 s");
            assert_eq!(error.to_string(), named);
        };
        tokio::join!(connected, silent);
    }

    #[tokio::test]
    async fn all_addresses_are_tried_each_on_a_connection_of_its_own() {
        let proxy = socks_proxy(Duration::ZERO).await;
        let targets = [1, 2].map(|port| format!("192.0.2.1:{port}"));
        let mut stream = proxy
            .connect_any(&Names::default(), &targets)
            .await
            .unwrap();
        stream.write_all(b"here").await.unwrap();
        let mut said = [0; 4];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"here");
        let refused = proxy
            .connect_any(&Names::default(), &targets[..1])
            .await
            .unwrap_err();
        assert!(refused.to_string().starts_with("the proxy 127.0.0.1:"));
    }

    #[tokio::test]
    async fn only_what_a_proxy_says_is_an_answer() {
        let (proxy, listener) = proxy("http").await;
        let server = Url::parse("ws://192.0.2.1:2").unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        });
        let refused = proxy.connect(&Names::default(), &server).await.unwrap_err();
        assert!(net::is_answer(&refused), "{refused}");
        let away = proxy.connect(&Names::default(), &server).await.unwrap_err();
        assert!(!net::is_answer(&away), "{away}");
    }

    #[tokio::test]
    async fn a_socks_proxy_that_goes_away_has_not_answered() {
        let (proxy, listener) = proxy("socks5h").await;
        let server = Url::parse("ws://192.0.2.1:2").unwrap();
        tokio::spawn(async move {
            for answer in [&[5, 0xff][..], &[]] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 8]).await;
                stream.write_all(answer).await.unwrap();
            }
        });
        for answered in [true, false] {
            let error = proxy.connect(&Names::default(), &server).await;
            let error = error.unwrap_err();
            assert_eq!(net::is_answer(&error), answered, "{error}");
        }
    }

    #[tokio::test]
    async fn a_proxy_that_accepts_and_is_silent_is_named() {
        let silent = ["http", "socks5", "socks5h"].map(async |scheme| {
            let (proxy, _listener) = proxy(scheme).await;
            let server = Url::parse("ws://192.0.2.1:2").unwrap();
            let error = proxy
                .connect(&Names::default(), &server)
                .await
                .unwrap_err()
                .to_string();
            let named = format!("{proxy} does not connect to 192.0.2.1:2: no answer within 8 s");
            assert_eq!(error, named);
        });
        futures_util::future::join_all(silent).await;
    }
}
