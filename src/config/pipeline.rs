//! Which stages there are, and in which order.

use figment::value::{Dict, Value};

use super::{
    ConfigError, OptionTable, PipelineSettings, SinkSettings, StageTable, merged::Merged, secret,
    settings::PipelineTable,
};
use crate::platform::secure_file;

/// The filters that every pipeline has, in the order in which they run where the list omits them.
pub const BUILT_IN_FILTERS: [&str; 6] =
    ["compact", "dedupe", "ignore-types", "sidechain", "meta", "tool-call"];

/// Those of them that no configuration switches off.
pub const ALWAYS_ON: [&str; 2] = ["compact", "dedupe"];

/// The kinds of stages: the name of their tables, and of their list in `[pipeline]` without the
/// plural's `s`.
pub(super) const KINDS: [&str; 4] = ["source", "filter", "enricher", "sink"];

/// The stages that run, and those that are switched off.
pub(super) fn resolve(
    lists: &PipelineTable,
    merged: &Merged,
    warnings: &mut Vec<String>,
) -> Result<(PipelineSettings, PipelineSettings), ConfigError> {
    let mut on = PipelineSettings::default();
    let mut off = PipelineSettings::default();
    let kinds = [
        ("source", &lists.sources, &mut on.sources, &mut off.sources),
        ("filter", &lists.filters, &mut on.filters, &mut off.filters),
        ("enricher", &lists.enrichers, &mut on.enrichers, &mut off.enrichers),
        ("sink", &lists.sinks, &mut on.sinks, &mut off.sinks),
    ];
    for (kind, list, on, off) in kinds {
        let stages = Kind { kind, merged };
        let names = stages.names(list)?;
        for name in &names {
            let stage = stages.table(name)?;
            if stage.enabled { on.push(stage) } else { off.push(stage) }
        }
        stages.check_unlisted(&names, warnings)?;
        if on.is_empty() && matches!(kind, "source" | "sink") {
            let problem = format!("names no {kind} that is enabled: one at least is needed");
            return Err(merged.value_error(&format!("pipeline.{kind}s"), problem));
        }
    }
    Ok((on, off))
}

/// The stages of one kind.
struct Kind<'a> {
    kind: &'static str,
    merged: &'a Merged,
}

impl Kind<'_> {
    /// The names in the list, checked; filters with the built-in ones that it omits before them.
    fn names(&self, list: &[String]) -> Result<Vec<String>, ConfigError> {
        let kind = self.kind;
        for (at, name) in list.iter().enumerate() {
            let key = format!("pipeline.{kind}s.{at}");
            if !is_kebab_case(name) {
                return Err(self.merged.value_error(&key, format!("is {}", not_kebab_case(name))));
            }
            if list[..at].contains(name) {
                let problem = format!(
                    "names `{name}` twice: a second one needs a name of its own, and `type = \
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

    /// The stage called `name`; without a table it is the stage of that type without options.
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
                let problem = "must be the type of a stage, as `\"ignore-types\"`: `ai-agent \
                               stages` lists them";
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
        let mut table = table.clone();
        let sink_settings = match self.kind {
            "sink" => SinkSettings::take(name, &mut table, self.merged)?,
            _ => SinkSettings::default(),
        };
        let options = OptionTable::tagged(table);
        Ok(StageTable { name: name.to_owned(), stage, enabled, sink_settings, options })
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

    /// Tables that no list names do nothing: their author should know. Those of the built-in
    /// defaults may be left out.
    fn check_unlisted(
        &self,
        names: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let kind = self.kind;
        for (name, table) in self.merged.tables(kind) {
            if !is_kebab_case(name) {
                let problem = format!("has {}", not_kebab_case(name));
                return Err(self.merged.value_error(&format!("{kind}.{name}"), problem));
            }
            if names.iter().any(|listed| listed == name) {
                continue;
            }
            let path = [kind.to_owned(), name.to_owned()];
            let (rank, location) = self.highest_location(&path, table);
            if rank > 0 {
                warnings.push(format!(
                    "the table `[{kind}.{name}]` in {location} has no effect: `pipeline.{kind}s` \
                     does not name `{name}`"
                ));
            }
        }
        Ok(())
    }

    /// The location of what is highest in a table, and its layer counted from the lowest.
    fn highest_location(&self, path: &[String], value: &Value) -> (usize, super::Location) {
        fn highest(merged: &Merged, value: &Value) -> usize {
            let below = value.as_dict().into_iter().flat_map(Dict::values);
            below.map(|value| highest(merged, value)).fold(merged.rank(value), usize::max)
        }
        let rank = highest(self.merged, value);
        (rank, self.merged.layers[rank].location(path))
    }
}

/// Secrets that stand in a file which every user of the machine can read, and short ones.
pub(super) fn warn_of_weak_secrets(
    pipeline: &PipelineSettings,
    merged: &Merged,
    warnings: &mut Vec<String>,
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
                if let Some(file) = location.origin.file()
                    && secure_file::is_readable_by_all(file)
                {
                    warnings.push(format!(
                        "`{key}` stands in {location}, which every user of this machine can read: \
                         mend it with {}",
                        secure_file::restrict_command(file)
                    ));
                }
                if value
                    .as_str()
                    .and_then(secret::Secret::new)
                    .is_some_and(|secret| secret.is_short())
                {
                    warnings.push(format!(
                        "`{key}` in {location} is shorter than 16 bytes, so it can be guessed"
                    ));
                }
            }
        }
    }
}

/// `ignore-types`, `a1`, `x`.
fn is_kebab_case(name: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.split('-').all(word)
}

fn not_kebab_case(name: &str) -> String {
    format!("{name:?} for a name, must be lower-case words with hyphens, as `my-stage`")
}
