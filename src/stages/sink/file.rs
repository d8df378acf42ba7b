//! Appends entries to a file, one line each: for shell pipelines, tests, and programs that read files.
//!
//! Each line is the entry as other sinks get it, with the machine, the user, the epoch and one `time`
//! before its members.
//!
//! A batch is acknowledged when the file is synced. After a crash during a batch, the batch is written
//! again, as by any sink: duplicate lines have the same `seq`.
//!
//! With `max_bytes` or `max_age` the file is renamed before a batch that it has no room for, so a batch is
//! never split. Old files are compressed and deleted beside the delivery.

mod rotation;

use std::{
    fs::{File, Metadata},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ai_agent_stage::{Acknowledged, BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_sinks::lines::SenderMembers;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::warn;

use self::rotation::{OldFiles, Rotation};
use super::{Batch, Delivery, DeliveryFuture, Plugin, Sink, SinkOptions};
use crate::{
    platform::{Clock, Sandbox, Timestamp, secure_file},
    stages::AgentContext,
};
use config_text::{Size, Time};

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

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn build(self, context: &Context) -> Result<FileSink, BuildError> {
        if !self.path.is_absolute() {
            let problem = format!("is `{}`, expected an absolute path", self.path.display());
            return Err(BuildError::Invalid { option: "path", problem });
        }
        let (rotation, clock) = (self.rotation()?, Arc::clone(context.clock()));
        // Without an agent around it, as in a test of the stage, nothing is restricted.
        let sandbox = AgentContext::of(context).map(|agent| agent.sandbox.clone());
        Ok(FileSink {
            path: self.path,
            sandbox: sandbox.unwrap_or_default(),
            rotation,
            clock,
            sent: 0,
            first_write: None,
            tidying: None,
            must_tidy: true,
            next_tidy: Duration::ZERO,
        })
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
        let created = Metadata::created;
        Ok(Some(Rotation { max_bytes, max_age, keep, compression, created }))
    }
}

/// Time until old files that could not be compressed or deleted are tried again.
const TIDY_RETRY: Duration = Duration::from_secs(60);

/// Appends the lines of each batch and syncs the file.
struct FileSink {
    path: PathBuf,
    /// What the process may write.
    sandbox: Sandbox,
    rotation: Option<Rotation>,
    clock: Arc<dyn Clock>,
    /// Number of bytes written during the last delivery.
    sent: u64,
    /// Time of the first write of this process to the file.
    first_write: Option<Timestamp>,
    /// Compression and deletion of old files, which may take longer than a delivery. Returns true if
    /// all are done.
    tidying: Option<JoinHandle<bool>>,
    /// True if old files may have to be compressed or deleted, also those that a crash left.
    must_tidy: bool,
    /// Uptime before which `tidying` does not start.
    next_tidy: Duration,
}

/// Result of a write.
struct Written {
    /// True if the file before was renamed.
    is_rotated: bool,
    /// True if the file has only the lines of this write.
    is_new: bool,
    /// Number of bytes.
    bytes: u64,
}

impl Sink for FileSink {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            self.sent = 0;
            let lines = match batch.body.lines() {
                Ok(lines) => lines,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            let sender = SenderMembers::of(&batch.header);
            let (path, rotation) = (self.path.clone(), self.rotation.clone());
            let (first_write, now) = (self.first_write, self.clock.now());
            let writing =
                move || write(&path, &sender.add_to(&lines), rotation.as_ref(), first_write, now);
            let written = spawn_blocking(writing).await.unwrap_or_else(|error| Err(error.into()));
            // A write fails after the rename if the disk is full: deleting old files makes room.
            self.must_tidy |= written.as_ref().map_or(true, |written| written.is_rotated);
            self.tidy().await;
            match written {
                Ok(Written { is_new, bytes, .. }) => {
                    self.sent = bytes;
                    self.first_write = self.first_write.filter(|_| !is_new).or(Some(now));
                    Delivery::Acknowledged
                }
                Err(error) => self.failed(&error),
            }
        })
    }

    fn sent(&self, _batch: &Batch) -> u64 {
        self.sent
    }

    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::Indexed
    }
}

impl FileSink {
    /// Returns the result of a batch that was not written. Most errors stay until a person acts.
    fn failed(&self, error: &io::Error) -> Delivery {
        let path = self.path.display();
        match self.remedy(error) {
            Some(remedy) => {
                let reason = format!("cannot append to `{path}`: {error}: {remedy}");
                Delivery::Hold { after: None, reason }
            }
            None => {
                let reason = format!("cannot append to `{path}`: {error}");
                Delivery::Retry { after: None, reason }
            }
        }
    }

