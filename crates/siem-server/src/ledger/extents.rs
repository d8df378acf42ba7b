//! A set of numbers as ranges, each with the position of its values.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::change::LARGEST;

/// Numbers from `first` to `last`, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Range {
    /// Lowest number.
    pub first: u64,
    /// Highest number.
    pub last: u64,
}

impl<'de> Deserialize<'de> for Range {
    /// Accepts no range that ends before it begins: its length could not be computed.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Ends {
            first: u64,
            last: u64,
        }
        let Ends { first, last } = Ends::deserialize(deserializer)?;
        if first == 0 || first > last || last > LARGEST {
            return Err(D::Error::custom("not a range of numbers"));
        }
        Ok(Self { first, last })
    }
}

impl Range {
    /// Returns the length of the range.
    #[must_use]
    pub fn count(self) -> u64 {
        self.last - self.first + 1
    }
}

/// A range whose values are stored consecutively.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The numbers.
    pub range: Range,
    /// Position of the first number's value.
    pub at: u64,
}

/// A set of numbers, each with the position of its value. Memory grows with the number of ranges,
/// not of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// Last number and position, by first number. Ranges do not overlap.
    runs: BTreeMap<u64, (u64, u64)>,
    count: u64,
}

impl Extents {
    /// Adds a range whose values start at `at`. None of its numbers may be in the set.
    pub fn insert(&mut self, range: Range, at: u64) {
        debug_assert_eq!(self.missing(range), [range], "numbers are added once");
        self.count += range.count();
        let (mut first, mut last, mut start) = (range.first, range.last, at);
        if let Some((&before, &(before_last, before_at))) = self.runs.range(..first).next_back()
            && before_last + 1 == first
            && before_at + (first - before) == start
        {
            (first, start) = (before, before_at);
        }
        if let Some(&(after_last, after_at)) = self.runs.get(&(range.last + 1))
            && at + range.count() == after_at
        {
            self.runs.remove(&(range.last + 1));
            last = after_last;
        }
        self.runs.insert(first, (last, start));
    }

    /// Removes the numbers of a range that are in the set.
    pub fn remove(&mut self, range: Range) {
        for extent in self.overlaps(range) {
            let Some((&first, &(last, at))) = self.runs.range(..=extent.range.first).next_back()
            else {
                continue;
            };
            self.runs.remove(&first);
            if first < extent.range.first {
                self.runs.insert(first, (extent.range.first - 1, at));
            }
            if extent.range.last < last {
                let next = extent.range.last + 1;
                self.runs.insert(next, (last, at + (next - first)));
            }
            self.count -= extent.range.count();
        }
    }

    /// Position of the value of `seq`; `None` if the number is not in the set.
    #[must_use]
    pub fn at(&self, seq: u64) -> Option<u64> {
        let (&first, &(last, at)) = self.runs.range(..=seq).next_back()?;
        (seq <= last).then(|| at + (seq - first))
    }

    /// Parts of `range` that are in the set, in order.
    #[must_use]
    pub fn overlaps(&self, range: Range) -> Vec<Extent> {
        self.overlapping(range).collect()
    }

    fn overlapping(&self, range: Range) -> impl Iterator<Item = Extent> {
        let start =
            self.runs.range(..range.first).next_back().map_or(range.first, |(&first, _)| first);
        let runs = self.runs.range(start..=range.last);
        runs.filter(move |(_, (last, _))| *last >= range.first).map(move |(&first, &(last, at))| {
            let low = first.max(range.first);
            let range = Range { first: low, last: last.min(range.last) };
            Extent { range, at: at + (low - first) }
        })
    }

    /// Returns how many numbers of `range` are not in the set.
    #[must_use]
    pub fn count_missing(&self, range: Range) -> u64 {
        range.count() - self.overlapping(range).map(|extent| extent.range.count()).sum::<u64>()
    }

