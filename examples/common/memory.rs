//! The memory that peers can make a program hold: one bound for the process, and given back when idle.

use std::time::Duration;

use clap::Args;
use kohakuriver_tunnel::mux::Budget;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tokio::runtime::Handle;
use tokio::time::sleep;
use tunnel_websocket::Account;

/// The part of the machine's memory that is the default: others live there too.
const SHARE: u64 = 8;

/// The default where the machine does not say how much memory it has.
const UNKNOWN: u64 = 1 << 30;

/// How often memory that is free in the process is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What must have come free before it is worth giving back.
const WORTH_GIVING_BACK: usize = 8 << 20;

/// About what a connection in its HTTP phase costs: a task and a buffer of its own.
const TASK_COST: usize = 16 << 10;

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

/// Gives free memory back to the system after a burst.
///
/// glibc keeps what is freed between blocks that are in use, which then is nearly all of it.
async fn give_back(budget: Budget) {
    let tasks = Handle::current().metrics();
    let in_use = || budget.held() + tasks.num_alive_tasks() * TASK_COST;
    let mut most = in_use();
    let mut trims = 0;
    loop {
        sleep(LOOK_EVERY).await;
        let now = in_use();
        if most.saturating_sub(now) > WORTH_GIVING_BACK {
            most = now;
            // And once more, for what comes free meanwhile.
            trims = 2;
        }
        most = most.max(now);
        if trims > 0 {
            trims -= 1;
            trim();
        }
    }
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
