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

fn serve(
    args: Args,
    process: Process,
) -> Result<impl Future<Output = Result<(), Failure>>, Failure> {
    let runner = match &args.command {
        Some(Command::AgentToken { name }) => {
            print(&args.token_of(name)?)?;
            None
        }
        None => Some(Arc::new(Runner::new(args.settings(&process)?))),
    };
    Ok(async move {
        let Some(runner) = runner else { return Ok(()) };
        let serve = |listener| runner.serve(listener);
        process.serve(args.listen, serve).await
    })
}
