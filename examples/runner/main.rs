//! The tunnel server beside the containers: joins a client's session to agents, or dials targets itself.
//!
//! `cargo run --release --example runner -- --target kohakuriver-vps-42=127.0.0.1`
#![allow(missing_docs, unreachable_pub)]

mod args;
#[path = "../common/mod.rs"]
mod common;
mod server;

use std::process::ExitCode;
use std::sync::Arc;

use args::Args;
use common::program::{About, Failure, announce, raise_file_limit, run};
use common::{net, signals};
use server::Runner;

const ABOUT: About = About {
    name: "runner",
    hint: "try: runner --target vm-42=192.168.122.42 (runner --help tells more)",
};

fn main() -> ExitCode {
    run(&ABOUT, serve)
}

async fn serve(args: Args) -> Result<(), Failure> {
    raise_file_limit();
    let runner = Arc::new(Runner::new(args.settings()?));
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
        () = runner.serve(listener) => Ok(()),
        signal = stop => {
            tracing::info!("{signal}: ending");
            Ok(())
        }
    }
}
