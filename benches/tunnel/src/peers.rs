//! What a user would pick instead: where each comes from, and how it is started. Each is a client
//! and a server, so it is compared with the chain of three links.

use std::os::unix::process::CommandExt as _;
use std::path::{Path as Folder, PathBuf};
use std::process::Command;

use tunnel_bench_support::{await_port, free_port};

use crate::chains::{CLIENT, Chain, Process, SERVER, await_echo, reach};
use crate::slow::Path;

/// A tool and how it gets here.
pub struct Peer {
    pub name: &'static str,
    /// The program that has to be there.
    pub program: &'static str,
    /// What differs from the others, for the table.
    pub differs: &'static str,
    /// Installs the program below a folder.
    pub install: fn(&Folder) -> Command,
    /// Where `install` puts the program in that folder.
    pub place: &'static str,
    /// The arguments for which it says its version.
    pub version: &'static str,
    start: fn(&Folder, u16, Option<Path>) -> Result<Chain, String>,
}

impl Peer {
    /// Starts its client and its server, with the path between them.
    pub fn start(
        &self,
        program: &Folder,
        service: u16,
        link: Option<Path>,
    ) -> Result<Chain, String> {
        let mut chain = (self.start)(program, service, link)?;
        chain.name = self.name.into();
        chain.peer = true;
        Ok(chain)
    }
}

pub static ALL: [Peer; 4] = [
    Peer {
        name: "wstunnel",
        program: "wstunnel",
        differs: "a WebSocket for each connection, no multiplexing; frames are not masked",
        install: |folder| {
            let mut command = Command::new("cargo");
            command.args(["install", "--quiet", "--locked", "wstunnel-cli"]);
            command.args([
                "--git",
                "https://github.com/erebe/wstunnel",
                "--tag",
                "v10.6.2",
            ]);
            command.arg("--root").arg(folder);
            command
        },
        place: "bin/wstunnel",
        version: "--version",
        start: wstunnel,
    },
    Peer {
        name: "penguin",
        program: "penguin",
        differs: "multiplexed, credit for each connection; frames are masked",
        install: |folder| {
            let mut command = Command::new("cargo");
            command.args(["install", "--quiet", "--locked", "rusty-penguin@0.8.4"]);
            command.arg("--root").arg(folder);
            command
        },
        place: "bin/penguin",
        version: "--version",
        start: penguin,
    },
    Peer {
        name: "chisel",
        program: "chisel",
        differs: "SSH within one WebSocket: multiplexed, encrypted; frames are masked",
        install: |folder| {
            let mut command = Command::new("go");
            command.args(["install", "github.com/jpillora/chisel@v1.11.5"]);
            command.env("GOBIN", folder.join("bin"));
            command
        },
        place: "bin/chisel",
        version: "--version",
        start: chisel,
    },
    Peer {
        name: "OpenSSH",
        program: "sshd",
        differs: "`ssh -L`: multiplexed, encrypted, no WebSocket",
        install: |folder| {
            let mut command = Command::new("sh");
            command.args(["-c", UNPACK]).arg(folder);
            command
        },
        place: "usr/sbin/sshd",
        version: "-V",
        start: openssh,
    },
];

/// Unpacks Debian's server into a folder ($0), without an installation.
const UNPACK: &str = r#"
set -e
cd "$0"
apt-get -qq download openssh-server libwrap0
for package in openssh-server_*.deb libwrap0_*.deb; do
    dpkg-deb -x "$package" .
    rm "$package"
done
"#;

/// A server that listens on a port, a path to it, and its client.
fn pair(
    server: &mut Command,
    port: u16,
    link: Option<Path>,
    client: impl FnOnce(u16, u16) -> Command,
) -> Result<Chain, String> {
    let mut processes = vec![Process::start("server", SERVER, server)?];
    await_port(port, "the server")?;
    let front = reach(port, link, &mut processes)?;
    let local = free_port()?;
    let mut client = client(front, local);
    processes.push(Process::start("client", CLIENT, &mut client)?);
    await_echo(local, "the client")?;
    Ok(Chain::new("", local, processes))
}

