//! Finds the lines of one event, which may stand between those of others.
//!
//! An event is complete with its `EOE`, or with its `PROCTITLE`: the kernel writes that one last, and
//! auditd leaves `EOE` out of the log. One of neither has ended when a line of an event two seconds
//! later stands in the log (`auparse` waits as long), when many later ones have begun, or when
//! nothing has come for so long.

use std::{collections::VecDeque, time::Duration};

use super::line::{EventId, Line};

/// So long lines of one event may be apart.
pub const SILENCE: Duration = Duration::from_secs(2);
/// So many events are open at once, at most: each of a processor or two.
const MOST_OPEN: usize = 64;
/// So many bytes of lines, all open events together.
const MOST_BYTES: usize = 4 << 20;

/// Events whose lines are coming; `P` says where a line stands.
#[derive(Debug)]
pub struct Groups<P> {
    open: VecDeque<Group<P>>,
    bytes: usize,
}

/// The lines of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group<P> {
    /// The event.
    pub id: EventId,
    /// Its lines, in the order that they came in.
    pub lines: Vec<(P, Vec<u8>)>,
    /// When the last one came.
    seen: Duration,
}

impl<P> Default for Groups<P> {
    fn default() -> Self {
        Self { open: VecDeque::new(), bytes: 0 }
    }
}

impl<P> Group<P> {
    fn bytes(&self) -> usize {
        self.lines.iter().map(|(_, line)| line.len()).sum()
    }
}

