//! Limits repeated warnings and errors: writes a few, and counts the rest.

use std::{collections::HashMap, time::Duration};

use tracing::Level;

use super::line::Line;

/// Lines of a kind that are written in each period.
const MAX_WRITTEN: u32 = 10;
const PERIOD: Duration = Duration::from_secs(60);
/// Kinds that are remembered; beyond that, lines are written without a limit.
const MAX_KINDS: usize = 256;

/// Counts of the warnings and errors of the last period. Lines are of one kind if they have the same message
/// and code, regardless of their other fields.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    kinds: HashMap<(String, String), Repeated>,
}

#[derive(Debug)]
struct Repeated {
    since: Duration,
    written: u32,
    suppressed: u64,
    /// The last line that was not written.
    last: Option<Line>,
}

impl Repeats {
    /// Returns the lines to write after `line` occurred: itself if it is admitted, and before it the last
    /// line of each kind whose period is over, with the number of those that were not written.
    pub(super) fn admit(&mut self, line: Line, uptime: Duration) -> Vec<Line> {
        let mut lines = self.expire(uptime);
        if line.level > Level::WARN {
            lines.push(line);
            return lines;
        }
        let kind = line.kind();
        if self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&kind) {
            lines.push(line);
            return lines;
        }
        let new = || Repeated { since: uptime, written: 0, suppressed: 0, last: None };
        let repeated = self.kinds.entry(kind).or_insert_with(new);
        if repeated.written < MAX_WRITTEN {
            repeated.written += 1;
            lines.push(line);
        } else {
            repeated.suppressed += 1;
            repeated.last = Some(line);
        }
        lines
    }

    fn expire(&mut self, uptime: Duration) -> Vec<Line> {
        let mut lines = Vec::new();
        self.kinds.retain(|_, repeated| {
            if uptime.saturating_sub(repeated.since) < PERIOD {
                return true;
            }
            // The line itself is written now.
            let others = repeated.suppressed.saturating_sub(1);
            lines.extend(repeated.last.take().map(|last| last.with_suppressed(others)));
            false
        });
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::{super::line::line, *};

    #[test]
    fn repeats_beyond_ten_a_minute_are_counted() {
        let mut repeats = Repeats::default();
        let mut admit = |message: &str, at| {
            repeats.admit(line(Level::WARN, message, "a_code"), Duration::from_secs(at))
        };
        let written: usize = (0..1000).map(|_| admit("a", 0).len()).sum();
        assert_eq!(written, 10);
        assert_eq!(admit("b", 59).len(), 1);
        let lines = admit("b", 60);
        let suppressed = line(Level::WARN, "a", "a_code").with_suppressed(989);
        assert_eq!(lines, [suppressed, line(Level::WARN, "b", "a_code")]);
        assert_eq!(admit("a", 60).len(), 1, "it is written again");
    }

    #[test]
    fn informational_lines_are_always_written() {
        let mut repeats = Repeats::default();
        let info = || line(Level::INFO, "a", "a_code");
        let written = (0..100).map(|_| repeats.admit(info(), Duration::ZERO).len());
        assert_eq!(written.sum::<usize>(), 100);
    }

    #[test]
    fn memory_of_different_messages_is_bounded() {
        let mut repeats = Repeats::default();
        for number in 0..10_000 {
            let line = line(Level::WARN, &number.to_string(), "a_code");
            assert_eq!(repeats.admit(line, Duration::ZERO).len(), 1);
        }
        assert_eq!(repeats.kinds.len(), MAX_KINDS);
    }
}
