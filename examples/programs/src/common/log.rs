//! What is logged and how: chosen by RUST_LOG, so many lines of a kind per second, never waited for.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::callsite::Identifier;
use tracing::dispatcher::with_default;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

use super::args::LogFormat;
use super::output::{Line, STDERR};
use super::program::Failure;

/// Lines that one place in the program may log per second. Whoever can make a program log could otherwise
/// fill a disk. Levels below `info` have no limit: who asks for them wants each line.
const LINES_PER_SECOND: u32 = 20;

const SECOND: Duration = Duration::from_secs(1);

/// Letters shown of a line that stands for many.
const EXAMPLE_MAX: usize = 80;

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

static LIMIT: LazyLock<Limit> = LazyLock::new(Limit::default);

/// Logs to stderr from now on.
///
/// # Errors
/// RUST_LOG cannot be read.
pub fn start(format: LogFormat, level: &str) -> Result<(), Failure> {
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    let directives = wanted.as_deref().unwrap_or(level);
    let filter: Targets = directives.parse().map_err(|_| {
        Failure::usage(format!(
            "cannot read the log filter {directives:?}: \
             use for example RUST_LOG=debug or RUST_LOG=info,hyper=warn"
        ))
    })?;
    let _ = FORMAT.set(format);
    let lines = registry().with(filter).with(layer(format, stderr));
    // Only ever called once; a second subscriber would be refused, not replaced.
    let _ = lines.with(&*LIMIT).try_init();
    Ok(())
}

/// Says once a second how many lines were not shown, for as long as it is polled.
pub async fn tell_hidden() {
    loop {
        LIMIT.hid.notified().await;
        tokio::time::sleep(SECOND).await;
        LIMIT.tell();
    }
}

/// Writes what is left, at the end.
pub fn finish() {
    LIMIT.tell();
    STDERR.flush();
}

/// The line that tells why the program ends; it passes every filter.
pub fn last_words(format: LogFormat, name: &str, code: u8, failure: &Failure) {
    finish();
    match format {
        LogFormat::Text => STDERR.line(&format!("{name}: {failure}")),
        LogFormat::Json => with_default(&unfiltered(format, stderr), || {
            tracing::error!(exit_code = code, "{failure}");
        }),
    }
    STDERR.flush();
}

/// Lines that were dropped because nobody read them, and lines that were not shown.
pub fn missing() -> (u64, u64) {
    (STDERR.lost(), LIMIT.hidden.load(Ordering::Relaxed))
}

/// Called by the thread that writes: past the queue, which is full.
pub fn tell_lost(lines: u64) {
    with_default(&unfiltered(shown_format(), io::stderr), || {
        tracing::warn!("{lines} lines were lost: nobody read stderr");
    });
}

fn stderr() -> Line {
    STDERR.writer()
}

fn shown_format() -> LogFormat {
    FORMAT.get().copied().unwrap_or(LogFormat::Text)
}

/// For warnings and errors that RUST_LOG does not choose. It asks for nothing below, which would turn on
/// the making of such lines everywhere.
fn unfiltered<W>(format: LogFormat, writer: W) -> Dispatch
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let warnings = registry().with(LevelFilter::WARN);
    Dispatch::new(warnings.with(layer(format, writer)))
}

fn layer<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => Box::new(
            fmt::layer()
                .with_target(false)
                .with_ansi(io::stderr().is_terminal())
                .with_writer(writer),
        ),
        LogFormat::Json => Box::new(fmt::layer().json().with_writer(writer)),
    }
}

/// Lets so many lines of each place through per second.
#[derive(Default)]
struct Limit {
    kinds: Mutex<HashMap<Identifier, Kind>>,
    hidden: AtomicU64,
    hid: Notify,
}

/// The lines of one place in the program.
struct Kind {
    second: Instant,
    shown: u32,
    /// Since it was last told how many.
    hidden: u64,
    /// One of the hidden.
    example: String,
}

impl Limit {
    fn lets_through(&self, event: &Event<'_>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        let now = Instant::now();
        let mut kinds = self.lock();
        let kind = kinds.entry(metadata.callsite()).or_insert_with(|| Kind {
            second: now,
            shown: 0,
            hidden: 0,
            example: String::new(),
        });
        if now.duration_since(kind.second) >= SECOND {
            (kind.second, kind.shown) = (now, 0);
        }
        if kind.shown < LINES_PER_SECOND {
            kind.shown += 1;
            return true;
        }
        if kind.hidden == 0 {
            kind.example.clear();
            event.record(&mut Message(&mut kind.example));
            self.hid.notify_one();
        }
        kind.hidden += 1;
        self.hidden.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn tell(&self) {
        let told = |kind: &mut Kind| {
            let hidden = std::mem::take(&mut kind.hidden);
            (hidden > 0).then(|| (hidden, std::mem::take(&mut kind.example)))
        };
        let all: Vec<_> = self.lock().values_mut().filter_map(told).collect();
        if all.is_empty() {
            return;
        }
        with_default(&unfiltered(shown_format(), stderr), || {
            for (lines, example) in all {
                tracing::warn!("{lines} more lines like this were not shown: {example}");
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identifier, Kind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for &'static Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.lets_through(event)
    }
}

/// The text of an event, as far as it is shown.
struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0
                .extend(format!("{value:?}").chars().take(EXAMPLE_MAX));
        }
    }
}
