//! Finds or installs the peers. Installed ones stay in `target/peers` of the project.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::peers::{ALL, Peer, libraries};

/// A peer with its program, or why there is none.
pub struct Found {
    pub peer: &'static Peer,
    pub program: Result<PathBuf, String>,
}

/// The peer with that name, in any case of letters.
pub fn named(name: &str) -> Result<&'static Peer, String> {
    let peer = ALL.iter().find(|peer| peer.name.eq_ignore_ascii_case(name));
    peer.ok_or_else(|| {
        let names = ALL.iter().map(|peer| peer.name).collect::<Vec<_>>();
        format!("no peer is called {name}: there are {}", names.join(", "))
    })
}

/// Takes what is in `target/peers` or in `PATH`, or installs it.
pub fn find(peer: &Peer, install: bool) -> Result<PathBuf, String> {
    let folder = folder().join(peer.name);
    let kept = folder.join(peer.place);
    if kept.is_file() {
        return Ok(kept);
    }
    if let Some(program) = in_path(peer.program) {
        return Ok(program);
    }
    if !install {
        return Err(format!("{} is not installed", peer.program));
    }
    eprintln!("installing {} into {}", peer.name, folder.display());
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let mut command = (peer.install)(&folder);
    let failed = match command.output() {
        Ok(output) if output.status.success() && kept.is_file() => return Ok(kept),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            said.trim().lines().last().unwrap_or("it failed").to_owned()
        }
        Err(error) => error.to_string(),
    };
    Err(format!(
        "{} is not in PATH, and `{}`: {failed}",
        peer.program,
        shown(&command)
    ))
}

/// What it says about its version.
pub fn version(peer: &Peer, program: &Path) -> String {
    let mut command = Command::new(program);
    libraries(program, &mut command);
    let output = command.arg(peer.version).output();
    let said = output.map(|output| [output.stdout, output.stderr].concat());
    let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
    let line = said
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && *line != "unknown option -- V");
    line.unwrap_or("of an unknown version").to_owned()
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words
        .filter_map(|word| word.to_str())
        .filter(|word| !word.contains('\n'));
    words.collect::<Vec<_>>().join(" ")
}

fn folder() -> PathBuf {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let project = project.canonicalize().unwrap_or(project);
    let target = env::var_os("CARGO_TARGET_DIR").map_or(project.join("target"), PathBuf::from);
    target.join("peers")
}

/// `sshd` requires its full path.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    let files = folders.into_iter().map(|folder| folder.join(name));
    files.into_iter().find(|file| file.is_file())
}
