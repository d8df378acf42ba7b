//! Holding back files that do not grow, for example on battery power.

use std::{fmt, sync::Arc, time::Duration};

use crate::platform::Timestamp;

/// Files that changed within this time are not held back, even if they are new: they belong to
/// current work.
const RECENT: Duration = Duration::from_secs(600);
/// Interval between two queries.
const QUERY_INTERVAL: Duration = Duration::from_secs(30);

/// Selection of the files that are held back because they do not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackfillHold {
    /// None.
    Off,
    /// Files younger than this, except recently changed ones.
    YoungerThan(Duration),
}

/// Returns the current hold; may take some milliseconds.
pub type HoldQuery = Arc<dyn Fn() -> BackfillHold + Send + Sync>;

/// Returns the age from which a file that does not grow may soon be deleted by its writer; may take
/// some milliseconds.
pub type ExpiryQuery = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The last result of the query for the age of files that may soon be deleted.
#[derive(Default)]
pub(super) struct ExpiryState {
    query: Option<ExpiryQuery>,
    age: Duration,
    /// Uptime of the next query.
    due: Duration,
}

/// The last result of the query.
#[derive(Default)]
pub(super) struct HoldState {
    query: Option<HoldQuery>,
    hold: Option<BackfillHold>,
    /// Uptime of the next query.
    due: Duration,
}

impl HoldState {
    pub(super) fn new(query: HoldQuery) -> Self {
        Self { query: Some(query), ..Self::default() }
    }

    /// Returns a predicate on modification times, in nanoseconds since 1970, of files that may be
    /// read.
    pub(super) fn readable_times(
        &mut self,
        uptime: Duration,
        now: Timestamp,
    ) -> impl Fn(i64) -> bool + use<> {
        let hold = match (&self.query, self.hold) {
            (None, _) => BackfillHold::Off,
            (Some(_), Some(hold)) if uptime < self.due => hold,
            (Some(query), _) => {
                self.due = uptime + QUERY_INTERVAL;
                query()
            }
        };
        self.hold = Some(hold);
        let nanos = u128::from(now.0) * 1_000_000;
        let before = move |age: Duration| {
            i64::try_from(nanos.saturating_sub(age.as_nanos())).unwrap_or(i64::MAX)
        };
        move |modified| match hold {
            BackfillHold::Off => true,
            BackfillHold::YoungerThan(age) => modified <= before(age) || modified > before(RECENT),
        }
    }

    /// Time until the next query.
    pub(super) fn until_query(&self, uptime: Duration) -> Duration {
        self.due.saturating_sub(uptime).max(Duration::from_millis(1))
    }
}

impl ExpiryState {
    pub(super) fn new(query: ExpiryQuery) -> Self {
        Self { query: Some(query), ..Self::default() }
    }

    /// Returns a predicate on modification times, in nanoseconds since 1970, of files that may soon
    /// be deleted.
    pub(super) fn expiring_times(
        &mut self,
        uptime: Duration,
        now: Timestamp,
    ) -> impl Fn(i64) -> bool + use<> {
        if let Some(query) = self.query.as_ref().filter(|_| uptime >= self.due) {
            (self.age, self.due) = (query(), uptime + QUERY_INTERVAL);
        }
        let nanos = u128::from(now.0) * 1_000_000;
        let before = i64::try_from(nanos.saturating_sub(self.age.as_nanos())).unwrap_or(i64::MAX);
        let is_known = self.query.is_some();
        move |modified| is_known && modified <= before
    }
}

impl fmt::Debug for ExpiryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExpiryState").field("age", &self.age).finish_non_exhaustive()
    }
}

impl fmt::Debug for HoldState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldState").field("hold", &self.hold).finish_non_exhaustive()
    }
}
