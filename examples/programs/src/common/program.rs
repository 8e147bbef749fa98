//! The frame of a program: arguments in, logging on, one thread, exit code out.

use std::error::Error;
use std::fmt::Display;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use kohakuriver_tunnel::session::clean_text;
use tokio::net::TcpListener;

use super::args::{LogFormat, Parsed, parse};
use super::output::STDOUT;
use super::signals::Stop;
use super::{log, net};

/// Why a program ends other than as asked.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It failed while running: exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }

    /// It was called wrongly: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(2, message)
    }

    /// The other side could not be reached, or refused: exit code 3.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(3, message)
    }

    fn new(code: u8, message: impl Into<String>) -> Self {
        // It may quote the other side, or what somebody pasted into a command line.
        let message = clean_text(message.into().as_bytes());
        Self { code, message }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

/// What a program says of itself before it runs.
pub struct About {
    pub name: &'static str,
    /// How to do it right, at the end of a usage error.
    pub hint: &'static str,
}

/// Arguments that say how to log.
pub trait Logging {
    fn log_format(&self) -> LogFormat;

    /// What is logged unless RUST_LOG says otherwise.
    fn log_level(&self) -> &str {
        "info"
    }
}

/// Runs a program on one thread, to its exit code.
///
/// One thread on purpose: each program is one process that moves bytes between sockets, and wakes
/// across threads cost more than they give.
pub fn run<A, F>(about: &About, main: impl FnOnce(A) -> F) -> ExitCode
where
    A: Parser + Logging,
    F: Future<Output = Result<(), Failure>>,
{
    let args = match parse::<A>(std::env::args_os(), about.hint) {
        Ok(Parsed::Run(args)) => args,
        Ok(Parsed::Print(text)) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(failure) => return report(about, LogFormat::Text, &failure),
    };
    let format = args.log_format();
    keep_memory();
    let ended = log::start(format, args.log_level()).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed(format!("cannot start the event loop: {error}")))?;
        let ended = runtime.block_on(async {
            tokio::spawn(log::tell_hidden());
            main(args).await
        });
        // A name look-up may still hold a helper thread: nothing waits for it.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => {
            log::finish();
            ExitCode::SUCCESS
        }
        Err(failure) => report(about, format, &failure),
    }
}

/// Makes glibc keep freed read buffers for the next ones.
///
/// It adapts to the largest block it was given back; below that it would unmap buffers and fault them in
/// again, up to 90,000 page faults per GiB relayed. Elsewhere this does nothing.
fn keep_memory() {
    const LARGEST: usize = 4 << 20;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGEST)));
}

fn report(about: &About, format: LogFormat, failure: &Failure) -> ExitCode {
    log::last_words(format, about.name, failure.code, failure);
    ExitCode::from(failure.code)
}

/// Prints one line on stdout and flushes it: scripts wait for it. Nobody has to read it.
pub fn announce(line: &str) {
    STDOUT.line(line);
    STDOUT.flush();
}

/// Prints what was asked for, and waits for whoever reads it.
///
/// # Errors
/// Nobody does.
pub fn print(line: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(|error| Failure::failed(format!("cannot write to stdout: {error}")))
}

/// Open files this process may have, after asking for as many as the system allows: each connection
/// takes one.
pub fn raise_file_limit() -> usize {
    /// Where nothing limits them.
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

/// Listens, says where, and serves until a signal comes: all that a server does besides its job.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve_until_stopped<F>(
    listen: SocketAddr,
    serve: impl FnOnce(TcpListener) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = ()>,
{
    raise_file_limit();
    let stop = Stop::listen().map_err(|error| Failure::failed(error.to_string()))?;
    let listener = net::listen(listen).map_err(|error| {
        let reason = net::plain(&error);
        Failure::failed(format!(
            "cannot listen on {listen}: {reason}; choose another with --listen"
        ))
    })?;
    let address = listener
        .local_addr()
        .map_err(|error| Failure::failed(error.to_string()))?;
    announce(&format!("Listening on {address}"));
    stop.unless_told(serve(listener)).await;
    Ok(())
}
