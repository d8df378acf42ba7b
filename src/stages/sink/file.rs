//! Appends entries to a file, one line each: for shell pipelines and tests.
//!
//! A batch is acknowledged when the file is synced. After a crash during a batch, the batch is written
//! again, as by any sink: duplicate lines have the same `seq`.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use ai_agent_stage::{Acknowledged, BuildError, Context};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Batch, Delivery, DeliveryFuture, Plugin, Sink, SinkOptions};
use crate::platform::secure_file;

inventory::submit! {
    Plugin::sink::<Options>(
        "file",
        "Appends entries to a file as NDJSON.",
        r#"
## Absolute path. The file is created if it is missing, readable only by its owner.
path = "/var/tmp/ai-agent.ndjson"
"#,
    )
}

/// Options of the sink.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Absolute path. The file is created if it is missing, readable only by its owner.
    path: PathBuf,
}

impl SinkOptions for Options {
    type Sink = FileSink;

    fn build(self, _context: &Context) -> Result<FileSink, BuildError> {
        if !self.path.is_absolute() {
            let problem = format!("is `{}`, expected an absolute path", self.path.display());
            return Err(BuildError::Invalid { option: "path", problem });
        }
        Ok(FileSink { path: self.path })
    }
}

/// Appends the lines of each batch and syncs the file.
struct FileSink {
    path: PathBuf,
}

impl Sink for FileSink {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            let lines = match batch.body.lines() {
                Ok(lines) => lines,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            let path = self.path.clone();
            let written = tokio::task::spawn_blocking(move || append(&path, &lines)).await;
            match written {
                Ok(Ok(())) => Delivery::Acknowledged,
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

/// Appends whole lines, after removing an incomplete line that a crash left.
fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut file = secure_file::options().read(true).open(path)?;
    let end = whole_lines(&mut file)?;
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    file.write_all(lines)?;
    file.sync_data()
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
}
