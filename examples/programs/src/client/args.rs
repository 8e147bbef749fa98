//! The client's command line.

use std::collections::HashSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Parser;
use kohakuriver_tunnel::wire::Proto;

use crate::client::connector::Destination;
use crate::client::spec::PortSpec;
use crate::common::args::{LogArgs, LogFormat, Within, variable};
use crate::common::connection::ConnectionArgs;
use crate::common::program::{Basics, Failure, Process};
use crate::common::route::{ANY_PORT, Route, Session, Target};
use crate::common::serve::UDP_IDLE_MAX;
use crate::common::threads::ThreadArgs;
use crate::common::tls::public_roots;
use crate::common::url::{Url, check_name, unbracketed};

/// Tunnels of a session, beyond which more gain nothing.
const MOST_TUNNELS: u64 = 256;

/// Most UDP peers of all ports together: a quarter of a tunnel's streams, so that a flood of peers
/// leaves the others to TCP.
const UDP_PEERS: usize = 4096;

const WAIT_FLAG: &str = "--wait-for-task";

/// The path of a session for one port, before the task.
const ONE_PORT: &str = "/ws/forward/";

#[derive(Parser, Debug, PartialEq)]
#[command(
    name = "forward",
    version,
    max_term_width = 100,
    about = "Makes ports of a KohakuRiver container or VM local ports of this machine.",
    override_usage = "forward <task_id> <remote_port>[:local][/proto]... [OPTIONS]
       forward --host ws://HOST:8000/api/tunnel/<task_id> --remote-port N [--local-port N]
       forward                      (a demonstration of the whole chain)",
    after_help = "Examples:
  forward 42 8888                      # localhost:8888 is port 8888 of task 42
  forward 42 8888 --local-port 9999    # another local port; 0 takes a free one
  forward 42 5353 --proto udp
  forward 42 8888 6006:7006 5353/udp   # several: remote[:local][/proto]
  forward 42 8888 --wait-for-task=600  # wait up to 10 minutes for the task
  forward --host ws://cluster:8000 42 22:2222   # then: ssh -p 2222 localhost
  forward --host ws://host:8000/api/tunnel/42 --local-port 8080 --remote-port 80
  forward                              # everything in one process

If the first connection fails or is refused, forward ends with exit code 3. With \
--wait-for-task it waits instead, unless the answer is 401 or 403. After that it runs until you \
end it. When the host, the runner or the container restarts, or the task is gone for a while, \
forward logs it and reconnects.

Exit codes: 0 ended as asked, 1 failed while running, 2 wrong usage, 3 could not reach the other \
side or was refused by it."
)]
pub struct Args {
    /// Task of the container or VM and the ports to forward: TASK_ID REMOTE_PORT[:LOCAL][/PROTO]...
    #[arg(value_name = "TASK_ID PORT")]
    words: Vec<String>,

    /// Base URL of the host, or a full ws://…/api/tunnel/TASK_ID or
    /// ws://…/ws/forward/TASK_ID/PORT [default: ws://$KOHAKURIVER_HOST:$KOHAKURIVER_PORT, with
    /// localhost and 8000 where they are not set]. KOHAKURIVER_HOST may also be the whole URL; then
    /// KOHAKURIVER_PORT is ignored.
    #[arg(long, value_name = "URL")]
    host: Option<String>,

    /// Port inside the container or VM, instead of a positional one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    remote_port: Option<u16>,

    /// Local port [default: the remote port]; 0 takes a free one and prints it.
    #[arg(long, value_name = "N")]
    local_port: Option<u16>,

    /// Local address to listen on [default: 127.0.0.1].
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    local_host: Option<IpAddr>,

    /// Protocol of ports that do not name one [default: tcp].
    #[arg(long, value_name = "tcp|udp")]
    proto: Option<Proto>,

    /// Seconds that a new connection waits for the tunnel while it is down.
    #[arg(long, value_name = "SECONDS", default_value = "15")]
    wait: Within<0, 3600>,

    /// At the start, wait until the task runs and can be reached, for at most this many seconds if
    /// they are given. What forward waits for is logged once. A 401 or 403 ends the wait.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    wait_for_task: Option<Option<Within<1, 604_800>>>,

    /// Seconds of silence after which a UDP peer is forgotten. With a deployed part (v1) it is at
    /// most 60.
    #[arg(long, value_name = "SECONDS", default_value = "60")]
    udp_idle: Within<1, UDP_IDLE_MAX>,

    /// Maximum number of UDP peers per port [default, and at most: 4096 divided by the number of
    /// UDP ports]. A further one replaces the one that was silent for longest.
    #[arg(long, value_name = "N")]
    udp_peers: Option<Within<1, 16_000>>,

