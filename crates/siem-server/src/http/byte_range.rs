//! The part of a file that a request selects by `Range`, as RFC 9110 defines it.

use std::ops::Range;

use axum::http::{
    HeaderMap, HeaderValue,
    header::{IF_RANGE, RANGE},
};

/// Part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of it.
    Whole,
    /// These bytes; not empty, and within the file.
    Part(Range<u64>),
    /// Bytes beyond its end.
    Beyond,
}

/// Returns the part of a file of `size` bytes that the headers of a request select.
///
/// Only a single range is supported: a server may ignore the header, and several ranges of one file
/// would make it send more than the file. A range of another version of the file, according to
/// `If-Range`, is ignored too.
pub(super) fn select(headers: &HeaderMap, etag: &str, size: u64) -> Selection {
    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Selection::Whole };
    // Compared strongly: a weak ETag, or a date, does not prove that the bytes are the same.
    if headers.get_all(IF_RANGE).iter().any(|known| known != etag) {
        return Selection::Whole;
    }
    parse(range, size).unwrap_or(Selection::Whole)
}

fn parse(value: &HeaderValue, size: u64) -> Option<Selection> {
    let (unit, range) = value.to_str().ok()?.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (start, end) = match (first, last) {
        ("", suffix) => (size.saturating_sub(number(suffix)?), size),
        (first, "") => (number(first)?, size),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            (first, last.saturating_add(1).min(size))
        }
    };
    Some(if start < end { Selection::Part(start..end) } else { Selection::Beyond })
}

/// Parses digits; a number that is too large for any file is the largest.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selected(headers: &[(&'static str, &str)], size: u64) -> Selection {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        select(&map, "\"e\"", size)
    }

    fn range(value: &str) -> Selection {
        selected(&[("range", value)], 100)
    }

    #[test]
    fn single_range_selects_a_part() {
        assert_eq!(range("bytes=0-9"), Selection::Part(0..10));
        assert_eq!(range("bytes=90-"), Selection::Part(90..100));
        assert_eq!(range("bytes=-1"), Selection::Part(99..100));
        assert_eq!(range("bytes=-1000"), Selection::Part(0..100));
        assert_eq!(range("BYTES=99-99999999999999999999999"), Selection::Part(99..100));
    }

    #[test]
    fn range_beyond_the_end_cannot_be_satisfied() {
        for value in [
            "bytes=100-",
            "bytes=100-200",
            "bytes=-0",
            "bytes=18446744073709551615-18446744073709551615",
            "bytes=99999999999999999999999-",
        ] {
            assert_eq!(range(value), Selection::Beyond, "{value}");
        }
    }

    #[test]
    fn other_ranges_are_ignored() {
        let many = format!("bytes={}", vec!["0-1"; 10_000].join(","));
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=9-1",
            "bytes=+1-2",
            "bytes=0x1-2",
            "lines=0-1",
            "bytes=0-1,5-6",
            "bytes=0-1, -1",
            "bytes=--1",
            &many,
        ] {
            assert_eq!(range(value), Selection::Whole, "{value}");
        }
        assert_eq!(
            selected(&[("range", "bytes=0-1"), ("range", "bytes=0-1")], 9),
            Selection::Whole
        );
        assert_eq!(selected(&[], 9), Selection::Whole);
    }

    #[test]
    fn range_of_another_version_is_ignored() {
        let with = |known: &str| selected(&[("range", "bytes=1-2"), ("if-range", known)], 9);
        assert_eq!(with("\"e\""), Selection::Part(1..3));
        for stale in
            ["\"old\"", "W/\"e\"", "e", "\"e\", \"f\"", "*", "Sun, 29 Nov 2026 10:00:00 GMT"]
        {
            assert_eq!(with(stale), Selection::Whole, "{stale}");
        }
    }

    proptest! {
        #[test]
        fn selected_part_is_within_the_file(value in "bytes=[0-9]{0,21}-[0-9]{0,21}", size in 1u64..1000) {
            if let Selection::Part(part) = selected(&[("range", &value)], size) {
                prop_assert!(part.start < part.end && part.end <= size);
            }
        }

        #[test]
        fn no_header_panics(value in "[ -~]{0,40}", size in 1u64..) {
            selected(&[("range", &value), ("if-range", &value)], size);
        }
    }
}
