//! Collects the lines of one event, which may be interleaved with lines of other events.
//!
//! An event is complete with its `EOE` or its `PROCTITLE`: the kernel writes the latter last, and
//! auditd omits `EOE` from the log. An event with neither ends when the log contains a line of an
//! event two seconds later (the delay of `auparse`), when many later events have started, or when no
//! line has arrived for two seconds.

use std::{collections::VecDeque, time::Duration};

use super::line::{EventId, Line};

/// Maximum time between two lines of one event.
pub const SILENCE: Duration = Duration::from_secs(2);
/// Maximum number of open events.
const MAX_OPEN: usize = 64;
/// Maximum number of bytes of all open events together.
const MAX_BYTES: usize = 4 << 20;

/// Collects the lines of open events; `P` is the position of a line.
#[derive(Debug)]
pub struct EventAssembler<P> {
    open: VecDeque<AuditEvent<P>>,
    bytes: usize,
}

/// The lines of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent<P> {
    /// Identity of the event.
    pub id: EventId,
    /// Lines in the order of the log, each with its position.
    pub lines: Vec<(P, Vec<u8>)>,
    /// Time when the last line was added.
    last_added: Duration,
}

impl<P> Default for EventAssembler<P> {
    fn default() -> Self {
        Self { open: VecDeque::new(), bytes: 0 }
    }
}

impl<P> AuditEvent<P> {
    fn bytes(&self) -> usize {
        self.lines.iter().map(|(_, line)| line.len()).sum()
    }
}

impl<P> EventAssembler<P> {
    /// Adds the next line of the log. Returns the events that it completes or ends.
    pub fn push(
        &mut self,
        place: P,
        line: &[u8],
        parsed: &Line<'_>,
        now: Duration,
    ) -> Vec<AuditEvent<P>> {
        let silence = u64::try_from(SILENCE.as_millis()).unwrap_or(u64::MAX);
        let is_over = |id: &EventId| id.millis.saturating_add(silence) <= parsed.id.millis;
        let mut ended = self.end_where(|event| is_over(&event.id));
        self.adopt(place, line, parsed, now);
        if matches!(parsed.kind, b"EOE" | b"PROCTITLE") {
            ended.extend(self.end_where(|event| event.id == parsed.id));
        }
        while self.open.len() > MAX_OPEN || self.bytes > MAX_BYTES {
            let Some(oldest) = self.open.pop_front() else { break };
            self.bytes -= oldest.bytes();
            ended.push(oldest);
        }
        ended
    }

    /// Adds a line of an event that was open before a restart; ends no event.
    pub fn adopt(&mut self, place: P, line: &[u8], parsed: &Line<'_>, now: Duration) {
        self.bytes += line.len();
        let line = (place, line.to_vec());
        match self.open.iter_mut().rev().find(|event| event.id == parsed.id) {
            Some(event) => {
                event.lines.push(line);
                event.last_added = now;
            }
            None => {
                let id = parsed.id.clone();
                self.open.push_back(AuditEvent { id, lines: vec![line], last_added: now });
            }
        }
    }

    /// Ends the events for which `is_over` returns true, oldest first.
    pub fn end_where(
        &mut self,
        mut is_over: impl FnMut(&AuditEvent<P>) -> bool,
    ) -> Vec<AuditEvent<P>> {
        if !self.open.iter().any(&mut is_over) {
            return Vec::new();
        }
        let (ended, open): (Vec<_>, Vec<_>) = self.open.drain(..).partition(is_over);
        self.open = open.into();
        self.bytes = self.open.iter().map(AuditEvent::bytes).sum();
        ended
    }

    /// Ends the events without a new line for [`SILENCE`]. Must be called only when all lines of the
    /// log have been added.
    pub fn silent(&mut self, now: Duration) -> Vec<AuditEvent<P>> {
        self.end_where(|event| event.last_added + SILENCE <= now)
    }

    /// Time when the next event ends by silence.
    #[must_use]
    pub fn next_silent(&self) -> Option<Duration> {
        self.open.iter().map(|event| event.last_added + SILENCE).min()
    }

    /// Lines of the open events.
    pub fn open(&self) -> impl Iterator<Item = &(P, Vec<u8>)> {
        self.open.iter().flat_map(|event| &event.lines)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(kind: &str, millis: u64, serial: u64, rest: &str) -> String {
        format!("type={kind} msg=audit({}.{:03}:{serial}): {rest}", millis / 1000, millis % 1000)
    }

    /// Adds lines. Returns the events that they end, then those that end by silence.
    fn grouped(lines: &[String]) -> Vec<(u64, Vec<usize>)> {
        let mut assembler = EventAssembler::default();
        let mut ended = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let parsed = Line::parse(line.as_bytes()).unwrap();
            ended.extend(assembler.push(index, line.as_bytes(), &parsed, Duration::ZERO));
        }
        assert_eq!(assembler.silent(SILENCE - Duration::from_millis(1)), []);
        ended.extend(assembler.silent(SILENCE));
        assert_eq!((assembler.open.len(), assembler.bytes), (0, 0));
        let places = |event: AuditEvent<usize>| {
            (event.id.serial, event.lines.into_iter().map(|(place, _)| place).collect())
        };
        ended.into_iter().map(places).collect()
    }

    #[test]
    fn interleaved_events_are_separated() {
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
    fn event_without_end_ends_by_later_event_or_silence() {
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
    fn serial_of_other_time_or_machine_is_another_event() {
        let other = format!("node=b {}", line("SYSCALL", 1000, 7, ""));
        let lines = [line("SYSCALL", 1000, 7, ""), line("SYSCALL", 1001, 7, ""), other];
        assert_eq!(grouped(&lines), [(7, vec![0]), (7, vec![1]), (7, vec![2])]);
    }

    #[test]
    fn open_events_are_limited() {
        let mut assembler = EventAssembler::default();
        let long = "x".repeat(8000);
        let mut most = 0;
        for serial in 0..10_000_u64 {
            let line = line("EXECVE", 1000, serial / 1000, &long);
            let parsed = Line::parse(line.as_bytes()).unwrap();
            assembler.push((), line.as_bytes(), &parsed, Duration::ZERO);
            most = most.max(assembler.bytes);
        }
        assert!(most <= MAX_BYTES, "{most}");
        for serial in 0..10_000 {
            let line = line("SYSCALL", 1000, serial, "");
            let parsed = Line::parse(line.as_bytes()).unwrap();
            assembler.push((), line.as_bytes(), &parsed, Duration::ZERO);
            assert!(assembler.open.len() <= MAX_OPEN);
        }
    }

    proptest! {
        /// Each event has its own lines in their order, however the events are interleaved.
        #[test]
        fn every_line_is_returned_once_with_its_event(
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
