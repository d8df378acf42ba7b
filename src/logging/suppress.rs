//! What says the same again and again is said a few times, and counted then.

use std::{collections::HashMap, time::Duration};

use tracing::Level;

use super::log_line::Line;

/// So often a minute the same is said.
const MOST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// So many different lines are remembered: beyond that, some are said too often.
const KNOWN: usize = 256;

/// Whether a line is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Written,
    Suppressed,
}

/// Remembers what was said within the last minute. Lines are similar that have the same message, from
/// the same place, whatever their fields say.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    known: HashMap<(String, String), Said>,
    /// The next that is looked at, by the time that the agent is up.
    due: Duration,
}

#[derive(Debug)]
struct Said {
    level: Level,
    since: Duration,
    written: u32,
    suppressed: u64,
}

impl Repeats {
    /// Whether `line` is to be written. What is logged for debugging always is.
    pub(super) fn admit(&mut self, line: &Line, uptime: Duration) -> Admission {
        if line.level > Level::INFO {
            return Admission::Written;
        }
        let key = (line.target.clone(), line.message.clone());
        if !self.known.contains_key(&key) {
            if self.known.len() >= KNOWN {
                // A place that says another thing each time; what was counted comes first.
                let idle = self.known.iter().filter(|(_, said)| said.suppressed == 0);
                let oldest = idle.min_by_key(|(_, said)| said.since).map(|(key, _)| key.clone());
                match oldest {
                    Some(oldest) => drop(self.known.remove(&oldest)),
                    None => return Admission::Written,
                }
            }
            let said = Said { level: line.level, since: uptime, written: 0, suppressed: 0 };
            self.known.insert(key.clone(), said);
            self.due = self.due.min(uptime + WINDOW);
        }
        let Some(said) = self.known.get_mut(&key) else { return Admission::Written };
        if said.written < MOST {
            said.written += 1;
            Admission::Written
        } else {
            said.suppressed += 1;
            Admission::Suppressed
        }
    }

    /// Forgets what began to be said more than a minute ago, or with `is_end` everything: lines that
    /// say how often it was.
    pub(super) fn take_over(&mut self, uptime: Duration, is_end: bool) -> Vec<Line> {
        if uptime < self.due && !is_end {
            return Vec::new();
        }
        let mut told: Vec<(Duration, Line)> = Vec::new();
        self.known.retain(|(target, message), said| {
            if !is_end && uptime.saturating_sub(said.since) < WINDOW {
                return true;
            }
            if said.suppressed > 0 {
                let line = Line::suppressed(said.level, target, message, said.suppressed);
                told.push((said.since, line));
            }
            false
        });
        let next = self.known.values().map(|said| said.since + WINDOW).min();
        self.due = next.unwrap_or(Duration::MAX);
        told.sort_by_key(|(since, _)| *since);
        told.into_iter().map(|(_, line)| line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> Line {
        Line::warning("t", message, &[])
    }

    fn written(repeats: &mut Repeats, message: &str, times: u64, at: Duration) -> usize {
        let line = line(message);
        let admitted = (0..times).map(|_| repeats.admit(&line, at));
        admitted.filter(|admission| *admission == Admission::Written).count()
    }

    #[test]
    fn what_is_said_12_010_times_is_said_10_times_and_counted() {
        let mut repeats = Repeats::default();
        assert_eq!(written(&mut repeats, "a", 12_010, Duration::ZERO), 10);
        assert_eq!(written(&mut repeats, "b", 3, Duration::from_secs(30)), 3, "another");
        assert!(repeats.take_over(Duration::from_secs(59), false).is_empty());
        let over = repeats.take_over(Duration::from_secs(60), false);
        let messages: Vec<_> = over.iter().map(|line| line.message.as_str()).collect();
        assert_eq!(messages, ["12,000 similar suppressed: a"]);
        assert_eq!(written(&mut repeats, "a", 1, Duration::from_secs(60)), 1, "it is said again");
    }

    #[test]
    fn what_was_counted_is_said_at_the_end() {
        let mut repeats = Repeats::default();
        written(&mut repeats, "a", 11, Duration::ZERO);
        let over = repeats.take_over(Duration::from_secs(1), true);
        assert_eq!(over.len(), 1);
        assert!(repeats.take_over(Duration::from_secs(1), true).is_empty());
    }

    /// Memory must not grow with what is said.
    #[test]
    fn a_place_that_says_another_thing_each_time_is_not_remembered_for_ever() {
        let mut repeats = Repeats::default();
        for number in 0..10_000 {
            let one = written(&mut repeats, &number.to_string(), 1, Duration::ZERO);
            assert_eq!(one, 1);
        }
        assert!(repeats.known.len() <= KNOWN);
    }
}
