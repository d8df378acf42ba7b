//! What keeps files waiting that do not grow: somebody outside says so, and is asked now and then.

use std::{fmt, sync::Arc, time::Duration};

use crate::platform::Timestamp;

/// What was changed within so long is of somebody who is at work, though it is found for the first
/// time: it does not wait.
const FRESH: Duration = Duration::from_secs(600);
/// How long an answer counts.
const ASK: Duration = Duration::from_secs(30);

/// Whether files that do not grow are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackfillHold {
    /// They are.
    Off,
    /// Only those that have not changed for so long, and those that have just changed.
    YoungerThan(Duration),
}

/// Says whether they are; may take some milliseconds.
pub type HoldQuery = Arc<dyn Fn() -> BackfillHold + Send + Sync>;

/// The last answer.
#[derive(Default)]
pub(super) struct HoldState {
    ask: Option<HoldQuery>,
    answer: Option<BackfillHold>,
    /// When it is asked again, by the time that the agent is up.
    due: Duration,
}

impl HoldState {
    pub(super) fn by(ask: HoldQuery) -> Self {
        Self { ask: Some(ask), ..Self::default() }
    }

    /// Which times of change files may have that are read, in nanoseconds since 1970.
    pub(super) fn may_be_read(
        &mut self,
        uptime: Duration,
        now: Timestamp,
    ) -> impl Fn(i64) -> bool + use<> {
        let answer = match (&self.ask, self.answer) {
            (None, _) => BackfillHold::Off,
            (Some(_), Some(answer)) if uptime < self.due => answer,
            (Some(ask), _) => {
                self.due = uptime + ASK;
                ask()
            }
        };
        self.answer = Some(answer);
        let nanos = u128::from(now.0) * 1_000_000;
        let before = move |age: Duration| {
            i64::try_from(nanos.saturating_sub(age.as_nanos())).unwrap_or(i64::MAX)
        };
        move |modified| match answer {
            BackfillHold::Off => true,
            BackfillHold::YoungerThan(age) => modified <= before(age) || modified > before(FRESH),
        }
    }

    /// How long until it is asked again.
    pub(super) fn rest(&self, uptime: Duration) -> Duration {
        self.due.saturating_sub(uptime).max(Duration::from_millis(1))
    }
}

impl fmt::Debug for HoldState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldState").field("answer", &self.answer).finish_non_exhaustive()
    }
}
