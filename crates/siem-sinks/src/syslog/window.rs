//! Entries that were written to a connection without acknowledgements and may still be lost.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Size of the window: an entry counts as delivered when it has left it.
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

/// Entries written to one connection, the oldest first.
#[derive(Debug)]
pub(super) struct Window {
    size: WindowSize,
    /// Number of bytes encoded for the connection.
    encoded: u64,
    /// Number of bytes written to the connection.
    written: u64,
    entries: VecDeque<Written>,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    seq: u64,
    /// Number of bytes encoded for the connection up to the end of the entry.
    end: u64,
    /// Time at which its last byte was written; `None` before that.
    at: Option<Instant>,
}

impl Window {
    pub(super) fn new(size: WindowSize) -> Self {
        Self { size, encoded: 0, written: 0, entries: VecDeque::new() }
    }

    /// Returns true if the entry was written and is still in the window. Entries are written in the
    /// order of their numbers.
    pub(super) fn contains(&self, seq: u64) -> bool {
        self.entries.binary_search_by_key(&seq, |entry| entry.seq).is_ok()
    }

    /// Records that an entry of `bytes` was encoded, and will be written next.
    pub(super) fn push(&mut self, seq: u64, bytes: usize) {
        self.encoded += bytes as u64;
        self.entries.push_back(Written { seq, end: self.encoded, at: None });
    }

    /// Records that everything encoded so far was written.
    pub(super) fn written(&mut self, now: Instant) {
        for entry in self.entries.iter_mut().rev().take_while(|entry| entry.at.is_none()) {
            entry.at = Some(now);
        }
        self.written = self.encoded;
    }

    /// Returns true if the entry has left the window.
    pub(super) fn has_left(&self, seq: u64, now: Instant) -> bool {
        match self.entries.binary_search_by_key(&seq, |entry| entry.seq) {
            Ok(at) => self.is_old(&self.entries[at], now),
            Err(_) => false,
        }
    }

    /// Removes the entries that have left the window, up to number `seq`.
    pub(super) fn remove_up_to(&mut self, seq: u64) {
        while self.entries.front().is_some_and(|entry| entry.seq <= seq) {
            self.entries.pop_front();
        }
    }

    /// Returns the time until the oldest entry leaves the window.
    pub(super) fn until_next(&self, now: Instant) -> Duration {
        let oldest = self.entries.iter().find(|entry| !self.is_old(entry, now));
        oldest.map_or(Duration::ZERO, |entry| self.size.time.saturating_sub(age(entry, now)))
    }

    fn is_old(&self, entry: &Written, now: Instant) -> bool {
        let Some(after) = self.written.checked_sub(entry.end) else { return false };
        after >= self.size.bytes || age(entry, now) >= self.size.time
    }
}

/// Returns the time since an entry was written.
fn age(entry: &Written, now: Instant) -> Duration {
    entry.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: WindowSize = WindowSize { bytes: 100, time: Duration::from_secs(30) };

    #[test]
    fn entry_leaves_by_time() {
        let start = Instant::now();
        let mut window = Window::new(SIZE);
        window.push(1, 10);
        assert!(!window.has_left(1, start + Duration::from_secs(30)));
        window.written(start);
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
        window.written(start);
        assert!(!window.has_left(1, start));
        window.push(3, 1);
        assert!(!window.has_left(1, start));
        window.written(start);
        assert!(window.has_left(1, start));
        assert!(!window.has_left(2, start));
        window.remove_up_to(1);
        assert!(!window.contains(1) && window.contains(2));
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
            window.written(start);
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
