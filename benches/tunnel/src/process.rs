//! CPU time and memory of a program: of its process and of those that it started.

use std::fs;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use tunnel_bench_support::resident;

/// CPU seconds of the program so far, in user space and in the kernel. Threads that have ended
/// count, children that have ended do not.
pub fn cpu_seconds(id: u32) -> f64 {
    let one = |id: u32| {
        let id = Pid::from_raw(i32::try_from(id).ok()?);
        let time = clock_getcpuclockid(id).and_then(|clock| clock.now()).ok()?;
        Some(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
    };
    family(id).into_iter().filter_map(one).sum()
}

/// Resident memory of the program in bytes.
pub fn memory(id: u32) -> u64 {
    family(id).into_iter().map(resident).sum()
}

/// The most resident memory since the last `forget_peak`, in bytes.
pub fn peak(id: u32) -> u64 {
    let one = |id: u32| {
        let text = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    family(id).into_iter().filter_map(one).sum::<u64>() * 1024
}

pub fn forget_peak(id: u32) {
    for id in family(id) {
        // "5" sets the peak to what is resident now.
        let _ = fs::write(format!("/proc/{id}/clear_refs"), "5");
    }
}

/// The process and its descendants: `sshd` has one for each client.
fn family(id: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(u32, u32)> = processes
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let text = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name, in parentheses, may contain any byte.
            let (_, after) = text.rsplit_once(')')?;
            Some((id, after.split_whitespace().nth(1)?.parse().ok()?))
        })
        .collect();
    let mut family = vec![id];
    let mut at = 0;
    while let Some(&parent) = family.get(at) {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        family.extend(children.map(|(child, _)| *child));
        at += 1;
    }
    family
}
