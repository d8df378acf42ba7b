//! Stages of the pipeline and their order.

use std::path::Path;

use figment::value::{Dict, Value};

use super::{
    error::ConfigError,
    key::key_text,
    merged::Merged,
    options::OptionTable,
    origin::Location,
    secret,
    settings::{PipelineSettings, PipelineTable, StageTable},
    sink::SinkSettings,
    warning::ConfigWarning,
};
use crate::platform::{Os, secure_file};
use config_text::Size;

/// Filters of every pipeline, in the order in which they run if the list omits them.
pub(super) const BUILT_IN_FILTERS: [&str; 6] =
    ["compact", "dedupe", "ignore-types", "sidechain", "meta", "tool-call"];

/// Built-in filters that cannot be disabled.
pub const ALWAYS_ON: [&str; 2] = ["compact", "dedupe"];

/// Kinds of stages: the names of their tables. The lists in `[pipeline]` have the plural.
pub(super) const KINDS: [&str; 4] = ["source", "filter", "enricher", "sink"];

/// Maximum number of stages in all lists: each costs memory and time, and the server may set them.
const MAX_STAGES: usize = 256;

/// Returns the enabled and the disabled stages.
pub(super) fn resolve(
    lists: &PipelineTable,
    merged: &Merged,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<(PipelineSettings, PipelineSettings), ConfigError> {
    let mut on = PipelineSettings::default();
    let mut off = PipelineSettings::default();
    let kinds = [
        ("source", &lists.sources, &mut on.sources, &mut off.sources),
        ("filter", &lists.filters, &mut on.filters, &mut off.filters),
        ("enricher", &lists.enrichers, &mut on.enrichers, &mut off.enrichers),
        ("sink", &lists.sinks, &mut on.sinks, &mut off.sinks),
    ];
    let mut count = 0;
    for (kind, list, ..) in &kinds {
        count += list.len();
        if count > MAX_STAGES {
            let problem = format!(
                "ends with stage {count} of the pipeline, at most {MAX_STAGES} stages are allowed in \
                 all lists"
            );
            return Err(merged.value_error(&format!("pipeline.{kind}s"), problem));
        }
    }
    for (kind, list, on, off) in kinds {
        let stages = Kind { kind, merged };
        let names = stages.names(list)?;
        for name in &names {
            let stage = stages.table(name)?;
            if stage.enabled { on.push(stage) } else { off.push(stage) }
        }
        stages.check_unlisted(&names, warnings)?;
        if on.is_empty() && matches!(kind, "source" | "sink") {
            let problem = format!("contains no enabled {kind}: at least one is required");
            return Err(merged.value_error(&format!("pipeline.{kind}s"), problem));
        }
    }
    Ok((on, off))
}

/// Stages of one kind.
struct Kind<'a> {
    kind: &'static str,
    merged: &'a Merged,
}