fn wstunnel(program: &Folder, service: u16, link: Option<Path>) -> Result<Chain, String> {
    let port = free_port()?;
    let mut server = Command::new(program);
    server.arg("server").arg(format!("ws://127.0.0.1:{port}"));
    pair(&mut server, port, link, |front, local| {
        let mut client = Command::new(program);
        client.args(["client", "-L"]);
        client.arg(format!("tcp://127.0.0.1:{local}:127.0.0.1:{service}"));
        client.arg(format!("ws://127.0.0.1:{front}"));
        client
    })
}

fn penguin(program: &Folder, service: u16, link: Option<Path>) -> Result<Chain, String> {
    by_port(program, service, link, |front| {
        format!("ws://127.0.0.1:{front}/ws")
    })
}

fn chisel(program: &Folder, service: u16, link: Option<Path>) -> Result<Chain, String> {
    by_port(program, service, link, |front| {
        format!("http://127.0.0.1:{front}")
    })
}

/// A tool whose server takes `--host` and `--port`, and whose client a URL and what to forward.
fn by_port(
    program: &Folder,
    service: u16,
    link: Option<Path>,
    url: impl FnOnce(u16) -> String,
) -> Result<Chain, String> {
    let port = free_port()?;
    let mut server = Command::new(program);
    server.args(["server", "--host", "127.0.0.1", "--port"]);
    server.arg(port.to_string());
    pair(&mut server, port, link, |front, local| {
        let mut client = Command::new(program);
        client.args(["client", &url(front)]);
        client.arg(format!("127.0.0.1:{local}:127.0.0.1:{service}"));
        client
    })
}

/// Its own server with its own configuration and keys. For root it runs as `daemon`, because root's
/// server needs an account and a directory of the system.
fn openssh(sshd: &Folder, service: u16, link: Option<Path>) -> Result<Chain, String> {
    let keys = std::env::temp_dir().join(format!("tunnel-bench-{}", std::process::id()));
    std::fs::create_dir_all(&keys).map_err(|error| error.to_string())?;
    let keys = Keys(keys);
    let said = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).output().ok();
        let output = output.filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let root = said(&["id", "-u"]).as_deref() == Some("0");
    let user = if root {
        Some("daemon".into())
    } else {
        said(&["id", "-un"])
    };
    let user = user.ok_or("this user has no name")?;
    let id = |flag| said(&["id", flag, &user]).and_then(|id| id.parse().ok());
    let (uid, gid) = id("-u").zip(id("-g")).ok_or("there is no user daemon")?;

    let path = |file: &str| keys.0.join(file).display().to_string();
    for key in ["host", "user"] {
        let key = path(key);
        said(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &key])
            .ok_or("ssh-keygen makes no key")?;
    }
    let port = free_port()?;
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\n\
         StrictModes no\nUsePAM no\nPidFile none\n",
        path("host"),
        path("user.pub"),
    );
    std::fs::write(path("config"), config).map_err(|error| error.to_string())?;
    for file in [path("."), path("host"), path("user.pub"), path("config")] {
        std::os::unix::fs::chown(file, Some(uid), Some(gid)).map_err(|error| error.to_string())?;
    }
    let mut server = Command::new(sshd);
    server.args(["-D", "-f", &path("config")]);
    libraries(sshd, &mut server);
    if root {
        server.uid(uid).gid(gid);
    }
    pair(&mut server, port, link, |front, local| {
        let mut client = Command::new("ssh");
        client.args(["-N", "-F", "none", "-i", &path("user")]);
        for option in [
            "StrictHostKeyChecking=no",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
        ] {
            client.args(["-o", option]);
        }
        client.args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-p",
            &front.to_string(),
        ]);
        client.args(["-L", &format!("127.0.0.1:{local}:127.0.0.1:{service}")]);
        client.arg(format!("{user}@127.0.0.1"));
        client
    })
}

/// The libraries that were unpacked beside a program.
pub fn libraries(program: &Folder, command: &mut Command) {
    let Some(folder) = program.ancestors().nth(3) else {
        return;
    };
    let found = std::fs::read_dir(folder.join("usr/lib"))
        .into_iter()
        .flatten()
        .flatten();
    let folders: Vec<PathBuf> = found.map(|entry| entry.path()).collect();
    if folder == Folder::new("/") || folders.is_empty() {
        return;
    }
    if let Ok(paths) = std::env::join_paths(folders) {
        command.env("LD_LIBRARY_PATH", paths);
    }
}

struct Keys(PathBuf);

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
