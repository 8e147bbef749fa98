//! Programs that may have few threads or files.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tunnel_test_support::files::Folder;
use tunnel_test_support::program::{self, Program};
use tunnel_test_support::{LIMIT, skipped};

/// No system has this user, so there are no other processes that would count.
const NOBODY: u32 = 61_234;

/// An agent that may have this many threads. `None` if it cannot be limited: only root can start
/// one of another user.
fn agent(threads: u32, folder: &Folder) -> Option<Program> {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    // That user may not reach the folder of what cargo builds.
    let copy = folder.path("agent");
    std::fs::copy(program::command("agent").get_program(), &copy).unwrap();
    let mut limited = Command::new("prlimit");
    limited
        .arg(format!("--nproc={threads}"))
        .args([&copy, "--runner-url", "ws://runner.invalid:1"])
        .args(["--container-id", "box", "--reconnect-delay", "0.05"])
        .args(["--max-reconnect", "2"])
        .env_clear()
        .uid(NOBODY);
    Some(Program::spawn("agent", limited))
}

#[test]
fn where_threads_are_missing_a_name_is_not_found_or_the_agent_says_why_it_ends() {
    let folder = Folder::new();
    // That of the program and one each for stdout and stderr, but none to look up the name.
    let Some(mut agent) = agent(3, &folder) else {
        return skipped("threads that are missing: only root can start one of another user");
    };
    assert_eq!(agent.exit(LIMIT), 3);
    agent.complaint("giving up after 2 tries: cannot reach runner.invalid:1: resource temporarily");
    for (threads, stream) in [(2, "stdout"), (1, "stderr")] {
        let mut agent = self::agent(threads, &folder).unwrap();
        assert_eq!(agent.exit(LIMIT), 1);
        agent.complaint(&format!("agent: cannot start the thread for {stream}"));
    }
}

#[test]
fn where_files_are_missing_the_line_says_what_to_do() {
    let task = [
        "--task",
        "42=box@http://127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
    ];
    let many = [&task[..], &["--threads", "200"]].concat();
    let ports: Vec<String> = (1..50).map(|port| format!("{port}:0")).collect();
    let ports = ports.iter().map(String::as_str);
    let forward: Vec<&str> = ["42", "--threads", "1"].into_iter().chain(ports).collect();
    for (name, args, said) in [
        ("host", &many, "--threads N, or raise ulimit -n"),
        ("forward", &forward, "too many open files; raise ulimit -n"),
    ] {
        let mut program = Program::start_limited(name, args, 40);
        assert_eq!(program.exit(LIMIT), 1, "{name}");
        program.complaint(said);
    }
}
