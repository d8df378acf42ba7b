//! Decision whether the age of entries may be compared with the clock.
//!
//! A clock that is a year ahead would let the retention remove everything, for good. A receiver that was off
//! for long looks the same, so in both cases removal by age waits for a day, in which the operator can correct
//! the clock. How long it waited is in the file, so that a restart does not begin the wait again.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tracing::error;

use super::{RetentionPolicy, directory, replace};
use crate::{clock, regular_file::read_regular_file, store::create_private};

/// Longest time between two applications of the retention that a clock shows without a jump.
const LONGEST: Duration = Duration::from_secs(2 * 24 * 3600);
/// Time for which removal by age waits after a jump.
const WAIT: Duration = Duration::from_secs(24 * 3600);
/// Longest time between two calls that counts, if the process was started between them: longer, the
/// receiver was off, and did not tell the operator that it waits.
const STEP: Duration = Duration::from_secs(3600);
/// Maximum size of the file in bytes.
const FILE_BYTES: u64 = 4096;

/// Content of the file.
#[derive(Serialize, Deserialize)]
struct Applied {
    /// Time of the last application, RFC 3339.
    at: String,
    /// Present while removal by age waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waiting: Option<Waiting>,
}

/// Progress of a wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    /// Time of the last call, RFC 3339.
    seen: String,
    /// Seconds that passed before.
    seconds: u64,
}

/// The clock as the hourly retention sees it.
#[derive(Debug)]
pub(crate) struct RetentionClock {
    path: PathBuf,
    /// Time of the last call of this process that found a wait.
    called: Option<Instant>,
}

impl RetentionClock {
    pub(crate) fn new(data: &Path) -> Self {
        Self { path: directory(data).join("retention.json"), called: None }
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
        if let Some((at, waiting)) = self.read()?
            && now > at + LONGEST
        {
            let waited = self.waited(waiting.as_ref(), now, uptime);
            let rest = WAIT.saturating_sub(waited);
            if !rest.is_zero() {
                self.called = Some(uptime);
                let (last, now) = (clock::text(at), clock::text(now));
                error!(
                    code = "retention_waits", last, now, max_age = ?age, hours = rest.as_secs() / 3600,
                    "the clock jumped ahead, or the receiver was off: nothing is removed by age yet"
                );
                let waiting = Waiting { seen: now, seconds: waited.as_secs() };
                self.write(&Applied { at: last, waiting: Some(waiting) })?;
                return Ok(RetentionPolicy { max_age: None, ..policy });
            }
        }
        self.called = None;
        self.write(&Applied { at: clock::text(now), waiting: None })?;
        Ok(policy)
    }

    /// Returns for how long removal by age waits already. After another jump it waits from the beginning.
    fn waited(&self, waiting: Option<&Waiting>, now: SystemTime, uptime: Instant) -> Duration {
        let seen = waiting.and_then(|waiting| Some((waiting, clock::parse(&waiting.seen)?)));
        let Some((waiting, seen)) = seen.filter(|(_, seen)| now <= *seen + LONGEST) else {
            return Duration::ZERO;
        };
        let since = match self.called {
            Some(called) => uptime.saturating_duration_since(called),
            None => now.duration_since(seen).unwrap_or_default().min(STEP),
        };
        Duration::from_secs(waiting.seconds).saturating_add(since)
    }

    /// Returns the time of the last application, and the wait since; `None` before the first one. The time
    /// in a damaged file is unknown: it may have been long ago.
    fn read(&self) -> io::Result<Option<(SystemTime, Option<Waiting>)>> {
        let text = match read_regular_file(&self.path, FILE_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let text = format!("`{}`: {error}", self.path.display());
                return Err(io::Error::new(error.kind(), text));
            }
        };
        let applied: Option<Applied> = serde_json::from_slice(&text).ok();
        let known = applied.and_then(|it| Some((clock::parse(&it.at)?, it.waiting)));
        Ok(Some(known.unwrap_or((UNIX_EPOCH, None))))
    }

    fn write(&self, applied: &Applied) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            create_private(directory)?;
        }
        replace(&self.path, &serde_json::to_vec(applied)?)
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
        let (mut clock, start) = (RetentionClock::new(root.path()), Instant::now());
        assert_eq!(clock.permit(policy, time + year, start).unwrap(), by_size);
        assert_eq!(clock.permit(by_size, time + year, start).unwrap(), by_size);
    }

    /// A receiver that was restarted each day removed nothing by age any more.
    #[test]
    fn wait_continues_after_a_restart() {
        let root = tempfile::tempdir().unwrap();
        let policy = RetentionPolicy { max_age: Some(90 * 24 * HOUR), max_bytes: None };
        let start = Instant::now();
        // Each of these is a start of the receiver.
        let permit = |at: SystemTime| {
            let mut clock = RetentionClock::new(root.path());
            let permitted = clock.permit(policy, at, start).unwrap().max_age.is_some();
            // The hourly one of the same process.
            let next = clock.permit(policy, at + HOUR, start + HOUR).unwrap().max_age.is_some();
            (permitted, next)
        };
        let time = UNIX_EPOCH + 1000 * 24 * HOUR;
        assert_eq!(permit(time), (true, true));
        let jumped = time + 365 * 24 * HOUR;
        // An hour in each process, and the hour of the pause between them.
        for run in 0..11 {
            assert_eq!(permit(jumped + 10 * run * HOUR), (false, false), "{run}");
        }
        // Another jump begins the wait again.
        let jumped = jumped + 365 * 24 * HOUR;
        for run in 0..12 {
            assert_eq!(permit(jumped + 10 * run * HOUR), (false, false), "{run}");
        }
        assert_eq!(permit(jumped + 120 * HOUR), (true, true));
    }

    #[test]
    fn damaged_file_lets_age_wait() {
        let root = tempfile::tempdir().unwrap();
        let policy = RetentionPolicy { max_age: Some(90 * 24 * HOUR), max_bytes: Some(7) };
        let (start, time) = (Instant::now(), UNIX_EPOCH + 1000 * 24 * HOUR);
        let path = directory(root.path()).join("retention.json");
        create_private(&directory(root.path())).unwrap();
        for text in ["", "{", r#"{"at":"then"}"#] {
            std::fs::write(&path, text).unwrap();
            let mut clock = RetentionClock::new(root.path());
            let mut permit = |hours: u32| {
                clock.permit(policy, time + hours * HOUR, start + hours * HOUR).unwrap().max_age
            };
            assert_eq!([permit(0), permit(23)], [None; 2], "{text}");
            assert_eq!([permit(24), permit(25)], [policy.max_age; 2], "{text}");
        }
    }

    #[test]
    fn special_or_large_file_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();
        let policy = RetentionPolicy { max_age: Some(HOUR), max_bytes: None };
        let path = directory(root.path()).join("retention.json");
        create_private(&directory(root.path())).unwrap();
        let fails = || {
            let permitted =
                RetentionClock::new(root.path()).permit(policy, UNIX_EPOCH, Instant::now());
            let error = permitted.unwrap_err();
            assert!(error.to_string().contains("retention.json"), "{error}");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        };
        std::fs::write(&path, vec![b' '; 5000]).unwrap();
        fails();
        #[cfg(unix)]
        {
            std::fs::remove_file(&path).unwrap();
            let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
            assert!(made.success());
            fails();
        }
    }
}
