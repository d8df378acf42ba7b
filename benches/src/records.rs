//! Records through filters: scan and verdict, nothing stored.

use ai_agent::{
    pipeline::judge::{Judge, Outcome},
    stages::{Record, StageOptions, filter},
    tail::{Origin, Piece},
};

/// The filters that are always there, in their order.
pub const FILTERS: [&str; 6] =
    ["compact", "dedupe", "ignore-types", "sidechain", "meta", "tool-call"];

/// A judge with these filters, their options as they come.
#[must_use]
pub fn judge(filters: &[&str]) -> Judge {
    let build = |name: &&str| {
        let sample = ai_agent::stages::all().into_iter().find(|stage| stage.name == *name);
        let options = StageOptions::from_toml(sample.map_or("", |stage| stage.sample)).unwrap();
        ((*name).to_owned(), filter::build(name, &options).unwrap())
    };
    Judge::new(filters.iter().map(build).collect())
}

/// Judges each line, and stores them all; how many are kept.
pub fn judge_all(judge: &mut Judge, origin: &Origin, pieces: &[Piece<'_>]) -> usize {
    let kept = pieces
        .iter()
        .filter(|piece| {
            let Piece::Line { offset, bytes, .. } = **piece else { return false };
            let record = Record::new(origin, offset, bytes);
            matches!(judge.judge(&record), Outcome::Keep(_))
        })
        .count();
    judge.take_events();
    judge.commit();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{origin, pieces, session};

    /// A bench of filters that find nothing to do would measure nothing.
    #[test]
    fn each_filter_but_compact_finds_something() {
        let session = session(2 << 20);
        let (origin, pieces) = (origin(), pieces(&session));
        for name in FILTERS.into_iter().skip(1) {
            let mut judge = judge(&[name]);
            let touched = pieces.iter().any(|piece| {
                let Piece::Line { offset, bytes, .. } = *piece else { return false };
                judge.judge(&Record::new(&origin, offset, bytes)) != Outcome::Keep(None)
            });
            assert!(touched, "{name}");
        }
    }
}
