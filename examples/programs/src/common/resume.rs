//! Flags and settings of resumption: tunnels that outlive their WebSockets (PROTOCOL.md section
//! 5.10).

use std::fmt;
use std::time::Duration;

use clap::Args;
use kohakuriver_tunnel::mux::Attachment;
use kohakuriver_tunnel::resume::{Config, Resumption};

use super::words;

/// Flags of every program with tunnels.
#[derive(Args, Debug, Clone, PartialEq)]
pub struct ResumeArgs {
    /// End all connections of a tunnel when its WebSocket is lost, as without resumption. Otherwise
    /// they go on over the next WebSocket if the other side can do that too.
    #[arg(long)]
    no_resume: bool,

    /// Seconds that the connections of a tunnel wait for its next WebSocket; the shorter of both
    /// sides' values counts. A tunnel without connections is kept for at most 10 s. What a vanished
    /// client holds at a service, such as a transaction or a lock, is freed after this time.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        value_parser = clap::value_parser!(u32).range(1..=86_400)
    )]
    resume_keep: u32,

    /// Maximum MiB that a tunnel keeps of what it sent, until the other side has confirmed it. A
    /// tunnel begins with 1 MiB, and a fast one over a long path takes more. The sum is bounded by
    /// --memory.
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(1..=1024)
    )]
    resume_ring: u32,
}

impl ResumeArgs {
    /// `None` if it is turned off.
    pub fn config(&self) -> Option<Config> {
        let keep = Duration::from_secs(self.resume_keep.into());
        let ring = usize::try_from(u64::from(self.resume_ring) << 20).unwrap_or(usize::MAX);
        let config = Config::default().with_keep(keep).with_ring_max(ring);
        (!self.no_resume).then_some(config)
    }
}

/// What was sent again when tunnels went on.
#[derive(Debug, Clone, Copy, Default)]
pub struct SentAgain {
    pub messages: u64,
    pub bytes: u64,
}

impl SentAgain {
    pub fn add(&mut self, more: Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
    }
}

impl From<Resumption> for SentAgain {
    fn from(
        Resumption {
            messages, bytes, ..
        }: Resumption,
    ) -> Self {
        Self { messages, bytes }
    }
}

impl fmt::Display for SentAgain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, bytes } = self;
        let noun = if *messages == 1 {
            "message"
        } else {
            "messages"
        };
        write!(
            f,
            "{messages} {noun}, {} KiB sent again",
            bytes.div_ceil(1024)
        )
    }
}

/// What happened to a tunnel, for a log line.
pub fn told(attachment: &Attachment) -> String {
    match attachment {
        Attachment::Detached(cause) => {
            format!("waits for its next WebSocket: {}", words::tunnel(cause))
        }
        Attachment::Resumed(resumption) => {
            let away = resumption.detached.as_secs_f64();
            format!(
                "goes on after {away:.1} s: {}",
                SentAgain::from(*resumption)
            )
        }
        _ => "has its first WebSocket".to_owned(),
    }
}
