//! Instructions per call, counted by callgrind. The figures are the same on every run and under any
//! load.
//!
//! `cargo run --release` in this folder runs the program once under valgrind for each line of its
//! table and fails when a budget is exceeded. It counts everything from the entry of the function
//! to its return, with passing arguments and result. It does not count making the arguments,
//! dropping the result, and freeing the message, which is the allocator's work.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::env;
use std::process::{Command, ExitCode};

mod codec;
mod resume;
mod session;

const CALLS: u64 = 64;

struct Case {
    function: &'static str,
    budget: u64,
    inputs: &'static [&'static str],
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--call", function, input] if function.starts_with("session") => {
            session::call(function, input);
            ExitCode::SUCCESS
        }
        ["--call", function, input] if function.starts_with("resume") => {
            resume::call(function, input);
            ExitCode::SUCCESS
        }
        ["--call", function, input] => {
            codec::call(function, input);
            ExitCode::SUCCESS
        }
        [] => table(),
        _ => panic!("this takes no arguments"),
    }
}

fn table() -> ExitCode {
    println!(
        "{:16} {:14} {:>12} {:>7}",
        "function", "input", "instructions", "budget"
    );
    let mut exceeded = 0;
    for case in codec::CASES
        .iter()
        .chain(session::CASES)
        .chain(resume::CASES)
    {
        for input in case.inputs {
            let count = count(case.function, input);
            let over = if count > case.budget { " EXCEEDED" } else { "" };
            exceeded += usize::from(!over.is_empty());
            let (function, budget) = (case.function, case.budget);
            println!("{function:16} {input:14} {count:>12} {budget:>7}{over}");
        }
    }
    match exceeded {
        0 => ExitCode::SUCCESS,
        _ => {
            eprintln!("{exceeded} budgets exceeded");
            ExitCode::FAILURE
        }
    }
}

/// Instructions per call, rounded up.
fn count(function: &str, input: &str) -> u64 {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={function}"))
        .arg(env::current_exe().unwrap())
        .args(["--call", function, input])
        .output()
        .expect("valgrind is not installed");
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{function} {input}: {log}");
    let collected = log
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .unwrap_or_else(|| panic!("no figure in {log}"));
    let collected: u64 = collected.1.trim().parse().unwrap();
    assert!(collected >= CALLS, "{function} was not seen");
    collected.div_ceil(CALLS)
}
