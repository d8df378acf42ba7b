//! The stage API of `ai-agent`.
//!
//! A pipeline is made of stages: a [`Source`] reads records from the machine, a [`Filter`] keeps,
//! drops or edits each record, an [`Enricher`] adds facts to the entry around it, and a [`Sink`]
//! delivers batches of entries. A stage is usually one file: its options, its registration and its
//! behaviour. It registers itself with `inventory::submit!`, so that adding one needs no second edit.
//!
//! ```
//! use ai_agent_stage::{
//!     BuildError, Filter, FilterOptions, Plugin, Record, Verdict, inventory,
//!     schemars::{self, JsonSchema},
//!     serde::{self, Deserialize},
//!     testing::{FilterTest, Filtered},
//! };
//!
//! inventory::submit! {
//!     Plugin::filter::<SkipType>("skip-type", "Drops records of one type.", r#"
//! ## Value of the record's `type` field to drop.
//! skip = "progress"
//! "#)
//! }
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(crate = "serde", deny_unknown_fields)]
//! #[schemars(crate = "schemars")]
//! struct SkipType {
//!     /// Value of the record's `type` field to drop.
//!     skip: String,
//! }
//!
//! impl FilterOptions for SkipType {
//!     type Filter = Self;
//!
//!     fn build(self) -> Result<Self, BuildError> {
//!         Ok(self)
//!     }
//! }
//!
//! impl Filter for SkipType {
//!     fn check(&mut self, record: &Record<'_>) -> Verdict {
//!         match record.kind() {
//!             Some(kind) if kind == self.skip => Verdict::Drop("skipped_type"),
//!             _ => Verdict::Keep,
//!         }
//!     }
//! }
//!
//! let mut filter = FilterTest::new("skip-type", r#"skip = "progress""#)?;
//! assert_eq!(filter.line(r#"{"type":"progress"}"#), Filtered::Dropped("skipped_type"));
//! assert_eq!(filter.line(r#"{"type":"user"}"#), Filtered::Kept);
//! # Ok::<(), BuildError>(())
//! ```
//!
//! The binary that runs the stage depends on `ai-agent` and on the stage's crate, and names the
//! crate once (`use my_stages as _;`): without that line the linker leaves it out.

mod chunk;
mod clock;
mod context;
mod enricher;
mod filter;
mod options;
mod record;
mod registry;
mod reported_event;
mod sink;
mod source;
pub mod testing;

pub use chunk::{
    BadRow, BlockUpdate, Chunk, FileKey, GenerationId, Intake, Origin, Piece, Progress, Survey,
};
pub use clock::{Clock, Timestamp};
pub use context::{Context, ContextParts, LogOpener};
pub use enricher::{Enricher, EnricherOptions};
pub use filter::{Change, Fallback, Filter, FilterOptions, Match, Verdict};
pub use options::{OptionError, StageOptions};
pub use record::Record;
pub use registry::{
    BuildError, Plugin, StageKind, build_enricher, build_filter, build_sink, build_source,
    did_you_mean, registered, sink_files,
};
pub use reported_event::Event;
pub use siem_protocol as protocol;
pub use siem_protocol::delivery::{Acknowledged, Delivery, EntryResult, Rest};
pub use sink::{Batch, BatchBody, DeliveryFuture, ProbeFuture, Sink, SinkOptions};
pub use source::{Source, SourceOptions, Waker};
/// Crates that a stage is written with: a stage's crate needs no dependency but this one.
pub use {inventory, schemars, serde, serde_json};
