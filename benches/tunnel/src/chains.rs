//! Starts the measured processes: the service, chains of relays, chains of the programs, and other
//! tools.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::load;

/// A process that is killed when dropped.
#[derive(Debug)]
pub struct Process {
    pub name: &'static str,
    child: Child,
}

impl Process {
    fn start(name: &'static str, command: &mut Command) -> Result<Self, String> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {name}: {error}"))?;
        Ok(Self { name, child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
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
}

/// Starts this program again, as another part.
fn own(part: &'static str, arguments: &[u16]) -> Result<Process, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let arguments = arguments.iter().map(u16::to_string);
    Process::start(part, Command::new(program).arg(part).args(arguments))
}

pub fn service() -> Result<Chain, String> {
    let port = free_port()?;
    let processes = vec![own("serve", &[port])?];
    await_port(port, "the service")?;
    Ok(Chain {
        name: "service".into(),
        port,
        processes,
    })
}

/// That many bare relays in a row, each a process.
pub fn relays(count: usize, service: u16) -> Result<Chain, String> {
    let mut port = service;
    let mut processes = Vec::new();
    for _ in 0..count {
        let next = free_port()?;
        processes.push(own("relay", &[next, port])?);
        await_port(next, "a relay")?;
        port = next;
    }
    Ok(Chain {
        name: format!("{count} bare relays"),
        port,
        processes,
    })
}

/// How a chain of the programs differs from the usual one.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Tunnels are resumed.
    pub resume: bool,
    /// A long path lies between the client and what it dials.
    pub slow: bool,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            resume: true,
            slow: false,
        }
    }
}

/// The programs, with that many links from the application to the service: 3 without a host, 4 with
/// one, 5 with an agent too.
pub fn programs(folder: &Path, links: usize, service: u16, way: Way) -> Result<Chain, String> {
    let start = |name: &'static str, arguments: &[String]| {
        let mut command = Command::new(folder.join(name));
        command.args(arguments);
        if !way.resume && name != "host" {
            command.arg("--no-resume");
        }
        Process::start(name, &mut command)
    };
    let flag = |name: &str, value: String| [name.to_owned(), value];
    let box_name = "bench";
    let (runner, local) = (free_port()?, free_port()?);
    let mut processes = Vec::new();

    let mut arguments = flag("--listen", format!("127.0.0.1:{runner}")).to_vec();
    if links < 5 {
        arguments.extend(flag("--target", format!("{box_name}=127.0.0.1")));
    }
    processes.push(start("runner", &arguments)?);
    await_port(runner, "runner")?;
    if links == 5 {
        let mut arguments = flag("--runner-url", format!("http://127.0.0.1:{runner}")).to_vec();
        arguments.extend(flag("--container-id", box_name.into()));
        processes.push(start("agent", &arguments)?);
    }
    let (front, path) = if links > 3 {
        let host = free_port()?;
        let mut arguments = flag("--listen", format!("127.0.0.1:{host}")).to_vec();
        let task = format!("bench={box_name}@http://127.0.0.1:{runner}");
        arguments.extend(flag("--task", task));
        processes.push(start("host", &arguments)?);
        await_port(host, "host")?;
        (host, "bench")
    } else {
        (runner, box_name)
    };
    let front = if way.slow {
        let next = free_port()?;
        processes.push(own("slow", &[next, front])?);
        await_port(next, "the long path")?;
        next
    } else {
        front
    };
    let server = format!("ws://127.0.0.1:{front}/api/tunnel/{path}");
    for proto in ["tcp", "udp"] {
        let mut arguments = flag("--host", server.clone()).to_vec();
        arguments.extend(flag("--remote-port", service.to_string()));
        arguments.extend(flag("--local-port", local.to_string()));
        arguments.extend(flag("--proto", proto.into()));
        let name = if proto == "tcp" {
            "forward"
        } else {
            "forward (udp)"
        };
        let mut program = Command::new(folder.join("forward"));
        program.args(arguments);
        if !way.resume {
            program.arg("--no-resume");
        }
        processes.push(Process::start(name, &mut program)?);
    }
    await_echo(local, "the chain of programs")?;
    let name = ["client", "host", "runner", "agent"];
    let name = match links {
        3 => [name[0], name[2]].join(" + "),
        4 => name[..3].join(" + "),
        _ => name.join(" + "),
    };
    Ok(Chain {
        name,
        port: local,
        processes,
    })
}

