//! The end of the tunnel inside a container: registers at the runner and connects to services on both
//! loopbacks.
//!
//! `cargo run --release --example agent -- --runner-url ws://127.0.0.1:8001 --container-id kohakuriver-vps-42`

mod args;
mod registration;
pub mod retry;

use std::process::ExitCode;

use crate::common::program::{About, Failure, raise_file_limit, run};
use crate::common::signals::Stop;
use args::Args;

const ABOUT: About = About {
    name: "agent",
    hint: "try: agent --runner-url ws://127.0.0.1:8001 --container-id kohakuriver-vps-42 (agent --help tells more)",
};

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    run(&ABOUT, serve)
}

async fn serve(args: Args) -> Result<(), Failure> {
    raise_file_limit();
    let settings = args.settings()?;
    let stop = Stop::listen().map_err(|error| Failure::failed(error.to_string()))?;
    match stop.unless_told(registration::keep(settings)).await {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}
