//! The filters and enrichers that each record passes.

use std::collections::{BTreeSet, HashMap};

use super::{
    filter_chain::{Edited, FilterChain, Outcome},
    group::DroppedPart,
    group_life_cycle::GroupChange,
};
use crate::{
    stages::{Named, Record, enricher::Enricher},
    tail::{FileKey, GenerationId},
};

/// The part of a pipeline that decides about records and adds to them, without I/O.
pub struct RecordStages {
    /// The filters.
    pub filters: FilterChain,
    /// The enrichers, under their instance names.
    pub enrichers: Vec<Named<dyn Enricher>>,
    /// Called with the outcome for each line; used by dry runs.
    pub observer: Option<Observer>,
    /// Dropped lines that have not been read to their end.
    dropped_parts: HashMap<GenerationId, DroppedPart>,
}

/// A callback that receives the outcome for each line.
pub type Observer = Box<dyn FnMut(&Observation<'_, '_>) + Send>;

/// A line, or the first part of a long line, and its outcome.
pub struct Observation<'a, 'l> {
    /// The line.
    pub record: &'a Record<'l>,
    /// Its outcome.
    pub disposition: Disposition<'a>,
}

/// Outcome for a line.
pub enum Disposition<'a> {
    /// The line is empty.
    Blank,
    /// The line is shipped, possibly with edits.
    Shipped(Option<&'a Edited>),
    /// The named filter dropped the line, for the given reason.
    Dropped(&'a str, &'static str),
}

impl RecordStages {
    /// Combines filters and enrichers in the order in which they run.
    #[must_use]
    pub fn new(filters: FilterChain, enrichers: Vec<Named<dyn Enricher>>) -> Self {
        Self { filters, enrichers, observer: None, dropped_parts: HashMap::new() }
    }

    /// Takes over from `old` the filters and enrichers of these names with their memory, the
    /// observer, and the decisions about lines that have not been read to their end.
    pub fn inherit(&mut self, old: Self, filters: &BTreeSet<String>, enrichers: &BTreeSet<String>) {
        self.filters.inherit(old.filters, filters);
        for (name, enricher) in
            old.enrichers.into_iter().filter(|(name, _)| enrichers.contains(name))
        {
            if let Some((_, own)) = self.enrichers.iter_mut().find(|(own, _)| *own == name) {
                *own = enricher;
            }
        }
        self.observer = old.observer;
        self.dropped_parts = old.dropped_parts;
    }

    /// Replaces the decisions about partly read lines with the stored ones.
    pub fn restore(&mut self, dropped_parts: HashMap<GenerationId, DroppedPart>) {
        self.dropped_parts = dropped_parts;
    }

    /// Notifies filters and enrichers about the fate of the records that they have seen.
    pub fn on_group_change(&mut self, change: GroupChange) {
        self.filters.on_group_change(change);
        let enrichers = self.enrichers.iter_mut().map(|(_, enricher)| enricher);
        match change {
            GroupChange::Storing | GroupChange::Stored { all: false } => {}
            GroupChange::Stored { all: true } => enrichers.for_each(|it| it.commit()),
            GroupChange::Lost => enrichers.for_each(|it| it.rollback()),
        }
    }

    /// Notifies filters and enrichers that a file was deleted.
    pub fn forget(&mut self, file: FileKey) {
        self.filters.forget(file);
        self.enrichers.iter_mut().for_each(|(_, enricher)| enricher.forget(file));
    }

    /// Runs the filters on `record` and reports the outcome to the observer.
    pub(super) fn check(&mut self, record: &Record<'_>) -> Outcome {
        let outcome = self.filters.check(record);
        if let Some(observer) = &mut self.observer {
            let disposition = match &outcome {
                Outcome::Drop { stage, reason } => {
                    Disposition::Dropped(self.filters.name(*stage), reason)
                }
                Outcome::Keep(edited) => Disposition::Shipped(edited.as_ref()),
            };
            observer(&Observation { record, disposition });
        }
        outcome
    }

    /// Reports a blank line to the observer.
    pub(super) fn observe_blank<'l>(&mut self, record: impl FnOnce() -> Record<'l>) {
        if let Some(observer) = &mut self.observer {
            observer(&Observation { record: &record(), disposition: Disposition::Blank });
        }
    }

    /// Returns the dropped line of `generation` that starts at `offset`.
    pub(super) fn dropped_part(
        &self,
        generation: &GenerationId,
        offset: u64,
    ) -> Option<&DroppedPart> {
        self.dropped_parts.get(generation).filter(|dropped| dropped.offset == offset)
    }

    /// Sets or clears the dropped line of `generation`. Returns whether that changed anything.
    pub(super) fn set_dropped_part(
        &mut self,
        generation: &GenerationId,
        dropped: Option<DroppedPart>,
    ) -> bool {
        match dropped {
            Some(dropped) => {
                let before = self.dropped_parts.insert(generation.clone(), dropped.clone());
                before.as_ref() != Some(&dropped)
            }
            None => self.dropped_parts.remove(generation).is_some(),
        }
    }
}
