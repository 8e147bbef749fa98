//! The few URL forms that users of the tunnel write.

use std::fmt;

/// `scheme://host:port/path` of one of the parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub tls: bool,
    /// Without the brackets of an IPv6 literal.
    pub host: String,
    pub port: u16,
    /// Without a trailing slash: empty for a base URL.
    pub path: String,
    /// With its question mark, or empty.
    pub query: String,
}

impl Url {
    /// Reads a URL; `ws://` and `http://` mean the same here, a missing scheme is `ws://`.
    ///
    /// # Errors
    /// A sentence that names what is wrong and a URL that is right.
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
        let (rest, query) = match rest.find('?') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(wrong("a user name or password"));
        }
        let default_port = if tls { 443 } else { 80 };
        let (host, port) =
            split_authority(authority, default_port).ok_or_else(|| wrong("no host or port"))?;
        let visible = |text: &str| {
            text.bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'#')
        };
        if !visible(authority) || !visible(path) || !visible(query) {
            return Err(wrong("a blank, a fragment or a letter beyond ASCII"));
        }
        if !is_host(host) {
            return Err(wrong("a host that is neither a name nor an address"));
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            path: path.trim_end_matches('/').to_owned(),
            query: query.to_owned(),
        })
    }

    /// As [`parse`](Self::parse), for one to which paths are added.
    ///
    /// # Errors
    /// As there, or it has a query, which would be lost.
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

    /// The `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// What stands in the request line.
    #[must_use]
    pub fn target(&self) -> String {
        if self.path.is_empty() {
            format!("/{}", self.query)
        } else {
            format!("{}{}", self.path, self.query)
        }
    }
}

/// For people and logs: without the query, in which a secret may stand.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// What was meant as a URL, as far as it can be shown: passwords and queries cannot.
fn without_secrets(text: &str) -> String {
    if text.contains('@') {
        return "…".to_owned();
    }
    match text.find(['?', '#']) {
        Some(at) => format!("{}…", text.get(..=at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The one name rule for tasks and containers: it goes into paths, headers and logs as it is.
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.')
}

fn is_host(host: &str) -> bool {
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = host.bytes().all(in_name) && !host.starts_with('.') && !host.contains("..");
    is_name || host.parse::<std::net::Ipv6Addr>().is_ok()
}

fn split_authority(authority: &str, default_port: u16) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        (host, port.strip_prefix(':'))
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => default_port,
    };
    (!host.is_empty()).then_some((host, port))
}
