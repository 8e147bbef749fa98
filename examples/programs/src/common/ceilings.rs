//! Most of everything at once, as far as the file descriptors and the memory of this process allow.

use super::program::raise_file_limit;
use super::{threads, tls};

/// Descriptors kept back from everything that peers can cause: for the listener, logs, files, name
/// look-ups, and connections that are being closed.
const KEPT_BACK: usize = 192;

/// Most connections in their HTTP phase.
const HANDSHAKES: usize = 1024;

/// Most client sessions, unless a flag says less.
const SESSIONS: usize = 4096;

/// Most agents, unless a flag says less.
const AGENTS: usize = 16_384;

/// Bytes for each session and agent, beside what is counted: tasks, state, small buffers, and what
/// TLS has not written. So that all of them take no more than peers may make the process hold,
/// unless a flag says more.
const UNCOUNTED: usize = (32 << 10) + tls::UNSENT_MAX;

/// Most connections of applications, including those that wait for the tunnel. Their streams may
/// share a session.
const APPLICATIONS: usize = 16_000;

/// Connection attempts to services at once. One to a silent target holds a socket until it times
/// out.
pub const DIALS: usize = 1024;

/// Queries to a cluster's API at once: enough for hundreds a second, without overloading it.
const QUESTIONS: usize = 64;

/// Callers that may wait for each query in progress.
const WAITING: usize = 8;

/// Pipes of the kernel at once, each for much data of a session. There are more if there are more
/// threads. So many hold a quarter of what Linux lets a user have in pipes.
const PIPES: usize = 32;

/// Most of a host. A session takes two descriptors, to the client and to the runner.
#[derive(Debug, Clone, Copy)]
pub struct HostCeilings {
    pub handshakes: usize,
    pub sessions: usize,
    /// Queries to a cluster's API.
    pub questions: usize,
    /// Callers that wait for a query.
    pub waiting: usize,
    /// Pipes of each thread, of two descriptors each.
    pub pipes: usize,
}

/// Most of a runner. A session, an agent and a connection take one descriptor each.
#[derive(Debug, Clone, Copy)]
pub struct RunnerCeilings {
    pub handshakes: usize,
    pub sessions: usize,
    pub agents: usize,
    pub serving: ServingCeilings,
}

/// Most of a program that connects to services.
#[derive(Debug, Clone, Copy)]
pub struct ServingCeilings {
    pub dials: usize,
    pub connections: usize,
}

impl HostCeilings {
    /// `left`: descriptors that are [`usable`]. `memory`: bytes that peers may make the process
    /// hold.
    pub fn new(left: usize, max_sessions: Option<usize>, threads: usize, memory: usize) -> Self {
        let questions = QUESTIONS.min(left / 32).max(1);
        let waiting = questions * WAITING;
        let handshakes = HANDSHAKES.min(left / 8);
        let pipes = PIPES.max(threads).min(left / 32) / threads;
        // A query has a caller and a connection to the API.
        let in_pairs = questions + pipes * threads;
        let rest = left.saturating_sub(2 * in_pairs + waiting + handshakes);
        let sessions = SESSIONS.min(memory / UNCOUNTED);
        Self {
            handshakes,
            questions,
            waiting,
            pipes,
            sessions: ceiling("--max-sessions", max_sessions, sessions, rest / 2),
        }
    }
}

impl RunnerCeilings {
    /// `left`: descriptors that are [`usable`]. `memory`: bytes that peers may make the process
    /// hold.
    pub fn new(
        left: usize,
        max_sessions: Option<usize>,
        max_agents: Option<usize>,
        memory: usize,
    ) -> Self {
        let handshakes = HANDSHAKES.min(left / 8);
        let left = left.saturating_sub(handshakes);
        // By default most descriptors are for connections to targets.
        let fit = memory / UNCOUNTED;
        let (agents, sessions) = (
            AGENTS.min(left / 8).min(fit),
            SESSIONS.min(left / 4).min(fit),
        );
        let agents = ceiling("--max-agents", max_agents, agents, left / 2);
        let left = left.saturating_sub(agents);
        let sessions = ceiling("--max-sessions", max_sessions, sessions, left / 2);
        Self {
            handshakes,
            sessions,
            agents,
            serving: ServingCeilings::new(left.saturating_sub(sessions)),
        }
    }
}

impl ServingCeilings {
    /// `left`: descriptors that are [`usable`].
    pub fn new(left: usize) -> Self {
        let dials = DIALS.min(left / 4).max(1);
        // An attempt may try a second address beside the first.
        let connections = left.saturating_sub(dials).max(1);
        Self { dials, connections }
    }
}

/// Connections of applications to a client. Each takes one descriptor.
pub fn applications(threads: usize) -> usize {
    APPLICATIONS.min(usable(threads))
}

/// The value of a flag, or the default, as far as the descriptors allow.
fn ceiling(flag: &str, wanted: Option<usize>, default: usize, allowed: usize) -> usize {
    match wanted {
        Some(wanted) if wanted > allowed => {
            tracing::warn!(
                "{flag} {wanted} is more than the open files of this process allow, \
                 so it is {allowed}: raise their limit (ulimit -n, LimitNOFILE=)"
            );
            allowed
        }
        Some(wanted) => wanted,
        None => default.min(allowed),
    }
}

/// Descriptors for what peers cause.
pub fn usable(threads: usize) -> usize {
    let limit = raise_file_limit();
    let of_threads = (threads - 1) * threads::DESCRIPTORS;
    limit - KEPT_BACK.min(limit / 4) - of_threads.min(limit / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_together_fits_into_the_descriptors() {
        for left in [0, 1, 48, 192, 1000, 19_808, 1 << 20, 1 << 30] {
            for flag in [None, Some(1), Some(1000), Some(usize::MAX)] {
                for threads in [1, 2, 64, 256] {
                    let host = HostCeilings::new(left, flag, threads, usize::MAX);
                    let in_pairs = host.sessions + host.questions + host.pipes * threads;
                    let used = host.handshakes + 2 * in_pairs + host.waiting;
                    assert!(used <= left.max(10), "{left} {flag:?}: {host:?}");
                }
                let runner = RunnerCeilings::new(left, flag, flag, usize::MAX);
                let serving = runner.serving;
                let own = runner.handshakes + runner.sessions + runner.agents;
                let used = own + serving.connections + serving.dials;
                assert!(used <= left.max(2), "{left} {flag:?}: {runner:?}");
            }
        }
    }

    #[test]
    fn flags_only_lower() {
        let plenty = 1 << 20;
        let host = |flag| HostCeilings::new(plenty, flag, 2, plenty << 11);
        assert_eq!(host(None).sessions, SESSIONS);
        assert_eq!(host(Some(7)).sessions, 7);
        let runner = RunnerCeilings::new(plenty, Some(5), None, plenty << 11);
        assert_eq!((runner.sessions, runner.agents), (5, AGENTS));
        let few = RunnerCeilings::new(800, Some(5000), Some(5000), plenty << 11);
        assert!(few.sessions < 400 && few.agents <= 400, "{few:?}");
    }

    #[test]
    fn where_memory_is_little_there_are_fewer_unless_a_flag_says_more() {
        let memory = 64 << 20;
        assert_eq!(HostCeilings::new(1 << 20, None, 2, memory).sessions, 1024);
        let runner = RunnerCeilings::new(1 << 20, None, None, memory);
        assert_eq!((runner.sessions, runner.agents), (1024, 1024));
        let flags = RunnerCeilings::new(1 << 20, Some(2000), Some(3000), memory);
        assert_eq!((flags.sessions, flags.agents), (2000, 3000));
    }
}
