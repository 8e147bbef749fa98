//! The local client: ports of a container or VM on this machine.
//!
//! `cargo run --release --example forward -- 42 8888`, or without arguments for the whole chain in one
//! process.
#![allow(missing_docs, unreachable_pub)]

mod args;
#[path = "../common/mod.rs"]
mod common;
mod demo;
mod destination;
mod flows;
mod keeper;
mod link;
mod listener;
mod outage;
#[path = "../host/proxy/mod.rs"]
mod proxy;
mod sample;
#[path = "../runner/server/mod.rs"]
mod server;
mod spec;
mod streams;

use std::process::ExitCode;

use args::{Args, Job};
use common::program::{About, Failure, raise_file_limit, run};
use common::signals::Stop;

const ABOUT: About = About {
    name: "forward",
    hint: "try: forward 42 8888 (forward --help tells more)",
};

fn main() -> ExitCode {
    run(&ABOUT, start)
}

async fn start(args: Args) -> Result<(), Failure> {
    raise_file_limit();
    let stop = Stop::listen().map_err(|error| Failure::failed(error.to_string()))?;
    let work = async {
        match args.job()? {
            Job::Forward(command) => listener::forward(*command).await,
            Job::Demo => demo::run().await,
        }
    };
    stop.unless_told(work).await.unwrap_or(Ok(()))
}
