//! The programs as real processes.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use crate::{LIMIT, raise_file_limit};

/// A running example; killed when dropped.
pub struct Program {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

impl Program {
    /// Starts an example that `cargo test` has built.
    pub fn start(name: &str, args: &[&str]) -> Self {
        Self::start_with(name, args, &[])
    }

    /// Starts it with further environment variables.
    pub fn start_with(name: &str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(name);
        command.args(args).envs(environment.iter().copied());
        Self::spawn(name, command)
    }

    /// Starts it with a limit of open files.
    pub fn start_limited(name: &str, args: &[&str], files: u32) -> Self {
        let limit = ["-c", "ulimit -n \"$0\" && exec \"$@\"", &files.to_string()];
        let mut limited = command_through("sh", &limit, name);
        limited.args(args);
        Self::spawn(name, limited)
    }

    /// Starts a command that becomes an example.
    pub fn spawn(name: &str, mut command: Command) -> Self {
        raise_file_limit();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start the example {name}: {error}"));
        let stdout = Lines::read(child.stdout.take().unwrap());
        let stderr = Lines::read(child.stderr.take().unwrap());
        Self {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
        }
    }

    /// Waits for a line on stdout with this prefix and returns the rest.
    pub fn line(&self, start: &str) -> String {
        let found = self.stdout.wait(LIMIT, |lines| {
            let line = lines.iter().find_map(|line| line.strip_prefix(start));
            line.map(str::to_owned)
        });
        found.unwrap_or_else(|| {
            let (out, err) = (self.stdout.all(), self.stderr.all());
            panic!(
                "{}: no line {start:?} on stdout\nstdout: {out:?}\nstderr: {err:?}",
                self.name
            )
        })
    }

    /// Waits for a line on stdout that contains this text.
    pub fn line_with(&self, part: &str) -> String {
        let found = self.stdout.wait(LIMIT, |lines| {
            lines.iter().find(|line| line.contains(part)).cloned()
        });
        found.unwrap_or_else(|| {
            panic!(
                "{}: nothing with {part:?} on stdout: {:?}",
                self.name,
                self.stdout.all()
            )
        })
    }

    /// Waits for a line on stderr that contains this text.
    pub fn complaint(&self, part: &str) -> String {
        let found = self.stderr.wait(LIMIT, |lines| {
            lines.iter().find(|line| line.contains(part)).cloned()
        });
        found.unwrap_or_else(|| {
            panic!(
                "{}: nothing with {part:?} on stderr: {:?}",
                self.name,
                self.stderr.all()
            )
        })
    }

    /// Waits until this many lines of stderr contain this text. Fails if more do.
    ///
    /// A program's lines are written by a thread of their own, so they may come after what they
    /// report is seen. That there is no line can be told only of a program that has ended.
    pub fn expect_lines(&self, part: &str, count: usize) {
        assert!(count > 0 || self.stderr.has_ended(), "{part:?} may come");
        let enough = |lines: &[String]| (containing(lines, part) >= count).then_some(());
        let _ = self.stderr.wait(LIMIT, enough);
        let lines = self.stderr();
        let found = containing(&lines, part);
        assert_eq!(found, count, "lines with {part:?}: {lines:?}");
    }

    /// All of stderr so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// The address in the line `Listening on ADDRESS …`.
    pub fn address(&self) -> String {
        let line = self.line("Listening on ");
        line.split(' ').next().unwrap_or_default().to_owned()
    }

    /// The port in the line `Listening on ADDRESS:PORT …`.
    pub fn port(&self) -> u16 {
        let address = self.address();
        let (_, port) = address.rsplit_once(':').unwrap();
        port.parse().unwrap()
    }

