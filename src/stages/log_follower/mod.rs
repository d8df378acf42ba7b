//! Follows log files for sources of other crates: the opener behind
//! [`ai_agent_stage::Context::follow_log`].

use std::{any::Any, path::Path, sync::Arc, time::Duration};

use ai_agent_stage::{BadRow, GenerationId, Intake, Progress, Source, Survey, Waker};

use crate::{
    platform::{Clock, bounded::BoundedCalls},
    tail::{Names, Tail, TailOptions, fresh_generation},
};

/// Options for following a log file.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Maximum length of a line in bytes.
    pub max_line_bytes: u64,
    /// True if the log is read only once, so that changes need not be watched.
    pub is_once: bool,
    /// Longest time between two full sweeps.
    pub poll_interval: Duration,
}

/// Follows the log file at `path` from its beginning, together with the files that it was rotated
/// to. Without `calls`, it has a runner of calls of its own.
#[must_use]
pub fn follow_log(
    path: &Path,
    options: LogOptions,
    clock: Arc<dyn Clock>,
    waker: Waker,
    calls: Option<&BoundedCalls>,
) -> Box<dyn Source> {
    let options = TailOptions {
        roots: vec![path.parent().unwrap_or(Path::new("/")).to_owned()],
        names: Names::Log(path.file_name().unwrap_or_default().to_owned()),
        max_record_bytes: options.max_line_bytes,
        poll_interval: options.poll_interval,
        watch: !options.is_once,
        ..TailOptions::default()
    };
    let tail = Tail::new(options, clock, Box::new(fresh_generation), waker);
    Box::new(LogFollower(match calls {
        Some(calls) => tail.with_calls(calls),
        None => tail,
    }))
}

struct LogFollower(Tail);

impl Source for LogFollower {
    fn label(&self) -> &'static str {
        "log"
    }

    fn inherit(&mut self, old: Box<dyn Any>) {
        if let Ok(old) = old.downcast::<Self>() {
            self.0.inherit(old.0);
        }
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.0.restore(rows)
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        self.0.read(intake)
    }

    fn tend(&mut self) {
        self.0.tend();
    }

    fn resume(&mut self) {
        self.0.resume();
    }

    fn sealed(&mut self) {
        self.0.sealed();
    }

    fn committed(&mut self) {
        self.0.committed();
    }

    fn survey(&self) -> Survey {
        self.0.survey()
    }
}

#[cfg(test)]
mod tests;
