//! The runner: the tunnel server beside the containers. It joins a client's session to agents, or
//! dials targets itself.

pub(crate) mod args;
pub(crate) mod server;

use std::process::ExitCode;
use std::sync::Arc;

use crate::common::program::{About, Failure, Process, print, run};
use args::{Args, Command};
use server::Runner;

const ABOUT: About = About {
    name: "runner",
    place: "at the runner",
    hint: "try: runner --target vm-42=192.168.122.42 (runner --help tells more)",
};

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    run(&ABOUT, serve)
}

async fn serve(args: Args, process: Process) -> Result<(), Failure> {
    if let Some(Command::AgentToken { name }) = &args.command {
        return print(&args.token_of(name)?);
    }
    let runner = Arc::new(Runner::new(args.settings(&process)?));
    process
        .serve(args.listen, |listener| runner.serve(listener))
        .await
}
