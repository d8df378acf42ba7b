//! Filters decide about one record: keep it, drop it, or edit it.

mod compact;
mod dedupe;
mod expression;
mod ignore_types;
mod mask;
mod meta;
mod path;
mod pattern;
mod sidechain;
mod tool_call;

use std::{ops::Range, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};

pub use super::Record;
use super::{BuildError, Descriptor, Kind, StageOptions};
use crate::{event::Event, tail::FileKey};

/// Decides about records, one at a time, in the order of their file.
///
/// A filter is pure: no I/O, no clock, no thread, no panic. Two instances of one stage share
/// nothing. Filters run in the order of `pipeline.filters`; after a [`Verdict::Drop`] the rest is
/// not asked, after a [`Verdict::Edit`] or [`Verdict::Mask`] it sees the edited line.
///
/// Records are stored in groups. A filter that remembers something remembers it for good only when
/// its group is stored: [`commit`](Self::commit) says so, and [`rollback`](Self::rollback) says
/// that the group was not stored and that its records will come again.
pub trait Filter: Send {
    /// Decides about `record`.
    fn check(&mut self, record: &Record<'_>) -> Verdict;

    /// The records checked since the last call of this or of [`rollback`](Self::rollback) are
    /// stored.
    fn commit(&mut self) {}

    /// The records checked since the last call of this or of [`commit`](Self::commit) were not
    /// stored: forget them.
    fn rollback(&mut self) {}

    /// The file is gone: what is remembered of it may be freed.
    fn forget(&mut self, _file: FileKey) {}

    /// Takes what the filter wants to report about the records checked since the last call. The
    /// events are stored with them.
    fn take_events(&mut self) -> Vec<Event> {
        Vec::new()
    }
}

/// What a filter decides, with its reason: a short word in snake_case that records are counted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The record goes on as it is.
    Keep,
    /// The record ends here.
    Drop(&'static str),
    /// Ranges of the line are cut out or replaced, and the record goes on. The entry says how many
    /// bytes went, and carries the hash of the original line.
    Edit(Vec<Change>, &'static str),
    /// Marks take the place of what must not be seen, and the record goes on. The entry says which
    /// pattern matched how often, and carries the hash of the original line.
    Mask(Vec<Match>),
}

/// What a pattern matched, and the mark that takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The pattern's name.
    pub pattern: Arc<str>,
    /// The range and the mark. Ranges of one verdict are in order and do not overlap.
    pub change: Change,
}

/// A range of the line and what takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Bytes of the line. Ranges of one edit are in order and do not overlap.
    pub range: Range<usize>,
    /// What stands there afterwards; empty cuts the range out.
    pub with: Vec<u8>,
}

impl Change {
    /// Cuts `range` out.
    #[must_use]
    pub fn cut(range: Range<usize>) -> Self {
        Self { range, with: Vec::new() }
    }
}

/// What becomes of a record that a filter cannot judge: an option of filters that need the whole
/// record, since one that is too large is only seen in part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// It goes on as it is.
    #[default]
    Keep,
    /// It ends here.
    Drop,
}

impl Fallback {
    /// The verdict, with the `reason` that a dropped record is counted by.
    #[must_use]
    pub fn verdict(self, reason: &'static str) -> Verdict {
        match self {
            Self::Keep => Verdict::Keep,
            Self::Drop => Verdict::Drop(reason),
        }
    }
}

/// A filter's options: its table, read and checked by serde, and made into a filter.
pub trait FilterOptions: DeserializeOwned + JsonSchema {
    /// What they make.
    type Filter: Filter + 'static;

    /// Makes the filter. Costly work (compiling patterns) happens here, once; no I/O.
    ///
    /// # Errors
    /// [`BuildError::Invalid`] when the options can't work together.
    fn build(self) -> Result<Self::Filter, BuildError>;
}

/// A filter's entry in the registry.
pub struct FilterPlugin {
    pub(super) descriptor: Descriptor,
    build: fn(&StageOptions) -> Result<Box<dyn Filter>, BuildError>,
}

inventory::collect!(FilterPlugin);

impl FilterPlugin {
    /// Registers a filter of type `name`; see [`Descriptor`] for the rest.
    #[must_use]
    pub const fn new<O: FilterOptions>(
        name: &'static str,
        summary: &'static str,
        sample: &'static str,
    ) -> Self {
        let descriptor = Descriptor::new::<O>(Kind::Filter, name, summary, sample);
        Self { descriptor, build: build_from::<O> }
    }
}

fn build_from<O: FilterOptions>(options: &StageOptions) -> Result<Box<dyn Filter>, BuildError> {
    Ok(Box::new(super::parse::<O>(options)?.build()?))
}

/// Builds a filter of type `name`.
///
/// # Errors
/// [`BuildError`] when there is no such type or an option is wrong.
pub fn build(name: &str, options: &StageOptions) -> Result<Box<dyn Filter>, BuildError> {
    let plugins = inventory::iter::<FilterPlugin>.into_iter();
    let plugin = super::find(Kind::Filter, name, plugins, |plugin| &plugin.descriptor)?;
    (plugin.build)(options)
}

/// Builds a filter from TOML text: for its tests.
///
/// # Errors
/// [`BuildError`] when an option is wrong.
pub fn from_toml<O: FilterOptions>(text: &str) -> Result<O::Filter, BuildError> {
    super::parse::<O>(&StageOptions::from_toml(text)?)?.build()
}
