//! Decision whether the age of entries may be compared with the clock.
//!
//! A clock that is a year ahead would let the retention remove everything, for good. A receiver that was off
//! for long looks the same, so in both cases removal by age waits for a day, in which the operator can correct
//! the clock.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use tracing::error;

use super::{RetentionPolicy, directory, replace};
use crate::{clock, store::create_private};

/// Longest time between two applications of the retention that a clock shows without a jump.
const LONGEST: Duration = Duration::from_secs(2 * 24 * 3600);
/// Time for which removal by age waits after a jump.
const WAIT: Duration = Duration::from_secs(24 * 3600);

/// Content of the file.
#[derive(Serialize, Deserialize)]
struct Applied {
    /// Time of the last application, RFC 3339.
    at: String,
}

/// The clock as the hourly retention sees it.
#[derive(Debug)]
pub(crate) struct RetentionClock {
    path: PathBuf,
    /// Time at which a jump was found.
    jumped: Option<Instant>,
}

impl RetentionClock {
    pub(crate) fn new(data: &Path) -> Self {
        Self { path: directory(data).join("retention.json"), jumped: None }
    }

    /// Returns the limits that may be applied at a time: `max_age` only if the clock did not jump ahead
    /// since the last application.
    pub(crate) fn permit(
        &mut self,
        policy: RetentionPolicy,
        now: SystemTime,
        uptime: Instant,
    ) -> io::Result<RetentionPolicy> {
        let Some(age) = policy.max_age else { return Ok(policy) };
        let applied = self.read()?;
        let has_jumped = applied.is_some_and(|at| now > at + LONGEST);
        if let (true, Some(at)) = (has_jumped, applied) {
            let jumped = *self.jumped.get_or_insert(uptime);
            let rest = WAIT.saturating_sub(uptime.saturating_duration_since(jumped));
            if !rest.is_zero() {
                let (last, now) = (clock::text(at), clock::text(now));
                error!(
                    code = "retention_waits", last, now, max_age = ?age, hours = rest.as_secs() / 3600,
                    "the clock jumped ahead, or the receiver was off: nothing is removed by age yet"
                );
                return Ok(RetentionPolicy { max_age: None, ..policy });
            }
        }
        self.jumped = None;
        let text = serde_json::to_vec(&Applied { at: clock::text(now) })?;
        if let Some(directory) = self.path.parent() {
            create_private(directory)?;
        }
        replace(&self.path, &text)?;
        Ok(policy)
    }

    /// Returns the time of the last application. A damaged file is one of an unknown time.
    fn read(&self) -> io::Result<Option<SystemTime>> {
        match fs::read(&self.path) {
            Ok(text) => {
                let applied: Option<Applied> = serde_json::from_slice(&text).ok();
                Ok(applied.and_then(|applied| clock::parse(&applied.at)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::log::log_of;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn age_waits_a_day_after_a_jump_of_the_clock() {
        let root = tempfile::tempdir().unwrap();
        let policy = RetentionPolicy { max_age: Some(90 * 24 * HOUR), max_bytes: Some(7) };
        let by_size = RetentionPolicy { max_age: None, ..policy };
        let (start, time) = (Instant::now(), UNIX_EPOCH + 1000 * 24 * HOUR);
        let mut clock = RetentionClock::new(root.path());
        let mut permit = |hours: u32, ahead: Duration| {
            clock.permit(policy, time + hours * HOUR + ahead, start + hours * HOUR).unwrap()
        };
        let year = 365 * 24 * HOUR;
        assert_eq!(
            [permit(0, Duration::ZERO), permit(1, Duration::ZERO), permit(40, Duration::ZERO)],
            [policy; 3]
        );
        assert_eq!(permit(41, year), by_size);
        // It was corrected.
        assert_eq!(permit(42, Duration::ZERO), policy);
        let log = log_of(|| assert_eq!([permit(43, year), permit(66, year)], [by_size; 2]));
        assert_eq!(log.matches("retention_waits").count(), 2, "{log}");
        assert_eq!([permit(67, year), permit(68, year)], [policy; 2]);
        // Back again: no jump ahead.
        assert_eq!(permit(69, Duration::ZERO), policy);
        // A restart begins the wait again.
        let (mut clock, start) = (RetentionClock::new(root.path()), Instant::now());
        assert_eq!(clock.permit(policy, time + year, start).unwrap(), by_size);
        assert_eq!(clock.permit(by_size, time + year, start).unwrap(), by_size);
    }
}
