//! The local client `forward`: ports of a container or VM as ports of this machine.

mod access;
mod args;
mod connector;
mod demo;
mod flows;
mod lanes;
mod listener;
mod outage;
mod pace;
mod redial;
mod sample;
mod spec;
mod streams;
mod upkeep;

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

fn start(
    args: Args,
    process: Process,
) -> Result<impl Future<Output = Result<(), Failure>>, Failure> {
    args::check_wait(std::env::args_os())?;
    let command = match args.asks_for_nothing() {
        true => None,
        false => Some(args.command(&process)?),
    };
    Ok(async move {
        match command {
            None => demo::run(&process).await,
            Some(command) => listener::forward(command, &process).await,
        }
    })
}
