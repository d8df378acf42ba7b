//! `ai-agent config explain`.

use std::path::Path;

use clap::Args;
use serde_json::Value;

use super::values::{inline, refuse_mistakes, schema};
use crate::{
    cli::{context::CliContext, failure::Failure, output::print},
    config::{LoadedConfig, Permission, StageTable, did_you_mean, key_path, key_text},
};

#[derive(Args)]
pub(super) struct Arguments {
    /// Key to explain, such as `shipping.batch_size` or `sink.siem.endpoint`.
    key: String,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let cli = CliContext::new(explicit)?;
        let loaded = cli.load_in_force()?;
        refuse_mistakes(&cli, &loaded)?;
        let known = known_keys(&loaded, &schema());
        // The key may be quoted in another way than it is printed.
        let path = key_path(&self.key);
        let name = key_text(&path);
        let Some((_, about)) = known.iter().find(|(key, _)| *key == name) else {
            let keys: Vec<&str> = known.iter().map(|(key, _)| key.as_str()).collect();
            let hint = match did_you_mean(&self.key, &keys) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "`ai-agent config show` prints the keys that are set".to_owned(),
            };
            return Err(Failure::usage(format!("there is no key `{}`: {hint}", self.key)));
        };
        let explained = loaded.explain_key(&path);
        match (explained.values.split_first(), &explained.table) {
            (None, _) => print(format_args!("{name} is not set"))?,
            // Each layer adds to a table: none overrides all of it.
            (Some(_), Some(table)) => {
                print(format_args!("{name} = {}", inline(table)))?;
                for part in &explained.values {
                    let value = inline(&part.value);
                    print(format_args!("  with {value} from {}", part.location))?;
                }
            }
            (Some((in_force, overridden)), None) => {
                print(format_args!("{name} = {}", inline(&in_force.value)))?;
                print(format_args!("  from {}", in_force.location))?;
                for other in overridden {
                    let value = inline(&other.value);
                    print(format_args!("  overrides {value} from {}", other.location))?;
                }
            }
        }
        for attempt in
            loaded.locked_overrides.iter().filter(|attempt| is_about(&attempt.key, &name))
        {
            print(format_args!("  {attempt}"))?;
        }
        if let Some(about) = about {
            print(format_args!("  {}", about.replace('\n', " ")))?;
        }
        let may = |permission: &Permission| match permission {
            Permission::Full => "yes".to_owned(),
            Permission::Partial(what) => format!("in part, {what}"),
            Permission::None(why) => format!("no, {why}"),
        };
        let above = explained.values.first().map(|value| &value.location);
        let above = above.filter(|location| location.origin.is_above_user());
        let hidden = match (&explained.user, above) {
            (Permission::None(_), _) | (_, None) => String::new(),
            (_, Some(above)) if explained.table.is_some() => {
                format!("; now {above} overrides a part of it")
            }
            (_, Some(above)) => format!("; now {above} overrides it"),
        };
        print(format_args!("  may the user change it? {}{hidden}", may(&explained.user)))?;
        print(format_args!("  may the server change it? {}", may(&explained.server)))
    }
}

/// Returns true if one key contains the other, or both are the same.
fn is_about(one: &str, other: &str) -> bool {
    let contains = |table: &str, key: &str| {
        key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    contains(one, other) || contains(other, one)
}

/// All keys that have a value or could have one, with their descriptions.
pub(super) fn known_keys(loaded: &LoadedConfig, schema: &Value) -> Vec<(String, Option<String>)> {
    let about = |options: &Value| options["description"].as_str().map(str::to_owned);
    let mut known = Vec::new();
    let properties = |schema: &Value| schema["properties"].as_object().cloned().unwrap_or_default();
    for (table, options) in properties(schema) {
        if let Some(stages) = stages_of(loaded, &table) {
            known.push((table.clone(), about(&options)));
            for stage in stages {
                let options = &schema["$defs"][format!("{table}.{}", stage.stage)];
                known.push((format!("{table}.{}", stage.name), about(options)));
                for (option, schema) in properties(options) {
                    known.push((format!("{table}.{}.{option}", stage.name), about(&schema)));
                }
            }
        } else if table != "test" {
            known.push((table.clone(), about(&options)));
            let name = options["$ref"].as_str().and_then(|it| it.rsplit('/').next());
            for (option, schema) in properties(&schema["$defs"][name.unwrap_or_default()]) {
                known.push((format!("{table}.{option}"), about(&schema)));
            }
        }
    }
    // Options with arbitrary names, such as labels.
    for shown in loaded.effective_values() {
        if !known.iter().any(|(key, _)| *key == shown.key()) {
            known.push((shown.key(), None));
        }
    }
    known
}

/// Returns the stages in the table `kind`, also the disabled ones; `None` if it is another table.
fn stages_of<'a>(loaded: &'a LoadedConfig, kind: &str) -> Option<Vec<&'a StageTable>> {
    let [enabled, disabled] = [&loaded.settings.pipeline, &loaded.disabled].map(|pipeline| {
        Some(match kind {
            "source" => &pipeline.sources,
            "filter" => &pipeline.filters,
            "enricher" => &pipeline.enrichers,
            "sink" => &pipeline.sinks,
            _ => return None,
        })
    });
    Some(enabled?.iter().chain(disabled?).collect())
}
