//! The agent's command line, the same as that of the deployed agent.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Parser;
use tracing::level_filters::LevelFilter;

use crate::agent::registration::Settings;
use crate::common::args::{LogArgs, LogFormat, variable};
use crate::common::connection::ConnectionArgs;
use crate::common::program::{Basics, Failure, Process};
use crate::common::url::{Url, check_name, is_name};

/// The path of a registration, before the name.
const REGISTRATION: &str = "/ws/tunnel/";

/// Without a wait, an agent whose runner is away would try in a busy loop.
const DELAYS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

#[derive(Parser, Debug)]
#[command(
    name = "agent",
    version,
    max_term_width = 100,
    about = "Makes the services of this container reachable through the runner.",
    after_help = "Examples:
  agent --runner-url ws://127.0.0.1:8001 --container-id kohakuriver-vps-42
  RUNNER_URL=ws://10.0.0.7:8001 CONTAINER_ID=kohakuriver-vps-42 agent

The agent connects to services on 127.0.0.1 and ::1. KOHAKURIVER_TUNNEL_URL and \
KOHAKURIVER_CONTAINER_ID are read if RUNNER_URL and CONTAINER_ID are not set.

One agent serves a container. A second agent with the same --container-id replaces the first, \
which logs this and waits until the place is free.

Exit codes: 0 ended as asked, 1 failed while running, 2 wrong usage, 3 refused by the runner, or \
--max-reconnect attempts failed."
)]
pub struct Args {
    /// Runner to register at: a base URL, or the whole ws://…/ws/tunnel/NAME.
    #[arg(long, env = "RUNNER_URL", hide_env_values = true, value_name = "URL")]
    runner_url: Option<String>,

    /// Name of this container.
    #[arg(
        long,
        env = "CONTAINER_ID",
        hide_env_values = true,
        value_name = "NAME"
    )]
    container_id: Option<String>,

    /// The waits between attempts to reconnect grow to between one and three times this many
    /// seconds. The first attempt comes within half a second, or later if the runner has many
    /// agents.
    #[arg(
        long,
        env = "RECONNECT_DELAY",
        default_value = "5",
        hide_env_values = true,
        value_name = "SECONDS",
        value_parser = parse_delay
    )]
    reconnect_delay: Duration,

    /// Failed attempts in a row after which the agent gives up; 0 means never. Before it has been
    /// registered, it gives up at once if it is redirected for good or refused with 401 or another
    /// 4xx. With 403, 404, 408, 425 and 429 it tries again.
    #[arg(
        long,
        env = "MAX_RECONNECT",
        default_value = "0",
        hide_env_values = true,
        value_name = "N",
        value_parser = parse_attempts
    )]
    max_reconnect: u32,

    /// What is logged, unless RUST_LOG is set: error, warn, info, debug or trace [default: the
    /// variable LOG_LEVEL, or info].
    #[arg(long, value_name = "LEVEL", value_parser = parse_level)]
    log_level: Option<LevelFilter>,

    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(flatten)]
    log: LogArgs,
}

impl Args {
    /// Settings of the registration.
    ///
    /// # Errors
    /// URL or name is missing or wrong, or the token file cannot be used.
    pub fn settings(&self, process: &Process) -> Result<Settings, Failure> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let none = "no runner is given: set --runner-url ws://127.0.0.1:8001 or RUNNER_URL";
        let runner = given(&self.runner_url).or_else(|| variable("KOHAKURIVER_TUNNEL_URL"));
        let runner = runner.ok_or_else(|| Failure::usage(none))?;
        let base = Url::parse_base(&runner).map_err(Failure::usage)?;
        let name = given(&self.container_id).or_else(|| variable("KOHAKURIVER_CONTAINER_ID"));
        if let Some(name) = &name {
            check_name("container name", name).map_err(Failure::usage)?;
        }
        // The parser has removed a trailing slash, and the name may be missing.
        let path = format!("{}/", base.path);
        let own = path.split_once(REGISTRATION);
        let own = own.map(|(_, own)| own.trim_end_matches('/'));
        let url = match (own, name) {
            (None, None) => {
                return Err(Failure::usage(
                    "no container name is given: set --container-id kohakuriver-vps-42 or \
                     CONTAINER_ID",
                ));
            }
            (None, Some(name)) => base.join(&format!("{REGISTRATION}{name}")),
            (Some(own), _) if !is_name(own) => {
                return Err(Failure::usage(format!(
                    "the URL {base} ends in no container name: write …{REGISTRATION}NAME"
                )));
            }
            (Some(own), Some(name)) if own != name => {
                return Err(Failure::usage(format!(
                    "the URL {base} is for {own} and the container's name is {name}: \
                     leave one of them out"
                )));
            }
            (Some(_), _) => base,
        };
        Ok(Settings {
            // A runner is not a public server, so only --ca says whom to trust.
            connection: self.connection.connection(&url, None, process)?,
            url,
            reconnect_delay: self.reconnect_delay,
            max_reconnect: self.max_reconnect,
            names: process.names.clone(),
        })
    }
}

impl Basics for Args {
    fn log_format(&self) -> LogFormat {
        self.log.log_format
    }

    fn log_level(&self) -> Result<LevelFilter, String> {
        let parse = |text: String| {
            let wrong = |form| format!("cannot read LOG_LEVEL={text:?}: {form}");
            parse_level(&text).map_err(wrong)
        };
        let level = self.log_level.map(Ok);
        let level = level.or_else(|| variable("LOG_LEVEL").map(parse));
        level.unwrap_or(Ok(LevelFilter::INFO))
    }
}

/// An empty variable is one that is not set.
fn parse_delay(text: &str) -> Result<Duration, String> {
    let text = if text.is_empty() { "5" } else { text };
    let seconds = text.parse().ok().map(Duration::try_from_secs_f64);
    let delay = seconds
        .and_then(Result::ok)
        .filter(|delay| DELAYS.contains(delay));
    delay.ok_or_else(|| "write a number of seconds from 0.01 to 3600, for example 5".to_owned())
}

/// As [`parse_delay`].
fn parse_attempts(text: &str) -> Result<u32, String> {
    let text = if text.is_empty() { "0" } else { text };
    let wrong = |_| "write a number of attempts, or 0 for no end".to_owned();
    text.parse().map_err(wrong)
}

/// Parses levels as Python and Rust name them.
fn parse_level(text: &str) -> Result<LevelFilter, String> {
    match text.to_ascii_lowercase().as_str() {
        "error" | "critical" => Ok(LevelFilter::ERROR),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        "off" => Ok(LevelFilter::OFF),
        _ => Err("write error, warn, info, debug or trace".to_owned()),
    }
}
