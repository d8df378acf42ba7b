//! Bytes that wait for delivery, by sink.
//!
//! Known in memory only: how large the stored entries are, in steps. Within a step entries count as
//! equally large, and so do those that were in the store when it was opened.

use std::collections::{BTreeMap, VecDeque};

/// Size from which a step is not extended, so that their number is bounded by the size of the
/// outbox.
const STEP_BYTES: u64 = 256 << 10;

/// Delivery to one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkBacklog {
    /// Instance name of the sink.
    pub name: String,
    /// Bytes that it has acknowledged, counted from any time: only differences have a meaning.
    pub acknowledged: u64,
    /// Bytes that it has not acknowledged.
    pub waiting: u64,
}

/// Stored bytes by sequence number.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    epoch: String,
    /// Value of `OutboxState::appended` at the last update.
    appended: u64,
    /// Last number before the first step, once `has_start`.
    start_seq: u64,
    has_start: bool,
    /// Bytes before the first step.
    start: u64,
    steps: VecDeque<Step>,
    /// Last number that each sink acknowledged, if known.
    acknowledged: BTreeMap<String, u64>,
}

/// Consecutive entries.
#[derive(Clone, Copy, Debug)]
struct Step {
    last_seq: u64,
    /// Bytes up to its end.
    end: u64,
}

impl Backlog {
    /// Updates the end of the outbox: `appended` bytes were appended since the store was opened, and
    /// `stored` bytes are in it.
    pub(super) fn update(&mut self, epoch: &str, last_seq: u64, appended: u64, stored: u64) {
        if epoch != self.epoch || appended < self.appended {
            let epoch = epoch.to_owned();
            *self = Self { epoch, appended, ..Self::default() };
            self.push(last_seq, stored);
        } else if appended > self.appended {
            self.push(last_seq, appended - self.appended);
            self.appended = appended;
        }
    }

    fn push(&mut self, last_seq: u64, bytes: u64) {
        let end = self.end() + bytes;
        let before = self.steps.iter().rev().nth(1).map_or(self.start, |step| step.end);
        match self.steps.back_mut() {
            Some(step) if step.end - before < STEP_BYTES => *step = Step { last_seq, end },
            _ => self.steps.push_back(Step { last_seq, end }),
        }
    }

    fn end(&self) -> u64 {
        self.steps.back().map_or(self.start, |step| step.end)
    }

    /// Bytes that were appended since the store was opened.
    pub(super) fn appended(&self) -> u64 {
        self.appended
    }

    /// Last number that a sink acknowledged, if known.
    pub(super) fn acknowledged(&self, sink: &str) -> Option<u64> {
        self.acknowledged.get(sink).copied()
    }

    /// Records that a sink has acknowledged everything up to `seq` of `epoch`, or was sent it.
    pub(super) fn acknowledge(&mut self, sink: &str, epoch: &str, seq: u64) {
        if epoch == self.epoch {
            let known = self.acknowledged.entry(sink.to_owned()).or_default();
            *known = seq.max(*known);
        }
    }

    /// Bytes up to the entry `seq`.
    fn bytes_through(&self, seq: u64) -> u64 {
        let at = self.steps.partition_point(|step| step.last_seq < seq);
        let Some(step) = self.steps.get(at) else { return self.end() };
        let before = at.checked_sub(1).and_then(|at| self.steps.get(at));
        let (from_seq, from) =
            before.map_or((self.start_seq, self.start), |step| (step.last_seq, step.end));
        let entries = u128::from(step.last_seq.saturating_sub(from_seq)).max(1);
        let part = u128::from(seq.saturating_sub(from_seq));
        let bytes = u128::from(step.end - from) * part / entries;
        from + u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Forgets steps that all `sinks` have acknowledged, and returns the state of each.
    pub(super) fn of_sinks(&mut self, sinks: Vec<(String, u64)>) -> Vec<SinkBacklog> {
        let slowest = sinks.iter().map(|(_, seq)| *seq).min().unwrap_or_default();
        if !self.has_start {
            // What the store contained when it was opened starts behind the slowest sink. Later the
            // first step may be acknowledged without others behind it.
            (self.start_seq, self.has_start) = (slowest, true);
        }
        while self.steps.len() > 1 && self.steps.front().is_some_and(|it| it.last_seq <= slowest) {
            let Some(Step { last_seq, end }) = self.steps.pop_front() else { break };
            (self.start_seq, self.start) = (last_seq, end);
        }
        let end = self.end();
        let state = |(name, seq)| {
            let acknowledged = self.bytes_through(seq);
            SinkBacklog { name, acknowledged, waiting: end - acknowledged.min(end) }
        };
        sinks.into_iter().map(state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(backlog: &mut Backlog, seqs: &[u64]) -> Vec<u64> {
        let sinks = seqs.iter().map(|seq| (format!("s{seq}"), *seq)).collect();
        backlog.of_sinks(sinks).into_iter().map(|sink| sink.waiting).collect()
    }

    #[test]
    fn first_step_can_be_acknowledged_alone() {
        let mut backlog = Backlog::default();
        backlog.update("e", 0, 0, 0);
        assert_eq!(waiting(&mut backlog, &[0]), [0]);
        backlog.update("e", 4, 2_000_000, 2_000_000);
        assert_eq!(waiting(&mut backlog, &[0]), [2_000_000]);
        assert_eq!(waiting(&mut backlog, &[2]), [1_000_000]);
        assert_eq!(waiting(&mut backlog, &[4]), [0]);
    }

    #[test]
    fn waiting_bytes_are_counted_from_the_acknowledged_entry() {
        let mut backlog = Backlog::default();
        backlog.update("e", 0, 0, 0);
        backlog.update("e", 10, 1_000_000, 0);
        backlog.update("e", 20, 3_000_000, 0);
        assert_eq!(
            waiting(&mut backlog, &[0, 5, 10, 15, 20]),
            [3_000_000, 2_500_000, 2_000_000, 1_000_000, 0]
        );
        assert_eq!(waiting(&mut backlog, &[15]), [1_000_000], "the first step is forgotten");
        backlog.update("e", 21, 3_000_100, 0);
        assert_eq!(waiting(&mut backlog, &[20, 21]), [100, 0]);
    }

    #[test]
    fn bytes_in_an_opened_store_start_behind_the_slowest_sink() {
        let mut backlog = Backlog::default();
        backlog.update("e", 200, 0, 1_000_000);
        assert_eq!(waiting(&mut backlog, &[100, 150]), [1_000_000, 500_000]);
        // Opened again after an error, and renumbered.
        backlog.update("e", 210, 7, 7);
        backlog.update("e", 220, 0, 2_000_000);
        assert_eq!(waiting(&mut backlog, &[120]), [2_000_000]);
        backlog.acknowledge("siem", "e", 220);
        backlog.update("f", 100, 0, 3_000_000);
        backlog.acknowledge("siem", "e", 220);
        assert!(backlog.acknowledged.is_empty());
        assert_eq!(waiting(&mut backlog, &[0]), [3_000_000]);
    }

    #[test]
    fn many_small_groups_take_few_steps() {
        let mut backlog = Backlog::default();
        for n in 1..=100_000 {
            backlog.update("e", n, n * 100, 0);
        }
        assert!(backlog.steps.len() < 50, "{}", backlog.steps.len());
        assert_eq!(waiting(&mut backlog, &[50_000]), [5_000_000]);
    }
}
