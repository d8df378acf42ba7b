//! Filtering records: scan and verdict, without storing.

use std::hint::black_box;

use ai_agent::internals::{
    pipeline::{
        filter_chain::{FilterChain, Outcome},
        group_life_cycle::GroupChange,
    },
    stages::{Record, StageOptions, enricher::Enricher, filter},
    tail::{Origin, Piece},
};

/// The built-in filters, in their order.
pub const FILTERS: [&str; 6] =
    ["compact", "dedupe", "ignore-types", "sidechain", "meta", "tool-call"];

/// Builds a chain of these filters, with the options of their samples.
#[must_use]
pub fn filter_chain(filters: &[&str]) -> FilterChain {
    let build = |name: &&str| {
        let sample =
            ai_agent::internals::stages::all().into_iter().find(|stage| stage.name == *name);
        let options: StageOptions = sample.map_or("", |stage| stage.sample).parse().unwrap();
        ((*name).to_owned(), filter::build(name, &options).unwrap())
    };
    FilterChain::new(filters.iter().map(build).collect())
}

/// Filters each line, reports all as stored, and returns the number of kept lines.
pub fn check_all(filters: &mut FilterChain, origin: &Origin, pieces: &[Piece<'_>]) -> usize {
    let kept = pieces
        .iter()
        .filter(|piece| {
            let Piece::Line { offset, bytes, .. } = **piece else { return false };
            let record = Record::new(origin, offset, bytes);
            matches!(filters.check(&record), Outcome::Keep(_))
        })
        .count();
    filters.take_events();
    filters.on_group_change(GroupChange::Stored { all: true });
    kept
}

/// Builds the enricher `activity`.
#[must_use]
pub fn activity() -> Box<dyn Enricher> {
    let context = ai_agent_stage::testing::context().into();
    ai_agent_stage::build_enricher("activity", &"".parse::<StageOptions>().unwrap(), &context)
        .unwrap()
}

/// Passes each line to the enricher as the pipeline does, reports all as stored, and returns the
/// number of bytes that it adds.
pub fn enrich_all(enricher: &mut dyn Enricher, origin: &Origin, pieces: &[Piece<'_>]) -> usize {
    let (mut json, mut added) = (String::new(), 0);
    for piece in pieces {
        let Piece::Line { offset, bytes, .. } = *piece else { continue };
        json.clear();
        enricher.append(&Record::new(origin, offset, bytes), &mut json);
        added += black_box(&json).len();
    }
    enricher.commit();
    added
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{origin, pieces, session};

    #[test]
    fn activity_adds_an_object_to_most_records() {
        let session = session(2 << 20);
        let (origin, pieces) = (origin(), pieces(&session));
        let added = enrich_all(&mut *activity(), &origin, &pieces);
        assert!(added > 200 * pieces.len(), "{added} bytes to {} records", pieces.len());
    }

    /// Filters that match no line would make the bench meaningless.
    #[test]
    fn each_filter_but_compact_finds_something() {
        let session = session(2 << 20);
        let (origin, pieces) = (origin(), pieces(&session));
        for name in FILTERS.into_iter().skip(1) {
            let mut filters = filter_chain(&[name]);
            let touched = pieces.iter().any(|piece| {
                let Piece::Line { offset, bytes, .. } = *piece else { return false };
                filters.check(&Record::new(&origin, offset, bytes)) != Outcome::Keep(None)
            });
            assert!(touched, "{name}");
        }
    }
}
