//! Appends entries to a file, one line each: for shell pipelines and tests.
//!
//! A batch is acknowledged when the file is synced. After a crash during a batch, the batch is written
//! again, as by any sink: duplicate lines have the same `seq`.
//!
//! With `max_bytes` or `max_age` the file is renamed before a batch that it has no room for, so a batch is
//! never split. Old files are compressed and deleted beside the delivery.

mod rotation;

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ai_agent_stage::{Acknowledged, BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::warn;

use self::rotation::{OldFiles, Rotation};
use super::{Batch, Delivery, DeliveryFuture, Plugin, Sink, SinkOptions};
use crate::{
    platform::{Clock, Timestamp, secure_file},
    units::{Size, Time},
};

inventory::submit! {
    Plugin::sink::<Options>(
        "file",
        "Appends entries to a file as NDJSON.",
        r#"
## Absolute path. The file is created if it is missing, readable only by its owner.
path = "/var/tmp/ai-agent.ndjson"
## Start a new file when this one would become larger, at least 64 KiB; the old one is renamed to PATH.TIME.
## Without this and `max_age`, the file grows without limit.
max_bytes = "100 MiB"
## Start a new file with the first entries that arrive when this one is older, at least a minute.
max_age = "1day"
## Number of old files to keep, 1 to 10,000; the oldest are deleted. By default all are kept.
keep = 10
## Compression of old files: "zstd", "gzip" or "none".
compression = "zstd"
"#,
    )
}

/// Options of the sink.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Absolute path. The file is created if it is missing, readable only by its owner.
    path: PathBuf,
    /// Start a new file when this one would become larger, at least 64 KiB; the old one is renamed to
    /// `PATH.TIME`. Without this and `max_age`, the file grows without limit.
    max_bytes: Option<Size>,
    /// Start a new file with the first entries that arrive when this one is older, at least a minute.
    max_age: Option<Time>,
    /// Number of old files to keep, 1 to 10,000; the oldest are deleted. By default all are kept.
    #[schemars(range(min = 1, max = 10000))]
    keep: Option<usize>,
    /// Compression of old files: "zstd", "gzip" or "none".
    #[serde(default)]
    compression: OldFiles,
}

impl SinkOptions for Options {
    type Sink = FileSink;

    fn build(self, context: &Context) -> Result<FileSink, BuildError> {
        if !self.path.is_absolute() {
            let problem = format!("is `{}`, expected an absolute path", self.path.display());
            return Err(BuildError::Invalid { option: "path", problem });
        }
        let (rotation, clock) = (self.rotation()?, Arc::clone(context.clock()));
        Ok(FileSink { path: self.path, rotation, clock, tidying: None, must_tidy: true })
    }
}

impl Options {
    /// Returns the rotation; `None` if the file is never renamed.
    fn rotation(&self) -> Result<Option<Rotation>, BuildError> {
        let Self { max_bytes, max_age, keep, compression, .. } = *self;
        let wrong = |option, problem: String| Err(BuildError::invalid(option, problem));
        if let Some(bytes) = max_bytes.filter(|bytes| bytes.0 < 64 << 10) {
            return wrong("max_bytes", format!("is {bytes}, must be at least 64 KiB"));
        }
        if let Some(age) = max_age.filter(|age| *age < Time::seconds(60)) {
            return wrong("max_age", format!("is {age}, must be at least 60s"));
        }
        if let Some(keep) = keep.filter(|keep| !(1..=10_000).contains(keep)) {
            return wrong("keep", format!("is {keep}, must be from 1 to 10000"));
        }
        if max_bytes.is_none() && max_age.is_none() {
            let needless =
                [("keep", keep.is_some()), ("compression", compression != OldFiles::None)];
            return match needless.into_iter().find(|(_, is_set)| *is_set) {
                Some((option, _)) => {
                    wrong(option, "has no effect without `max_bytes` or `max_age`".to_owned())
                }
                None => Ok(None),
            };
        }
        let (max_bytes, max_age): (_, Option<Duration>) =
            (max_bytes.map(|it| it.0), max_age.map(|it| it.0));
        Ok(Some(Rotation { max_bytes, max_age, keep, compression }))
    }
}

/// Appends the lines of each batch and syncs the file.
struct FileSink {
    path: PathBuf,
    rotation: Option<Rotation>,
    clock: Arc<dyn Clock>,
    /// Compression and deletion of old files, which may take longer than a delivery.
    tidying: Option<JoinHandle<()>>,
    /// True if old files may have to be compressed or deleted, also those that a crash left.
    must_tidy: bool,
}

