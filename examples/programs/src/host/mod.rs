//! The host: the proxy in front of the runners. It finds the runner of a task and joins the client
//! to it.

pub(crate) mod args;
pub(crate) mod proxy;

use std::process::ExitCode;
use std::sync::Arc;

use crate::common::program::{About, Failure, Process, run};
use args::Args;
use proxy::Host;

const ABOUT: About = About {
    name: "host",
    place: "at the host",
    hint: "try: host --task 42=kohakuriver-vps-42@http://127.0.0.1:8001 (host --help tells more)",
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
    let host = Arc::new(Host::new(args.settings(&process)?));
    Ok(async move {
        let serve = |listener| host.serve(listener);
        process.serve(args.listen, serve).await
    })
}