    /// Parts of `range` that are not in the set, in order.
    #[must_use]
    pub fn missing(&self, range: Range) -> Vec<Range> {
        let mut missing = Vec::new();
        let mut next = range.first;
        for extent in self.overlaps(range) {
            if next < extent.range.first {
                missing.push(Range { first: next, last: extent.range.first - 1 });
            }
            next = extent.range.last + 1;
        }
        if next <= range.last {
            missing.push(Range { first: next, last: range.last });
        }
        missing
    }

    /// Returns the lowest number in the set.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.runs.keys().next().copied()
    }

    /// Returns the number of elements of the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The numbers as the smallest number of ranges, regardless of their positions.
    #[must_use]
    pub fn ranges(&self) -> Vec<Range> {
        let mut ranges: Vec<Range> = Vec::new();
        for (&first, &(last, _)) in &self.runs {
            match ranges.last_mut() {
                Some(range) if range.last + 1 == first => range.last = last,
                _ => ranges.push(Range { first, last }),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn range(first: u64, last: u64) -> Range {
        Range { first, last }
    }

    #[test]
    fn ordered_ranges_form_one_run() {
        let mut extents = Extents::default();
        for block in 0..1000 {
            extents.insert(range(block * 100 + 1, block * 100 + 100), block * 100);
        }
        assert_eq!(extents.runs.len(), 1);
        assert_eq!(extents.ranges(), [range(1, 100_000)]);
    }

    #[test]
    fn neighbours_with_separate_values_stay_separate() {
        let mut extents = Extents::default();
        extents.insert(range(1, 5), 0);
        extents.insert(range(9, 12), 5);
        extents.insert(range(6, 8), 9);
        assert_eq!(extents.runs.len(), 3);
        assert_eq!(extents.ranges(), [range(1, 12)]);
        assert_eq!((extents.at(6), extents.at(9), extents.at(13)), (Some(9), Some(5), None));
    }

    proptest! {
        /// Compares the set with a plain map from number to position.
        #[test]
        fn extents_equal_a_plain_map(
            steps in prop::collection::vec((any::<bool>(), 1u64..60, 0u64..12), 0..40),
            ask in (1u64..70, 0u64..20)
        ) {
            let mut extents = Extents::default();
            let mut plain = BTreeMap::new();
            let mut place = 0;
            for (add, first, more) in steps {
                let whole = range(first, first + more);
                if !add {
                    extents.remove(whole);
                    plain.retain(|seq, _| *seq < whole.first || *seq > whole.last);
                    continue;
                }
                for part in extents.missing(whole) {
                    extents.insert(part, place);
                    for seq in part.first..=part.last {
                        prop_assert_eq!(plain.insert(seq, place), None);
                        place += 1;
                    }
                }
            }
            prop_assert_eq!(extents.count(), plain.len() as u64);
            for seq in 0..80 {
                prop_assert_eq!(extents.at(seq), plain.get(&seq).copied());
            }
            let queried = range(ask.0, ask.0 + ask.1);
            let there: Vec<_> = extents.overlaps(queried).into_iter()
                .flat_map(|extent| (0..extent.range.count()).map(move |i| (extent.range.first + i, extent.at + i)))
                .collect();
            let expected: Vec<_> = plain.range(queried.first..=queried.last).map(|(a, b)| (*a, *b)).collect();
            prop_assert_eq!(there, expected);
            let missing: Vec<_> = extents.missing(queried).into_iter().flat_map(|r| r.first..=r.last).collect();
            let expected: Vec<_> = (queried.first..=queried.last).filter(|seq| !plain.contains_key(seq)).collect();
            prop_assert_eq!(extents.count_missing(queried), expected.len() as u64);
            prop_assert_eq!(missing, expected);
            let ranges = extents.ranges();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
            prop_assert_eq!(ranges.into_iter().flat_map(|r| r.first..=r.last).collect::<Vec<_>>(), plain.into_keys().collect::<Vec<_>>());
        }
    }
}
