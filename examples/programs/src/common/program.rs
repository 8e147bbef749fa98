//! Runs a program: parses its arguments, starts the log, and turns its end into an exit code.

use std::fmt::Display;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;
use kohakuriver_tunnel::session::clean_text;
use tokio::net::TcpListener;
use tracing::level_filters::LevelFilter;

use super::args::{LogFormat, one_line};
use super::log::Log;
use super::names::Names;
use super::net;
use super::output::Output;
use super::signals::Signals;
use super::threads::{self, Threads};
use super::tunnel::Tunnels;

/// Why a program fails.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    message: String,
}

impl Failure {
    /// Failed while running: exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }

    /// Wrong usage: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(2, message)
    }

    /// The other side could not be reached or refused: exit code 3.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(3, message)
    }

    fn new(code: u8, message: impl Into<String>) -> Self {
        // It may quote the peer, or what somebody pasted into a command line.
        let message = clean_text(message.into().as_bytes());
        Self { code, message }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// The words of a program for usage errors.
pub struct About {
    pub name: &'static str,
    /// Says to users elsewhere where something happened.
    pub place: &'static str,
    /// A call that is right, for the end of a usage error.
    pub hint: &'static str,
}

/// Arguments of every program.
pub trait Basics {
    fn log_format(&self) -> LogFormat;

    /// Threads to run on.
    fn threads(&self) -> usize {
        1
    }

    /// Level of logging unless RUST_LOG is set.
    ///
    /// # Errors
    /// What is wrong with the variable that names it.
    fn log_level(&self) -> Result<LevelFilter, String> {
        Ok(LevelFilter::INFO)
    }
}

/// State shared by the parts of a running program.
#[derive(Clone)]
pub struct Process {
    /// As in [`About`].
    pub place: &'static str,
    pub log: Log,
    pub tunnels: Tunnels,
    pub threads: Threads,
    pub names: Names,
    stdout: Arc<Output>,
}

/// Runs a program to its exit code, or until a signal tells it to end.
///
/// `main` reads the settings and returns the work. A file that it waits for, such as a FIFO, would
/// keep this thread from any signal, so until then a signal ends the process as it ends any other.
/// PID 1 of a container is not ended: Linux spares it all signals without a handler.
///
/// The work runs on the first of the threads. A task is never moved to another one: it moves bytes
/// between sockets, and waking other threads costs more than they gain.
pub fn run<A: Parser + Basics, W: Future<Output = Result<(), Failure>>>(
    about: &About,
    main: impl FnOnce(A, Process) -> Result<W, Failure>,
) -> ExitCode {
    start(about, main).unwrap_or_else(|failure| {
        let _ = writeln!(std::io::stderr(), "{}: {failure}", about.name);
        ExitCode::from(failure.code)
    })
}

/// As [`run`].
///
/// # Errors
/// There is no thread for the log.
fn start<A: Parser + Basics, W: Future<Output = Result<(), Failure>>>(
    about: &About,
    main: impl FnOnce(A, Process) -> Result<W, Failure>,
) -> Result<ExitCode, Failure> {
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(asked)
            if matches!(
                asked.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            let _ = asked.print();
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => {
            let wrong = format!("{}; {}", one_line(&error), about.hint);
            let log = Log::new(LogFormat::Text)?;
            return Ok(log.end(about.name, Err(Failure::usage(wrong))));
        }
    };
    keep_memory();
    raise_file_limit();
    let log = Log::new(args.log_format())?;
    log.start(about.name, args.log_level());
    let ended = threads::runtime("raise ulimit -n").and_then(|runtime| {
        runtime.block_on(async {
            let (threads, mut workers) = Threads::start(args.threads())?;
            let process = Process {
                place: about.place,
                log: log.clone(),
                tunnels: Tunnels::default(),
                threads,
                names: Names::default(),
                stdout: Arc::new(Output::new("stdout", std::io::stdout())?),
            };
            tokio::spawn(log.clone().report_missing());
            let work = main(args, process.clone())?;
            let ended = tokio::select! {
                ended = until_signal(process.tunnels, work) => ended,
                failure = workers.failed() => Err(failure),
            };
            workers.stop().await;
            ended
        })
    });
    Ok(log.end(about.name, ended))
}

/// Does `work` until it ends or a signal comes. After a signal, tunnels end in good order; after a
/// second one, without a moment for their connections.
async fn until_signal(
    tunnels: Tunnels,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let signals = Signals::listen();
    let mut signals = signals.map_err(|error| Failure::failed(error.to_string()))?;
    tokio::select! {
        ended = work => return ended,
        signal = signals.next() => tracing::info!("{signal}: ending"),
    }
    // The work is dropped now, and nothing new begins.
    tunnels.end(signals.again()).await;
    Ok(())
}

/// Makes glibc keep freed read buffers for the next ones.
///
/// glibc adapts to the largest block that was freed. It would unmap larger buffers and fault them
/// in again, up to 90,000 page faults per GiB relayed. On other systems this has no effect.
fn keep_memory() {
    const LARGEST: usize = 4 << 20;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGEST)));
}

/// Prints what was asked for, and waits for the reader.
///
/// # Errors
/// It cannot be written.
pub fn print(line: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(|error| Failure::failed(format!("cannot write to stdout: {error}")))
}

/// Raises the limit of open files as far as the system allows, and returns it. Each connection
/// takes one.
pub fn raise_file_limit() -> usize {
    /// The value if there is no limit.
    const PLENTY: usize = 1 << 20;
    #[cfg(unix)]
    let limit = rlimit::increase_nofile_limit(u64::MAX).or_else(|error| {
        tracing::debug!("the file limit stays as it is: {error}");
        rlimit::Resource::NOFILE.get_soft()
    });
    #[cfg(not(unix))]
    let limit = std::io::Result::Ok(u64::MAX);
    let limit = limit.map_or(PLENTY, |limit| usize::try_from(limit).unwrap_or(PLENTY));
    limit.min(PLENTY)
}

impl Process {
    /// Prints a line that scripts wait for, and flushes it. A reader is not required.
    pub fn announce(&self, line: &str) {
        self.stdout.line(line);
        self.stdout.flush();
    }

    /// Listens, announces the address, and serves.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn serve(
        &self,
        listen: SocketAddr,
        serve: impl AsyncFnOnce(TcpListener),
    ) -> Result<(), Failure> {
        let cannot = |error: std::io::Error| {
            let reason = net::plain(&error);
            Failure::failed(format!(
                "cannot listen on {listen}: {reason}; choose another with --listen"
            ))
        };
        let (listener, address) = net::listen(listen).map_err(cannot)?;
        self.announce(&format!("Listening on {address}"));
        serve(listener).await;
        Ok(())
    }
}
