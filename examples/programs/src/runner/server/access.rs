//! Who may open sessions, and who may register as which container's agent.

use hmac::{Hmac, Mac};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderValue};
use sha2::Sha256;

use crate::common::http::{self, BadRequest};
use crate::common::route::Target;
use crate::common::token;

/// Separates these tokens from anything else derived from the key.
const PURPOSE: &[u8] = b"kohakuriver-tunnel agent token v1\0";

/// Shortest key in characters: 128 bits if they are hexadecimal.
const KEY_MIN: usize = 32;

/// Fewest different characters of a key. A random key has more.
const KEY_LETTERS_MIN: usize = 8;

/// The secret from which each container's token is derived.
pub struct AgentKey(Hmac<Sha256>);

impl AgentKey {
    /// # Errors
    /// The key is too weak. Says how to make one, and does not repeat it.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        let mut letters: Vec<u8> = text.bytes().collect();
        letters.sort_unstable();
        letters.dedup();
        let key = Hmac::new_from_slice(text.as_bytes()).ok();
        key.filter(|_| text.len() >= KEY_MIN && letters.len() >= KEY_LETTERS_MIN)
            .map(Self)
            .ok_or("is too weak: make one of 32 random letters or more by openssl rand -hex 32")
    }

    /// The token of one container: HMAC-SHA256 of the purpose and the bytes of the name.
    pub fn token(&self, container: &str) -> String {
        let mut hmac = self.0.clone();
        hmac.update(PURPOSE);
        hmac.update(container.as_bytes());
        format!("{:x}", hmac.finalize().into_bytes())
    }

    fn opens(&self, container: &str, given: Option<&HeaderValue>) -> bool {
        let expected = HeaderValue::try_from(format!("Bearer {}", self.token(container)));
        expected.is_ok_and(|expected| token::same(&expected, given))
    }
}

/// What opens sessions and registers agents.
#[derive(Default)]
pub struct Tokens {
    /// Demanded from clients, and from agents if there is no other for them.
    pub clients: Option<HeaderValue>,
    /// Accepted from the agent of any container instead. Agents run where strangers are root, so
    /// their tokens do not open sessions.
    pub agents: Option<HeaderValue>,
    /// The tokens of single containers are derived from it.
    pub key: Option<AgentKey>,
}

/// What let a request in. A tunnel goes on only with a request that the same lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// No token is demanded.
    Anybody,
    /// The token of the clients.
    Clients,
    /// The token that all agents share.
    Agents,
    /// The token of one container.
    Container,
}

/// Checks whether a request is allowed. Returns what let it in.
///
/// # Errors
/// The missing credential.
pub fn check(tokens: &Tokens, target: &Target, headers: &HeaderMap) -> Result<Class, BadRequest> {
    let given = headers.get(header::AUTHORIZATION);
    let allowed = |expected: &Option<HeaderValue>, class| {
        let expected = expected.as_ref()?;
        Some(token::same(expected, given).then_some(class))
    };
    // The outer `None`: nothing is demanded. The inner one: nothing that is demanded was given.
    let class = match target {
        Target::Agent(container) => {
            let own = tokens.key.as_ref();
            let own = own.map(|key| key.opens(container, given).then_some(Class::Container));
            match (own, allowed(&tokens.agents, Class::Agents)) {
                (None, None) => allowed(&tokens.clients, Class::Clients),
                (own, shared) => Some(own.flatten().or(shared.flatten())),
            }
        }
        Target::Client(_) => allowed(&tokens.clients, Class::Clients),
    };
    match (class, target) {
        (None, _) => http::same_origin(headers).map(|()| Class::Anybody),
        (Some(Some(class)), _) => Ok(class),
        (Some(None), Target::Agent(_)) if tokens.key.is_some() => Err(not_of_this_container()),
        (Some(None), _) => Err(token::demanded()),
    }
}

fn not_of_this_container() -> BadRequest {
    let line = "the token of this container is needed: give the agent what \
                \"runner agent-token NAME\" prints, by --token-file or KOHAKURIVER_TUNNEL_TOKEN";
    BadRequest::new(StatusCode::UNAUTHORIZED, line)
}

#[cfg(test)]
mod tests {
    use super::AgentKey;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f";

    #[test]
    fn a_name_has_one_token_and_no_other_name_has_it() {
        let key = AgentKey::new(KEY).ok();
        let token = |name| key.as_ref().map(|key| key.token(name));
        assert_eq!(token("a"), token("a"));
        for other in ["A", "a.", "b", "aa"] {
            assert_ne!(token("a"), token(other), "{other}");
        }
    }

    #[test]
    fn a_weak_key_is_refused() {
        let all_alike = "0000000000000000000000000000000000000000000";
        for weak in ["", "short", &KEY[..31], all_alike] {
            assert!(AgentKey::new(weak).is_err(), "{weak}");
        }
    }
}
