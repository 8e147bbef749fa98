//! What to forward: `8888`, `6006:7006`, `5353/udp`.

use kohakuriver_tunnel::wire::Proto;

/// A remote port and the local port that leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSpec {
    pub remote: u16,
    /// `None`: the same as the remote port. 0: any free port.
    pub local: Option<u16>,
    /// `None`: the protocol of `--proto`.
    pub proto: Option<Proto>,
}

impl PortSpec {
    /// Reads `REMOTE[:LOCAL][/PROTO]`.
    ///
    /// # Errors
    /// A sentence that says what is wrong and how to correct it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            format!(
                "{what} in {text:?}: write REMOTE[:LOCAL][/PROTO], \
                 for example 8888, 6006:7006 or 5353/udp"
            )
        };
        let (ports, proto) = match text.split_once('/') {
            Some((ports, proto)) => {
                let proto = proto.parse();
                let proto = proto.map_err(|_| wrong("the protocol is not tcp or udp"))?;
                (ports, Some(proto))
            }
            None => (text, None),
        };
        let (remote, local) = match ports.split_once(':') {
            Some((remote, local)) => {
                let local = local
                    .parse()
                    .map_err(|_| wrong("the local port is not a number from 0 to 65535"))?;
                (remote, Some(local))
            }
            None => (ports, None),
        };
        let remote = remote
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| wrong("the remote port is not a number from 1 to 65535"))?;
        Ok(Self {
            remote,
            local,
            proto,
        })
    }
}