/// `ssh -L` through its own server, or the reason why it is not available.
pub fn openssh(service: u16) -> Result<Chain, String> {
    let [ssh, sshd, keygen] = ["ssh", "sshd", "ssh-keygen"].map(find);
    let (Some(ssh), Some(sshd), Some(keygen)) = (ssh, sshd, keygen) else {
        return Err("ssh, sshd or ssh-keygen is not installed".into());
    };
    let folder = std::env::temp_dir().join(format!("tunnel-bench-{}", std::process::id()));
    let _folder = Folder::create(folder.clone()).map_err(|error| error.to_string())?;
    let (key, config) = (folder.join("key"), folder.join("sshd_config"));
    let made = Command::new(keygen)
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return Err("ssh-keygen makes no key".into());
    }
    let (server, local) = (free_port()?, free_port()?);
    let path = |file: &str| folder.join(file).display().to_string();
    let text = format!(
        "ListenAddress 127.0.0.1\nPort {server}\nHostKey {}\nAuthorizedKeysFile {}\n\
         StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n",
        path("key"),
        path("key.pub"),
    );
    std::fs::write(&config, text).map_err(|error| error.to_string())?;
    if Path::new("/run").is_dir() {
        // Distributions create this directory when they start the server.
        let _ = std::fs::create_dir("/run/sshd");
    }
    let daemon = Process::start("sshd", Command::new(sshd).arg("-D").arg("-f").arg(&config))?;
    await_port(server, "sshd")?;
    let user = std::env::var("USER").unwrap_or_else(|_| "root".into());
    let mut client = Command::new(ssh);
    client.args([
        "-N",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "BatchMode=yes",
    ]);
    client.args(["-o", "UserKnownHostsFile=/dev/null", "-F", "none", "-i"]);
    client.arg(&key);
    client.args(["-p", &server.to_string()]);
    client.args(["-L", &format!("127.0.0.1:{local}:127.0.0.1:{service}")]);
    client.arg(format!("{user}@127.0.0.1"));
    let client = Process::start("ssh", &mut client)?;
    await_echo(local, "ssh")?;
    Ok(Chain {
        name: "OpenSSH".into(),
        port: local,
        processes: vec![daemon, client],
    })
}

/// The `penguin` program of rusty-penguin, or the reason why it is not available.
pub fn penguin(service: u16) -> Result<Chain, String> {
    let program = find("penguin").ok_or("penguin is not installed")?;
    let (server, local) = (free_port()?, free_port()?);
    let mut daemon = Command::new(&program);
    daemon.args([
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        &server.to_string(),
    ]);
    let daemon = Process::start("penguin server", &mut daemon)?;
    await_port(server, "penguin server")?;
    let mut client = Command::new(&program);
    client.args(["client", &format!("ws://127.0.0.1:{server}")]);
    client.arg(format!("127.0.0.1:{local}:127.0.0.1:{service}"));
    let client = Process::start("penguin client", &mut client)?;
    await_echo(local, "penguin")?;
    Ok(Chain {
        name: "penguin".into(),
        port: local,
        processes: vec![daemon, client],
    })
}

struct Folder(PathBuf);

impl Folder {
    fn create(path: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The program of that name. `sshd` requires its full path.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    let files = folders.into_iter().map(|folder| folder.join(name));
    files.into_iter().find(|file| file.is_file())
}

fn free_port() -> Result<u16, String> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    let address = bound.map_err(|error| format!("no free port: {error}"))?;
    Ok(address.port())
}

fn await_port(port: u16, what: &str) -> Result<(), String> {
    until(what, || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    })
}

/// Waits until a byte comes back through it.
fn await_echo(port: u16, what: &str) -> Result<(), String> {
    until(what, || load::round_trips(port, 1).is_ok())
}

fn until(what: &str, mut ready: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !ready() {
        if Instant::now() > deadline {
            return Err(format!("{what} does not answer within 15 s"));
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}
