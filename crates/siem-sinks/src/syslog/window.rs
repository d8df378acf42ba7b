//! Entries that were written to a connection without acknowledgements and may still be lost.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Size of the window. An entry counts as delivered when it has left the window and the receiver's
/// system has acknowledged its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Number of bytes written after the entry.
    pub bytes: u64,
    /// Time since the entry was written.
    pub time: Duration,
}

impl Default for WindowSize {
    /// 1 MiB and 30 s: whatever comes first.
    fn default() -> Self {
        Self { bytes: 1 << 20, time: Duration::from_secs(30) }
    }
}

/// Entries written to one connection.
#[derive(Debug)]
pub(super) struct Window {
    size: WindowSize,
    /// Number of bytes encoded for the connection.
    encoded: u64,
    /// Number of bytes of `encoded` that were written to the connection.
    written: u64,
    /// Number of bytes on the TCP connection that the receiver's system has acknowledged.
    acknowledged: u64,
    /// The entries by number. One may be written after entries with larger numbers.
    entries: BTreeMap<u64, Encoded>,
    /// Numbers of the entries that are not written yet.
    unwritten: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Encoded {
    /// Number of bytes encoded for the connection up to the end of the entry.
    end: u64,
    /// `None` until the last byte is written.
    written: Option<Written>,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    at: Instant,
    /// Number of bytes on the TCP connection after which all of the entry is written.
    tcp_end: u64,
}

impl Window {
    pub(super) fn new(size: WindowSize) -> Self {
        Self {
            size,
            encoded: 0,
            written: 0,
            acknowledged: 0,
            entries: BTreeMap::new(),
            unwritten: Vec::new(),
        }
    }

    /// Returns true if the entry was written and is still in the window.
    pub(super) fn contains(&self, seq: u64) -> bool {
        self.entries.contains_key(&seq)
    }

    /// Records that an entry of `bytes` was encoded, and will be written next.
    pub(super) fn push(&mut self, seq: u64, bytes: usize) {
        self.push_untracked(bytes);
        self.entries.insert(seq, Encoded { end: self.encoded, written: None });
        self.unwritten.push(seq);
    }

    /// Records that `bytes` were encoded that belong to no entry of the window.
    pub(super) fn push_untracked(&mut self, bytes: usize) {
        self.encoded += bytes as u64;
    }

    /// Records that everything encoded so far was written, as the first `tcp_end` bytes on the TCP
    /// connection.
    pub(super) fn written(&mut self, now: Instant, tcp_end: u64) {
        for seq in self.unwritten.drain(..) {
            if let Some(entry) = self.entries.get_mut(&seq) {
                entry.written = Some(Written { at: now, tcp_end });
            }
        }
        self.written = self.encoded;
    }

    /// Records that the receiver's system has acknowledged the first `tcp_bytes` on the TCP connection.
    pub(super) fn acknowledged(&mut self, tcp_bytes: u64) {
        self.acknowledged = self.acknowledged.max(tcp_bytes);
    }

    /// Returns true if the entry has left the window and is acknowledged.
    pub(super) fn has_left(&self, seq: u64, now: Instant) -> bool {
        self.entries.get(&seq).is_some_and(|entry| self.is_delivered(entry, now))
    }

    /// Removes the entries up to number `seq`.
    pub(super) fn remove_up_to(&mut self, seq: u64) {
        self.entries.retain(|number, _| *number > seq);
    }

    /// Returns the time until an entry may count as delivered. It is not zero while one that is old enough
    /// is not acknowledged.
    pub(super) fn until_next(&self, now: Instant) -> Duration {
        let remaining = self.entries.values().filter(|entry| !self.is_delivered(entry, now));
        let remaining = remaining.map(|entry| match self.is_old(entry, now) {
            true => self.size.time / UNACKNOWLEDGED_CHECKS,
            false => self.size.time.saturating_sub(age(entry, now)),
        });
        remaining.min().unwrap_or_default()
    }

    fn is_delivered(&self, entry: &Encoded, now: Instant) -> bool {
        let is_acknowledged =
            entry.written.is_some_and(|written| written.tcp_end <= self.acknowledged);
        is_acknowledged && self.is_old(entry, now)
    }

