//! The agent: the end of the tunnel inside a container. It registers at the runner and connects to
//! services on both loopback addresses.

mod args;
mod registration;

use std::process::ExitCode;

use crate::common::program::{About, Failure, Process, run};
use args::Args;

const ABOUT: About = About {
    name: "agent",
    place: "at the agent",
    hint: "try: agent --runner-url ws://127.0.0.1:8001 --container-id kohakuriver-vps-42 \
           (agent --help tells more)",
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
    let settings = args.settings(&process)?;
    Ok(async { Err(registration::keep(settings).await) })
}