    /// Most WebSockets of a session. While all are busy or in use, another one is opened [default:
    /// one more than threads].
    #[arg(long, value_name = "N")]
    tunnels: Option<Within<1, MOST_TUNNELS>>,

    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(flatten)]
    threads: ThreadArgs,

    #[command(flatten)]
    log: LogArgs,
}

/// Ports of one task.
pub struct Command {
    pub destination: Destination,
    pub ports: Vec<Forward>,
    /// Waits until the task can be reached, with or without a limit. With `None` the first refusal
    /// ends the command.
    pub wait_for_task: Option<Option<Duration>>,
    /// Most of a session. `None` follows from the number of threads.
    pub tunnels: Option<usize>,
}

/// One local port and its destination.
#[derive(Clone)]
pub struct Forward {
    pub local: SocketAddr,
    pub proto: Proto,
    pub remote: u16,
    pub task: String,
    pub wait: Duration,
    pub udp_idle: Duration,
    pub udp_peers: usize,
}

impl Args {
    /// The ports to forward, and how.
    ///
    /// # Errors
    /// Arguments that contradict each other.
    pub fn command(&self, process: &Process) -> Result<Command, Failure> {
        let (task, base, any_port, words) = self.destination()?;
        let specs = self.ports(&words)?;
        let connection = self
            .connection
            .connection(&base, Some(public_roots), process)?;
        let destination = Destination {
            whole: any_port.then(|| base.clone()),
            host: base,
            task: task.clone(),
            connection,
        };
        let proto = |spec: &PortSpec| spec.proto.or(self.proto).unwrap_or(Proto::Tcp);
        let udp_ports = specs.iter().filter(|spec| proto(spec) == Proto::Udp);
        let udp_peers = udp_peers(self.udp_peers.map(Within::count), udp_ports.count());
        let local_host = self.local_host.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let forward = |spec: &PortSpec| Forward {
            local: SocketAddr::new(local_host, spec.local.unwrap_or(spec.remote)),
            proto: proto(spec),
            remote: spec.remote,
            task: task.clone(),
            wait: self.wait.seconds(),
            udp_idle: self.udp_idle.seconds(),
            udp_peers,
        };
        let ports: Vec<Forward> = specs.iter().map(forward).collect();
        let mut seen = HashSet::new();
        for one in ports.iter().filter(|one| one.local.port() != 0) {
            if !seen.insert((one.local, one.proto)) {
                return Err(wrong(format!(
                    "local port {} ({}) is asked for twice: give one of them another, \
                     for example {}:0",
                    one.local.port(),
                    one.proto,
                    one.remote
                )));
            }
        }
        Ok(Command {
            destination,
            ports,
            wait_for_task: self.wait_for_task.map(|limit| limit.map(Within::seconds)),
            tunnels: self.tunnels.map(Within::count),
        })
    }

    /// Whether the demonstration is wanted.
    pub fn asks_for_nothing(&self) -> bool {
        // The demonstration does not use any others, so something was forgotten.
        let used = Self {
            threads: self.threads,
            log: self.log.clone(),
            ..Self::parse_from([crate::client::ABOUT.name])
        };
        *self == used
    }

    /// The task, the URL, whether the URL is that of a session for any port, and the arguments that
    /// are ports.
    fn destination(&self) -> Result<(String, Url, bool, Vec<String>), Failure> {
        let text = self.host.clone().unwrap_or_else(default_host);
        let base = Url::parse(&text).map_err(|what| match &self.host {
            Some(_) => wrong(what),
            None => wrong(format!(
                "{what}; it is made of the variables KOHAKURIVER_HOST, a name alone or a whole \
                 URL, and KOHAKURIVER_PORT"
            )),
        })?;
        if let Some((_, task)) = base.path.rsplit_once(ANY_PORT) {
            check_name("task id", task).map_err(wrong)?;
            let words = match self.words.split_first() {
                // The task may be repeated before the ports.
                Some((first, rest))
                    if *first == task && (!rest.is_empty() || self.remote_port.is_some()) =>
                {
                    rest
                }
                _ => &self.words,
            };
            return Ok((task.to_owned(), base, true, words.to_vec()));
        }
        if let Some((before, _)) = base.path.split_once(ONE_PORT) {
            return self.one_port(&base, before);
        }
        let Some((task, ports)) = self.words.split_first() else {
            return Err(wrong("no task is given"));
        };
        let base = Url::parse_base(&text).map_err(wrong)?;
        check_name("task id", task).map_err(wrong)?;
        Ok((task.clone(), base, false, ports.to_vec()))
    }

