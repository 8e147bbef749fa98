//! Starts the four programs and reads from Linux what they use.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tunnel_bench_support::{READY, await_port, until};

use crate::attacks::{DIRECT, Flavour, INSIDE, ROGUE};

/// The token that the cluster's interface accepts.
pub const TOKEN: &str = "well-behaved";

/// A process that is killed when dropped.
pub struct Program {
    pub name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    pub fn start(
        name: &'static str,
        log: PathBuf,
        command: &mut Command,
        unread: bool,
    ) -> Result<Self, String> {
        let failed = |error| format!("cannot start {name}: {error}");
        let out = File::create(&log).map_err(failed)?;
        let err = if unread {
            Stdio::piped()
        } else {
            out.try_clone().map_err(failed)?.into()
        };
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = child.spawn().map_err(failed)?;
        Ok(Self { name, child, log })
    }

    /// Ends it as its user does. What a killed one had open would be kept for its return.
    pub fn interrupt(mut self) {
        let id = self.id().to_string();
        let _ = Command::new("kill").args(["-INT", &id]).status();
        let _ = until(Duration::from_secs(2), "its end", || Ok(self.ended()));
    }

    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn said(&self) -> String {
        let mut text = Vec::new();
        // The fault of a long log is at its end, but the ready line is at its start.
        if let Ok(file) = File::open(&self.log) {
            let _ = file.take(64 << 10).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The last line of its output, in which an attacker reports its progress.
    pub fn last_line(&self) -> Option<String> {
        let text = fs::read_to_string(&self.log).ok()?;
        let whole = text.rsplit_once('\n')?.0;
        whole.lines().last().map(str::to_owned)
    }

    /// The port in the ready line of a forward.
    pub fn local_port(&mut self, within: Duration) -> Result<u16, String> {
        let mut port = None;
        until(within, "the ready line of forward", || {
            let said = self.said();
            let line = said.lines().find(|line| line.starts_with("Listening on "));
            port = line
                .and_then(|line| line.split_whitespace().nth(2))
                .and_then(|address| address.rsplit_once(':')?.1.parse().ok());
            if port.is_none() && self.ended() {
                return Err(format!("forward ended: {}", said.trim_end()));
            }
            Ok(port.is_some())
        })?;
        port.ok_or_else(|| "forward names no port".into())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub host: u16,
    pub runner: u16,
    pub hostile: u16,
    /// Where `forward` looks for the host, and the agent for the runner: not always at the real
    /// ones.
    pub host_for_forward: u16,
    pub runner_for_agent: u16,
    pub api: u16,
}

/// The programs that are attacked.
pub struct Programs {
    pub folder: PathBuf,
    /// Those that have the flag --memory.
    bounded: Vec<&'static str>,
}

impl Programs {
    pub fn new(folder: PathBuf) -> Self {
        let names = ["forward", "host", "runner", "agent"];
        let bounded = names.into_iter().filter(|name| {
            let help = Command::new(folder.join(name)).arg("--help").output();
            help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--memory"))
        });
        Self {
            bounded: bounded.collect(),
            folder,
        }
    }
}

/// Starts programs: where they write, and their settings.
pub struct Starter<'a> {
    pub programs: &'a Programs,
    pub logs: &'a Path,
    pub flavour: Flavour,
    pub ports: Ports,
    /// --memory of each program in MiB, if it has that flag.
    pub memory: u64,
}

impl Starter<'_> {
    fn start(&self, name: &'static str, arguments: &[String]) -> Result<Program, String> {
        let mut command = Command::new(self.programs.folder.join(name));
        command.args(arguments).env("RUST_LOG", "info");
        if self.programs.bounded.contains(&name) {
            command.args(["--memory", &self.memory.to_string()]);
        }
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("KOHAKURIVER") {
                command.env_remove(variable);
            }
        }
        if self.flavour == Flavour::Api && name == "forward" {
            command.env("KOHAKURIVER_TUNNEL_TOKEN", TOKEN);
        }
        let unread = self.flavour == Flavour::Unread && name == "host";
        let number = fs::read_dir(self.logs).map_or(0, Iterator::count);
        let log = self.logs.join(format!("{number}-{name}.log"));
        Program::start(name, log, &mut command, unread)
    }

