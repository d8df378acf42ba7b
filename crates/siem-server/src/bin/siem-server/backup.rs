//! `siem-server backup` and `restore`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use siem_server::{
    FileStore, SystemClock,
    backup::{BackupOptions, BackupSummary, DamagedFile, backup, damage, restore},
    life::AccessAction,
};

use crate::{
    Data,
    access_log::log,
    failure::Failure,
    output,
    verify::{self, Damaged, entries, figures, problems},
};

/// Copy the data directory, also while the receiver runs
///
/// Each entry that was acknowledged before the backup began is in it. The receiver is not paused. The
/// files `token` and `hmac-secret` of the fleet are not in the data directory: copy them apart.
#[derive(Args)]
pub(crate) struct Backup {
    #[command(flatten)]
    data: Data,
    /// Directory for the backup; it must be empty or missing
    target: PathBuf,
    /// Copy the private keys of the receiver too: who has them can sign as the receiver
    #[arg(long)]
    with_keys: bool,
    /// Reason, for the access log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only write the line of the access log
    #[arg(long, hide = true)]
    only_log: bool,
}

/// Copy a backup into an empty data directory, open it once, and verify all entries
///
/// What is missing or damaged is named, and the exit code is 1. Everything else is restored.
#[derive(Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    data: Data,
    /// Directory of the backup
    backup: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        self.data.check()?;
        // What cannot be logged is not done. Root may write the backup where the owner of the data may not.
        if self.only_log || !self.data.run_as_owner(&["--only-log"])? {
            let keys = if self.with_keys { ", with the private keys" } else { "" };
            let what = format!("everything to {}{keys}", self.target.display());
            log(self.data.directory(), AccessAction::Backup, &what, &self.reason)?;
        }
        if self.only_log {
            return Ok(());
        }
        let options = BackupOptions { with_keys: self.with_keys };
        let done = backup(self.data.directory(), &self.target, options, &SystemClock);
        let done = done.map_err(Failure::failed)?;
        // The copy, which does not change meanwhile.
        report(&done, damage(&self.target), self.json)
    }
}

impl Restore {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let data = self.data.directory();
        let done = restore(&self.backup, data).map_err(Failure::failed)?;
        // It is repaired like after a crash, and an error shows now.
        drop(FileStore::open(data).map_err(Failure::failed)?);
        if !done.with_keys && !self.json {
            output::line("the private keys of the receiver are not in the backup")?;
        }
        let found = siem_server::backup::verify(data);
        if self.json {
            let mut all = summary(&done, &found.files);
            all["verified"] = figures(&found);
            all["entries_damaged"] = entries(&found.named);
            output::json(&all)?;
        } else {
            output::line(&line("restored", &done))?;
            output::line(&verify::summary(&found))?;
            verify::print(&found.named)?;
        }
        match problems(&found) {
            None => Ok(()),
            Some(text) => Err(Failure::failed(Damaged(format!("restored everything: {text}")))),
        }
    }
}

/// Prints what was done. Damaged files are an error: who runs the command each night must notice them.
fn report(done: &BackupSummary, damaged: Vec<DamagedFile>, json: bool) -> Result<(), Failure> {
    match json {
        true => output::json(&summary(done, &damaged))?,
        false => output::line(&line("backed up", done))?,
    }
    if damaged.is_empty() {
        return Ok(());
    }
    let names = damaged.iter().map(|file| format!("`{}` {}", file.path.display(), file.problem));
    let names = output::plain(&names.collect::<Vec<_>>().join("; "));
    let (count, are) = (damaged.len(), if damaged.len() == 1 { "is" } else { "are" });
    Err(Failure::failed(Damaged(format!(
        "backed up everything, but {count} of the files {are} damaged: {names}"
    ))))
}

fn summary(done: &BackupSummary, damaged: &[DamagedFile]) -> Value {
    let BackupSummary { created_at, files, bytes, with_keys, .. } = done;
    json!({
        "created_at": created_at, "files": files, "bytes": bytes, "with_keys": with_keys,
        "damaged": verify::files(damaged),
    })
}

fn line(what: &str, done: &BackupSummary) -> String {
    let BackupSummary { created_at, files, bytes, .. } = done;
    let noun = if *files == 1 { "file" } else { "files" };
    format!("{what} {files} {noun}, {bytes} bytes, as of {created_at}")
}
