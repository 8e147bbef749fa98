//! Flags and settings of resumption: tunnels that outlive their WebSockets (PROTOCOL.md section
//! 5.10).

use clap::Args;
use kohakuriver_tunnel::mux::Attachment;
use kohakuriver_tunnel::resume::Config;

use super::args::Within;
use super::program::Failure;
use super::words;

/// Flags of every program with tunnels.
#[derive(Args, Debug, Clone, PartialEq)]
pub struct ResumeArgs {
    /// End all connections of a tunnel when its WebSocket is lost, as without resumption. Otherwise
    /// they go on over the next WebSocket if the other side can do that too.
    #[arg(
        long,
        conflicts_with_all = [
            "resume_keep", "resume_idle_keep", "resume_ring", "resume_first_ring", "resume_reserve",
            "resume_timeout",
        ]
    )]
    no_resume: bool,

    /// Seconds that the connections of a tunnel wait for its next WebSocket; the shorter of both
    /// sides' values counts. What a vanished client holds at a service, such as a transaction or a
    /// lock, is freed after this time.
    #[arg(long, value_name = "SECONDS", default_value = "120")]
    resume_keep: Within<1, 86_400>,

    /// As --resume-keep, for a tunnel without connections: it is kept for the shorter of the two.
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    resume_idle_keep: Within<0, 86_400>,

    /// Maximum MiB that a tunnel keeps of what it sent, until the other side has confirmed it. The
    /// sum is bounded by --memory.
    #[arg(long, value_name = "MIB", default_value = "32")]
    resume_ring: Within<1, 1024>,

    /// KiB of it that every tunnel may use. A tunnel that is fast over a long path takes more.
    #[arg(long, value_name = "KIB", default_value = "1024")]
    resume_first_ring: Within<1, 1_048_576>,

    /// MiB that a tunnel keeps beyond its ring of what is not data, such as answers. A tunnel that
    /// would need more ends.
    #[arg(long, value_name = "MIB", default_value = "4")]
    resume_reserve: Within<2, 1024>,

    /// Seconds on a new WebSocket for the other side to say which tunnel begins or goes on. Then
    /// the WebSocket counts as lost.
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    resume_timeout: Within<1, 86_400>,
}

impl ResumeArgs {
    /// `None` if it is turned off.
    ///
    /// # Errors
    /// The first ring is larger than the largest.
    pub fn config(&self) -> Result<Option<Config>, Failure> {
        let (first, most) = (self.resume_first_ring, self.resume_ring);
        if first.kib() > most.mib() {
            return Err(Failure::usage(format!(
                "--resume-first-ring {} (KiB) is more than --resume-ring {} (MiB): \
                 lower the one or raise the other",
                first.0, most.0
            )));
        }
        let config = Config::default()
            .with_keep(self.resume_keep.seconds())
            .with_idle_keep(self.resume_idle_keep.seconds())
            .with_ring_min(first.kib())
            .with_ring_max(most.mib())
            .with_ring_reserve(self.resume_reserve.mib())
            .with_opening_timeout(self.resume_timeout.seconds());
        Ok((!self.no_resume).then_some(config))
    }
}

/// What was sent again when tunnels went on, for a log line.
pub fn sent_again((messages, bytes): (u64, u64)) -> String {
    let noun = if messages == 1 { "message" } else { "messages" };
    format!("{messages} {noun}, {} KiB sent again", bytes.div_ceil(1024))
}

/// What happened to a tunnel, for a log line.
pub fn told(attachment: &Attachment) -> String {
    match attachment {
        Attachment::Detached(cause) => {
            format!("waits for its next WebSocket: {}", words::tunnel(cause))
        }
        Attachment::Resumed(resumption) => {
            let away = resumption.detached.as_secs_f64();
            let again = sent_again((resumption.messages, resumption.bytes));
            format!("goes on after {away:.1} s: {again}")
        }
        _ => "has its first WebSocket".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        resume: ResumeArgs,
    }

    #[test]
    fn every_flag_has_its_setting() {
        let config = |flags: &str| {
            let line = Line::parse_from(["program"].into_iter().chain(flags.split(' ')));
            line.resume.config().ok().flatten()
        };
        let defaults = "--resume-keep 120";
        assert_eq!(config(defaults), Some(Config::default()));
        assert_eq!(config("--no-resume"), None);
        let all = "--resume-keep 1 --resume-idle-keep 2 --resume-ring 3 --resume-first-ring 4 \
                   --resume-reserve 5 --resume-timeout 6";
        let expected = Config::default()
            .with_keep(Duration::from_secs(1))
            .with_idle_keep(Duration::from_secs(2))
            .with_ring_max(3 << 20)
            .with_ring_min(4 << 10)
            .with_ring_reserve(5 << 20)
            .with_opening_timeout(Duration::from_secs(6));
        assert_eq!(config(all), Some(expected));
    }
}
