//! `siem-server config resolve`.

use clap::Args;
use serde_json::json;
use siem_server::configs::{ConfigFile, DeviceFacts, Exclusion, Winner, resolve};

use super::PlacesSource;
use crate::{failure::Failure, output};

/// Show which managed configuration a device gets, why, and why not the others
///
/// What the options do not say is taken from the last request of the device, if there was one. The exit
/// code is 1 if no configuration is meant for it.
#[derive(Args)]
pub(crate) struct Resolve {
    #[command(flatten)]
    source: PlacesSource,
    /// Id of the machine
    #[arg(long, value_name = "ID")]
    machine: String,
    /// Name of the user
    #[arg(long, value_name = "NAME")]
    user: String,
    /// Groups of the user, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    groups: Option<Vec<String>>,
    /// Operating system: linux, macos or windows
    #[arg(long, value_name = "OS", value_parser = ["linux", "macos", "windows"])]
    os: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("no managed configuration is meant for this device")]
struct Nothing;

impl Resolve {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let places = self.source.load()?;
        let registry = places.registry()?;
        let known = registry.device_config(&self.machine, &self.user).unwrap_or_default();
        let device = DeviceFacts {
            machine: self.machine,
            user: self.user,
            os: self.os.or(Some(known.os).filter(|os| !os.is_empty())),
            groups: self.groups.or(known.groups),
            in_force: known.in_force.map(|it| it.hash),
        };
        let set = places.folder().current();
        let halted = registry.halted_rollouts();
        let choice = resolve(&set.files, &device, |hash| halted.contains(hash));
        let winner = choice.winner.as_ref();
        if self.json {
            output::json(&json!({
                "file": winner.map(|(file, _)| &file.name),
                "hash": winner.map(|(file, _)| file.hash),
                "why": winner.map(|(file, why)| explain(file, *why)),
                "in_force": device.in_force,
                "others": choice.others.iter().map(|(file, why)| other(file, why)).collect::<Vec<_>>(),
            }))?;
        } else {
            if let Some((file, why)) = winner {
                output::line(&output::plain(&format!("{}: {}", file.name, explain(file, *why))))?;
            }
            for (file, why) in &choice.others {
                output::line(&output::plain(&format!("not {}: {why}", file.name)))?;
            }
        }
        if winner.is_some() { Ok(()) } else { Err(Failure::failed(Nothing)) }
    }
}

fn other(file: &ConfigFile, why: &Exclusion) -> serde_json::Value {
    json!({ "file": file.name, "why_not": why.to_string() })
}

fn explain(file: &ConfigFile, why: Winner) -> String {
    let reason = match why {
        Winner::Only => "no other file is meant for the device",
        Winner::MostSpecific => "its audience is the most specific one that includes the device",
        Winner::HighestSerial => "it has the highest serial of the most specific audiences",
        Winner::FirstName => "its name is the first of the most specific audiences (a tie)",
        Winner::Fallback => "no file of the folder is meant for the device",
    };
    match file.config.serial {
        Some(serial) => format!("{reason}; serial {serial}"),
        None => reason.to_owned(),
    }
}