    /// Returns what a person must do about an error of writing; `None` if waiting may be enough.
    fn remedy(&self, error: &io::Error) -> Option<String> {
        use io::ErrorKind::{
            IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
        };

        let sandbox = self.sandbox.remedy(&self.path, error).trim_start_matches(": ");
        let folder = self.path.parent().unwrap_or(&self.path).display();
        Some(match error.kind() {
            _ if !sandbox.is_empty() => sandbox.to_owned(),
            // The directory was not there when the process was restricted to those that it may write.
            NotFound if !self.sandbox.may_write(&self.path) => {
                format!("create the directory `{folder}`, then run `ai-agent restart`")
            }
            NotFound => format!("create the directory `{folder}`"),
            // The same holds for what is around a directory.
            IsADirectory => {
                "move the directory away and run `ai-agent restart`, or set another `path`"
                    .to_owned()
            }
            NotADirectory => format!("`{folder}` must be a directory: set another `path`"),
            PermissionDenied => {
                "let the agent's user write there, or set another `path`".to_owned()
            }
            ReadOnlyFilesystem => {
                "remount the file system read-write, or set another `path`".to_owned()
            }
            _ => return None,
        })
    }

    /// Starts to compress and delete old files, unless that is still running or failed within
    /// [`TIDY_RETRY`].
    async fn tidy(&mut self) {
        let Some(rotation) = &self.rotation else { return };
        let now = self.clock.uptime();
        if let Some(tidied) = self.tidying.take_if(|tidying| tidying.is_finished())
            && !tidied.await.unwrap_or(false)
        {
            (self.must_tidy, self.next_tidy) = (true, now + TIDY_RETRY);
        }
        if self.tidying.is_some() || now < self.next_tidy || !std::mem::take(&mut self.must_tidy) {
            return;
        }
        let (path, rotation) = (self.path.clone(), rotation.clone());
        self.tidying = Some(spawn_blocking(move || {
            let tidied = rotation.tidy(&path);
            if let Err(error) = &tidied {
                warn!(
                    code = "old_file_failed",
                    %error,
                    path = %path.display(),
                    "cannot compress or delete an old file of a sink"
                );
            }
            tidied.is_ok()
        }));
    }
}

/// Appends lines, to a new file if that is due.
fn write(
    path: &Path,
    lines: &[u8],
    rotation: Option<&Rotation>,
    first_write: Option<Timestamp>,
    now: Timestamp,
) -> io::Result<Written> {
    let more = lines.len() as u64;
    let rotated = rotation.map(|rotation| rotation.rotate(path, more, first_write, now));
    // A file that cannot be renamed grows: that loses nothing.
    let is_rotated = rotated.transpose().unwrap_or_else(|error| {
        let path = path.display();
        warn!(code = "file_rotation_failed", %error, %path, "cannot rename the file of a sink");
        None
    });
    let is_new = append(path, lines)?;
    Ok(Written { is_rotated: is_rotated.unwrap_or(false), is_new, bytes: more })
}

/// Appends whole lines, after removing an incomplete line that a crash left. Returns true if no other
/// lines were there.
fn append(path: &Path, lines: &[u8]) -> io::Result<bool> {
    let mut file = secure_file::options().read(true).open(path)?;
    let end = cut_incomplete_line(&mut file)?;
    file.seek(SeekFrom::Start(end))?;
    if let Err(error) = file.write_all(lines).and_then(|()| file.sync_data()) {
        // The batch is written again as a whole. Until then a part of it would be read as entries, and
        // fill a disk that other programs need.
        drop(file.set_len(end));
        return Err(error);
    }
    if let Some(folder) = path.parent().filter(|_| end == 0) {
        // The file may be new: without this, a power cut could remove its name.
        secure_file::sync_dir(folder)?;
    }
    Ok(end == 0)
}

