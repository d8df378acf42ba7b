//! What came in a run of power cuts, counted.

use std::collections::BTreeMap;

/// How often each kind of thing happened.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) acts: BTreeMap<&'static str, u64>,
    pub(super) cuts: u64,
    pub(super) cut_while_opening: u64,
    /// Cut while the file was made, with nothing in it yet.
    pub(super) unborn: u64,
    pub(super) found_before: u64,
    pub(super) found_after: u64,
    /// Acknowledgements were stored with something else.
    pub(super) settled_by_the_way: u64,
    pub(super) errors: u64,
    pub(super) cut_in_write: u64,
    pub(super) cut_in_sync: u64,
    pub(super) cut_in_resize: u64,
    pub(super) torn: u64,
    pub(super) reordered: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        for (act, count) in &other.acts {
            *self.acts.entry(act).or_default() += count;
        }
        self.cuts += other.cuts;
        self.cut_while_opening += other.cut_while_opening;
        self.unborn += other.unborn;
        self.found_before += other.found_before;
        self.found_after += other.found_after;
        self.settled_by_the_way += other.settled_by_the_way;
        self.errors += other.errors;
        self.cut_in_write += other.cut_in_write;
        self.cut_in_sync += other.cut_in_sync;
        self.cut_in_resize += other.cut_in_resize;
        self.torn += other.torn;
        self.reordered += other.reordered;
    }

    /// Each kind of thing, and how often it happened.
    pub(super) fn kinds(&self) -> Vec<(&'static str, u64)> {
        let mut kinds: Vec<_> = self.acts.iter().map(|(act, count)| (*act, *count)).collect();
        kinds.extend([
            ("cut while opening", self.cut_while_opening),
            ("cut while the file was made", self.unborn),
            ("found as before", self.found_before),
            ("found as after", self.found_after),
            ("acknowledged by the way", self.settled_by_the_way),
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
