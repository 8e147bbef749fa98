//! The runner's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use hyper::header::HeaderValue;
use kohakuriver_tunnel::mux::KeeperLimits;

use crate::common::args::{LogArgs, LogFormat, parse_count, parse_listen, twice};
use crate::common::ceilings::{RunnerCeilings, usable};
use crate::common::front::FrontArgs;
use crate::common::program::{Basics, Failure, Process};
use crate::common::reread::Reread;
use crate::common::secret::Secret;
use crate::common::threads::ThreadArgs;
use crate::common::token;
use crate::common::tunnel::TunnelArgs;
use crate::common::url::{check_name, unbracketed};
use crate::runner::server::{AgentKey, Settings, Tokens};

/// The variable with the token of the agents, if no file is named.
const AGENT_TOKEN: &str = "KOHAKURIVER_TUNNEL_AGENT_TOKEN";

/// The variable with the key of the agents' tokens, if no file is named.
const AGENT_KEY: &str = "KOHAKURIVER_TUNNEL_AGENT_KEY";

#[derive(Parser, Debug)]
#[command(
    name = "runner",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    subcommand_negates_reqs = true,
    about = "Joins port-forwarding sessions to the containers and VMs of this machine.",
    after_help = "Examples:
  runner                                 # reaches containers through agents
  runner --target vm-42=192.168.122.42   # dials a VM or container, TCP and UDP
  runner --listen 0.0.0.0:8001 --target box=localhost

A token for each container:
  openssl rand -hex 32 > key; chmod 600 key
  runner --token-file clients --agent-key-file key
  runner agent-token kohakuriver-vps-42 --agent-key-file key   # prints one

Environment: TUNNEL_ENABLED=False turns the tunnel routes off (default True).

Then, inside a container:
  agent --runner-url ws://this-machine:8001 --container-id kohakuriver-vps-42

Exit codes: 0 ended as asked, 1 failed while running, 2 wrong usage."
)]
pub struct Args {
    /// Address to serve on; port 0 takes a free one and prints it.
    #[arg(
        long,
        default_value = "127.0.0.1:8001",
        value_name = "ADDRESS:PORT",
        value_parser = parse_listen
    )]
    pub listen: SocketAddr,

    /// A container or VM that the runner dials itself: NAME=ADDRESS; may be repeated. Agents of
    /// that name are refused.
    #[arg(long = "target", value_name = "NAME=ADDRESS", value_parser = parse_target)]
    targets: Vec<(String, String)>,

    #[command(flatten)]
    front: FrontArgs,

    /// Maximum number of agents; further ones are answered with 503 [default: 16384, or an eighth
    /// of the open files, or one for each 64 KiB of --memory, if that is less]. Clients cannot take
    /// their places.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    max_agents: Option<usize>,

    /// Whether tunnels are served; False or 0 turns them off, and clients are told so.
    #[arg(
        long,
        env = "TUNNEL_ENABLED",
        default_value = "True",
        hide_env_values = true,
        value_name = "BOOL",
        value_parser = parse_switch,
        action = clap::ArgAction::Set
    )]
    tunnel_enabled: bool,

    #[command(flatten)]
    tunnels: TunnelArgs,

    /// Maximum number of sessions that wait for their next WebSocket [default: as many as
    /// sessions]. Beyond it, one ends: first those whose client never answered, then the one that
    /// has waited for longest. Each of them counts as a session, and one ends when a new session
    /// finds no other place.
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with = "no_resume")]
    max_detached: Option<usize>,

    /// The same for one container [default: a quarter of the sessions].
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with = "no_resume")]
    max_detached_per_container: Option<usize>,

    /// The same for one source address [default: no bound, because clients come from their host].
    #[arg(long, value_name = "N", value_parser = parse_count, conflicts_with = "no_resume")]
    max_detached_per_address: Option<usize>,

    #[command(flatten)]
    agents: AgentArgs,

    #[command(flatten)]
    threads: ThreadArgs,

    #[command(flatten)]
    log: LogArgs,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What registers agents.
#[derive(clap::Args, Debug, Clone)]
struct AgentArgs {
    /// File with a token that all agents share [default: the variable
    /// KOHAKURIVER_TUNNEL_AGENT_TOKEN]. Whoever has it, such as root in any container, can register
    /// as any container and get the connections of its users. Without it and without a key, agents
    /// use the token of the clients.
    #[arg(long, value_name = "FILE")]
    agent_token_file: Option<PathBuf>,

    /// File with the key that the token of each container is derived from, 32 or more random
    /// characters [default: the variable KOHAKURIVER_TUNNEL_AGENT_KEY]. Such a token registers only
    /// that container.
    #[arg(long, value_name = "FILE", global = true)]
    agent_key_file: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Prints the token for the agent of one container.
    AgentToken {
        /// Name of the container.
        name: String,
    },
}

