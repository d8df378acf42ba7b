//! The log: to standard error, and that of the running agent to a file too.
//!
//! Lines never contain a record's content; the callers are responsible for that. This module escapes
//! line breaks and limits repeats.

mod level;
mod log_line;
mod suppress;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    layer::{Context, Layer, SubscriberExt as _},
    reload,
    util::SubscriberInitExt as _,
};

pub(crate) use self::level::{Level, filter, set_level};
use self::{
    log_line::{Line, Style},
    suppress::{Admission, Repeats},
};
use crate::{
    config::LogFormat,
    platform::{Clock as _, Environment, LogFile, StateLock, SystemClock, journal},
};

/// Output of this process.
static OUTPUT: OnceLock<Mutex<Output>> = OnceLock::new();

/// Starts to log to standard error from `level` on. `RUST_LOG` overrides it.
pub(crate) fn start(level: Level) {
    let filter = EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(level.filter()));
    let (filter, handle) = reload::Layer::new(filter);
    level::set_handle(handle);
    let output = OUTPUT.get_or_init(|| Mutex::new(Output::to_stderr(style())));
    tracing_subscriber::registry().with(filter).with(Lines(output)).init();
}

/// Logs to a file in the locked state directory too, until the returned guard is dropped.
pub(crate) fn to_file(lock: &StateLock, format: LogFormat) -> ToFile<'_> {
    let style = match format {
        LogFormat::Text => Style::Plain,
        LogFormat::Json => Style::Json,
    };
    if let Some(output) = OUTPUT.get() {
        lock_output(output).file = Some((LogFile::new(&dir(lock.dir())), style));
    }
    ToFile { _lock: lock }
}

/// Directory of the log files.
pub(crate) fn dir(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("logs")
}

/// Guard of the log file. It cannot outlive the lock, which gives this process the file.
#[must_use]
pub(crate) struct ToFile<'a> {
    _lock: &'a StateLock,
}

impl Drop for ToFile<'_> {
    fn drop(&mut self) {
        if let Some(output) = OUTPUT.get() {
            let mut output = lock_output(output);
            output.write_counts(true);
            output.file = None;
        }
    }
}

fn style() -> Style {
    let environment = Environment::from_process();
    if journal::reads_stderr(&environment) {
        Style::Journal
    } else if io::stderr().is_terminal() && environment.process_value("NO_COLOR").is_none() {
        Style::Coloured
    } else {
        Style::Plain
    }
}

/// Destinations of lines.
struct Output {
    stderr: Style,
    file: Option<(LogFile, Style)>,
    repeats: Repeats,
}

impl Output {
    fn to_stderr(stderr: Style) -> Self {
        Self { stderr, file: None, repeats: Repeats::default() }
    }

    fn add(&mut self, line: &Line) {
        self.write_counts(false);
        if self.repeats.admit(line, SystemClock.uptime()) == Admission::Written {
            self.write(line);
        }
    }

    /// Writes the counts of suppressed lines.
    fn write_counts(&mut self, is_end: bool) {
        for line in self.repeats.drain_counts(SystemClock.uptime(), is_end) {
            self.write(&line);
        }
    }

    fn write(&mut self, line: &Line) {
        let now = SystemClock.now();
        // A closed standard error does not stop the agent.
        drop(io::stderr().write_all(line.format(self.stderr, now).as_bytes()));
        let Some((file, style)) = &mut self.file else { return };
        let written = file.write(line.format(*style, now).as_bytes(), SystemClock.uptime());
        if let Err(error) = written {
            let path = file.path().display().to_string();
            let line = Line::warning(
                module_path!(),
                "log_file_write_failed",
                "cannot write the log file: the agent continues without it, and tries again",
                &[("path", path), ("error", error.to_string())],
            );
            drop(io::stderr().write_all(line.format(self.stderr, now).as_bytes()));
        }
    }
}

fn lock_output(output: &Mutex<Output>) -> MutexGuard<'_, Output> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Formats events as lines.
struct Lines(&'static Mutex<Output>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Before the output is locked: formatting may take long.
        let line = Line::of(event);
        lock_output(self.0).add(&line);
    }
}
