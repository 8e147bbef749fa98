//! The paths that host and runner serve.

use std::fmt;

use hyper::{StatusCode, Uri};
use kohakuriver_tunnel::wire::Proto;

use super::http::BadRequest;
use super::url::is_name;

/// The path of a session for any port, before the name.
pub const ANY_PORT: &str = "/api/tunnel/";

/// Most segments of a path that is served, with the empty one before the first slash.
const SEGMENTS: usize = 5;

/// The purpose of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Health,
    Metrics,
    Tunnel(Target),
}

/// What a tunnel is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `/ws/forward/{name}/{port}?proto=` or `/api/tunnel/{name}`: a client's session.
    Client(Session),
    /// `/ws/tunnel/{name}`: an agent registers.
    Agent(String),
}

/// A client's session with a task or a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub name: String,
    /// The one port and protocol of the session; `None` leaves both to each CONNECT.
    pub only: Option<(u16, Proto)>,
}

impl Session {
    /// The path of such a session with `name`.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        match self.only {
            Some((port, proto)) => format!("/ws/forward/{name}/{port}?proto={proto}"),
            None => format!("{ANY_PORT}{name}"),
        }
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.only {
            Some((port, proto)) => write!(f, "{} {port}/{proto}", self.name),
            None => write!(f, "{} any port", self.name),
        }
    }
}

impl Route {
    /// Parses a request's path and query. Each route has one path: a rule of a proxy for it could
    /// not be passed by another.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(uri: &Uri) -> Result<Self, BadRequest> {
        let segments: Vec<&str> = uri.path().split('/').take(SEGMENTS + 1).collect();
        match segments[..] {
            ["", "healthz"] => Ok(Self::Health),
            ["", "metrics"] => Ok(Self::Metrics),
            ["", "ws", "forward", name, port] => {
                let name = checked(name)?;
                let port = parse_port(port).ok_or_else(|| {
                    bad("the port in the path must be a number from 1 to 65535, in digits alone")
                })?;
                let proto = proto(uri.query().unwrap_or_default())?;
                let only = Some((port, proto));
                Ok(Self::Tunnel(Target::Client(Session { name, only })))
            }
            ["", "api", "tunnel", name] => {
                let name = checked(name)?;
                Ok(Self::Tunnel(Target::Client(Session { name, only: None })))
            }
            ["", "ws", "tunnel", name] => Ok(Self::Tunnel(Target::Agent(checked(name)?))),
            _ => Err(not_found()),
        }
    }
}

impl fmt::Display for Target {
    /// The path, of less than 200 bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(session) => f.write_str(&session.path(&session.name)),
            Self::Agent(name) => write!(f, "/ws/tunnel/{name}"),
        }
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let port: u16 = text.parse().ok()?;
    // No sign, no leading zero.
    (port != 0 && text.starts_with(|first| ('1'..='9').contains(&first))).then_some(port)
}

fn checked(name: &str) -> Result<String, BadRequest> {
    if is_name(name) {
        Ok(name.to_owned())
    } else {
        Err(bad(
            "the name in the path must be 1 to 128 letters, digits, dots, dashes or underscores",
        ))
    }
}

fn proto(query: &str) -> Result<Proto, BadRequest> {
    let mut values = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("proto="));
    match values.next() {
        None => Ok(Proto::Tcp),
        Some(value) => value.parse().map_err(|_| bad("proto must be tcp or udp")),
    }
}

fn bad(line: &'static str) -> BadRequest {
    BadRequest::new(StatusCode::BAD_REQUEST, line)
}

fn not_found() -> BadRequest {
    BadRequest::new(
        StatusCode::NOT_FOUND,
        "no such path: /ws/forward/{name}/{port}?proto=tcp, /api/tunnel/{name}, /healthz, /metrics \
         and, at a runner, /ws/tunnel/{name} are served",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str) -> Option<StatusCode> {
        let uri = path.parse().unwrap();
        Route::parse(&uri).err().map(|bad| bad.status())
    }

    fn target(path: &str) -> Target {
        match Route::parse(&path.parse().unwrap()) {
            Ok(Route::Tunnel(target)) => target,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn a_route_has_one_path() {
        for (path, query) in [
            ("/ws/forward/a/22", "?proto=udp"),
            ("/api/tunnel/a", ""),
            ("/ws/tunnel/a", ""),
        ] {
            let whole = format!("{path}{query}");
            assert_eq!(target(&whole).to_string(), whole);
            let twice = path.replacen('/', "//", 1);
            let within = path.replace('/', "//");
            for other in [format!("{path}/"), twice, within] {
                assert_eq!(status(&other), Some(StatusCode::NOT_FOUND), "{other}");
            }
        }
        for (path, wrong) in [("/healthz", "//healthz"), ("/metrics", "/metrics/")] {
            assert_eq!(status(path), None);
            assert_eq!(status(wrong), Some(StatusCode::NOT_FOUND), "{wrong}");
        }
    }

    #[test]
    fn a_port_is_written_in_one_way() {
        for port in ["+22", "-1", "022", "0", "00022", "65536", "", "22 ", "٢"] {
            assert_eq!(parse_port(port), None, "{port}");
        }
        assert_eq!(parse_port("65535"), Some(65_535));
        assert_eq!(status("/ws/forward/42/+22"), Some(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn a_route_is_logged_in_less_than_200_bytes() {
        let name = "x".repeat(128);
        let longest = format!("/ws/forward/{name}/65535?proto=tcp");
        assert!(target(&longest).to_string().len() < 200);
        let uri = format!("{longest}&more={}", "y".repeat(10_000));
        assert_eq!(target(&uri).to_string(), longest);
    }
}
