//! The URLs that users write.

use std::fmt;

use hyper::http::request;
use hyper::{Request, Uri, header};

/// The URL of a host, a runner or a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub tls: bool,
    /// Without the brackets of an IPv6 literal.
    pub host: String,
    pub port: u16,
    /// Without a trailing slash: empty for a base URL.
    pub path: String,
    /// With the question mark, or empty.
    pub query: String,
}

impl Url {
    /// Reads a URL. `ws://` and `http://` mean the same here, and the default is `ws://`.
    ///
    /// # Errors
    /// Says what is wrong, and gives a URL that is right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            let shown = without_secrets(text);
            format!("{what} in the URL {shown:?}: write for example ws://localhost:8000")
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("ws", text));
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => return Err(wrong("unknown scheme")),
        };
        let no_host = || wrong("no host, port or path that can be used");
        if !rest
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
        {
            return Err(wrong("a blank, a fragment or a letter beyond ASCII"));
        }
        let uri: Uri = format!("http://{rest}").parse().map_err(|_| no_host())?;
        let authority = uri.authority().ok_or_else(no_host)?;
        if authority.as_str().contains('@') {
            return Err(wrong("a user name or password"));
        }
        let host = unbracketed(authority.host());
        let port = match authority.as_str() == authority.host() {
            true => Some(if tls { 443 } else { 80 }),
            false => authority.port_u16().filter(|port| *port != 0),
        };
        let port = port.ok_or_else(no_host)?;
        if !is_host(host) {
            return Err(wrong("a host that is neither a name nor an address"));
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            path: uri.path().trim_end_matches('/').to_owned(),
            query: uri
                .query()
                .map_or(String::new(), |query| format!("?{query}")),
        })
    }

    /// As [`parse`](Self::parse), for a URL to which paths are added.
    ///
    /// # Errors
    /// As there; also if it has a query, which would be lost.
    pub fn parse_base(text: &str) -> Result<Self, String> {
        let url = Self::parse(text)?;
        if url.query.is_empty() {
            Ok(url)
        } else {
            Err(format!(
                "a query in the base URL {url}: leave out what is behind the ?"
            ))
        }
    }

    /// The same server, another path.
    #[must_use]
    pub fn join(&self, path_and_query: &str) -> Self {
        let (path, query) = match path_and_query.find('?') {
            Some(at) => path_and_query.split_at(at),
            None => (path_and_query, ""),
        };
        Self {
            path: format!("{}{path}", self.path),
            query: query.to_owned(),
            ..self.clone()
        }
    }

    /// The host and the port.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// A GET request for it.
    pub fn get(&self) -> request::Builder {
        let authority = self.authority();
        // Without the usual port, as browsers send it: proxies may compare it with names alone.
        let usual = if self.tls { ":443" } else { ":80" };
        let host = authority.strip_suffix(usual).unwrap_or(&authority);
        Request::get(self.target()).header(header::HOST, host)
    }

    /// The target of a request line.
    #[must_use]
    pub fn target(&self) -> String {
        let path = if self.path.is_empty() {
            "/"
        } else {
            &self.path
        };
        format!("{path}{}", self.query)
    }
}

/// For people and logs: without the query, which may hold a secret.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// The part of a wrong URL that may be shown: no passwords and no queries.
fn without_secrets(text: &str) -> String {
    if text.contains('@') {
        return "…".to_owned();
    }
    match text.find(['?', '#']) {
        Some(at) => format!("{}…", text.get(..=at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A host without the brackets of an IPv6 address.
#[must_use]
pub fn unbracketed(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether this is a name for a task or a container. Names go unchanged into paths, headers and
/// logs.
pub fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(is_plain) && !text.starts_with('.')
}

/// Checks a name that a user gave; `what` is what it names.
///
/// # Errors
/// Says what is right.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    match is_name(name) {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is no {what}: use letters, digits, dots, dashes and underscores"
        )),
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

fn is_host(host: &str) -> bool {
    let is_name = host.bytes().all(is_plain) && !host.starts_with('.') && !host.contains("..");
    is_name || host.parse::<std::net::Ipv6Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_port_is_not_in_the_host_header() {
        for (url, host) in [
            ("ws://box", "box"),
            ("http://box:80/path", "box"),
            ("wss://box", "box"),
            ("https://[::1]:443", "[::1]"),
            ("ws://box:443", "box:443"),
            ("wss://box:80", "box:80"),
            ("ws://box:8080", "box:8080"),
            ("ws://[::80]:8000", "[::80]:8000"),
            ("ws://0:8000", "0:8000"),
        ] {
            let request = Url::parse(url).unwrap().get().body(()).unwrap();
            assert_eq!(request.headers()[header::HOST], host, "{url}");
        }
    }
}
