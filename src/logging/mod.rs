//! What the agent says of itself: to standard error, and the one that runs to a file too.
//!
//! Lines hold what the program says and never what a record holds: who logs sees to that. Here it is
//! seen to that no line breaks out of its line, and that none drowns the others.

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

pub(crate) use self::level::{Level, change};
use self::{
    log_line::{Line, Style},
    suppress::{Admission, Repeats},
};
use crate::{
    config::LogFormat,
    platform::{Clock as _, Environment, LogFile, StateLock, SystemClock, journal},
};

/// The one of this process.
static OUTPUT: OnceLock<Mutex<Output>> = OnceLock::new();

/// Begins to log to standard error: what is worth knowing, or with `debug` everything of this
/// program. `RUST_LOG` says it in more detail.
pub(crate) fn begin(debug: bool) {
    let level = if debug { Level::Debug } else { Level::Info };
    let filter = EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(level.filter()));
    let (filter, handle) = reload::Layer::new(filter);
    level::keep(handle);
    let output = OUTPUT.get_or_init(|| Mutex::new(Output::to_stderr(style())));
    tracing_subscriber::registry().with(filter).with(Lines(output)).init();
}

/// Logs to the file of the state directory that is held, too, until what is returned is dropped.
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

/// Where the log lies.
pub(crate) fn dir(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("logs")
}

/// As long as this lives, a file is logged to: never longer than the lock is held that makes it ours.
#[must_use]
pub(crate) struct ToFile<'a> {
    _lock: &'a StateLock,
}

impl Drop for ToFile<'_> {
    fn drop(&mut self) {
        if let Some(output) = OUTPUT.get() {
            let mut output = lock_output(output);
            output.tell_suppressed(true);
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

/// Where lines go.
struct Output {
    stderr: Style,
    file: Option<(LogFile, Style)>,
    repeats: Repeats,
}

impl Output {
    fn to_stderr(stderr: Style) -> Self {
        Self { stderr, file: None, repeats: Repeats::default() }
    }

    fn take(&mut self, line: &Line) {
        self.tell_suppressed(false);
        if self.repeats.admit(line, SystemClock.uptime()) == Admission::Written {
            self.write(line);
        }
    }

    /// Says what was not written because it was said too often; of what goes on only at the end.
    fn tell_suppressed(&mut self, is_end: bool) {
        for line in self.repeats.take_over(SystemClock.uptime(), is_end) {
            self.write(&line);
        }
    }

    fn write(&mut self, line: &Line) {
        let now = SystemClock.now();
        // Nobody may be there to read it: that is no reason to do nothing any more.
        drop(io::stderr().write_all(line.written(self.stderr, now).as_bytes()));
        let Some((file, style)) = &mut self.file else { return };
        let written = file.write(line.written(*style, now).as_bytes(), SystemClock.uptime());
        if let Err(error) = written {
            let path = file.path().display().to_string();
            let line = Line::warning(
                module_path!(),
                "the log file cannot be written: the agent goes on without it, and tries again",
                &[("path", path), ("error", error.to_string())],
            );
            drop(io::stderr().write_all(line.written(self.stderr, now).as_bytes()));
        }
    }
}

fn lock_output(output: &Mutex<Output>) -> MutexGuard<'_, Output> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a line of each event.
struct Lines(&'static Mutex<Output>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Made before anybody has to wait: what is logged may take long to say.
        let line = Line::of(event);
        lock_output(self.0).take(&line);
    }
}
