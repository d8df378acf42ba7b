//! Reads the lines of one file that only grows.
//!
//! TODO: describe what the source reads, and what a record is.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use ai_agent_stage::{
    BadRow, BuildError, Chunk, Context, FileKey, GenerationId, Intake, Origin, Piece, Plugin,
    Progress, Source, SourceOptions, Survey, Waker,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// Maximum number of bytes per chunk.
const CHUNK: u64 = 64 << 10;
/// Time between two reads.
const INTERVAL: Duration = Duration::from_secs(2);
/// Name of the row with the checkpoint.
const ROW: &str = "example-source";

inventory::submit! {
    Plugin::source::<Options>(
        "example-source",
        "Reads the lines of one file that only grows.",
        r#"
## Absolute path of the file.
path = "/var/log/example.log"
"#,
    )
}

/// File to read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Absolute path of the file.
    path: PathBuf,
}

/// Reads the file from the checkpoint on.
struct ExampleSource {
    origin: Origin,
    /// Number of bytes that were handed over.
    offset: u64,
}

impl SourceOptions for Options {
    type Source = ExampleSource;

    // Building a source has no side effects: it happens for every check of a configuration.
    fn build(self, _context: &Context, _waker: Waker) -> Result<ExampleSource, BuildError> {
        if !self.path.is_absolute() {
            let problem = format!("is `{}`, expected an absolute path", self.path.display());
            return Err(BuildError::Invalid { option: "path", problem });
        }
        let origin = Origin::new(FileKey::fresh(), self.path, GenerationId(ROW.to_owned()));
        Ok(ExampleSource { origin, offset: 0 })
    }
}

impl ExampleSource {
    /// Reads the complete lines after the offset, up to the size of a chunk.
    fn lines(&self) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.origin.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(CHUNK).read_to_end(&mut bytes)?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        bytes.truncate(end);
        Ok(bytes)
    }

    /// Hands over one chunk, and returns whether there was one.
    fn hand_over(&mut self, intake: &mut dyn Intake) -> io::Result<bool> {
        let bytes = self.lines()?;
        let mut pieces = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let size = line.len() as u64;
            let bytes = line.strip_suffix(b"\n").unwrap_or(line);
            pieces.push(Piece::line(self.offset, bytes, size));
            self.offset += size;
        }
        // Lines and checkpoint are one value, so that they are stored together.
        let checkpoint = self.offset.to_string();
        if !pieces.is_empty() {
            intake.take(Chunk::new(&self.origin, &pieces, Some(checkpoint.as_bytes())));
        }
        Ok(!pieces.is_empty())
    }
}

impl Source for ExampleSource {
    fn label(&self) -> &'static str {
        "example-source"
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.offset = 0;
        for (generation, row) in rows {
            let text = String::from_utf8_lossy(&row);
            self.offset = text.parse().map_err(|error| BadRow::new(generation, error))?;
        }
        Ok(())
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        while intake.has_room() {
            match self.hand_over(intake) {
                Ok(true) => {}
                // An unreadable file is tried again; see `Survey::unreadable` to report it.
                Ok(false) | Err(_) => return Progress::Idle { next: INTERVAL },
            }
        }
        Progress::More
    }

    fn committed(&mut self) {}

    fn survey(&self) -> Survey {
        let mut survey = Survey::default();
        survey.files = 1;
        survey
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process};

    use ai_agent_stage::testing::{SourceTest, context};

    #[test]
    fn each_line_is_read_once_also_after_a_restart() {
        let path = env::temp_dir().join(format!("example-source-{}", process::id()));
        let options = format!("path = '{}'", path.display());
        let mut source = SourceTest::new("example-source", &options, context()).unwrap();
        fs::write(&path, "one\ntwo\nincomplete").unwrap();
        assert_eq!(source.read().0.records, ["one", "two"]);
        source.commit();
        source.restore().unwrap();
        fs::write(&path, "one\ntwo\nincomplete, now whole\n").unwrap();
        assert_eq!(source.read().0.records, ["incomplete, now whole"]);
        // The group was not stored: its lines come again.
        source.restore().unwrap();
        assert_eq!(source.read().0.records, ["incomplete, now whole"]);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn relative_path_is_an_error() {
        assert!(SourceTest::new("example-source", "path = 'a'", context()).is_err());
    }
}
