//! Appends entries to a file.
//!
//! TODO: describe where the sink delivers entries, and what its acknowledgement proves.

use std::{fs::File, io::Write as _, path::PathBuf};

use ai_agent_stage::{
    Batch, BuildError, Context, Delivery, DeliveryFuture, Plugin, Sink, SinkOptions,
};
use schemars::JsonSchema;
use serde::Deserialize;

inventory::submit! {
    Plugin::sink::<Options>(
        "example-sink",
        "Appends entries to a file, as an example.",
        r#"
## Absolute path of the file. It is created if it is missing.
path = "/var/tmp/example-sink.ndjson"
"#,
    )
}

/// Destination of the entries.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Absolute path of the file. It is created if it is missing.
    path: PathBuf,
}

/// Appends the lines of each batch, and syncs the file.
struct ExampleSink {
    path: PathBuf,
}

impl SinkOptions for Options {
    type Sink = ExampleSink;

    // Building a sink changes nothing: it happens for every check of a configuration.
    fn build(self, _context: &Context) -> Result<ExampleSink, BuildError> {
        if !self.path.is_absolute() {
            let problem = format!("is `{}`, expected an absolute path", self.path.display());
            return Err(BuildError::Invalid { option: "path", problem });
        }
        Ok(ExampleSink { path: self.path })
    }
}

impl Sink for ExampleSink {
    // A batch that was not acknowledged is delivered again, with other boundaries possibly. A sink
    // does not retry, wait or split by itself. Long blocking calls belong on a blocking thread of
    // the runtime.
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            let lines = match batch.body.lines() {
                Ok(lines) => lines,
                Err(error) => return Delivery::Hold { after: None, reason: error.to_string() },
            };
            let file = File::options().create(true).append(true).open(&self.path);
            let written = file.and_then(|mut file| {
                file.write_all(&lines)?;
                file.sync_data()
            });
            match written {
                Ok(()) => Delivery::Acknowledged,
                Err(error) => {
                    let reason = format!("cannot append to `{}`: {error}", self.path.display());
                    Delivery::Retry { after: None, reason }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process};

    use ai_agent_stage::testing::{SinkTest, context};

    use super::*;

    fn sink(path: &std::path::Path) -> SinkTest {
        let options = format!("path = '{}'", path.display());
        SinkTest::new("example-sink", &options, context()).unwrap()
    }

    #[test]
    fn entries_are_appended_in_order() {
        let path = env::temp_dir().join(format!("example-sink-{}", process::id()));
        let mut sink = sink(&path);
        assert_eq!(sink.deliver(&[r#"{"seq":1}"#, r#"{"seq":2}"#]), Delivery::Acknowledged);
        assert_eq!(sink.deliver(&[r#"{"seq":3}"#]), Delivery::Acknowledged);
        let written = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(written, "{\"seq\":1}\n{\"seq\":2}\n{\"seq\":3}\n");
    }

    #[test]
    fn missing_directory_is_retried() {
        let path = env::temp_dir().join("example-sink-missing").join("file");
        assert!(matches!(sink(&path).deliver(&["{}"]), Delivery::Retry { .. }));
    }

    #[test]
    fn relative_path_is_an_error() {
        assert!(SinkTest::new("example-sink", "path = 'a'", context()).is_err());
    }
}
