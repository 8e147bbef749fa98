//! The proxy in front of the runners: finds out where a task runs and joins the client to that runner.
//!
//! `cargo run --release --example host -- --task 42=kohakuriver-vps-42@http://127.0.0.1:8001`
#![allow(missing_docs, unreachable_pub)]

mod api;
mod args;
#[path = "../common/mod.rs"]
mod common;
mod proxy;
mod tasks;

use std::process::ExitCode;
use std::sync::Arc;

use args::Args;
use common::program::{About, Failure, announce, raise_file_limit, run};
use common::{net, signals};
use proxy::Host;

const ABOUT: About = About {
    name: "host",
    hint: "try: host --task 42=kohakuriver-vps-42@http://127.0.0.1:8001 (host --help tells more)",
};

fn main() -> ExitCode {
    run(&ABOUT, serve)
}

async fn serve(args: Args) -> Result<(), Failure> {
    raise_file_limit();
    let host = Arc::new(Host::new(args.settings()?));
    let stop = signals::stop().map_err(|error| Failure::failed(error.to_string()))?;
    let listener = net::listen(args.listen).map_err(|error| {
        let reason = net::plain(&error);
        Failure::failed(format!(
            "cannot listen on {}: {reason}; choose another with --listen",
            args.listen
        ))
    })?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::failed(error.to_string()))?;
    announce(&format!("Listening on {address}"));
    tokio::select! {
        () = host.serve(listener) => Ok(()),
        signal = stop => {
            tracing::info!("{signal}: ending");
            Ok(())
        }
    }
}
