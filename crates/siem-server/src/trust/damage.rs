//! Damage of the files of a registry.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    config_answers::ConfigAnswers,
    devices::{DeviceKey, Devices},
    events::EventCounts,
    journal::{Fold, JournalError, read_only},
    keys::{KeyStore, ReceiverKeyError},
    offered::OfferedConfigs,
    tokens::Tokens,
};
use crate::error_text::causes;

/// Name of the file with the devices.
pub(super) const DEVICES: &str = "devices.ndjson";

/// Key that owns an epoch, with machine and user of that epoch.
pub(crate) type EpochOwner = (DeviceKey, String, String);

/// Returns the damaged files of the registry in `directory`, each with what is wrong, and changes nothing.
/// `owners` are the devices of the stored epochs.
pub(crate) fn damage(directory: &Path, owners: &[EpochOwner]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let devices = journal::<Devices>(directory.join(DEVICES), &mut found);
    journal::<Tokens>(directory.join("tokens.ndjson"), &mut found);
    journal::<EventCounts>(directory.join("events.ndjson"), &mut found);
    journal::<OfferedConfigs>(directory.join("offered.ndjson"), &mut found);
    journal::<ConfigAnswers>(directory.join("config-answers.ndjson"), &mut found);
    if let Some(devices) = devices {
        let missing = devices.missing(owners);
        if missing > 0 {
            let text = format!("lacks {missing} of the devices that sent the stored entries");
            found.push((directory.join(DEVICES), text));
        }
    }
    let keys = KeyStore::open(directory.join("keys"));
    for error in [keys.as_ref().err(), keys.as_ref().ok().and_then(|it| it.former().err()).as_ref()]
        .into_iter()
        .flatten()
    {
        found.push((path_of(error, directory.join("keys")), causes(error)));
    }
    found
}

/// Reports whether the file with the devices is missing in `directory`.
pub(crate) fn lacks_devices(directory: &Path) -> io::Result<bool> {
    Ok(!directory.join(DEVICES).try_exists()?)
}

fn journal<S: Fold>(path: PathBuf, found: &mut Vec<(PathBuf, String)>) -> Option<S> {
    match read_only::<S>(&path) {
        Ok((state, torn)) => {
            if torn > 0 {
                let text = "ends in the middle of a line: a crash left it, or the file was cut off";
                found.push((path, text.to_owned()));
            }
            Some(state)
        }
        Err(error) => {
            found.push((path, causes(&error)));
            None
        }
    }
}

fn path_of(error: &ReceiverKeyError, directory: PathBuf) -> PathBuf {
    match error {
        ReceiverKeyError::File(JournalError::Io { path, .. } | JournalError::Line { path, .. })
        | ReceiverKeyError::Damaged { path }
        | ReceiverKeyError::Open { path } => path.clone(),
        _ => directory,
    }
}