impl Sink for FileSink {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            let lines = match batch.body.lines() {
                Ok(lines) => lines,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            let (path, rotation) = (self.path.clone(), self.rotation.clone());
            let now = self.clock.now();
            let written =
                spawn_blocking(move || write(&path, &lines, rotation.as_ref(), now)).await;
            match written {
                Ok(Ok(is_rotated)) => {
                    self.must_tidy |= is_rotated;
                    self.tidy();
                    Delivery::Acknowledged
                }
                Ok(Err(error)) => Delivery::Retry {
                    after: None,
                    reason: format!("cannot append to `{}`: {error}", self.path.display()),
                },
                Err(error) => Delivery::Retry { after: None, reason: error.to_string() },
            }
        })
    }

    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::Indexed
    }
}

impl FileSink {
    /// Starts to compress and delete old files, unless that is still running.
    fn tidy(&mut self) {
        let Some(rotation) = &self.rotation else { return };
        let is_running = self.tidying.as_ref().is_some_and(|tidying| !tidying.is_finished());
        if is_running || !std::mem::take(&mut self.must_tidy) {
            return;
        }
        let (path, rotation) = (self.path.clone(), rotation.clone());
        self.tidying = Some(spawn_blocking(move || {
            if let Err(error) = rotation.tidy(&path) {
                warn!(
                    code = "old_file_failed",
                    %error,
                    path = %path.display(),
                    "cannot compress or delete an old file of a sink"
                );
            }
        }));
    }
}

/// Appends lines, to a new file if that is due. Returns whether the file was renamed.
fn write(
    path: &Path,
    lines: &[u8],
    rotation: Option<&Rotation>,
    now: Timestamp,
) -> io::Result<bool> {
    let rotated = rotation.map(|rotation| rotation.rotate(path, lines.len() as u64, now));
    // A file that cannot be renamed grows: that loses nothing.
    let is_rotated = rotated.transpose().unwrap_or_else(|error| {
        let path = path.display();
        warn!(code = "file_rotation_failed", %error, %path, "cannot rename the file of a sink");
        None
    });
    append(path, lines)?;
    Ok(is_rotated.unwrap_or(false))
}

/// Appends whole lines, after removing an incomplete line that a crash left.
fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut file = secure_file::options().read(true).open(path)?;
    let end = whole_lines(&mut file)?;
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    file.write_all(lines)?;
    file.sync_data()?;
    match path.parent() {
        // The file may be new: without this, a power cut could remove its name.
        Some(folder) if end == 0 => secure_file::sync_dir(folder),
        _ => Ok(()),
    }
}

/// Returns the length of the file up to and including its last newline.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    const STEP: u64 = 64 << 10;
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut piece = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        file.seek(SeekFrom::Start(start))?;
        piece.clear();
        (&*file).take(end - start).read_to_end(&mut piece)?;
        if let Some(at) = memchr::memrchr(b'\n', &piece) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_removes_an_incomplete_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.ndjson");
        append(&path, b"one\ntwo\n").unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(&[b'x'; 200_000]).unwrap();
        append(&path, b"three\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nthree\n");
    }

    fn options(text: &str) -> Options {
        let text = format!("path = '/x'\n{text}");
        text.parse::<ai_agent_stage::StageOptions>().unwrap().parse::<Options>().unwrap()
    }

    #[test]
    fn options_of_rotation_are_checked() {
        assert!(options("").rotation().unwrap().is_none());
        assert!(options("max_age = '1day'\nkeep = 3").rotation().unwrap().is_some());
        for (text, option) in [
            ("max_bytes = '1 KiB'", "max_bytes"),
            ("max_age = '59s'", "max_age"),
            ("max_age = '1day'\nkeep = 0", "keep"),
            ("keep = 3", "keep"),
            ("compression = 'gzip'", "compression"),
        ] {
            let error = options(text).rotation().unwrap_err().to_string();
            assert!(error.contains(&format!("`{option}`")), "{text}: {error}");
        }
    }

    /// The file grew until the disk was full.
    #[test]
    fn full_file_is_renamed_before_the_next_batch() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.ndjson");
        let rotation = options("max_bytes = '64 KiB'").rotation().unwrap();
        let batch = [&[b'x'; 40_000][..], b"\n"].concat();
        let write = |n| write(&path, &batch, rotation.as_ref(), Timestamp(n)).unwrap();
        assert_eq!([1, 2, 3].map(write), [false, true, true]);
        let files = std::fs::read_dir(folder.path()).unwrap();
        let sizes: Vec<_> = files.map(|it| it.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes, [40_001; 3]);
    }
}