impl<P> Groups<P> {
    /// Takes the next line of the log, which came `now`; says which events have ended with it.
    pub fn push(
        &mut self,
        place: P,
        line: &[u8],
        parsed: &Line<'_>,
        now: Duration,
    ) -> Vec<Group<P>> {
        let silence = u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX);
        let is_over = |id: &EventId| id.millis.saturating_add(silence) <= parsed.id.millis;
        let mut ended = self.take(|group| is_over(&group.id));
        self.adopt(place, line, parsed, now);
        if matches!(parsed.kind, b"EOE" | b"PROCTITLE") {
            ended.extend(self.take(|group| group.id == parsed.id));
        }
        while self.open.len() > MOST_OPEN || self.bytes > MOST_BYTES {
            let Some(oldest) = self.open.pop_front() else { break };
            self.bytes -= oldest.bytes();
            ended.push(oldest);
        }
        ended
    }

    /// Takes a line of an event that was open, after a restart.
    pub fn adopt(&mut self, place: P, line: &[u8], parsed: &Line<'_>, now: Duration) {
        self.bytes += line.len();
        let line = (place, line.to_vec());
        match self.open.iter_mut().rev().find(|group| group.id == parsed.id) {
            Some(group) => {
                group.lines.push(line);
                group.seen = now;
            }
            None => {
                let id = parsed.id.clone();
                self.open.push_back(Group { id, lines: vec![line], seen: now });
            }
        }
    }

    /// Ends the events that `is_over` says, oldest first.
    pub fn take(&mut self, mut is_over: impl FnMut(&Group<P>) -> bool) -> Vec<Group<P>> {
        if !self.open.iter().any(&mut is_over) {
            return Vec::new();
        }
        let (ended, open): (Vec<_>, Vec<_>) = self.open.drain(..).partition(is_over);
        self.open = open.into();
        self.bytes = self.open.iter().map(Group::bytes).sum();
        ended
    }

    /// Ends the events of which nothing has come for so long. To be called when all that is in the
    /// log was pushed.
    pub fn silent(&mut self, now: Duration) -> Vec<Group<P>> {
        self.take(|group| group.seen + SILENCE <= now)
    }

    /// When the next one will have been silent for so long.
    #[must_use]
    pub fn next_silent(&self) -> Option<Duration> {
        self.open.iter().map(|group| group.seen + SILENCE).min()
    }

    /// The lines of events that have not ended.
    pub fn open(&self) -> impl Iterator<Item = &(P, Vec<u8>)> {
        self.open.iter().flat_map(|group| &group.lines)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(kind: &str, millis: u64, serial: u64, rest: &str) -> String {
        format!("type={kind} msg=audit({}.{:03}:{serial}): {rest}", millis / 1000, millis % 1000)
    }

    /// Pushes lines; the events that ended by them, and those that are silent at last.
    fn grouped(lines: &[String]) -> Vec<(u64, Vec<usize>)> {
        let mut groups = Groups::default();
        let mut ended = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let parsed = Line::parse(line.as_bytes()).unwrap();
            ended.extend(groups.push(index, line.as_bytes(), &parsed, Duration::ZERO));
        }
        assert_eq!(groups.silent(SILENCE - Duration::from_millis(1)), []);
        ended.extend(groups.silent(SILENCE));
        assert_eq!((groups.open.len(), groups.bytes), (0, 0));
        let places = |group: Group<usize>| {
            (group.id.serial, group.lines.into_iter().map(|(place, _)| place).collect())
        };
        ended.into_iter().map(places).collect()
    }

    #[test]
    fn events_whose_lines_alternate_are_told_apart() {
        let lines = [
            line("SYSCALL", 1000, 7, "a"),
            line("SYSCALL", 1000, 8, "b"),
            line("EXECVE", 1000, 7, "a"),
            line("EXECVE", 1000, 8, "b"),
            line("PROCTITLE", 1000, 8, "b"),
            line("PATH", 1000, 7, "a"),
            line("PROCTITLE", 1000, 7, "a"),
        ];
        assert_eq!(grouped(&lines), [(8, vec![1, 3, 4]), (7, vec![0, 2, 5, 6])]);
    }

    #[test]
    fn an_event_without_an_end_ends_with_a_later_one_or_with_silence() {
        let lines = [
            line("SYSCALL", 1000, 7, ""),
            line("SYSCALL", 2999, 8, ""),
            line("CWD", 1000, 7, ""),
            line("SYSCALL", 3000, 9, ""),
            line("EOE", 3000, 9, ""),
        ];
        assert_eq!(grouped(&lines), [(7, vec![0, 2]), (9, vec![3, 4]), (8, vec![1])]);
    }

    #[test]
    fn the_same_serial_at_another_time_or_on_another_machine_is_another_event() {
        let other = format!("node=b {}", line("SYSCALL", 1000, 7, ""));
        let lines = [line("SYSCALL", 1000, 7, ""), line("SYSCALL", 1001, 7, ""), other];
        assert_eq!(grouped(&lines), [(7, vec![0]), (7, vec![1]), (7, vec![2])]);
    }

    #[test]
    fn what_is_open_is_bounded() {
        let mut groups = Groups::default();
        let long = "x".repeat(8000);
        let mut most = 0;
        for serial in 0..10_000_u64 {
            let line = line("EXECVE", 1000, serial / 1000, &long);
            let parsed = Line::parse(line.as_bytes()).unwrap();
            groups.push((), line.as_bytes(), &parsed, Duration::ZERO);
            most = most.max(groups.bytes);
        }
        assert!(most <= MOST_BYTES, "{most}");
        for serial in 0..10_000 {
            let line = line("SYSCALL", 1000, serial, "");
            let parsed = Line::parse(line.as_bytes()).unwrap();
            groups.push((), line.as_bytes(), &parsed, Duration::ZERO);
            assert!(groups.open.len() <= MOST_OPEN);
        }
    }

    proptest! {
        /// However the lines of a few events stand between each other, each event has its own, in
        /// their order.
        #[test]
        fn every_line_comes_out_once_with_its_event(
            order in proptest::collection::vec((0..6_u64, 0..4_usize), 0..80),
        ) {
            let kinds = ["SYSCALL", "EXECVE", "PATH", "CWD"];
            let lines: Vec<String> =
                order.iter().map(|(serial, kind)| line(kinds[*kind], 1000, *serial, "")).collect();
            let mut found = grouped(&lines);
            found.sort();
            let expected: Vec<(u64, Vec<usize>)> = (0..6)
                .map(|serial| {
                    let of = |(index, it): (usize, &(u64, usize))| (it.0 == serial).then_some(index);
                    (serial, order.iter().enumerate().filter_map(of).collect::<Vec<_>>())
                })
                .filter(|(_, lines)| !lines.is_empty())
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
