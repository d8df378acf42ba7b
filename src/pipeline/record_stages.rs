//! The filters and enrichers that each record passes.

use std::collections::{BTreeSet, HashMap};

use super::{
    filter_chain::{Edited, FilterChain, Outcome},
    group::DroppedPart,
};
use crate::{
    stages::{Named, Record, enricher::Enricher},
    tail::GenerationId,
};

/// What decides about records and adds to them: the pure part of a pipeline.
pub struct RecordStages {
    /// The filters.
    pub filters: FilterChain,
    /// The enrichers, under their instances' names.
    pub enrichers: Vec<Named<dyn Enricher>>,
    /// Told what became of each line, for a dry run.
    pub observer: Option<Observer>,
    /// Lines in parts whose first part a filter dropped: where they begin, who and why.
    pub(super) dropping: HashMap<GenerationId, DroppedPart>,
}

/// Is told what became of a line.
pub type Observer = Box<dyn FnMut(&Observation<'_, '_>) + Send>;

/// A line, or the first part of a large one, and what became of it.
pub struct Observation<'a, 'l> {
    /// The line.
    pub record: &'a Record<'l>,
    /// What became of it.
    pub disposition: Disposition<'a>,
}

/// What became of a line.
pub enum Disposition<'a> {
    /// Nothing is in it.
    Blank,
    /// It is shipped; after an edit as this.
    Shipped(Option<&'a Edited>),
    /// This filter dropped it, with this reason.
    Dropped(&'a str, &'static str),
}

impl RecordStages {
    /// Filters and enrichers in the order that they run.
    #[must_use]
    pub fn new(filters: FilterChain, enrichers: Vec<Named<dyn Enricher>>) -> Self {
        Self { filters, enrichers, observer: None, dropping: HashMap::new() }
    }

    /// Takes the place of `old`: of its filters these stay, and lines of which it has judged the
    /// first part stay judged.
    pub fn inherit(&mut self, old: Self, filters: &BTreeSet<String>) {
        self.filters.inherit(old.filters, filters);
        self.observer = old.observer;
        self.dropping = old.dropping;
    }

    /// Takes the lines in parts that are being dropped, as they are stored.
    pub fn restore(&mut self, dropping: HashMap<GenerationId, DroppedPart>) {
        self.dropping = dropping;
    }

    pub(super) fn notify_observer(&mut self, record: &Record<'_>, outcome: &Outcome) {
        let Some(observer) = &mut self.observer else { return };
        let disposition = match outcome {
            Outcome::Drop { stage, reason } => {
                Disposition::Dropped(self.filters.name(*stage), reason)
            }
            Outcome::Keep(edited) => Disposition::Shipped(edited.as_ref()),
        };
        observer(&Observation { record, disposition });
    }
}
