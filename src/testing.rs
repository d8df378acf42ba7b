//! Tests of stages: no runtime, no file, no network.
//!
//! ```
//! use ai_agent::testing::{FilterTest, Seen};
//!
//! let mut filter = FilterTest::new("ignore-types", r#"types = ["progress"]"#)?;
//! assert_eq!(filter.line(r#"{"type":"progress"}"#), Seen::Dropped("ignored_type"));
//! assert_eq!(filter.line(r#"{"type":"user"}"#), Seen::Kept);
//! # Ok::<(), ai_agent::stages::BuildError>(())
//! ```

use crate::{
    event::Event,
    pipeline::filter_chain::{FilterChain, Outcome},
    stages::{BuildError, Record, StageOptions, filter},
    tail::Origin,
};

/// A filter under test, by its type.
pub struct FilterTest(FilterChain);

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It goes on as it is.
    Kept,
    /// It ends here, for this reason.
    Dropped(&'static str),
    /// It goes on as this.
    Edited(String),
}

impl FilterTest {
    /// Builds the filter of type `name` from its options in TOML.
    ///
    /// # Errors
    /// [`BuildError`] when there is no such filter or an option is wrong.
    pub fn new(name: &str, options: &str) -> Result<Self, BuildError> {
        let filter = filter::build(name, &StageOptions::from_toml(options)?)?;
        Ok(Self(FilterChain::new(vec![(name.to_owned(), filter)])))
    }

    /// Runs a line through it.
    pub fn line(&mut self, line: &str) -> Seen {
        self.bytes(line.as_bytes())
    }

    /// Runs a line of any bytes through it.
    pub fn bytes(&mut self, line: &[u8]) -> Seen {
        self.record(&Record::from_line(line))
    }

    /// Runs a line of `origin` through it: for filters that remember files.
    pub fn line_of(&mut self, origin: &Origin, line: &str) -> Seen {
        self.record(&Record::new(origin, 0, line.as_bytes()))
    }

    fn record(&mut self, record: &Record<'_>) -> Seen {
        match self.0.check(record) {
            Outcome::Keep(None) => Seen::Kept,
            Outcome::Keep(Some(edited)) => {
                Seen::Edited(String::from_utf8_lossy(&edited.line).into_owned())
            }
            Outcome::Drop { reason, .. } => Seen::Dropped(reason),
        }
    }

    /// The lines so far are stored.
    pub fn commit(&mut self) {
        self.0.commit();
    }

    /// The lines since the last commit were not stored, and will come again.
    pub fn rollback(&mut self) {
        self.0.rollback();
    }

    /// What the filter wants to report.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.0.take_events()
    }
}

/// What a stage of the unit tests is built with.
#[cfg(test)]
pub(crate) fn context() -> crate::stages::Context {
    use crate::platform::{Environment, Os, Paths, SystemClock, SystemPower};

    let home = if cfg!(windows) { r"C:\Users\you" } else { "/home/you" };
    let environment = Environment::from_iter([("HOME", home), ("USERPROFILE", home)]);
    let unknown = || "unknown".to_owned();
    crate::stages::Context {
        identity: siem_protocol::Identity {
            machine_id: unknown(),
            hostname: unknown(),
            user: unknown(),
            os: unknown(),
            arch: unknown(),
            agent_version: unknown(),
        },
        paths: Paths::on(Os::CURRENT, &environment).expect("a home is given"),
        environment,
        clock: std::sync::Arc::new(SystemClock),
        power: std::sync::Arc::new(SystemPower),
        revision: crate::siem::Revision::default(),
        state_dir: None,
        sessions: crate::stages::Sessions::default(),
        once: false,
        poll_interval: std::time::Duration::from_secs(300),
    }
}
