//! Starts what is measured: the service, chains of relays, chains of the programs.

use std::cell::Cell;
use std::path::Path as Folder;
use std::process::{Child, Command, Stdio};

use tunnel_bench_support::{READY, await_port, free_port, until};

use crate::load;
use crate::process;
use crate::slow::Path;

/// What the figures of CPU time and memory are told apart by.
pub const CLIENT: &str = "client";
pub const SERVER: &str = "server";
const RELAY: &str = "relay";

/// A process that is killed when dropped.
#[derive(Debug)]
pub struct Process {
    /// Empty: it is not part of the figures.
    role: &'static str,
    child: Child,
}

impl Process {
    pub fn start(
        name: &'static str,
        role: &'static str,
        command: &mut Command,
    ) -> Result<Self, String> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {name}: {error}"))?;
        Ok(Self { role, child })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Something between a local port and the service.
#[derive(Debug)]
pub struct Chain {
    pub name: String,
    pub port: u16,
    pub processes: Vec<Process>,
    /// What our clients dial.
    server: String,
    /// A failure of another's tool is a result; one of ours ends the run.
    pub peer: bool,
    /// Measures that failed.
    pub failures: Cell<u8>,
}

impl Chain {
    pub fn new(name: impl Into<String>, port: u16, processes: Vec<Process>) -> Self {
        Self {
            name: name.into(),
            port,
            processes,
            server: String::new(),
            peer: false,
            failures: Cell::new(0),
        }
    }

    /// What `of` gives for the processes of a role, or for the average relay.
    fn sum(&self, role: &str, of: impl Fn(u32) -> f64) -> f64 {
        let sum = |role| {
            let processes = self.processes.iter().filter(|one| one.role == role);
            let each: Vec<f64> = processes.map(|one| of(one.child.id())).collect();
            (each.iter().sum::<f64>(), each.len())
        };
        let (relays, count) = sum(RELAY);
        if count > 0 {
            relays / count as f64
        } else {
            sum(role).0
        }
    }

    pub fn cpu_seconds(&self, role: &str) -> f64 {
        self.sum(role, process::cpu_seconds)
    }

    /// Bytes.
    pub fn memory(&self, role: &str) -> f64 {
        self.sum(role, |id| process::memory(id) as f64)
    }

    /// Bytes, since `forget_peak`.
    pub fn peak(&self, role: &str) -> f64 {
        self.sum(role, |id| process::peak(id) as f64)
    }

    pub fn forget_peak(&self) {
        for process in &self.processes {
            process::forget_peak(process.child.id());
        }
    }

    pub fn is_relays(&self) -> bool {
        self.processes.iter().any(|process| process.role == RELAY)
    }
}

/// Starts this program again, as another part.
fn own(part: &'static str, role: &'static str, arguments: &[u32]) -> Result<Process, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let arguments = arguments.iter().map(u32::to_string);
    Process::start(part, role, Command::new(program).arg(part).args(arguments))
}

pub fn service() -> Result<Chain, String> {
    let port = free_port()?;
    let processes = vec![own("serve", "service", &[port.into()])?];
    await_port(port, "the service")?;
    Ok(Chain::new("service", port, processes))
}

/// The port where a client reaches a server: the server's own, or that of a path in front of it.
pub fn reach(server: u16, link: Option<Path>, processes: &mut Vec<Process>) -> Result<u16, String> {
    let Some(path) = link else {
        return Ok(server);
    };
    let port = free_port()?;
    let round_trip = u32::try_from(path.round_trip.as_millis()).unwrap_or(u32::MAX);
    let arguments = [
        port.into(),
        server.into(),
        round_trip,
        path.mbit,
        path.stall_mib,
    ];
    processes.push(own("slow", "", &arguments)?);
    await_port(port, "the path")?;
    Ok(port)
}

