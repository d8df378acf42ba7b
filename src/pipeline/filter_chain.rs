//! Runs records through the filters in order.

use std::collections::{BTreeMap, BTreeSet};

use siem_protocol::{Cut, entry::Masked};

use super::group_life_cycle::GroupChange;
use crate::{
    event::Event,
    stages::{
        Named, Record,
        filter::{Change, Filter, Match, Verdict},
    },
    tail::FileKey,
};

/// The filters in order, under their instance names.
pub struct FilterChain(Vec<Named<dyn Filter>>);

/// Decision of the filters about a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The record is shipped, possibly with edits.
    Keep(Option<Edited>),
    /// The record is dropped.
    Drop {
        /// Index of the filter that dropped it.
        stage: usize,
        /// Reason that the filter gave.
        reason: &'static str,
    },
}

/// An edited record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edited {
    /// The line after all edits.
    pub line: Vec<u8>,
    /// Bytes cut, by filter.
    pub cut: Vec<Cut>,
    /// Matches masked, by filter and pattern.
    pub masked: Vec<Masked>,
    /// Instance name of the filter that made the last edit.
    pub by: String,
}

impl FilterChain {
    /// Creates the chain of filters, in the order in which they run.
    #[must_use]
    pub fn new(filters: Vec<Named<dyn Filter>>) -> Self {
        Self(filters)
    }

    /// Returns the instance name of the filter at index `stage`.
    #[must_use]
    pub fn name(&self, stage: usize) -> &str {
        &self.0[stage].0
    }

    /// Replaces the filters of these names with those of `old`, which keep their memory.
    pub fn inherit(&mut self, old: Self, names: &BTreeSet<String>) {
        for (name, filter) in old.0.into_iter().filter(|(name, _)| names.contains(name)) {
            if let Some((_, own)) = self.0.iter_mut().find(|(own, _)| *own == name) {
                *own = filter;
            }
        }
    }

    /// Runs `record` through the filters. They get the record behind byte order marks, which are kept
    /// in front of an edited line.
    pub fn check(&mut self, record: &Record<'_>) -> Outcome {
        let Some((before, behind)) = record.behind_marks() else {
            return self.check_record(record);
        };
        let mut outcome = self.check_record(&behind);
        if let Outcome::Keep(Some(edited)) = &mut outcome {
            edited.line.splice(..0, record.line()[..before].iter().copied());
        }
        outcome
    }

    fn check_record(&mut self, record: &Record<'_>) -> Outcome {
        let mut edited: Option<Edited> = None;
        for (stage, (name, filter)) in self.0.iter_mut().enumerate() {
            let verdict = match &edited {
                None => filter.check(record),
                Some(edited) => {
                    let (origin, offset) = (record.origin(), record.offset());
                    filter.check(&Record::new(origin, offset, &edited.line))
                }
            };
            let before = edited.as_ref().map_or(record.line(), |edited| &edited.line);
            let line = match &verdict {
                Verdict::Keep => continue,
                Verdict::Drop(reason) => return Outcome::Drop { stage, reason },
                Verdict::Edit(changes, _) => Change::apply_all(before, changes),
                Verdict::Mask(matches) if matches.is_empty() => continue,
                Verdict::Mask(matches) => {
                    Change::apply_all(before, matches.iter().map(|found| &found.change))
                }
                // An unknown verdict must not lose the record.
                _ => None,
            };
            let Some(line) = line else {
                // A defect of a filter must not lose the record: it is kept unedited.
                tracing::error!(
                    code = "filter_ranges_invalid",
                    filter = name,
                    "filter returned ranges outside of the line"
                );
                continue;
            };
            let edited = edited.get_or_insert_default();
            edited.line = line;
            edited.by.clone_from(name);
            match verdict {
                Verdict::Edit(changes, _) => {
                    let bytes = changes.iter().map(|change| change.range.len() as u64).sum();
                    edited.cut.push(Cut { by: name.clone(), bytes });
                }
                Verdict::Mask(matches) => edited.masked.extend(counted(name, &matches)),
                _ => {}
            }
        }
        Outcome::Keep(edited)
    }

    /// Notifies the filters about the fate of the records that they have checked. A filter learns that
    /// records are stored once all of them are: its memory may be of any of them.
    pub fn on_group_change(&mut self, change: GroupChange) {
        match change {
            GroupChange::Storing | GroupChange::Stored { all: false } => {}
            GroupChange::Stored { all: true } => self.0.iter_mut().for_each(|(_, it)| it.commit()),
            GroupChange::Lost => self.0.iter_mut().for_each(|(_, it)| it.rollback()),
        }
    }

    /// Notifies the filters that a file was deleted.
    pub fn forget(&mut self, file: FileKey) {
        self.0.iter_mut().for_each(|(_, filter)| filter.forget(file));
    }

