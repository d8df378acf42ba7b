//! Counters of a run of power cuts.

use std::collections::BTreeMap;

/// Number of events of each kind.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) operations: BTreeMap<&'static str, u64>,
    pub(super) cuts: u64,
    pub(super) cut_while_opening: u64,
    /// Cuts while the file was created, with nothing in it yet.
    pub(super) unborn: u64,
    pub(super) found_before: u64,
    pub(super) found_after: u64,
    /// Acknowledgements that were stored with another operation.
    pub(super) acks_stored_with_commit: u64,
    pub(super) errors: u64,
    pub(super) cut_in_write: u64,
    pub(super) cut_in_sync: u64,
    pub(super) cut_in_resize: u64,
    pub(super) torn: u64,
    pub(super) reordered: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        for (operation, count) in &other.operations {
            *self.operations.entry(operation).or_default() += count;
        }
        self.cuts += other.cuts;
        self.cut_while_opening += other.cut_while_opening;
        self.unborn += other.unborn;
        self.found_before += other.found_before;
        self.found_after += other.found_after;
        self.acks_stored_with_commit += other.acks_stored_with_commit;
        self.errors += other.errors;
        self.cut_in_write += other.cut_in_write;
        self.cut_in_sync += other.cut_in_sync;
        self.cut_in_resize += other.cut_in_resize;
        self.torn += other.torn;
        self.reordered += other.reordered;
    }

    /// Returns the number of events by kind.
    pub(super) fn kinds(&self) -> Vec<(&'static str, u64)> {
        let mut kinds: Vec<_> =
            self.operations.iter().map(|(operation, count)| (*operation, *count)).collect();
        kinds.extend([
            ("cut while opening", self.cut_while_opening),
            ("cut while the file was created", self.unborn),
            ("found as before", self.found_before),
            ("found as after", self.found_after),
            ("acknowledgement stored with an operation", self.acks_stored_with_commit),
            ("I/O error, power on", self.errors),
            ("cut in a write", self.cut_in_write),
            ("cut in a sync", self.cut_in_sync),
            ("cut in a resize", self.cut_in_resize),
            ("write torn", self.torn),
            ("writes reordered", self.reordered),
        ]);
        kinds
    }
}