    /// As [`destination`](Self::destination), from the URL of a session for one port.
    fn one_port(
        &self,
        url: &Url,
        before: &str,
    ) -> Result<(String, Url, bool, Vec<String>), Failure> {
        let target = url.target().split_off(before.len());
        let route = target.parse().ok().and_then(|uri| Route::parse(&uri).ok());
        let Some(Route::Tunnel(Target::Client(Session {
            name,
            only: Some((port, proto)),
        }))) = route
        else {
            return Err(wrong(
                "--host is not a base URL, …/api/tunnel/TASK_ID or \
                 …/ws/forward/TASK_ID/PORT?proto=tcp",
            ));
        };
        if !self.words.is_empty() || self.remote_port.is_some() {
            return Err(wrong(
                "the port is given twice: in the URL of --host and beside it",
            ));
        }
        let word = match url.query.strip_prefix("?proto=") {
            _ if url.query.is_empty() => port.to_string(),
            Some(_) if self.proto.is_some_and(|other| other != proto) => {
                return Err(wrong(
                    "the protocol is given twice: in the URL of --host and by --proto",
                ));
            }
            Some(name) if !name.contains('&') => format!("{port}/{proto}"),
            _ => {
                return Err(wrong(
                    "the query of --host would be lost: leave out all of it but ?proto=",
                ));
            }
        };
        let base = Url {
            path: before.to_owned(),
            query: String::new(),
            ..url.clone()
        };
        Ok((name, base, false, vec![word]))
    }

    fn ports(&self, words: &[String]) -> Result<Vec<PortSpec>, Failure> {
        let mut specs = words
            .iter()
            .map(|word| PortSpec::parse(word).map_err(wrong))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(remote) = self.remote_port {
            if let Some(word) = words.first() {
                return Err(wrong(format!(
                    "the remote port is given twice: {word} and --remote-port {remote}"
                )));
            }
            specs.push(PortSpec {
                remote,
                local: None,
                proto: None,
            });
        }
        match (specs.as_mut_slice(), self.local_port) {
            ([], _) => Err(wrong("no port is given")),
            ([only], Some(_)) if only.local.is_some() => Err(wrong(
                "the local port is given twice: in the port and by --local-port",
            )),
            ([only], Some(local)) => {
                only.local = Some(local);
                Ok(specs)
            }
            (_, None) => Ok(specs),
            (_, Some(_)) => Err(wrong(
                "--local-port goes with one port only: write remote:local for each of several",
            )),
        }
    }
}

impl Basics for Args {
    fn log_format(&self) -> LogFormat {
        self.log.log_format
    }

    fn threads(&self) -> usize {
        self.threads.count()
    }
}

/// Most UDP peers of each of so many UDP ports.
fn udp_peers(wanted: Option<usize>, ports: usize) -> usize {
    let most = (UDP_PEERS / ports.max(1)).max(1);
    match wanted {
        Some(wanted) if wanted > most => {
            tracing::warn!(
                "--udp-peers {wanted} is lowered to {most}: all UDP ports together have \
                 {UDP_PEERS} peers at most"
            );
            most
        }
        Some(wanted) => wanted,
        None => most,
    }
}

/// Refuses a number after `--wait-for-task`: it would be a task or a port, and looks like seconds.
/// clap does not say where a flag without a value was.
///
/// # Errors
/// There is one.
pub fn check_wait(words: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let mut is_flag = false;
    for word in words {
        let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
        match word.to_str() {
            Some("--") => break,
            Some(word) if is_flag && is_number(word) => {
                return Err(wrong(format!(
                    "--wait-for-task {word} is ambiguous: write --wait-for-task={word} for \
                     seconds, or the flag at the end"
                )));
            }
            _ => is_flag = word == WAIT_FLAG,
        }
    }
    Ok(())
}

fn wrong(what: impl Into<String>) -> Failure {
    Failure::usage(format!("{}; {}", what.into(), crate::client::ABOUT.hint))
}

fn default_host() -> String {
    let host = variable("KOHAKURIVER_HOST").unwrap_or_else(|| "localhost".to_owned());
    if host.contains("://") {
        return host;
    }
    let port = variable("KOHAKURIVER_PORT").unwrap_or_else(|| "8000".to_owned());
    match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("ws://[{address}]:{port}"),
        Err(_) => format!("ws://{host}:{port}"),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    if text.eq_ignore_ascii_case("localhost") {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    unbracketed(text).parse().map_err(|_| {
        "write an IP address of this machine, for example 127.0.0.1 or 0.0.0.0".to_owned()
    })
}
