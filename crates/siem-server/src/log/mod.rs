//! Log of a receiver on standard error: lines of text or JSON. Warnings and errors that repeat are counted.

mod line;
mod repeats;

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use line::Line;
use repeats::Repeats;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::{
    clock::{Clock, SystemClock},
    config::{LogFormat, LogTable},
};

/// Logs to standard error from now on. `RUST_LOG` overrides the level.
pub fn init_log(settings: &LogTable) {
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| settings.level.parse())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let format = match settings.format {
        LogFormat::Json => line::Format::Json,
        LogFormat::Text if io::stderr().is_terminal() => line::Format::Colored,
        LogFormat::Text => line::Format::Plain,
    };
    let log = StandardError { format, start: Instant::now(), repeats: Mutex::default() };
    tracing_subscriber::registry().with(log.with_filter(filter)).init();
}

/// Layer that writes events to standard error.
struct StandardError {
    format: line::Format,
    start: Instant,
    repeats: Mutex<Repeats>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for StandardError {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = repeats.admit(line, self.start.elapsed());
        // Written under the lock, so that lines do not mix.
        for line in lines {
            let text = line.format(self.format, SystemClock.now());
            // Without a reader of the log, the receiver still serves.
            drop(io::stderr().write_all(text.as_bytes()));
        }
    }
}

/// Returns what a call logs on this thread.
#[cfg(test)]
pub(crate) fn log_of<T>(call: impl FnOnce() -> T) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let log = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(Mutex::new(file.reopen().unwrap()))
        .finish();
    tracing::subscriber::with_default(log, call);
    std::fs::read_to_string(file.path()).unwrap()
}
