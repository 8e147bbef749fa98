//! Logging: chosen by RUST_LOG, limited per second, and never blocking.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::dispatcher::with_default;
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

use super::args::{LogFormat, variable};
use super::output::Output;
use super::program::Failure;

/// Lines that one place in the program may log per second. Without the limit, anyone who can make a
/// program log could fill a disk. Levels below `info` have no limit, because whoever enables them
/// wants every line.
const LINES_PER_SECOND: u32 = 20;

const SECOND: Duration = Duration::from_secs(1);

/// How the targets of the programs' own lines begin.
const MODULES: &str = env!("CARGO_CRATE_NAME");

/// Characters shown of a line that represents many.
const EXAMPLE_MAX: usize = 80;

/// The diagnostics of a program, on stderr.
#[derive(Clone)]
pub struct Log(Arc<State>);

struct State {
    format: LogFormat,
    stderr: Arc<Output>,
    /// Lost lines that were already reported.
    lost_told: AtomicU64,
    hidden: AtomicU64,
    places: Mutex<HashMap<Identifier, Place>>,
}

/// The lines of one place in the program.
struct Place {
    second: Instant,
    shown: u32,
    /// Hidden lines since the last report.
    hidden: u64,
    /// An example of the hidden lines.
    example: String,
}

impl Log {
    /// # Errors
    /// The system does not allow the thread that writes it.
    pub fn new(format: LogFormat) -> Result<Self, Failure> {
        Ok(Self(Arc::new(State {
            format,
            stderr: Arc::new(Output::new("stderr", io::stderr())?),
            lost_told: AtomicU64::new(0),
            hidden: AtomicU64::new(0),
            places: Mutex::default(),
        })))
    }

    /// Logs from now on what RUST_LOG, or else `level`, selects. In it, `name` stands for the
    /// modules of the programs.
    ///
    /// A variable may be meant for another program of the container. A RUST_LOG that selects
    /// nothing here is logged and ignored; a level that cannot be read is logged and means `info`.
    pub fn start(&self, name: &str, level: Result<LevelFilter, String>) {
        let mut wrong = Vec::new();
        let variable = variable("RUST_LOG");
        let filter = variable.as_ref().and_then(|text| filter(name, text));
        if let (Some(text), None) = (&variable, &filter) {
            wrong.push(format!(
                "RUST_LOG={text:?} names neither a level alone nor {name}, so it is ignored: \
                 use for example RUST_LOG=debug or RUST_LOG=warn,{name}=debug"
            ));
        }
        let filter = filter.unwrap_or_else(|| {
            let level = level.unwrap_or_else(|unread| {
                wrong.push(unread);
                LevelFilter::INFO
            });
            Targets::new().with_default(level)
        });
        let lines = registry().with(filter).with(self.layer());
        // Called only once: a second subscriber would be refused.
        let _ = lines.with(self.clone()).try_init();
        for wrong in wrong {
            tracing::warn!("{wrong}");
        }
    }

    /// Reports once a second how many lines were hidden, while it is polled.
    pub async fn report_missing(self) {
        loop {
            tokio::time::sleep(SECOND).await;
            self.tell_missing();
        }
    }

    /// Writes pending lines and why the program ends, regardless of filters.
    pub fn end(&self, name: &str, ended: Result<(), Failure>) -> ExitCode {
        self.tell_missing();
        let code = match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                match self.0.format {
                    LogFormat::Text => self.0.stderr.line(&format!("{name}: {failure}")),
                    LogFormat::Json => self.unfiltered(|| {
                        tracing::error!(exit_code = failure.code, "{failure}");
                    }),
                }
                ExitCode::from(failure.code)
            }
        };
        self.0.stderr.flush();
        code
    }

    /// Lines dropped because nobody read them, and lines that were hidden.
    pub fn missing(&self) -> (u64, u64) {
        (self.0.stderr.lost(), self.0.hidden.load(Ordering::Relaxed))
    }

    fn tell_missing(&self) {
        let lost = self.0.stderr.lost();
        let untold = lost - self.0.lost_told.load(Ordering::Relaxed);
        if untold > 0 {
            self.unfiltered(|| tracing::warn!("{untold} lines were lost: nobody read stderr"));
            // Unless that line was lost as well.
            if self.0.stderr.lost() == lost {
                self.0.lost_told.store(lost, Ordering::Relaxed);
            }
        }
        let told = |place: &mut Place| {
            let hidden = std::mem::take(&mut place.hidden);
            (hidden > 0).then(|| (hidden, std::mem::take(&mut place.example)))
        };
        let places = &mut *self.0.places.lock();
        for (lines, example) in places.values_mut().filter_map(told) {
            self.unfiltered(|| {
                tracing::warn!("{lines} more lines like this were not shown: {example}");
            });
        }
    }

    /// Logs warnings and errors that RUST_LOG does not select. It enables nothing below, because
    /// that would enable making such lines everywhere.
    fn unfiltered(&self, lines: impl FnOnce()) {
        let warnings = registry().with(LevelFilter::WARN);
        with_default(&Dispatch::new(warnings.with(self.layer())), lines);
    }

    fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let lines = fmt::layer().with_writer(Arc::clone(&self.0.stderr));
        match self.0.format {
            LogFormat::Text => Box::new(
                lines
                    .with_target(false)
                    .with_ansi(io::stderr().is_terminal()),
            ),
            LogFormat::Json => Box::new(lines.json()),
        }
    }
}

/// The directives, with the modules of the programs where they have the name of one. `None` if they
/// cannot be read or say nothing of this program.
fn filter(name: &str, directives: &str) -> Option<Targets> {
    let filter: Targets = directives.parse().ok()?;
    let named = filter.iter().find(|(target, _)| *target == name);
    let level = named.map(|(_, level)| level);
    let mut targets = filter.iter().map(|(target, _)| target);
    let selects = level.is_some()
        || filter.default_level().is_some()
        || targets.any(|target| target.starts_with(MODULES));
    selects.then(|| filter.with_targets(level.map(|level| (MODULES, level))))
}

impl<S: Subscriber> Layer<S> for Log {
    /// Whether it is within the limit of its place in the program.
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        let now = Instant::now();
        let mut places = self.0.places.lock();
        let place = places.entry(metadata.callsite()).or_insert_with(|| Place {
            second: now,
            shown: 0,
            hidden: 0,
            example: String::new(),
        });
        if now.duration_since(place.second) >= SECOND {
            (place.second, place.shown) = (now, 0);
        }
        if place.shown < LINES_PER_SECOND {
            place.shown += 1;
            return true;
        }
        if place.hidden == 0 {
            place.example.clear();
            let example = &mut place.example;
            event.record(&mut |field: &Field, value: &dyn Debug| {
                if field.name() == "message" {
                    example.extend(format!("{value:?}").chars().take(EXAMPLE_MAX));
                }
            });
        }
        place.hidden += 1;
        self.0.hidden.fetch_add(1, Ordering::Relaxed);
        false
    }
}
