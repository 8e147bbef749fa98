//! The paths that host and runner serve.

use std::fmt;

use hyper::{StatusCode, Uri};
use kohakuriver_tunnel::wire::Proto;

use super::http::BadRequest;
use super::url::is_name;

/// The path of a session for any port, before the name.
pub const ANY_PORT: &str = "/api/tunnel/";

/// The purpose of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/ws/forward/{name}/{port}?proto=` or `/api/tunnel/{name}`: a client's session.
    Forward(Session),
    /// `/ws/tunnel/{name}`: an agent registers.
    Agent(String),
    Health,
    Metrics,
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
    /// Parses a request's path and query.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(uri: &Uri) -> Result<Self, BadRequest> {
        let mut segments = [""; 4];
        let parts = uri.path().trim_start_matches('/').split('/');
        for (index, part) in parts.enumerate() {
            *segments.get_mut(index).ok_or_else(not_found)? = part;
        }
        match segments {
            ["healthz", "", "", ""] => Ok(Self::Health),
            ["metrics", "", "", ""] => Ok(Self::Metrics),
            ["ws", "forward", name, port] => {
                let name = checked(name)?;
                let port = port.parse().ok().filter(|port: &u16| *port != 0);
                let port = port
                    .ok_or_else(|| bad("the port in the path must be a number from 1 to 65535"))?;
                let proto = proto(uri.query().unwrap_or_default())?;
                let only = Some((port, proto));
                Ok(Self::Forward(Session { name, only }))
            }
            ["api", "tunnel", name, ""] => {
                let name = checked(name)?;
                Ok(Self::Forward(Session { name, only: None }))
            }
            ["ws", "tunnel", name, ""] => Ok(Self::Agent(checked(name)?)),
            _ => Err(not_found()),
        }
    }
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
