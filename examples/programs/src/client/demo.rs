//! Without arguments: runner, host, a sample service and the client in one process, on loopback
//! ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::Parser;

use crate::client::args::Args;
use crate::client::{listener, sample};
use crate::common::args::one_line;
use crate::common::net;
use crate::common::program::{Failure, Process};
use crate::host;
use crate::host::proxy::Host;
use crate::runner;
use crate::runner::server::Runner;

/// The ports tried for the sample, in order.
const FIRST_PORT: u16 = 8080;
const LAST_PORT: u16 = 8180;

const CONTAINER: &str = "kohakuriver-vps-demo";

/// More than one browser and its `forward` can use.
const FEW: [&str; 2] = ["--max-sessions", "64"];

/// Runs the chain until told to stop.
///
/// # Errors
/// No loopback port is free.
pub async fn run(process: &Process) -> Result<(), Failure> {
    let cannot = |error: io::Error| {
        let reason = net::plain(&error);
        Failure::failed(format!("cannot start the demonstration: {reason}"))
    };
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (service, service_at) = net::listen(loopback).map_err(cannot)?;
    let (runner, runner_at) = net::listen(loopback).map_err(cannot)?;
    let (host, host_at) = net::listen(loopback).map_err(cannot)?;
    let local = free_port().map_err(cannot)?;

    let target = format!("{CONTAINER}=127.0.0.1");
    let args = ["runner", "--target", &target, "--tunnel-enabled", "true"];
    let runner_settings = parse::<runner::args::Args>(&args)?.settings(process)?;
    let task = format!("demo={CONTAINER}@http://{runner_at}");
    let host_settings = parse::<host::args::Args>(&["host", "--task", &task])?.settings(process)?;
    let ports = format!("{}:{}", service_at.port(), local.port());
    let url = format!("ws://{host_at}");
    let args = Args::try_parse_from(["forward", "--host", &url, "demo", &ports]);
    let command = args.map_err(wrong)?.command(process)?;

    tokio::spawn(sample::serve(service));
    tokio::spawn(Arc::new(Runner::new(runner_settings)).serve(runner));
    tokio::spawn(Arc::new(Host::new(host_settings)).serve(host));
    process.announce(&format!(
        "app -> forward {local} -> host {host_at} -> runner {runner_at} -> service {service_at}"
    ));
    process.announce(&format!(
        "Open http://{local}/ in a browser, or try: \
         curl http://{local}/download/256 -o /dev/null (MiB); Ctrl-C ends it"
    ));
    listener::forward(command, process).await
}

/// Parses the arguments of a server, as its program does.
fn parse<A: Parser>(args: &[&str]) -> Result<A, Failure> {
    A::try_parse_from(args.iter().chain(&FEW)).map_err(wrong)
}

fn wrong(error: clap::Error) -> Failure {
    Failure::usage(one_line(&error))
}

/// The first port that can be listened on. The real listener follows at once.
fn free_port() -> io::Result<SocketAddr> {
    let addresses = (FIRST_PORT..=LAST_PORT).map(|port| (Ipv4Addr::LOCALHOST, port).into());
    let mut free = addresses.filter(|address| net::listen(*address).is_ok());
    free.next().ok_or_else(|| io::ErrorKind::AddrInUse.into())
}
