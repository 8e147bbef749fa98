//! Bounds the memory that peers can make the process hold, and returns it to the system when free.

use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Args;
use kohakuriver_tunnel::mux::Budget;
use tokio::time::sleep;
use tunnel_websocket::Account;

use super::args::Within;
use super::threads::Threads;

/// The default is this fraction of the machine's memory, which other programs use too.
const SHARE: u64 = 8;

/// The machine's memory where it is unknown.
const UNKNOWN: u64 = 1 << 30;

/// How often the use of memory is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Bytes that must have become free before they are returned.
const WORTH_GIVING_BACK: usize = 8 << 20;

/// Approximate cost of a connection in its HTTP phase: a task and a buffer.
const TASK_COST: usize = 16 << 10;

#[derive(Args, Debug, Clone, PartialEq)]
pub struct MemoryArgs {
    /// Maximum memory in MiB that peers can make this process hold [default: an eighth of the
    /// memory of the machine or the control group, or 128 if that is not known].
    #[arg(long, value_name = "MIB")]
    memory: Option<Within<1, 1_048_576>>,
}

impl MemoryArgs {
    /// The budget of the process. Memory that becomes free is returned to the system.
    pub fn budget(&self, threads: &Threads) -> Budget {
        let budget = Budget::new(self.memory.map_or_else(default_bytes, Within::mib));
        tokio::spawn(give_back(budget.clone(), threads.clone()));
        budget
    }
}

/// Lets the WebSockets of a thread charge a [`Budget`].
///
/// Each message is charged and given back, so some of that is kept for the next one. The threads
/// then seldom change what they count together.
#[derive(Debug)]
pub struct Charged {
    budget: Budget,
    /// Bytes taken that nobody holds.
    spare: AtomicUsize,
    spare_max: usize,
}

impl Charged {
    /// Enough for what one WebSocket reads and writes at once.
    const SPARE_MAX: usize = 512 << 10;
    /// All threads keep at most this part of the budget.
    const SPARE_PART: usize = 64;

    /// For one of so many threads.
    pub fn new(budget: &Budget, threads: usize) -> Self {
        let part = budget.limit() / Self::SPARE_PART / threads.max(1);
        Self {
            budget: budget.clone(),
            spare: AtomicUsize::new(0),
            spare_max: part.min(Self::SPARE_MAX),
        }
    }

    /// The same for another thread.
    pub fn for_thread(&self) -> Self {
        Self {
            budget: self.budget.clone(),
            spare: AtomicUsize::new(0),
            spare_max: self.spare_max,
        }
    }

    fn is_short(&self) -> bool {
        self.budget.held() > self.budget.limit() / 4
    }

    /// Keeps as much as is allowed of bytes that nobody holds any more. None while memory is short:
    /// who holds much would get what was taken within the share of who holds little.
    fn keep(&self, bytes: usize) {
        let kept = match self.is_short() {
            true => 0,
            false => bytes.min(self.spare_max),
        };
        if bytes > kept {
            self.budget.give_back(bytes - kept);
        }
        // A task may still use the account of the thread that it came from.
        self.spare.fetch_add(kept, Ordering::Relaxed);
    }
}

impl Account for Charged {
    fn take(&self, bytes: usize) -> bool {
        // What waits to be written needs no share: without memory, less waits.
        self.take_for_message(usize::MAX, bytes)
    }

    fn take_for_message(&self, held: usize, bytes: usize) -> bool {
        let mut spare = self.spare.swap(0, Ordering::Relaxed);
        if self.is_short() {
            self.budget.give_back(mem::take(&mut spare));
        }
        let used = spare.min(bytes);
        let missing = bytes - used;
        let found = missing == 0 || self.budget.take_part(held.saturating_add(used), missing);
        self.keep(if found { spare - used } else { spare });
        found
    }

    fn give_back(&self, bytes: usize) {
        self.keep(self.spare.swap(0, Ordering::Relaxed) + bytes);
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.budget.give_back(*self.spare.get_mut());
    }
}

fn default_bytes() -> usize {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let of_group = |limit| control_group(&groups, root, limit);
    let of_groups = ["memory.max", "memory.limit_in_bytes"].map(of_group);
    share_of(of_groups.into_iter().chain([machine()]).flatten())
}

/// The default, where these amounts of memory in bytes are known.
fn share_of(known: impl Iterator<Item = u64>) -> usize {
    usize::try_from(known.min().unwrap_or(UNKNOWN) / SHARE).unwrap_or(usize::MAX)
}

// The `sysinfo` crate is not used: it panics where there is no /proc, as in an empty container.

/// Memory of the machine in bytes, as reported by Linux.
fn machine() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The smallest limit in bytes that the control groups of a process, with their folders in `root`,
/// set in a file of this name.
fn control_group(groups: &str, root: &Path, limit: &str) -> Option<u64> {
    let read = |folder: PathBuf| -> Option<u64> {
        let text = std::fs::read_to_string(folder.join(limit)).ok()?;
        text.trim().parse().ok()
    };
    let limits = groups.lines().filter_map(|line| {
        // The format is `0::/path` in version 2 and `4:memory:/path` in version 1.
        let (_, rest) = line.split_once(':')?;
        let (controller, path) = rest.split_once(':')?;
        let root = root.join(controller);
        // Its ancestors too: inside a container the path may be the one outside of it.
        let path = Path::new(path.trim_start_matches('/'));
        let folders = path.ancestors().map(|ancestor| root.join(ancestor));
        folders.filter_map(read).min()
    });
    limits.min()
}

