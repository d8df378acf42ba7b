//! `siem-server config list` and `devices`.

use clap::Args;
use serde_json::json;
use siem_server::configs::{ConfigFileStats, ConfigState, ConfigStats, choose_for_device};

use super::PlacesSource;
use crate::{failure::Failure, output};

/// List the managed configurations, and how many devices applied and refused each
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    source: PlacesSource,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let places = self.source.load()?;
        let registry = places.registry()?;
        let set = places.folder().current();
        let stats = ConfigStats::of(&set, &registry).unwrap_or_default();
        if self.json {
            return output::json(&stats);
        }
        for broken in &stats.broken {
            let (file, reason) = (output::plain(&broken.file), output::plain(&broken.reason));
            output::note(&format!("warning: {file}: {reason}"));
        }
        let rows: Vec<_> = stats.files.iter().map(row).collect();
        let head = ["FILE", "SERIAL", "ROLL-OUT", "APPLIED", "REFUSED", "OFFERED", "NOT ASKED"];
        output::table(head, &rows)
    }
}

fn row(file: &ConfigFileStats) -> [String; 7] {
    let rollout = match (file.percent, file.halted) {
        (_, true) => "halted".to_owned(),
        (Some(percent), false) => format!("{percent} %"),
        (None, false) => String::new(),
    };
    [
        file.file.clone(),
        file.serial.map(|serial| serial.to_string()).unwrap_or_default(),
        rollout,
        file.applied.to_string(),
        file.refused.to_string(),
        file.offered.to_string(),
        file.not_asked.to_string(),
    ]
}

/// List the devices with the managed configuration that each should have
#[derive(Args)]
pub(crate) struct Devices {
    #[command(flatten)]
    source: PlacesSource,
    /// List only devices in this state: applied, refused, offered, not_asked
    #[arg(long, value_name = "STATE", value_parser = ["applied", "refused", "offered", "not_asked"])]
    state: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Devices {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let places = self.source.load()?;
        let registry = places.registry()?;
        let set = places.folder().current();
        let halted = registry.halted_rollouts();
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for device in registry.device_configs() {
            let Some(file) = choose_for_device(&set, &device, &halted) else { continue };
            let state = ConfigState::of(&device, &file.hash);
            if self.state.as_ref().is_some_and(|wanted| wanted != state.as_str()) {
                continue;
            }
            let reason = device.refused.as_ref().filter(|_| state == ConfigState::Refused);
            let reason = reason.and_then(|it| it.reason.clone()).unwrap_or_default();
            if self.json {
                values.push(json!({ "file": file.name, "state": state, "device": device }));
            } else {
                let (machine, user, file) = (device.machine, device.user, file.name.clone());
                rows.push([machine, user, file, state.as_str().to_owned(), reason]);
            }
        }
        if self.json {
            return output::json(&values);
        }
        output::table(["MACHINE", "USER", "FILE", "STATE", "REASON"], &rows)
    }
}
