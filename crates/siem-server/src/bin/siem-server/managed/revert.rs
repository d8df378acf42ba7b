//! `siem-server config revert`.

use std::{fs, io, path::PathBuf, sync::Arc};

use clap::Args;
use siem_server::{
    Clock as _, SystemClock,
    configs::{
        ConfigFile, ConfigFolder, ConfigHistory, FileSet, is_config_name, replace_public_file,
        with_serial,
    },
};

use super::{Places, PlacesSource, UnknownFile, WriteError};
use crate::{failure::Failure, output};

/// Go back to an older content of a managed configuration
///
/// Writes the older content with a higher serial: agents refuse a lower one. Without --to this is the
/// content of the file that a roll-out replaces, else the content that the file had before. If the
/// organisation signs its configurations, the command only prepares the file to sign.
#[derive(Args)]
pub(crate) struct Revert {
    #[command(flatten)]
    source: PlacesSource,
    /// Name of the configuration, such as `linux.json`
    file: String,
    /// Content to go back to: the name of another configuration, or a number of --list
    #[arg(long, value_name = "FILE|NUMBER")]
    to: Option<String>,
    /// List the contents that the file had, and change nothing
    #[arg(long, conflicts_with = "to")]
    list: bool,
    /// File to prepare for signing [default: the name of the configuration, in this directory]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum RevertArgumentError {
    #[error("there is no older content of `{0}`: name one with --to")]
    NoOlder(String),
    #[error("`{0}` is neither a managed configuration nor a number of --list")]
    Unknown(String),
    #[error("cannot read the older contents")]
    History(#[source] io::Error),
    #[error("`{0}` exists: name another file with --output")]
    Exists(PathBuf),
    #[error("the older content is that of `{0}` now: there is nothing to go back to")]
    Same(String),
    #[error("a content with serial {0} was served or is in place: there is no higher serial")]
    HighestSerial(u64),
}

impl Revert {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let places = self.source.load()?;
        let folder = places.folder();
        let set = folder.current();
        if self.list {
            return self.list(&folder);
        }
        if !is_config_name(&self.file) {
            return Err(Failure::usage(UnknownFile(self.file)));
        }
        let current = set.files.iter().find(|it| it.name == self.file && !it.is_fallback);
        let older = self.older(&folder, &set, current)?;
        if self.to.is_none() && current.is_some_and(|it| it.body == older) {
            return Err(Failure::failed(RevertArgumentError::Same(self.file)));
        }
        let serial = self.next_serial(&folder, &set)?;
        let now = humantime::format_rfc3339_seconds(SystemClock.now()).to_string();
        let body = with_serial(&older, serial, &now).map_err(Failure::failed)?;
        let is_signed = !set.keys.is_empty() || current.is_some_and(|it| it.minisig.is_some());
        if is_signed {
            self.prepare(&places, &body, serial)?;
        } else {
            self.install(&places, &body, serial)?;
        }
        for superseded in current.map(|it| superseded(&set, it)).unwrap_or_default() {
            output::line(&format!(
                "then remove `{superseded}`: it has the same audience and a lower serial, and is no longer \
                 served; until then `config check` reports a tie"
            ))?;
        }
        Ok(())
    }

    fn list(&self, folder: &ConfigFolder) -> Result<(), Failure> {
        let rows =
            self.entries(folder).map_err(history_error)?.into_iter().map(|(number, body)| {
                let config = siem_protocol::ManagedConfig::parse(&body).unwrap_or_default();
                let serial = config.serial.map(|serial| serial.to_string()).unwrap_or_default();
                let (issued, revision) = (config.issued, config.revision);
                [
                    number.to_string(),
                    serial,
                    issued.unwrap_or_default(),
                    revision.unwrap_or_default(),
                ]
            });
        output::table(["NUMBER", "SERIAL", "ISSUED", "REVISION"], &rows.collect::<Vec<_>>())
    }