    fn is_old(&self, entry: &Encoded, now: Instant) -> bool {
        let Some(after) = self.written.checked_sub(entry.end) else { return false };
        after >= self.size.bytes || age(entry, now) >= self.size.time
    }
}

/// Number of checks in the time of the window for entries that are old enough and not acknowledged.
const UNACKNOWLEDGED_CHECKS: u32 = 6;

/// Returns the time since an entry was written.
fn age(entry: &Encoded, now: Instant) -> Duration {
    entry.written.map_or(Duration::ZERO, |written| now.saturating_duration_since(written.at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: WindowSize = WindowSize { bytes: 100, time: Duration::from_secs(30) };

    /// Records that everything is written and acknowledged.
    fn write(window: &mut Window, now: Instant) {
        window.written(now, window.encoded);
        window.acknowledged(window.encoded);
    }

    #[test]
    fn entry_leaves_by_time() {
        let start = Instant::now();
        let mut window = Window::new(SIZE);
        window.push(1, 10);
        assert!(!window.has_left(1, start + Duration::from_secs(30)));
        write(&mut window, start);
        let later = start + Duration::from_secs(29);
        assert!(!window.has_left(1, later));
        assert_eq!(window.until_next(later), Duration::from_secs(1));
        assert!(window.has_left(1, start + Duration::from_secs(30)));
    }

    #[test]
    fn entry_leaves_by_bytes_that_follow() {
        let start = Instant::now();
        let mut window = Window::new(SIZE);
        window.push(1, 500);
        window.push(2, 99);
        write(&mut window, start);
        assert!(!window.has_left(1, start));
        window.push(3, 1);
        assert!(!window.has_left(1, start));
        write(&mut window, start);
        assert!(window.has_left(1, start));
        assert!(!window.has_left(2, start));
        window.remove_up_to(1);
        assert!(!window.contains(1) && window.contains(2));
    }

    /// What a dead network did not carry for 30 s counted as delivered.
    #[test]
    fn unacknowledged_entry_does_not_leave() {
        let (start, mut window) = (Instant::now(), Window::new(SIZE));
        let later = start + Duration::from_secs(60);
        window.push(1, 10);
        window.written(start, 1_000);
        window.push(2, 500);
        window.written(start, 1_600);
        window.acknowledged(999);
        assert!(!window.has_left(1, later) && !window.has_left(2, later));
        assert_eq!(window.until_next(later), Duration::from_secs(5), "no busy loop");
        window.acknowledged(1_000);
        assert!(window.has_left(1, start) && !window.has_left(2, later));
        window.acknowledged(900);
        assert!(window.has_left(1, later), "an acknowledgement is final");
        window.acknowledged(1_600);
        assert!(window.has_left(2, later));
    }

    #[test]
    fn smaller_number_after_larger_ones_is_found() {
        let (start, mut window) = (Instant::now(), Window::new(SIZE));
        for seq in [5, 6, 7] {
            window.push(seq, 10);
        }
        write(&mut window, start);
        window.push(2, 10);
        write(&mut window, start + Duration::from_secs(20));
        assert!([2, 5, 6, 7].iter().all(|seq| window.contains(*seq)));
        let later = start + Duration::from_secs(30);
        assert!([5, 6, 7].iter().all(|seq| window.has_left(*seq, later)));
        assert!(!window.has_left(2, later));
        assert_eq!(window.until_next(later), Duration::from_secs(20));
        window.remove_up_to(5);
        assert!([2, 5].iter().all(|seq| !window.contains(*seq)));
        assert!([6, 7].iter().all(|seq| window.contains(*seq)));
    }

    proptest! {
        #[test]
        fn window_keeps_less_than_its_bytes_and_one_entry(
            sizes in proptest::collection::vec(1_usize..60, 1..40),
        ) {
            let start = Instant::now();
            let mut window = Window::new(SIZE);
            for (at, size) in sizes.iter().enumerate() {
                window.push(at as u64, *size);
            }
            write(&mut window, start);
            let mut kept: u64 = 0;
            for (at, size) in sizes.iter().enumerate() {
                if !window.has_left(at as u64, start) {
                    kept += *size as u64;
                }
            }
            let largest = sizes.iter().max().copied().unwrap_or_default() as u64;
            prop_assert!(kept < SIZE.bytes + largest);
            let last = sizes.len() as u64 - 1;
            prop_assert!(!window.has_left(last, start));
        }
    }
}
