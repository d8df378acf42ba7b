//! Limits repeated log lines: writes a few, and counts the rest.

use std::{collections::HashMap, time::Duration};

use tracing::Level;

use super::log_line::Line;

/// Similar lines that are written per window.
const MAX_WRITTEN: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Different lines that are remembered; beyond that, some are written too often.
const MAX_KNOWN: usize = 256;

/// Decision about a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Written,
    Suppressed,
}

/// Remembers the lines of the last minute. Lines are similar if they have the same target and
/// message, regardless of their fields.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    known: HashMap<(String, String), Repeated>,
    /// Uptime at which the next line is forgotten.
    due: Duration,
}

#[derive(Debug)]
struct Repeated {
    level: Level,
    code: Option<String>,
    since: Duration,
    written: u32,
    suppressed: u64,
}

impl Repeats {
    /// Decides whether `line` is written. Debug lines always are.
    pub(super) fn admit(&mut self, line: &Line, uptime: Duration) -> Admission {
        if line.level > Level::INFO {
            return Admission::Written;
        }
        let key = (line.target.clone(), line.message.clone());
        if !self.known.contains_key(&key) {
            if self.known.len() >= MAX_KNOWN {
                // A target with another message each time; lines with a count are kept.
                let idle = self.known.iter().filter(|(_, repeated)| repeated.suppressed == 0);
                let oldest =
                    idle.min_by_key(|(_, repeated)| repeated.since).map(|(key, _)| key.clone());
                match oldest {
                    Some(oldest) => drop(self.known.remove(&oldest)),
                    None => return Admission::Written,
                }
            }
            let repeated = Repeated {
                level: line.level,
                code: line.code.clone(),
                since: uptime,
                written: 0,
                suppressed: 0,
            };
            self.known.insert(key.clone(), repeated);
            self.due = self.due.min(uptime + WINDOW);
        }
        let Some(repeated) = self.known.get_mut(&key) else { return Admission::Written };
        if repeated.written < MAX_WRITTEN {
            repeated.written += 1;
            Admission::Written
        } else {
            repeated.suppressed += 1;
            Admission::Suppressed
        }
    }

    /// Forgets lines that first appeared more than a minute ago, or with `is_end` all of them, and
    /// returns lines that count their suppressed repeats.
    pub(super) fn drain_counts(&mut self, uptime: Duration, is_end: bool) -> Vec<Line> {
        if uptime < self.due && !is_end {
            return Vec::new();
        }
        let mut counts: Vec<(Duration, Line)> = Vec::new();
        self.known.retain(|(target, message), repeated| {
            if !is_end && uptime.saturating_sub(repeated.since) < WINDOW {
                return true;
            }
            if repeated.suppressed > 0 {
                let line = Line::suppressed(
                    repeated.level,
                    target,
                    repeated.code.as_deref(),
                    message,
                    repeated.suppressed,
                );
                counts.push((repeated.since, line));
            }
            false
        });
        let next = self.known.values().map(|repeated| repeated.since + WINDOW).min();
        self.due = next.unwrap_or(Duration::MAX);
        counts.sort_by_key(|(since, _)| *since);
        counts.into_iter().map(|(_, line)| line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> Line {
        Line::warning("t", "a_code", message, &[])
    }

    fn written(repeats: &mut Repeats, message: &str, times: u64, at: Duration) -> usize {
        let line = line(message);
        let admitted = (0..times).map(|_| repeats.admit(&line, at));
        admitted.filter(|admission| *admission == Admission::Written).count()
    }

    #[test]
    fn repeats_beyond_ten_a_minute_are_counted() {
        let mut repeats = Repeats::default();
        assert_eq!(written(&mut repeats, "a", 12_010, Duration::ZERO), 10);
        assert_eq!(written(&mut repeats, "b", 3, Duration::from_secs(30)), 3, "another");
        assert!(repeats.drain_counts(Duration::from_secs(59), false).is_empty());
        let over = repeats.drain_counts(Duration::from_secs(60), false);
        let messages: Vec<_> = over.iter().map(|line| line.message.as_str()).collect();
        assert_eq!(messages, ["12,000 similar suppressed: a"]);
        assert_eq!(over[0].code.as_deref(), Some("a_code"));
        assert_eq!(
            written(&mut repeats, "a", 1, Duration::from_secs(60)),
            1,
            "it is written again"
        );
    }

    #[test]
    fn counts_are_returned_at_the_end() {
        let mut repeats = Repeats::default();
        written(&mut repeats, "a", 11, Duration::ZERO);
        let over = repeats.drain_counts(Duration::from_secs(1), true);
        assert_eq!(over.len(), 1);
        assert!(repeats.drain_counts(Duration::from_secs(1), true).is_empty());
    }

    /// Memory must not grow with the number of different messages.
    #[test]
    fn memory_of_different_messages_is_bounded() {
        let mut repeats = Repeats::default();
        for number in 0..10_000 {
            let one = written(&mut repeats, &number.to_string(), 1, Duration::ZERO);
            assert_eq!(one, 1);
        }
        assert!(repeats.known.len() <= MAX_KNOWN);
    }
}