    /// Takes the events that the filters report.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.0.iter_mut().flat_map(|(_, filter)| filter.take_events()).collect()
    }
}

/// Counts the matches of each pattern.
fn counted(by: &str, matches: &[Match]) -> Vec<Masked> {
    let mut counts = BTreeMap::<&str, u64>::new();
    for found in matches {
        *counts.entry(&found.pattern).or_default() += 1;
    }
    let masked = |(pattern, count): (&str, u64)| Masked {
        by: by.to_owned(),
        pattern: pattern.to_owned(),
        count,
    };
    counts.into_iter().map(masked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::{StageOptions, filter};

    fn chain(names: &[&str]) -> FilterChain {
        let options: StageOptions = "".parse().unwrap();
        FilterChain::new(
            names
                .iter()
                .map(|name| ((*name).to_owned(), filter::build(name, &options).unwrap()))
                .collect(),
        )
    }

    #[test]
    fn first_drop_decides() {
        let mut chain = chain(&["meta", "sidechain"]);
        let both = Record::from_line(br#"{"isSidechain":true,"isMeta":true}"#);
        assert_eq!(chain.check(&both), Outcome::Drop { stage: 0, reason: "meta" });
        let one = Record::from_line(br#"{"isSidechain":true}"#);
        assert_eq!(chain.check(&one), Outcome::Drop { stage: 1, reason: "sidechain" });
        assert_eq!(chain.check(&Record::from_line(b"{}")), Outcome::Keep(None));
    }

    /// A byte order mark hid a record from all filters: one that must not leave the machine was
    /// shipped.
    #[test]
    fn record_behind_a_byte_order_mark_is_checked() {
        let mut chain = chain(&["meta", "mask"]);
        let line = "\u{feff}{\"isMeta\":true}";
        let outcome = chain.check(&Record::from_line(line.as_bytes()));
        assert_eq!(outcome, Outcome::Drop { stage: 0, reason: "meta" });
        let line = "\u{feff}{\"k\":\"AKIAIOSFODNN7EXAMPLE\"}";
        let Outcome::Keep(Some(edited)) = chain.check(&Record::from_line(line.as_bytes())) else {
            panic!("not masked")
        };
        let expected = "\u{feff}{\"k\":\"[masked:aws-access-key]\"}";
        assert_eq!(String::from_utf8_lossy(&edited.line), expected);
        assert_eq!(chain.check(&Record::from_line("\u{feff}{}".as_bytes())), Outcome::Keep(None));
        let part = "\u{feff}{\"isMeta\":true,\"text\":\"";
        let part = Record::first_part(Record::from_line(b"").origin(), 0, part.as_bytes());
        assert_eq!(chain.check(&part), Outcome::Drop { stage: 0, reason: "meta" });
    }

    #[test]
    fn later_filters_see_the_edited_line() {
        struct Blank;
        impl Filter for Blank {
            fn check(&mut self, record: &Record<'_>) -> Verdict {
                let length = record.line().len();
                Verdict::Edit(vec![Change { range: 0..length, with: b"{}".to_vec() }], "blanked")
            }
        }
        let mut chain = chain(&["meta"]);
        chain.0.insert(0, ("blank".into(), Box::new(Blank)));
        let record = Record::from_line(br#"{"isMeta":true}"#);
        let Outcome::Keep(Some(edited)) = chain.check(&record) else { panic!() };
        assert_eq!(edited.line, b"{}");
        assert_eq!(edited.cut, [Cut { by: "blank".into(), bytes: 15 }]);
    }

    #[test]
    fn masks_and_cuts_are_counted_separately_in_any_order() {
        let key = "AKIAIOSFODNN7EXAMPLE";
        let content = |call: &str, text: &str| {
            format!(r#"{{"message":{{"content":[{call}{{"type":"text","k":"{text}"}}]}}}}"#)
        };
        let call = format!(r#"{{"type":"tool_use","k":"{key}"}},"#);
        let line = content(&call, &format!("{key}, {key}"));
        for (names, count) in [(["mask", "tool-call"], 3), (["tool-call", "mask"], 2)] {
            let outcome = chain(&names).check(&Record::from_line(line.as_bytes()));
            let Outcome::Keep(Some(edited)) = outcome else { panic!() };
            let mark = "[masked:aws-access-key]";
            let expected = content("", &format!("{mark}, {mark}"));
            assert_eq!(String::from_utf8_lossy(&edited.line), expected);
            let pattern = "aws-access-key".to_owned();
            assert_eq!(edited.masked, [Masked { by: "mask".into(), pattern, count }]);
            assert_eq!(edited.cut.len(), 1);
            assert_eq!(edited.by, names[1]);
        }
    }
}