    /// Returns the older contents of the file with their numbers, the oldest first.
    fn entries(&self, folder: &ConfigFolder) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let entries = folder.history().map(|history| history.entries(&self.file, false));
        let entries = entries.transpose()?.unwrap_or_default().into_iter();
        entries.map(|entry| Ok((entry.number, entry.read()?.0))).collect()
    }

    fn older(
        &self,
        folder: &ConfigFolder,
        set: &FileSet,
        current: Option<&Arc<ConfigFile>>,
    ) -> Result<Vec<u8>, Failure> {
        let entries = self.entries(folder).map_err(history_error)?;
        if let Some(to) = &self.to {
            let number = to.parse::<u64>().ok();
            let of_number = entries.into_iter().find(|(it, _)| Some(*it) == number);
            let of_file = set.files.iter().find(|file| file.name == *to);
            let found = of_number.map(|(_, body)| body).or(of_file.map(|file| file.body.clone()));
            return found.ok_or_else(|| Failure::usage(RevertArgumentError::Unknown(to.clone())));
        }
        let audience = |file: &ConfigFile| file.audience().cloned().unwrap_or_default();
        let replaced = current.filter(|it| it.rollout.is_some()).and_then(|current| {
            let is_before = |it: &&Arc<ConfigFile>| {
                !it.is_fallback
                    && audience(it) == audience(current)
                    && it.config.serial < current.config.serial
            };
            set.files.iter().filter(is_before).max_by_key(|it| it.config.serial)
        });
        if let Some(replaced) = replaced {
            return Ok(replaced.body.clone());
        }
        let is_other = |body: &Vec<u8>| current.is_none_or(|current| current.body != *body);
        let before = entries.into_iter().rev().map(|(_, body)| body).find(is_other);
        before.ok_or_else(|| Failure::failed(RevertArgumentError::NoOlder(self.file.clone())))
    }

    /// Returns a serial that is higher than any that was served.
    fn next_serial(&self, folder: &ConfigFolder, set: &FileSet) -> Result<u64, Failure> {
        let served = folder.history().map(ConfigHistory::highest_serial).transpose();
        let served = served.map_err(history_error)?.flatten();
        let present = set.files.iter().filter_map(|file| file.config.serial);
        let highest = present.chain(served).max().unwrap_or(0);
        let next = highest.checked_add(1);
        next.ok_or_else(|| Failure::failed(RevertArgumentError::HighestSerial(highest)))
    }

    /// Puts the content in place. It goes to all devices of its audience.
    fn install(&self, places: &Places, body: &[u8], serial: u64) -> Result<(), Failure> {
        let path = places.path(&self.file);
        let failed = |path: PathBuf| {
            move |source| Failure::failed(WriteError { path: path.clone(), source })
        };
        replace_public_file(&path, body).map_err(failed(path.clone()))?;
        let rollout = places.path(&format!("{}.rollout", self.file));
        match fs::remove_file(&rollout) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(rollout)(error));
            }
            _ => {}
        }
        output::line(&format!("`{}` has the older content with serial {serial}", self.file))
    }

    /// Writes the file to sign.
    fn prepare(&self, places: &Places, body: &[u8], serial: u64) -> Result<(), Failure> {
        let path = self.output.clone().unwrap_or_else(|| self.file.clone().into());
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => return Err(Failure::usage(RevertArgumentError::Exists(path))),
        }
        replace_public_file(&path, body)
            .map_err(|source| Failure::failed(WriteError { path: path.clone(), source }))?;
        let (shown, to) = (path.display(), places.path(&self.file));
        output::line(&format!(
            "wrote `{shown}` with serial {serial}; sign it offline and install both:"
        ))?;
        output::line(&format!("  minisign -S -m {shown}"))?;
        output::line(&format!("  cp {shown}.minisig {0}.minisig && cp {shown} {0}", to.display()))
    }
}

/// Names of the other files with the audience of a file, which has the highest serial now.
fn superseded(set: &FileSet, file: &ConfigFile) -> Vec<String> {
    let audience = |file: &ConfigFile| file.audience().cloned().unwrap_or_default();
    let is_other = |it: &&Arc<ConfigFile>| {
        !it.is_fallback && it.name != file.name && audience(it) == audience(file)
    };
    set.files.iter().filter(is_other).map(|it| it.name.clone()).collect()
}

fn history_error(error: io::Error) -> Failure {
    Failure::failed(RevertArgumentError::History(error))
}
