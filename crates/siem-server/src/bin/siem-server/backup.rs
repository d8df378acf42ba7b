//! `siem-server backup` and `restore`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use siem_server::{
    FileStore, SystemClock,
    backup::{BackupOptions, BackupSummary, DamagedFile, backup, damage, restore},
    life::AccessAction,
};

use crate::{Data, access_log::log, failure::Failure, output};

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

/// Copy a backup into an empty data directory, verify it, and open it once
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
        report("backed up", &done, damage(&self.target, false), self.json)
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
        report("restored", &done, damage(data, true), self.json)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{what} everything, but {count} of the files {are} damaged: {names}")]
struct Damaged {
    what: &'static str,
    count: usize,
    are: &'static str,
    names: String,
}

/// Prints what was done. Damaged files are an error: who runs the command each night must notice them.
fn report(
    what: &'static str,
    done: &BackupSummary,
    damaged: Vec<DamagedFile>,
    json: bool,
) -> Result<(), Failure> {
    let BackupSummary { created_at, files, bytes, with_keys, .. } = done;
    if json {
        let damaged: Vec<_> = damaged
            .iter()
            .map(|file| json!({ "path": file.path.to_string_lossy(), "problem": file.problem }))
            .collect();
        output::json(&json!({
            "created_at": created_at, "files": files, "bytes": bytes, "with_keys": with_keys,
            "damaged": damaged,
        }))?;
    } else {
        let noun = if *files == 1 { "file" } else { "files" };
        output::line(&format!("{what} {files} {noun}, {bytes} bytes, as of {created_at}"))?;
    }
    if damaged.is_empty() {
        return Ok(());
    }
    let names = damaged.iter().map(|file| format!("`{}` {}", file.path.display(), file.problem));
    let names = output::plain(&names.collect::<Vec<_>>().join("; "));
    let (count, are) = (damaged.len(), if damaged.len() == 1 { "is" } else { "are" });
    Err(Failure::failed(Damaged { what, count, are, names }))
}
