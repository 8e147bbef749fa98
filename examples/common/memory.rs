//! The memory that peers can make a program hold: one bound for the process, and given back when idle.

use std::time::Duration;

use clap::Args;
use kohakuriver_tunnel::mux::Budget;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tokio::time::sleep;
use tunnel_websocket::Account;

/// The part of the machine's memory that is the default: others live there too.
const SHARE: u64 = 8;

/// The default where the machine does not say how much memory it has.
const UNKNOWN: u64 = 1 << 30;

/// How often memory that is free in the process is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Memory beyond that of the last look that is worth giving back.
const WORTH_GIVING_BACK: usize = 8 << 20;

#[derive(Args, Debug, Clone, Default)]
pub struct MemoryArgs {
    /// Most memory in MiB that the other sides can make this process hold [default: an eighth of what the
    /// machine, or the control group, has].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    memory: Option<u64>,
}

impl MemoryArgs {
    /// The budget of the process. Memory beyond it is given back to the system when it is free again.
    pub fn budget(&self) -> Budget {
        let bytes = self.memory.map_or_else(default_bytes, |mib| mib << 20);
        let budget = Budget::new(usize::try_from(bytes).unwrap_or(usize::MAX));
        tokio::spawn(give_back(budget.clone()));
        budget
    }
}

/// A [`Budget`] as the WebSockets charge it.
pub struct Charged(pub Budget);

impl Account for Charged {
    fn take(&self, bytes: usize) -> bool {
        self.0.take(bytes)
    }

    fn give_back(&self, bytes: usize) {
        self.0.give_back(bytes);
    }
}

fn default_bytes() -> u64 {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory);
    let group = system.cgroup_limits().map(|limits| limits.total_memory);
    let sizes = [Some(system.total_memory()), group];
    let known = sizes.into_iter().flatten().filter(|bytes| *bytes > 0);
    known.min().unwrap_or(UNKNOWN) / SHARE
}

/// Gives free memory back to the system, when there is much of it and little is in use.
///
/// glibc keeps what is freed between blocks that are in use, which after a burst is nearly all of it.
async fn give_back(budget: Budget) {
    let mut low = resident();
    loop {
        sleep(LOOK_EVERY).await;
        let grown = resident().saturating_sub(low);
        if grown > WORTH_GIVING_BACK && budget.held() < grown / 2 {
            trim();
            low = resident();
        }
        low = low.min(resident());
    }
}

/// Bytes of memory this process has, if the system tells.
fn resident() -> usize {
    const PAGE: usize = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0_usize).saturating_mul(PAGE)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: it takes no pointer, and glibc documents it as safe to call from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}