impl Kind<'_> {
    /// Returns the checked names in the list, with omitted built-in filters first.
    fn names(&self, list: &[String]) -> Result<Vec<String>, ConfigError> {
        let kind = self.kind;
        for (at, name) in list.iter().enumerate() {
            let key = format!("pipeline.{kind}s.{at}");
            if !is_kebab_case(name) {
                return Err(self.merged.value_error(&key, format!("is {}", not_kebab_case(name))));
            }
            if list[..at].contains(name) {
                let problem = format!(
                    "contains `{name}` twice: give the second one another name, and set `type = \
                     \"{name}\"` in its table"
                );
                return Err(self.merged.value_error(&format!("pipeline.{kind}s"), problem));
            }
        }
        let built_in: &[&str] = if kind == "filter" { &BUILT_IN_FILTERS } else { &[] };
        let omitted =
            built_in.iter().map(|name| (*name).to_owned()).filter(|name| !list.contains(name));
        Ok(omitted.chain(list.iter().cloned()).collect())
    }

    /// Returns the stage called `name`; without a table it is a stage of that type without options.
    fn table(&self, name: &str) -> Result<StageTable, ConfigError> {
        let empty = Value::from(Dict::new());
        let table = self.merged.stage(self.kind, name).unwrap_or(&empty);
        let key = format!("{}.{name}", self.kind);
        let Some(dict) = table.as_dict() else {
            return Err(self.merged.value_error(&key, format!("must be a table, `[{key}]`")));
        };
        let stage = match dict.get("type") {
            None => name.to_owned(),
            Some(Value::String(_, stage)) if is_kebab_case(stage) => stage.clone(),
            Some(_) => {
                let problem = "must be a stage type such as `\"ignore-types\"`: `ai-agent stages` \
                               lists them";
                return Err(self.merged.value_error(&format!("{key}.type"), problem));
            }
        };
        let enabled = match dict.get("enabled") {
            None => true,
            Some(Value::Bool(_, enabled)) => *enabled,
            Some(_) => {
                return Err(self
                    .merged
                    .value_error(&format!("{key}.enabled"), "must be `true` or `false`"));
            }
        };
        if self.kind == "filter" {
            self.check_built_in(name, &stage, enabled)?;
        }
        self.check_files(&key, dict)?;
        let mut table = table.clone();
        let sink_settings = match self.kind {
            "sink" => self.sink_settings(name, &mut table)?,
            _ => SinkSettings::default(),
        };
        let options = OptionTable::tagged(table);
        Ok(StageTable { name: name.to_owned(), stage, enabled, sink_settings, options })
    }

    /// Checks that the options of a stage name files in a way that does not depend on the directory in
    /// which a process was started: it is another one for a command in a shell and for the service.
    fn check_files(&self, key: &str, table: &Dict) -> Result<(), ConfigError> {
        let files = table.iter().filter(|(option, _)| option.ends_with("_file"));
        for (option, path) in files.filter_map(|(option, value)| Some((option, value.as_str()?))) {
            // A file for Windows may be checked on another system.
            if !Os::is_absolute_on_any(path.as_ref()) && !Path::new(path).starts_with("~") {
                let problem = format!("is `{path}`, must be an absolute path or start with `~/`");
                return Err(self.merged.value_error(&format!("{key}.{option}"), problem));
            }
        }
        Ok(())
    }

    fn sink_settings(&self, name: &str, table: &mut Value) -> Result<SinkSettings, ConfigError> {
        let settings = SinkSettings::extract(table)
            .map_err(|error| self.merged.explain_error(&["sink", name], *error))?;
        if let Some(rate) = settings.max_bytes_per_second.filter(|rate| *rate < 1 << 10) {
            let rate = Size(rate);
            let problem = format!("is {rate}, must be at least 1 KiB; omit it for no limit");
            return Err(self
                .merged
                .value_error(&format!("sink.{name}.max_bytes_per_second"), problem));
        }
        Ok(settings)
    }

    fn check_built_in(&self, name: &str, stage: &str, enabled: bool) -> Result<(), ConfigError> {
        if BUILT_IN_FILTERS.contains(&name) && stage != name {
            let problem = format!(
                "is \"{stage}\", but `{name}` is built in and keeps its type: give another \
                 filter another name"
            );
            return Err(self.merged.value_error(&format!("filter.{name}.type"), problem));
        }
        if ALWAYS_ON.contains(&name) && !enabled {
            let problem = format!("is false, but `{name}` is always on: remove this line");
            return Err(self.merged.value_error(&format!("filter.{name}.enabled"), problem));
        }
        Ok(())
    }

    /// Warns about tables that no list contains, since they have no effect, except those of the
    /// built-in defaults.
    fn check_unlisted(
        &self,
        names: &[String],
        warnings: &mut Vec<ConfigWarning>,
    ) -> Result<(), ConfigError> {
        let kind = self.kind;
        for (name, table) in self.merged.tables(kind) {
            if !is_kebab_case(name) {
                let problem = format!("is named {}", not_kebab_case(name));
                return Err(self.merged.value_error(&key_text(&[kind, name]), problem));
            }
            if names.iter().any(|listed| listed == name) {
                continue;
            }
            let path = [kind.to_owned(), name.to_owned()];
            let (rank, location) = self.highest_location(&path, table);
            if rank > 0 {
                let message = format!(
                    "the table `[{kind}.{name}]` in {location} has no effect: `pipeline.{kind}s` \
                     does not list `{name}`"
                );
                let warning = ConfigWarning::new("table_unlisted", message);
                warnings.push(warning.about(format!("{kind}.{name}"), location));
            }
        }
        Ok(())
    }

    /// Returns the location and the layer index of the value in a table that comes from the last
    /// layer.
    fn highest_location(&self, path: &[String], value: &Value) -> (usize, Location) {
        fn highest(merged: &Merged, value: &Value) -> usize {
            let below = value.as_dict().into_iter().flat_map(Dict::values);
            below.map(|value| highest(merged, value)).fold(merged.rank(value), usize::max)
        }
        let rank = highest(self.merged, value);
        (rank, self.merged.layers[rank].location(path))
    }
}

/// Warns about secrets that are short, or set in a file that every user of the machine can read.
pub(super) fn warn_of_weak_secrets(
    pipeline: &PipelineSettings,
    merged: &Merged,
    warnings: &mut Vec<ConfigWarning>,
) {
    let kinds = [&pipeline.sources, &pipeline.filters, &pipeline.enrichers, &pipeline.sinks];
    for (kind, stages) in KINDS.iter().zip(kinds) {
        for StageTable { name, options, .. } in stages {
            for (option, value) in options.0.as_dict().into_iter().flatten() {
                if !secret::is_secret_key(option) {
                    continue;
                }
                let path = [(*kind).to_owned(), name.clone(), option.clone()];
                let location = merged.location(&path, value);
                let key = format!("{kind}.{name}.{option}");
                let is_short = value
                    .as_str()
                    .and_then(secret::Secret::new)
                    .is_some_and(|secret| secret.is_short());
                let mut warn = |code, message| {
                    let warning = ConfigWarning::new(code, message);
                    warnings.push(warning.about(key.clone(), location.clone()));
                };
                if let Some(file) = location.origin.file()
                    && secure_file::is_readable_by_all(file)
                {
                    let fix = secure_file::restrict_command(file);
                    let message = format!(
                        "`{key}` is set in {location}, which every user of this machine can read: \
                         fix it with {fix}"
                    );
                    warn("secret_exposed", message);
                }
                if is_short {
                    let message = format!(
                        "`{key}` in {location} is shorter than 16 bytes and can be guessed: use a longer one"
                    );
                    warn("secret_short", message);
                }
            }
        }
    }
}

/// Returns whether a name has the form `ignore-types`, `a1` or `x`.
pub(super) fn is_kebab_case(name: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.split('-').all(word)
}

fn not_kebab_case(name: &str) -> String {
    format!("{name:?}, must be lower-case words with hyphens, such as `my-stage`")
}
