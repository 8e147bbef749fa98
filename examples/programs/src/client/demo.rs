//! Without arguments: runner, host, a sample service and the client in one process, on loopback
//! ports.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kohakuriver_tunnel::mux::Budget;
use kohakuriver_tunnel::wire::Proto;
use tokio::net::TcpListener;

use crate::client::args::{Command, Forward};
use crate::client::destination::Destination;
use crate::client::keeper::Begin;
use crate::client::{listener, sample};
use crate::common::ceilings::{HostCeilings, RunnerCeilings, ServingCeilings};
use crate::common::connection::Connection;
use crate::common::front::FrontSettings;
use crate::common::memory::MemoryArgs;
use crate::common::net;
use crate::common::program::{Failure, Process};
use crate::common::proxies::Proxies;
use crate::common::tls::{ClientTlsArgs, Dialer, no_roots};
use crate::common::token::Credential;
use crate::common::tunnel;
use crate::common::url::Url;
use crate::common::wake::Wake;
use crate::host::proxy;
use crate::host::proxy::{FixedTasks, Host, TaskPlace};
use crate::runner::server;
use crate::runner::server::{Detached, Runner};

/// The ports tried for the sample, in order.
const FIRST_PORT: u16 = 8080;
const LAST_PORT: u16 = 8180;

/// More than one browser and its `forward` can use.
const SESSIONS: usize = 64;

const TASK: &str = "demo";
const CONTAINER: &str = "kohakuriver-vps-demo";

/// Runs the chain until told to stop.
///
/// # Errors
/// No loopback port is free.
pub async fn run(process: &Process) -> Result<(), Failure> {
    let cannot = |error: io::Error| {
        let reason = net::plain(&error);
        Failure::failed(format!("cannot start the demonstration: {reason}"))
    };
    let (service, service_at) = loopback().map_err(cannot)?;
    let (runner, runner_at) = loopback().map_err(cannot)?;
    let (host, host_at) = loopback().map_err(cannot)?;
    let memory = MemoryArgs::default().budget(&process.threads);
    let runner_settings = runner_settings(&memory, process);
    let host_settings = host_settings(runner_at, &memory, process)?;
    tokio::spawn(sample::serve(service));
    tokio::spawn(Arc::new(Runner::new(runner_settings)).serve(runner));
    tokio::spawn(Arc::new(Host::new(host_settings)).serve(host));

    let proto = Proto::Tcp;
    let remote = service_at.port();
    let host_url = Url::parse(&format!("ws://{host_at}")).map_err(Failure::failed)?;
    let local = free_port().map_err(cannot)?;
    let forward = Forward {
        local,
        proto,
        remote,
        task: TASK.to_owned(),
        wait: Duration::from_secs(15),
        udp_idle: Duration::from_secs(60),
        udp_peers: 1,
    };
    let destination = Destination {
        host: host_url,
        whole: None,
        task: TASK.to_owned(),
        connection: Connection {
            token: Credential::default(),
            dialer: dialer()?,
            tunnels: tunnel::Settings::new(memory, process.tunnels.clone()),
            wake: Wake::watched(),
        },
    };
    process.announce(&format!(
        "app -> forward {local} -> host {host_at} -> runner {runner_at} -> service {service_at}"
    ));
    process.announce(&format!(
        "Open http://{local}/ in a browser, or try: \
         curl http://{local}/download/256 -o /dev/null (MiB); Ctrl-C ends it"
    ));
    let command = Command {
        destination,
        ports: vec![forward],
        begin: Begin::AtOnce,
        tunnels: None,
    };
    listener::forward(command, process).await
}

fn runner_settings(memory: &Budget, process: &Process) -> server::Settings {
    server::Settings {
        targets: HashMap::from([(CONTAINER.to_owned(), Ipv4Addr::LOCALHOST.to_string())]),
        enabled: true,
        front: FrontSettings::default(),
        agent_token: None,
        agent_key: None,
        tunnels: tunnel::Settings::new(memory.clone(), process.tunnels.clone()),
        ceilings: RunnerCeilings {
            handshakes: SESSIONS,
            sessions: SESSIONS,
            agents: 0,
            serving: ServingCeilings::new(),
        },
        detached: Detached::default(),
        threads: process.threads.clone(),
        log: process.log.clone(),
    }
}

fn host_settings(
    runner: SocketAddr,
    memory: &Budget,
    process: &Process,
) -> Result<proxy::Settings, Failure> {
    let place = TaskPlace::parse(&format!("{CONTAINER}@http://{runner}"));
    let place = place.map_err(Failure::failed)?;
    Ok(proxy::Settings {
        registries: vec![Box::new(FixedTasks::new([(TASK.to_owned(), place)]))],
        front: FrontSettings::default(),
        dialer: dialer()?,
        memory: memory.clone(),
        ceilings: HostCeilings {
            handshakes: SESSIONS,
            sessions: SESSIONS,
            questions: 0,
            waiting: 0,
            pipes: 2,
        },
        threads: process.threads.clone(),
        log: process.log.clone(),
    })
}

/// Everything is on loopback, without TLS.
fn dialer() -> Result<Dialer, Failure> {
    Dialer::new(&ClientTlsArgs::default(), None, no_roots, Proxies::none())
}

fn loopback() -> io::Result<(TcpListener, SocketAddr)> {
    let listener = net::listen((Ipv4Addr::LOCALHOST, 0).into())?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// The first port that can be listened on. The real listener follows at once.
fn free_port() -> io::Result<SocketAddr> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in FIRST_PORT..=LAST_PORT {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        match net::listen(address) {
            Ok(_) => return Ok(address),
            Err(error) => last = error,
        }
    }
    Err(last)
}