impl Args {
    /// The token of a container.
    ///
    /// # Errors
    /// There is no key, or the name is not valid.
    pub fn token_of(&self, name: &str) -> Result<String, Failure> {
        check_name("container name", name).map_err(Failure::usage)?;
        let key = self.agents.key()?.ok_or_else(|| {
            Failure::usage(format!(
                "no key is given to derive the token from: set --agent-key-file FILE or {AGENT_KEY}"
            ))
        })?;
        Ok(key_from(&key)?.token(name))
    }

    fn tokens(&self) -> Result<Reread<Arc<Tokens>>, Failure> {
        let (clients, agents) = (self.front.token.clone(), self.agents.clone());
        let of_agents = [&agents.agent_token_file, &agents.agent_key_file];
        let files = [&clients.token_file].into_iter().chain(of_agents);
        let files = files.flatten().cloned().collect();
        Reread::new(files, move || {
            agents.tokens(clients.header()?).map(Arc::new)
        })
    }

    /// Settings of the server.
    ///
    /// # Errors
    /// A token or key file cannot be used.
    pub fn settings(&self, process: &Process) -> Result<Settings, Failure> {
        if let Some(name) = twice(self.targets.iter().map(|(name, _)| name.as_str())) {
            return Err(Failure::usage(format!(
                "--target {name} is given twice: a name has one address, leave one of them out"
            )));
        }
        let tunnels = self.tunnels.settings(process)?;
        let ceilings = RunnerCeilings::new(
            usable(process.threads.count()),
            self.front.max_sessions,
            self.max_agents,
            tunnels.budget.limit(),
        );
        let sessions = ceilings.sessions;
        let of_container = (sessions / 4).max(1);
        let detached = KeeperLimits::default()
            // Then a new session takes the place of the oldest.
            .with_detached(self.max_detached.unwrap_or(sessions))
            .with_per_group(self.max_detached_per_container.unwrap_or(of_container))
            .with_per_peer(self.max_detached_per_address.unwrap_or(sessions));
        Ok(Settings {
            targets: self.targets.iter().cloned().collect(),
            enabled: self.tunnel_enabled,
            front: self.front.settings()?,
            tokens: self.tokens()?,
            ceilings,
            tunnels,
            detached,
            threads: process.threads.clone(),
            names: process.names.clone(),
            log: process.log.clone(),
        })
    }
}

impl AgentArgs {
    fn key(&self) -> Result<Option<Secret>, Failure> {
        Secret::find("agent key", self.agent_key_file.as_deref(), AGENT_KEY)
    }

    /// The tokens of the agents, beside that of the clients.
    fn tokens(&self, clients: Option<HeaderValue>) -> Result<Tokens, Failure> {
        let agents = token::header_from(self.agent_token_file.as_deref(), AGENT_TOKEN)?;
        if agents.is_some() && agents == clients {
            return Err(Failure::usage(
                "the token of the agents is that of the clients: give two different ones",
            ));
        }
        let key = self.key()?;
        if let Some(Secret { text, origin }) = &key {
            // Whoever has that token could derive those of all containers.
            let tokens = [&clients, &agents].into_iter().flatten();
            if tokens.into_iter().any(|token| token::holds(token, text)) {
                return Err(Failure::usage(format!(
                    "the agent key in {origin} is also a token: \
                     make another by openssl rand -hex 32"
                )));
            }
        }
        let key = key.as_ref().map(key_from).transpose()?;
        Ok(Tokens {
            clients,
            agents,
            key,
        })
    }
}

impl Basics for Args {
    fn log_format(&self) -> LogFormat {
        self.log.log_format
    }

    fn threads(&self) -> usize {
        match self.command {
            Some(Command::AgentToken { .. }) => 1,
            None => self.threads.count(),
        }
    }
}

fn key_from(Secret { text, origin }: &Secret) -> Result<AgentKey, Failure> {
    let weak = |what| Failure::usage(format!("the agent key in {origin} {what}"));
    AgentKey::new(text).map_err(weak)
}

fn parse_target(text: &str) -> Result<(String, String), String> {
    let (name, address) = text
        .split_once('=')
        .ok_or("write NAME=ADDRESS, for example vm-42=192.168.122.42")?;
    check_name("container name", name)?;
    let address = unbracketed(address);
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:%".contains(&byte);
    let is_address = address.parse::<std::net::IpAddr>().is_ok() || !address.contains(':');
    if address.is_empty() || !is_address || !address.bytes().all(is_host) {
        return Err(format!(
            "{address:?} is no address: write an IP or a host name without a port, \
             the port comes from the client"
        ));
    }
    Ok((name.to_owned(), address.to_owned()))
}

/// An empty variable is one that is not set.
fn parse_switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "" | "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("write True or False, also in TUNNEL_ENABLED".to_owned()),
    }
}
