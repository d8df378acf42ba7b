//! `ai-agent support-bundle`.

mod archive;
mod contents;
mod redact;

use std::{
    fs,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use clap::Args;

use self::{archive::Archive, contents::BundleFile};
use super::{context::CliContext, failure::Failure, output::print};
use crate::{
    platform::{Clock as _, SystemClock, Timestamp, secure_file},
    text::counted,
};
use config_text::Size;

/// Write an archive for a support request, and list what is in it
///
/// It contains the status, the results of `doctor`, the configuration without secrets, and the last
/// lines of the log. It contains no secrets, no content of sessions, no names of sessions and
/// projects, and no answers of receivers. See docs/troubleshooting.md.
#[derive(Args)]
pub(super) struct Arguments {
    /// New file to write to; without it, `ai-agent-support-TIME.tar.gz` in the current directory
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let now = SystemClock.now();
        let name = name(now);
        let path = self.to.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
        let context = CliContext::new(explicit)?;
        let failed = |error| Failure::failed(format!("cannot write `{}`: {error}", path.display()));
        // Created first: a file that cannot be written is an error before the checks, which take long.
        let file = secure_file::create_new(&path).map_err(failed)?;
        let files = contents::collect(&context, now).inspect_err(|_| drop(fs::remove_file(&path)));
        let files = files?;
        let written = write(BufWriter::new(file), &name, &files, now);
        written.map_err(|error| {
            drop(fs::remove_file(&path));
            failed(error)
        })?;
        for file in &files {
            let size = Size(file.bytes.len() as u64).to_string();
            print(format_args!("{:<14}  {size:>10}  {}", file.name, file.about))?;
        }
        let count = counted(files.len() as u64, "file", "files");
        print(format_args!("wrote {count} to `{}`, which only you can read", path.display()))
    }
}

/// Name of the directory in the archive.
fn name(now: Timestamp) -> String {
    let time: String = now.to_string().chars().filter(|it| !"-:".contains(*it)).take(15).collect();
    format!("ai-agent-support-{time}")
}

fn write(
    output: impl io::Write,
    name: &str,
    files: &[BundleFile],
    now: Timestamp,
) -> io::Result<()> {
    let mut archive = Archive::new(output, now.0 / 1000);
    for file in files {
        archive.add(&format!("{name}/{}", file.name), &file.bytes)?;
    }
    archive.finish()?.flush()
}