/// Removes an incomplete last line. Returns the new length of the file.
fn cut_incomplete_line(file: &mut File) -> io::Result<u64> {
    let end = whole_lines(file)?;
    file.set_len(end)?;
    Ok(end)
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
    use ai_agent_stage::{
        BatchBody, ContextParts,
        testing::{TestClock, context},
    };
    use siem_protocol::{BatchHeader, Digest};

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
        let write = |n| write(&path, &batch, rotation.as_ref(), None, Timestamp(n)).unwrap();
        assert_eq!([1, 2, 3].map(|n| write(n).is_rotated), [false, true, true]);
        let files = std::fs::read_dir(folder.path()).unwrap();
        let sizes: Vec<_> = files.map(|it| it.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes, [40_001; 3]);
    }

    /// The incomplete line stayed at the end of the old file.
    #[test]
    fn rotated_file_has_no_incomplete_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.ndjson");
        let rotation = options("max_bytes = '64 KiB'").rotation().unwrap();
        let write = |lines: &[u8]| {
            write(&path, lines, rotation.as_ref(), None, Timestamp(0)).unwrap().is_rotated
        };
        std::fs::write(&path, [b'x'; 70_000]).unwrap();
        assert!(!write(b"one\n"), "no line is left");
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(&[b'x'; 70_000]).unwrap();
        assert!(write(b"two\n"));
        assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
        let old = folder.path().join("out.ndjson.19700101T000000.000Z");
        assert_eq!(std::fs::read(old).unwrap(), b"one\n");
    }

    /// Lines of a batch.
    #[derive(Debug)]
    struct Lines(&'static [u8]);

    impl BatchBody for Lines {
        fn raw_bytes(&self) -> usize {
            self.0.len()
        }

        fn lines(&self) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
            Ok(self.0.to_vec())
        }
    }

    /// A sink in a directory of its own, and its clock.
    struct World {
        folder: tempfile::TempDir,
        clock: TestClock,
        sink: FileSink,
    }

    impl World {
        fn new(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let clock = TestClock::default();
            let context = ContextParts { clock: Arc::new(clock.clone()), ..context() };
            let mut options = options(text);
            options.path = folder.path().join("out");
            let sink = options.build(&context.into()).unwrap();
            Self { folder, clock, sink }
        }

        fn old_file(&self, second: u32) -> PathBuf {
            self.folder.path().join(format!("out.20261121T20000{second}.000Z"))
        }

        /// Delivers a batch, and waits until old files are compressed and deleted.
        async fn deliver(&mut self) -> bool {
            let identity = context().identity;
            let header = BatchHeader::new(&identity, "e".into(), Digest::ZERO, String::new());
            let delivery = self.sink.deliver(&Batch::new(header, Lines(b"entry\n"))).await;
            let is_done = || self.sink.tidying.as_ref().is_none_or(JoinHandle::is_finished);
            let wait = async {
                while !is_done() {
                    tokio::task::yield_now().await
                }
            };
            tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap();
            delivery == Delivery::Acknowledged
        }
    }

    /// After the rename, the full disk stayed full.
    #[tokio::test]
    async fn surplus_is_deleted_after_a_failed_append() {
        let mut world = World::new("max_bytes = '64 KiB'\nkeep = 1");
        assert!(world.deliver().await);
        for second in [1, 2] {
            std::fs::write(world.old_file(second), "old\n").unwrap();
        }
        std::fs::remove_file(&world.sink.path).unwrap();
        std::fs::create_dir(&world.sink.path).unwrap();
        assert!(!world.deliver().await);
        assert_eq!(
            [1, 2].map(|second| world.old_file(second).try_exists().unwrap()),
            [false, true]
        );
    }

    #[tokio::test]
    async fn old_file_that_failed_is_deleted_later() {
        let mut world = World::new("max_bytes = '64 KiB'\nkeep = 1");
        std::fs::create_dir(world.old_file(1)).unwrap();
        std::fs::write(world.old_file(2), "old\n").unwrap();
        assert!(world.deliver().await);
        std::fs::remove_dir(world.old_file(1)).unwrap();
        std::fs::write(world.old_file(1), "old\n").unwrap();
        assert!(world.deliver().await);
        assert!(world.old_file(1).try_exists().unwrap(), "not at once");
        world.clock.advance(TIDY_RETRY);
        assert!(world.deliver().await);
        assert_eq!(
            [1, 2].map(|second| world.old_file(second).try_exists().unwrap()),
            [false, true]
        );
    }

    /// The file never became old.
    #[tokio::test]
    async fn file_without_creation_time_ages_from_the_first_write() {
        let mut world = World::new("max_age = '60s'");
        let rotation = world.sink.rotation.as_mut().unwrap();
        rotation.created = |_| Err(io::ErrorKind::Unsupported.into());
        let count = |world: &World| std::fs::read_dir(world.folder.path()).unwrap().count();
        for (seconds, files) in [(0, 1), (59, 1), (1, 2), (59, 2), (1, 3)] {
            world.clock.advance(Duration::from_secs(seconds));
            assert!(world.deliver().await);
            assert_eq!(count(&world), files);
        }
        // Without the old files, the new one counts from its own first write.
        for entry in std::fs::read_dir(world.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path != world.sink.path {
                std::fs::remove_file(path).unwrap();
            }
        }
        world.clock.advance(Duration::from_secs(59));
        assert!(world.deliver().await);
        assert_eq!(count(&world), 1);
    }
}
