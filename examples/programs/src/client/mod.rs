//! The local client `forward`: ports of a container or VM as ports of this machine.

mod access;
mod args;
mod connector;
mod demo;
mod destination;
mod flows;
mod keeper;
mod lanes;
mod listener;
mod outage;
mod pace;
mod redial;
mod sample;
mod spec;
mod streams;

use std::process::ExitCode;

use crate::common::program::{About, Failure, Process, run};
use args::Args;

const ABOUT: About = About {
    name: "forward",
    place: "at forward",
    hint: "try: forward 42 8888 (forward --help tells more)",
};

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    run(&ABOUT, start)
}

async fn start(args: Args, process: Process) -> Result<(), Failure> {
    args::check_wait(std::env::args_os())?;
    if args.asks_for_nothing() {
        return demo::run(&process).await;
    }
    listener::forward(args.command(&process)?, &process).await
}
