//! `siem-server access-log`, and the lines of other commands in that log.

use std::{path::Path, str::FromStr};

use clap::Args;
use siem_protocol::Digest;
use siem_server::{
    Clock as _, SystemClock,
    life::{AccessAction, AccessLine, AccessLog},
};

use crate::{Data, failure::Failure, output, who::who};

/// Print who read or erased what, and why, and verify the chain of the log
///
/// Standard error has the number and the hash of the last line. Who may write to the data directory could
/// replace the whole log: note them elsewhere, and compare with `--noted` later.
#[derive(Args)]
pub(crate) struct ShowAccessLog {
    #[command(flatten)]
    data: Data,
    /// Line that was noted before: fail if the log has no such line
    #[arg(long, value_name = "NUMBER:SHA256")]
    noted: Option<NotedLine>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Number and hash of a line of the access log.
#[derive(Clone, Copy, Debug)]
struct NotedLine {
    number: usize,
    sha256: Digest,
}

#[derive(Debug, thiserror::Error)]
#[error("expected NUMBER:SHA256, such as the last line that this command printed before")]
struct NoNotedLine;

#[derive(Debug, thiserror::Error)]
#[error("line {} of the access log is not the one that was noted: the log was altered", .0.number)]
struct NotedDiffers(NotedLine);

impl FromStr for NotedLine {
    type Err = NoNotedLine;

    fn from_str(text: &str) -> Result<Self, NoNotedLine> {
        let (number, sha256) = text.split_once(':').ok_or(NoNotedLine)?;
        let number = number.parse().ok().filter(|number| *number > 0).ok_or(NoNotedLine)?;
        Ok(Self { number, sha256: Digest::from_hex(sha256).ok_or(NoNotedLine)? })
    }
}

/// Appends a line to the access log of the data directory `data`. What cannot be logged must not be done.
pub(crate) fn log(data: &Path, action: AccessAction, what: &str, why: &str) -> Result<(), Failure> {
    AccessLog::new(data)
        .append(SystemClock.now(), &who(), action, what, why)
        .map_err(Failure::failed)
}

impl ShowAccessLog {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        self.data.check()?;
        let lines = AccessLog::new(&self.data.directory).verify().map_err(Failure::failed)?;
        self.print(&lines)?;
        if let Some(last) = lines.last() {
            output::note(&format!("last line, to be noted: {}:{}", lines.len(), last.sha256));
        }
        let is_noted = |noted: &NotedLine| {
            lines.get(noted.number - 1).is_some_and(|line| line.sha256 == noted.sha256)
        };
        match self.noted.filter(|noted| !is_noted(noted)) {
            Some(noted) => Err(Failure::failed(NotedDiffers(noted))),
            None => Ok(()),
        }
    }

    fn print(&self, lines: &[AccessLine]) -> Result<(), Failure> {
        if self.json {
            return output::json(&lines);
        }
        let action = |action: AccessAction| match action {
            AccessAction::Read => "read",
            AccessAction::Erase => "erase",
            AccessAction::EraseEnd => "erase end",
            AccessAction::Backup => "backup",
            AccessAction::Retention => "retention",
            AccessAction::HoldAdd => "hold add",
            AccessAction::HoldRemove => "hold remove",
        };
        let rows: Vec<_> = lines
            .iter()
            .map(|line| line.entry.clone())
            .map(|it| [it.at, it.who, action(it.action).to_owned(), it.what, it.why])
            .collect();
        output::table(["AT", "WHO", "ACTION", "WHAT", "WHY"], &rows)
    }
}