/// That many bare relays in a row, each a process. A path lies in front of the first that is
/// started.
pub fn relays(count: usize, service: u16, link: Option<Path>) -> Result<Chain, String> {
    let mut port = service;
    let mut processes = Vec::new();
    for number in 0..count {
        let next = free_port()?;
        processes.push(own("relay", RELAY, &[next.into(), port.into()])?);
        await_port(next, "a relay")?;
        let link = link.filter(|_| number == 0);
        port = reach(next, link, &mut processes)?;
    }
    Ok(Chain::new("relays", port, processes))
}

/// How a chain of the programs differs from the usual one.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Tunnels are resumed.
    pub resume: bool,
    /// Lies between the client and what it dials.
    pub link: Option<Path>,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            resume: true,
            link: None,
        }
    }
}

/// The roles of the chain with that many links.
pub fn roles(links: usize) -> &'static [&'static str] {
    match links {
        3 => &[CLIENT, SERVER],
        4 => &[CLIENT, "host", "runner"],
        _ => &[CLIENT, "host", "runner", "agent"],
    }
}

/// The programs, with that many links from the application to the service: 3 without a host, 4 with
/// one, 5 with an agent too.
pub fn programs(folder: &Folder, links: usize, service: u16, way: Way) -> Result<Chain, String> {
    let start = |name: &'static str, role: &'static str, arguments: &[String]| {
        let mut command = Command::new(folder.join(name));
        command.args(arguments);
        if !way.resume && name != "host" {
            command.arg("--no-resume");
        }
        Process::start(name, role, &mut command)
    };
    let flag = |name: &str, value: String| [name.to_owned(), value];
    let box_name = "bench";
    let (runner, local) = (free_port()?, free_port()?);
    let mut processes = Vec::new();

    let mut arguments = flag("--listen", format!("127.0.0.1:{runner}")).to_vec();
    if links < 5 {
        arguments.extend(flag("--target", format!("{box_name}=127.0.0.1")));
    }
    let role = if links == 3 { SERVER } else { "runner" };
    processes.push(start("runner", role, &arguments)?);
    await_port(runner, "runner")?;
    if links == 5 {
        let mut arguments = flag("--runner-url", format!("http://127.0.0.1:{runner}")).to_vec();
        arguments.extend(flag("--container-id", box_name.into()));
        processes.push(start("agent", "agent", &arguments)?);
    }
    let (front, path) = if links > 3 {
        let host = free_port()?;
        let mut arguments = flag("--listen", format!("127.0.0.1:{host}")).to_vec();
        let task = format!("bench={box_name}@http://127.0.0.1:{runner}");
        arguments.extend(flag("--task", task));
        processes.push(start("host", "host", &arguments)?);
        await_port(host, "host")?;
        (host, "bench")
    } else {
        (runner, box_name)
    };
    let front = reach(front, way.link, &mut processes)?;
    let server = format!("ws://127.0.0.1:{front}/api/tunnel/{path}");
    let arguments = client_arguments(&server, service, local, "tcp");
    processes.push(start("forward", CLIENT, &arguments)?);
    await_echo(local, "the chain of programs")?;
    Ok(Chain {
        server,
        ..Chain::new("ours", local, processes)
    })
}

fn client_arguments(server: &str, service: u16, local: u16, proto: &str) -> [String; 8] {
    let (remote, local) = (service.to_string(), local.to_string());
    let flags = ["--host", "--remote-port", "--local-port", "--proto"];
    let [host, to, at, of] = flags.map(str::to_owned);
    [host, server.into(), to, remote, at, local, of, proto.into()]
}

/// A client that forwards datagrams on the port of this chain of the programs.
pub fn datagrams(folder: &Folder, ours: &Chain, service: u16) -> Result<Process, String> {
    let mut command = Command::new(folder.join("forward"));
    command.args(client_arguments(&ours.server, service, ours.port, "udp"));
    let client = Process::start("forward", "", &mut command)?;
    until(READY, "the client for datagrams", || {
        Ok(load::datagrams(ours.port, 1).is_ok_and(|times| !times.is_empty()))
    })?;
    Ok(client)
}

/// Waits until a byte comes back through it.
pub fn await_echo(port: u16, what: &str) -> Result<(), String> {
    until(READY, what, || Ok(load::round_trips(port, 1).is_ok()))
}