/// Returns free memory to the system after a burst. By itself glibc keeps what lies between blocks
/// in use, which is nearly all of it.
async fn give_back(budget: Budget, threads: Threads) {
    let in_use = || budget.held() + threads.alive_tasks() * TASK_COST;
    let mut usage = Usage::new(in_use());
    let mut trimming: Option<JoinHandle<()>> = None;
    loop {
        sleep(LOOK_EVERY).await;
        let is_trimming = trimming.as_ref().is_some_and(|it| !it.is_finished());
        if !is_trimming && usage.has_fallen(in_use()) {
            // Not on the event loop, as it takes long if much is free. Without a thread, the next
            // burst returns it.
            trimming = thread::Builder::new().spawn(trim).ok();
        }
    }
}

/// The use of memory since memory was last returned to the system.
struct Usage {
    most: usize,
    last: usize,
}

impl Usage {
    fn new(now: usize) -> Self {
        let (most, last) = (now, now);
        Self { most, last }
    }

    /// Whether much has become free, and no more becomes free now.
    fn has_fallen(&mut self, now: usize) -> bool {
        let falls = now < self.last;
        self.last = now;
        self.most = self.most.max(now);
        if falls || self.most - now <= WORTH_GIVING_BACK {
            return false;
        }
        self.most = now;
        true
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn messages_change_what_threads_count_together_only_once() {
        let budget = Budget::new(64 << 20);
        let charged = Charged::new(&budget, 2);
        let other = charged.for_thread();
        for _ in 0..100 {
            assert!(charged.take_for_message(0, 116 << 10));
            assert!(charged.take(250 << 10));
            charged.give_back(250 << 10);
            charged.give_back(116 << 10);
            assert_eq!(budget.held(), 366 << 10);
        }
        assert!(other.take(1 << 10));
        assert_eq!(budget.held(), 367 << 10);
        // A burst leaves no more than is worth it.
        assert!(charged.take(8 << 20));
        charged.give_back(8 << 20);
        assert_eq!(budget.held(), 513 << 10);
        other.give_back(1 << 10);
        assert_eq!(budget.held(), 513 << 10);
        // What cannot be had leaves everything as it was.
        assert!(!other.take(60 << 20));
        assert!(charged.take(512 << 10));
        assert_eq!(budget.held(), 513 << 10);
        // While memory is short, nothing passes from one to another.
        assert!(budget.take(20 << 20));
        charged.give_back(512 << 10);
        assert_eq!(budget.held(), (20 << 20) + (1 << 10));
        assert!(other.take_for_message(0, 10 << 10));
        assert_eq!(budget.held(), (20 << 20) + (10 << 10));
        other.give_back(10 << 10);
        drop((charged, other));
        assert_eq!(budget.held(), 20 << 20);
        // A small budget has nothing to spare for many threads.
        let small = Budget::new(1 << 20);
        let charged = Charged::new(&small, 64);
        assert!(charged.take(10 << 10));
        charged.give_back(10 << 10);
        assert!(small.held() <= 256);
    }

    #[test]
    fn the_default_is_a_part_of_the_least_that_is_known() {
        for (known, mib) in [
            (&[512 << 20, 256 << 30][..], 64),
            (&[256 << 30, 512 << 20], 64),
            (&[], 128),
        ] {
            assert_eq!(share_of(known.iter().copied()), mib << 20, "{known:?}");
        }
    }

    #[test]
    fn the_least_limit_of_all_control_groups_counts() {
        let name = format!("tunnel-control-groups-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        for (group, file, limit) in [
            ("", "memory.max", "max"),
            ("pod", "memory.max", "3000"),
            ("pod/box", "memory.max", "5000"),
            ("pod/other", "memory.max", "1000"),
            ("memory/box", "memory.limit_in_bytes", "7000"),
        ] {
            fs::create_dir_all(root.join(group)).unwrap();
            fs::write(root.join(group).join(file), format!("{limit}\n")).unwrap();
        }
        let v2 = |groups: &str| control_group(groups, &root, "memory.max");
        assert_eq!(v2("0::/pod/box\n"), Some(3000));
        // A path of outside the container.
        assert_eq!(v2("0::/outside/pod\n"), None);
        assert_eq!(v2("0::/\n"), None);
        assert_eq!(v2(""), None);
        let v1 = "5:cpu:/box\n4:memory:/box\n";
        assert_eq!(
            control_group(v1, &root, "memory.limit_in_bytes"),
            Some(7000)
        );
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn memory_is_returned_once_when_the_burst_is_over() {
        let mut usage = Usage::new(0);
        let looks = [5, 90, 60, 20, 3, 3, 3, 9, 3, 3, 30, 30, 4, 6, 4, 5];
        let returns = looks.map(|mib| usage.has_fallen(mib << 20));
        let times: Vec<_> = (0..looks.len()).filter(|look| returns[*look]).collect();
        assert_eq!(times, [5, 13]);
    }
}