    /// The exit code, which must come within `limit`. Its output is complete then.
    pub fn exit(&mut self, limit: Duration) -> i32 {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                for lines in [&self.stdout, &self.stderr] {
                    assert!(lines.end(LIMIT), "{}: a child has its output", self.name);
                }
                return code(status);
            }
            let still = Instant::now() < end;
            assert!(
                still,
                "{}: still running after {limit:?}: {:?}",
                self.name,
                self.stderr()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by its name, for example `TERM`.
    pub fn signal(&self, name: &str) {
        // That of the shell: not every system has one of its own.
        let kill = format!("kill -s {name} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status();
        assert!(sent.unwrap().success());
    }

    /// Stops the process for so long that it takes itself for asleep, and lets it go on.
    pub async fn stand_still(&self) {
        self.signal("STOP");
        tokio::time::sleep(Duration::from_secs(6)).await;
        self.signal("CONT");
    }

    /// The number of lines on stderr that contain this text.
    pub fn lines_with(&self, part: &str) -> usize {
        containing(&self.stderr(), part)
    }

    /// Current resident memory in bytes.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
        kilobytes.parse::<usize>().unwrap() * 1024
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- {} stderr\n{}", self.name, self.stderr.all().join("\n"));
        }
    }
}

/// An example that `cargo test` has built, without environment variables that it reads.
pub fn command(name: &str) -> Command {
    heeding_nothing(Command::new(path(name)))
}

/// As [`command`], of a program that becomes the example once it has set something for it.
pub fn command_through(before: &str, args: &[&str], name: &str) -> Command {
    let mut command = Command::new(before);
    command.args(args).arg(path(name));
    heeding_nothing(command)
}

fn heeding_nothing(mut command: Command) -> Command {
    for variable in HEEDED {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// Variables that the examples read.
const HEEDED: [&str; 23] = [
    "KOHAKURIVER_HOST",
    "KOHAKURIVER_PORT",
    "KOHAKURIVER_TUNNEL_URL",
    "KOHAKURIVER_CONTAINER_ID",
    "KOHAKURIVER_TUNNEL_TOKEN",
    "KOHAKURIVER_TUNNEL_AGENT_TOKEN",
    "KOHAKURIVER_TUNNEL_AGENT_KEY",
    "RUNNER_URL",
    "CONTAINER_ID",
    "RECONNECT_DELAY",
    "MAX_RECONNECT",
    "LOG_LEVEL",
    "TUNNEL_ENABLED",
    "RUST_LOG",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "REQUEST_METHOD",
];

/// Where cargo puts an example: beside the folder of this test program.
fn path(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let this = std::env::current_exe().unwrap();
    let profile = this.parent().unwrap().parent().unwrap();
    BUILT.call_once(|| build(profile));
    let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    profile.join("examples").join(file)
}

/// `cargo test` builds the examples, but `cargo test --test one` does not.
fn build(profile: &Path) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--examples", "--target-dir"])
        .arg(profile.parent().unwrap())
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    // Variables that cargo sets for this test would make build scripts run again, which costs a
    // minute.
    for (name, _) in std::env::vars_os() {
        let about_package =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(about_package) {
            cargo.env_remove(name);
        }
    }
    assert!(
        cargo.status().unwrap().success(),
        "the examples do not build"
    );
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}

/// The lines of a pipe as they arrive.
#[derive(Clone, Default)]
struct Lines(Arc<(Mutex<Output>, Condvar)>);

#[derive(Default)]
struct Output {
    lines: Vec<String>,
    has_ended: bool,
}

impl Lines {
    fn read(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let filled = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                filled.0.0.lock().unwrap().lines.push(line);
                filled.0.1.notify_all();
            }
            filled.0.0.lock().unwrap().has_ended = true;
            filled.0.1.notify_all();
        });
        lines
    }

    /// Returns `None` after `limit`, or when nothing more comes.
    fn wait<T>(&self, limit: Duration, find: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + limit;
        let mut output = self.0.0.lock().unwrap();
        loop {
            if let Some(found) = find(&output.lines) {
                return Some(found);
            }
            if output.has_ended {
                return None;
            }
            let left = end.checked_duration_since(Instant::now())?;
            output = self.0.1.wait_timeout(output, left).unwrap().0;
        }
    }

    /// Waits until nothing more comes. False after `limit`.
    fn end(&self, limit: Duration) -> bool {
        let _ = self.wait(limit, |_| None::<()>);
        self.has_ended()
    }

    fn has_ended(&self) -> bool {
        self.0.0.lock().unwrap().has_ended
    }

    fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().lines.clone()
    }
}

fn containing(lines: &[String], part: &str) -> usize {
    lines.iter().filter(|line| line.contains(part)).count()
}
