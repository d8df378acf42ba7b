//! The files of the configuration: their changes, and those that do not answer.

use std::path::PathBuf;

use super::{
    super::{
        file_watch::ConfigStamps,
        handle::ReloadOutcome,
        managed_config::{Candidate, Refusal},
    },
    ConfigManager,
};
use crate::pipeline::{config_status::ConfigOrigin, reload::named_files};

impl ConfigManager {
    /// Stamps of the files that determine the configuration. If files could not be read and answer by
    /// now, they count as changed.
    pub(in crate::agent) fn stamps(&mut self) -> ConfigStamps {
        if self.is_read_due && self.silent_file().is_none() {
            self.is_read_due = false;
            self.watch.mark_read(ConfigStamps::default());
        }
        let files = self.sources.layer_files();
        let all: Vec<_> = files.iter().chain(&self.named).cloned().collect();
        let stamps = self.stamps.read(&self.context.calls, &all);
        let of = |path: &PathBuf| (path.clone(), stamps.get(path).copied().flatten());
        ConfigStamps {
            layers: files.iter().map(of).collect(),
            named: self.named.iter().map(of).collect(),
        }
    }

    /// Starts to watch the files that the configuration names by now.
    pub(in crate::agent) fn watch_named(&mut self) {
        let stamps = self.stamps();
        self.watch.set_named(stamps.named);
    }

    /// Reads all layers again, because a person ordered it.
    pub(in crate::agent) fn read_files_by_order(&mut self) -> Option<Candidate> {
        self.outcome = ReloadOutcome::Unchanged;
        self.is_ordered = true;
        let stamps = self.stamps();
        self.watch.mark_read(stamps);
        let accepted = self.accept_in_force();
        self.evaluate_files(accepted)
    }

    /// Reads all layers again, because an inspection found changed files with these stamps.
    ///
    /// Returns `None`, and leaves the change to a later inspection, if a file changes while it is
    /// read: a file that is being written may be incomplete, and an empty one would be valid.
    pub(in crate::agent) fn read_changed_files(
        &mut self,
        stamps: ConfigStamps,
    ) -> Option<Candidate> {
        self.outcome = ReloadOutcome::Unchanged;
        let accepted = self.accept_in_force();
        if self.stamps() != stamps {
            return None;
        }
        self.is_ordered = false;
        self.watch.mark_read(stamps);
        self.evaluate_files(accepted)
    }

    /// Completes the checks of a configuration from files, and refuses it if one has failed.
    fn evaluate_files(&mut self, accepted: Result<Candidate, Refusal>) -> Option<Candidate> {
        self.is_read_due = false;
        self.mark_attempted(ConfigOrigin::Files, self.context.revision.get());
        let accepted = accepted.and_then(|candidate| {
            self.named.extend(named_files(&candidate.loaded.settings, &self.context));
            match candidate.loaded.missing_for_delivery() {
                Some(missing) => Err(Refusal::new(&missing, candidate.files)),
                None => Ok(candidate),
            }
        });
        accepted
            .map_err(|refusal| self.refuse(ConfigOrigin::Files, refusal.content(), refusal.reason))
            .ok()
    }

    /// Returns a file of the configuration that is known not to answer.
    pub(super) fn silent_file(&self) -> Option<PathBuf> {
        let silent = self.context.calls.silent();
        let is_silent = |file: &PathBuf| silent.iter().any(|(place, _)| file.starts_with(place));
        self.config_files().into_iter().find(is_silent)
    }

    /// Returns the files of the layers, and those that the configuration names.
    fn config_files(&self) -> Vec<PathBuf> {
        let files = self.sources.layer_files().into_iter().chain(self.named.iter().cloned());
        files.collect()
    }
}
