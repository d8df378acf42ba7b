//! `siem-server verify`, and what `restore` says about the entries.

use clap::Args;
use serde_json::{Value, json};
use siem_server::backup::{DamagedEntries, DamagedFile, EntryProblem, Verification};

use crate::{Data, failure::Failure, output};

/// Most damaged entries and files that an error names.
const NAMED: usize = 20;

/// Verify all stored entries: their text against the hash chain, and that against the seals of the devices
///
/// Nothing is changed, and the receiver may run. Damaged entries are named by machine, epoch and number, and the
/// exit code is 1. Restore a backup to verify it.
#[derive(Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    data: Data,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is a backup: `siem-server restore` verifies it")]
struct IsBackup(String);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Damaged(pub(crate) String);

impl Verify {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        self.data.check()?;
        let data = self.data.directory();
        if data.join("backup.ndjson").is_file() {
            return Err(Failure::usage(IsBackup(data.display().to_string())));
        }
        let found = siem_server::backup::verify(data);
        if self.json {
            let mut all = figures(&found);
            all["entries_damaged"] = entries(&found.named);
            all["damaged"] = files(&found.files);
            output::json(&all)?;
        } else {
            output::line(&summary(&found))?;
            print(&found.named)?;
        }
        match problems(&found) {
            None => Ok(()),
            Some(text) => Err(Failure::failed(Damaged(text))),
        }
    }
}

/// Figures as JSON.
pub(crate) fn figures(found: &Verification) -> Value {
    let Verification { machines, epochs, entries, bytes, erased, sealed, gaps, damaged, .. } =
        found;
    json!({
        "machines": machines, "epochs": epochs, "entries": entries, "bytes": bytes, "erased": erased,
        "sealed": sealed, "gaps": gaps, "damaged_entries": damaged,
    })
}

/// Damaged entries as JSON.
pub(crate) fn entries(damaged: &[DamagedEntries]) -> Value {
    json!(damaged)
}

/// Damaged files as JSON.
pub(crate) fn files(damaged: &[DamagedFile]) -> Value {
    let file = |file: &DamagedFile| json!({ "path": file.path.to_string_lossy(), "problem": file.problem });
    damaged.iter().map(file).collect()
}

/// What was verified, as a line.
pub(crate) fn summary(found: &Verification) -> String {
    let Verification { epochs, entries, sealed, erased, gaps, .. } = found;
    let noun = |count: u64, one: &str, more: &str| {
        format!("{count} {}", if count == 1 { one } else { more })
    };
    format!(
        "verified {} of {}, {}: {sealed} sealed by their devices, {erased} erased; {} never arrived",
        noun(*entries, "entry", "entries"),
        noun(*epochs, "epoch", "epochs"),
        output::size(found.bytes),
        noun(*gaps, "number", "numbers"),
    )
}

/// Prints a table of damaged entries; nothing without any.
pub(crate) fn print(damaged: &[DamagedEntries]) -> Result<(), Failure> {
    let rows: Vec<_> = damaged
        .iter()
        .map(|it| {
            let (machine, epoch) = (output::plain(&it.machine), output::plain(&it.epoch));
            [machine, epoch, it.first.to_string(), it.last.to_string(), problem(it.problem).into()]
        })
        .collect();
    output::table(["MACHINE", "EPOCH", "FIRST", "LAST", "PROBLEM"], &rows)
}

fn problem(problem: EntryProblem) -> &'static str {
    match problem {
        EntryProblem::Changed => "is not what was received",
        EntryProblem::Missing => "is missing",
        EntryProblem::Lost => "was found missing at a start",
        EntryProblem::NotErased => "was erased, and its text is still there",
        EntryProblem::Unverifiable => "cannot be compared: the index is damaged",
        EntryProblem::ChainBroken => "arrived with a broken chain",
        EntryProblem::SealBroken => "has another seal",
    }
}

/// Says what is damaged; `None` if nothing is.
pub(crate) fn problems(found: &Verification) -> Option<String> {
    if found.is_whole() {
        return None;
    }
    let entry = |it: &DamagedEntries| {
        let numbers = match it.first == it.last {
            true => format!("entry {}", it.first),
            false => format!("entries {}-{}", it.first, it.last),
        };
        format!(
            "{numbers} of machine `{}`, epoch `{}`, {}",
            it.machine,
            it.epoch,
            problem(it.problem)
        )
    };
    let file = |file: &DamagedFile| format!("`{}` {}", file.path.display(), file.problem);
    let named = found.files.iter().map(file).chain(found.named.iter().map(entry)).take(NAMED);
    let named: Vec<_> = named.map(|text| output::plain(&text)).collect();
    let (files, damaged) = (found.files.len(), found.damaged);
    let all = found.files.len() + found.named.len();
    let more = if all > named.len() { "; and more, see `siem-server verify --json`" } else { "" };
    Some(format!(
        "{damaged} damaged {}, {files} damaged {}: {}{more}",
        if damaged == 1 { "entry" } else { "entries" },
        if files == 1 { "file" } else { "files" },
        named.join("; ")
    ))
}
