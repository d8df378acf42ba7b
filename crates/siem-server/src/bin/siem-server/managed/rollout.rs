//! `siem-server config rollout`.

use std::{fs, io};

use clap::Args;
use siem_server::configs::{Rollout, replace_public_file};

use super::{PlacesSource, UnknownFile, WriteError};
use crate::{failure::Failure, output};

/// Roll a managed configuration out to a part of the machines, or to more of them
///
/// Writes `FILE.rollout` beside the configuration, which stays unchanged with its signature. A running
/// receiver notices it with the next request.
#[derive(Args)]
pub(crate) struct SetRollout {
    #[command(flatten)]
    source: PlacesSource,
    /// Name of the configuration, such as `linux.json`
    file: String,
    /// Part of the machines, 0 to 100
    #[arg(long, value_name = "PERCENT", required_unless_present_any = ["resume", "end"])]
    percent: Option<u64>,
    /// Halt if more than this part of the devices that answered refuse it [default: 5]
    #[arg(long, value_name = "PERCENT")]
    max_refused_percent: Option<u64>,
    /// Do not halt for fewer refusals than this [default: 3]
    #[arg(long, value_name = "NUMBER")]
    min_refused: Option<u64>,
    /// Continue a roll-out that halted, in spite of the refusals so far
    #[arg(long)]
    resume: bool,
    /// End the roll-out: all devices of the audience get the configuration
    #[arg(long, conflicts_with_all = ["percent", "resume", "max_refused_percent", "min_refused"])]
    end: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the roll-out of `{0}` cannot be read: give --percent")]
struct BrokenRollout(String);

impl SetRollout {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        let places = self.source.load()?;
        let registry = places.registry()?;
        let set = places.folder().current();
        let file = set.files.iter().find(|it| it.name == self.file && !it.is_fallback);
        let file = file.ok_or_else(|| Failure::usage(UnknownFile(self.file.clone())))?;
        let name = &file.name;
        let path = places.path(&format!("{name}.rollout"));
        if self.end {
            return match fs::remove_file(&path) {
                Ok(()) => output::line(&format!("`{name}` goes to all devices of its audience")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    output::line(&format!("`{name}` has no roll-out"))
                }
                Err(source) => Err(Failure::failed(WriteError { path, source })),
            };
        }
        if file.is_rollout_broken && self.percent.is_none() {
            return Err(Failure::usage(BrokenRollout(name.clone())));
        }
        let mut rollout = file.rollout.unwrap_or(Rollout::new(100));
        rollout.percent = self.percent.unwrap_or(rollout.percent);
        rollout.max_refused_percent =
            self.max_refused_percent.unwrap_or(rollout.max_refused_percent);
        rollout.min_refused = self.min_refused.unwrap_or(rollout.min_refused);
        rollout.check().map_err(Failure::usage)?;
        let text = serde_json::to_string(&rollout).map_err(Failure::failed)? + "\n";
        replace_public_file(&path, text.as_bytes())
            .map_err(|source| Failure::failed(WriteError { path, source }))?;
        if self.resume && !registry.resume_rollout(file.hash)? {
            output::note(&format!("warning: the roll-out of `{name}` is not halted"));
        }
        // A receiver checks the limits only when a device refuses the configuration.
        registry.halt_if_exceeded(file.hash, &rollout)?;
        if registry.halted_rollouts().contains(&file.hash) {
            output::note(&format!(
                "warning: the roll-out of `{name}` is halted (run with --resume)"
            ));
        }
        output::line(&format!("`{name}` goes to {} % of the machines", rollout.percent))
    }
}
