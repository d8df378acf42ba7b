//! Checks directories and files that a configuration names, and that an agent creates or only finds out
//! about later: `config check` reports those that it could not use.

use std::{fs, io, path::Path};

use metrics_endpoint::MetricsAddress;
use siem_protocol::names;

use crate::{
    config::{ConfigError, ConfigWarning, LoadedConfig, StageTable},
    platform::{
        Paths, file,
        state_dir::{self, DirUse},
    },
    stages::sink,
    text::causes,
};

/// Directories of the agent's own in its state directory.
const OWN: [&str; 2] = ["logs", "spool"];

/// What is wrong with the paths of a configuration.
#[derive(Default)]
pub(crate) struct UnusablePaths {
    /// Paths that cannot be used.
    pub(crate) errors: Vec<ConfigError>,
    /// Paths that cannot be used yet.
    pub(crate) warnings: Vec<ConfigWarning>,
}

impl UnusablePaths {
    /// Checks the paths of a configuration on this machine.
    pub(super) fn of(loaded: &LoadedConfig, paths: &Paths) -> Self {
        let mut found = Self::outside_of_state_dir(loaded, paths);
        found.check_state_dir(loaded);
        found
    }

    /// Checks the paths of a configuration on this machine, except for the state directory.
    pub(crate) fn outside_of_state_dir(loaded: &LoadedConfig, paths: &Paths) -> Self {
        let mut found = Self::default();
        found.check_metrics(loaded);
        for table in &loaded.settings.pipeline.sources {
            found.check_roots(loaded, table, paths);
        }
        for table in &loaded.settings.pipeline.sinks {
            found.check_sink(loaded, table);
        }
        found
    }

    fn check_state_dir(&mut self, loaded: &LoadedConfig) {
        const KEY: &str = "agent.state_dir";

        let dir = &loaded.settings.agent.state_dir;
        let shown = dir.display();
        if let Some(part) = file::in_place_of_directory(dir) {
            let reason = no_directory(dir, &part);
            let problem =
                format!("is `{shown}`, {reason}: move that away, or set another directory");
            self.errors.push(loaded.value_error(KEY, problem));
            return;
        }
        if let Err(error) = state_dir::check(dir, DirUse::Read) {
            self.errors
                .push(loaded.value_error(KEY, format!("cannot be used: {}", causes(&error))));
        }
        for part in OWN.iter().filter_map(|name| file::in_place_of_directory(&dir.join(name))) {
            let problem = format!(
                "is `{shown}`, but `{}` in it is not a directory: move that away",
                part.display()
            );
            self.errors.push(loaded.value_error(KEY, problem));
        }
    }

    fn check_metrics(&mut self, loaded: &LoadedConfig) {
        if let Some(MetricsAddress::Unix(socket)) = &loaded.settings.metrics_listen {
            self.check_file(loaded, "metrics.listen", socket, "unix:");
        }
    }

    fn check_roots(&mut self, loaded: &LoadedConfig, table: &StageTable, paths: &Paths) {
        let roots = table.options.get("roots").and_then(|roots| roots.as_array());
        let texts = roots.into_iter().flatten().filter_map(|root| root.as_str());
        for root in texts.filter(|_| table.stage == names::source::CLAUDE_SESSIONS) {
            let root = paths.expand(Path::new(root));
            // The target of a link may be on a disk that is mounted later.
            let part = file::in_place_of_directory(&root).filter(|part| fs::metadata(part).is_ok());
            if let Some(part) = part {
                let reason = no_directory(&root, &part);
                let problem = format!("names `{}`, {reason}: name directories", root.display());
                let key = format!("source.{}.roots", table.name);
                self.errors.push(loaded.value_error(&key, problem));
            }
        }
    }

    fn check_sink(&mut self, loaded: &LoadedConfig, table: &StageTable) {
        let files = sink::files(&table.stage, &table.options.to_options()).unwrap_or_default();
        let option = if table.options.get("path").is_some() { ".path" } else { "" };
        let key = format!("sink.{}{option}", table.name);
        for path in files {
            let is_other = fs::metadata(&path).is_ok_and(|found| !found.is_file());
            if is_other {
                let problem =
                    format!("is `{}`, which is not a regular file: name a file", path.display());
                self.errors.push(loaded.value_error(&key, problem));
            } else if self.check_file(loaded, &key, &path, "")
                && let Err(error) = file::check_appendable(&path)
            {
                let problem = format!(
                    "is `{}`, which the agent cannot write: {error}: let its user write there, or name \
                     another file",
                    path.display()
                );
                self.errors.push(loaded.value_error(&key, problem));
            }
        }
    }

    /// Checks that the directory of a file exists, which the agent does not create. Returns whether it does.
    fn check_file(&mut self, loaded: &LoadedConfig, key: &str, path: &Path, scheme: &str) -> bool {
        let Some(directory) = path.parent() else { return false };
        let shown = path.display();
        if let Some(part) = file::in_place_of_directory(directory) {
            let problem = format!(
                "is `{scheme}{shown}`, but `{}` is not a directory: name a path in a directory",
                part.display()
            );
            self.errors.push(loaded.value_error(key, problem));
            return false;
        }
        let found = fs::metadata(directory);
        let is_missing = found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_missing {
            let (key, location) = loaded.locate(key);
            let message = format!(
                "`{key}` in {location} is `{scheme}{shown}`, but the directory `{}` does not exist: create \
                 it",
                directory.display()
            );
            let warning = ConfigWarning::new("directory_missing", message);
            self.warnings.push(warning.about(key, location));
        }
        !is_missing
    }
}

/// Says that a path, or the part of it that exists, is not a directory.
fn no_directory(path: &Path, part: &Path) -> String {
    if path == part {
        return "which is not a directory".to_owned();
    }
    format!("but `{}` is not a directory", part.display())
}