    /// Forward, host, runner and agent.
    pub fn chain(&self, echo: u16) -> Result<Vec<Program>, String> {
        let ports = self.ports;
        let at = |port: u16| format!("127.0.0.1:{port}");
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let arguments: Vec<String> = words(&[
            "--listen",
            &at(ports.runner),
            "--target",
            &format!("{DIRECT}=127.0.0.1"),
        ]);
        let runner = self.start("runner", &arguments)?;
        await_port(ports.runner, "runner")?;
        let arguments: Vec<String> = words(&[
            "--runner-url",
            &format!("ws://{}", at(ports.runner_for_agent)),
            "--container-id",
            INSIDE,
            "--reconnect-delay",
            "0.5",
        ]);
        let agent = self.start("agent", &arguments)?;
        until(READY, "the agent's registration", || {
            Ok(agent.said().contains("registered"))
        })?;

        let mut arguments: Vec<String> = words(&["--listen", &at(ports.host)]);
        if self.flavour == Flavour::Api {
            arguments.extend(["--api".into(), format!("http://{}", at(ports.api))]);
        } else {
            let places = [
                ("1", DIRECT, ports.runner),
                ("2", INSIDE, ports.runner),
                ("3", ROGUE, ports.hostile),
            ];
            for (task, container, runner) in places {
                let place = format!("{task}={container}@http://{}", at(runner));
                arguments.extend(["--task".into(), place]);
            }
        }
        if self.flavour == Flavour::Tls {
            let [cert, key] = self.certificate()?;
            arguments.extend(["--cert".into(), cert, "--key".into(), key]);
        }
        let host = self.start("host", &arguments)?;
        await_port(ports.host, "host")?;
        let mut forward = self.forward(echo)?;
        forward.local_port(READY)?;
        Ok(vec![forward, host, runner, agent])
    }

    /// Another client, of the container with an agent.
    pub fn forward(&self, echo: u16) -> Result<Program, String> {
        let tls = self.flavour == Flavour::Tls;
        let (scheme, name) = if tls {
            ("wss", "localhost")
        } else {
            ("ws", "127.0.0.1")
        };
        let mut arguments = vec![
            "--host".into(),
            format!("{scheme}://{name}:{}", self.ports.host_for_forward),
            "2".into(),
            echo.to_string(),
            "--local-port".into(),
            "0".into(),
        ];
        if tls {
            arguments.extend([
                "--ca".into(),
                self.logs.join("ca.pem").display().to_string(),
            ]);
        }
        self.start("forward", &arguments)
    }

    /// A certificate for localhost from its own authority.
    fn certificate(&self) -> Result<[String; 2], String> {
        let failed = |error: rcgen::Error| error.to_string();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).map_err(failed)?;
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = rcgen::KeyPair::generate().map_err(failed)?;
        let ca = authority.self_signed(&ca_key).map_err(failed)?;
        let issuer = rcgen::Issuer::new(authority, ca_key);
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let leaf = rcgen::CertificateParams::new(vec!["localhost".into()]).map_err(failed)?;
        let leaf = leaf.signed_by(&key, &issuer).map_err(failed)?;
        let files = [
            ("ca.pem", ca.pem()),
            ("cert.pem", leaf.pem()),
            ("key.pem", key.serialize_pem()),
        ];
        for (name, text) in files {
            let path = self.logs.join(name);
            fs::write(&path, text).map_err(|error| error.to_string())?;
            // Programs refuse a key that others can read.
            let owner_only = Permissions::from_mode(0o600);
            fs::set_permissions(&path, owner_only).map_err(|error| error.to_string())?;
        }
        let path = |name: &str| self.logs.join(name).display().to_string();
        Ok([path("cert.pem"), path("key.pem")])
    }
}

/// Milliseconds that the threads of a process have waited for a processor.
pub fn waited(id: u32) -> f64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{id}/task")) else {
        return 0.0;
    };
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 / 1e6
}

/// Open descriptors. Since Linux 6.2 the size of the directory is their number, which is cheap to
/// read.
pub fn descriptors(id: u32) -> u64 {
    let folder = format!("/proc/{id}/fd");
    match fs::metadata(&folder) {
        Ok(about) if about.len() > 0 => about.len(),
        _ => fs::read_dir(&folder).map_or(0, |entries| entries.count() as u64),
    }
}
