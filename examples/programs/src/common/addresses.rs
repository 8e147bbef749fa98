//! Which connections count as one source: those of an IPv4 address or of an IPv6 /64.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;

/// Bits of an IPv6 address that name a network. One user has all the addresses in it.
const NETWORK: u32 = 64;

/// What places are shared between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Address(IpAddr),
    /// One connection from a proxy, which many clients are behind.
    Proxied(u64),
}

/// Says which source a connection has: one per address, except that each connection from a proxy is
/// one.
#[derive(Debug)]
pub struct Sources {
    proxies: Vec<IpNet>,
    proxied: AtomicU64,
}

impl Sources {
    pub fn new(proxies: Vec<IpNet>) -> Self {
        Self {
            proxies,
            proxied: AtomicU64::new(0),
        }
    }

    pub fn of(&self, address: IpAddr) -> Source {
        let address = address.to_canonical();
        if self.proxies.iter().any(|proxy| proxy.contains(&address)) {
            return Source::Proxied(self.proxied.fetch_add(1, Ordering::Relaxed));
        }
        Source::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & (u128::MAX << (128 - NETWORK));
                Ipv6Addr::from_bits(network).into()
            }
        })
    }
}

/// Reads `ADDRESS` or `ADDRESS/PREFIX`.
///
/// # Errors
/// A sentence that says what is correct.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let one = |address: IpAddr| IpNet::from(address.to_canonical());
    let network = text.parse().or_else(|_| text.parse().map(one));
    network.map_err(|_| format!("{text:?} is no network: write for example 10.0.0.1 or 10.0.0.0/8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv6_network_is_one_stranger() {
        let sources = Sources::new(Vec::new());
        let of = |text| sources.of(address(text));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn connections_of_a_proxy_are_counted_each_by_itself() {
        let proxies = ["10.1.0.0/16", "::1", "127.0.0.1", "0.0.0.0/32"];
        let proxies = proxies.map(|text| parse_network(text).unwrap()).to_vec();
        let sources = Sources::new(proxies);
        for (text, proxied) in [
            ("10.1.255.1", true),
            ("10.2.0.1", false),
            ("::1", true),
            ("::2", false),
            ("127.0.0.1", true),
            ("127.0.0.2", false),
        ] {
            let apart = sources.of(address(text)) != sources.of(address(text));
            assert_eq!(apart, proxied, "{text}");
        }
        let all = Sources::new(vec![parse_network("0.0.0.0/0").unwrap()]);
        assert_ne!(all.of(address("1.2.3.4")), all.of(address("1.2.3.4")));
    }

    #[test]
    fn nonsense_is_no_network() {
        for text in [
            "",
            "host",
            "10.0.0.1/33",
            "::1/129",
            "10.0.0.1/",
            "10.0.0.1/-1",
        ] {
            assert!(parse_network(text).is_err(), "{text}");
        }
    }
}
