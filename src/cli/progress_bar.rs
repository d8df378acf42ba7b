//! A progress bar, on a terminal only.

use std::{
    io,
    time::{Duration, Instant},
};

use indicatif::{ProgressDrawTarget, ProgressStyle};

use crate::text::counted;

/// Time after which the bar appears.
const DELAY: Duration = Duration::from_millis(500);

/// Progress of reading, in bytes. Draws on a terminal only.
pub(super) struct ProgressBar {
    bar: indicatif::ProgressBar,
    started: Instant,
}

impl ProgressBar {
    pub(super) fn new() -> Self {
        let bar = indicatif::ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, started: Instant::now() }
    }

    /// Updates the bar: `read` of `read + unread` bytes in `files` files.
    pub(super) fn show(&self, read: u64, unread: u64, files: usize) {
        if self.bar.is_hidden() && self.started.elapsed() >= DELAY {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_length(read.saturating_add(unread));
        self.bar.set_position(read);
        self.bar.set_message(counted(files as u64, "file", "files"));
    }

    /// Writes something above the bar.
    pub(super) fn above(&self, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.bar.suspend(write)
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
