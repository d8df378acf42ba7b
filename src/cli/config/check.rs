//! `ai-agent config check`.

use std::{
    io::{self, Write as _},
    path::Path,
};

use clap::Args;
use serde_json::{Value, json};

use super::{explain::known_keys, values::schema};
use crate::{
    agent::startable::{self, Checked, StartError},
    cli::{
        context::{CliContext, ConfigFiles},
        failure::Failure,
        output::{JSON_VERSION, print},
    },
    config::{ConfigError, ConfigWarning, Location, MissingSetting, did_you_mean},
    pipeline::validate::ValidationError,
    text::{causes, counted},
};

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    files: ConfigFiles,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Fail if there is a warning
    #[arg(long)]
    strict: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let cli = CliContext::new(explicit)?;
        let mut checked = match self.files.files.as_slice() {
            [] => startable::check_with_paths(&cli.sources),
            files => startable::check_files(&cli.sources, files),
        };
        checked.warnings.extend(unknown_locks(&checked));
        let report = Report::new(&checked, self.strict);
        if self.json { report.as_json() } else { report.as_text() }
    }
}

/// Warnings about items of `locked` that are no keys.
fn unknown_locks(checked: &Checked) -> Vec<ConfigWarning> {
    let Some(loaded) = &checked.loaded else { return Vec::new() };
    let known = known_keys(loaded, &schema());
    let known: Vec<&str> = known.iter().map(|(key, _)| key.as_str()).collect();
    let warning = |lock: String| {
        let hint = did_you_mean(&lock, &known)
            .map_or(String::new(), |near| format!(": did you mean `{near}`?"));
        let (key, location) = loaded.locate("locked");
        let message = format!(
            "`locked` in {location} names `{lock}`, which is not a key of this configuration{hint}"
        );
        ConfigWarning::new("locked_key_unknown", message).about(key, location)
    };
    loaded.unmatched_locks(&known).into_iter().map(warning).collect()
}

/// One error or warning.
struct Problem {
    is_error: bool,
    code: &'static str,
    key: Option<String>,
    location: Option<Location>,
    message: String,
}

/// Errors and warnings of a configuration.
struct Report {
    problems: Vec<Problem>,
    strict: bool,
    /// Texts of the errors, of which one may be about several settings.
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Report {
    fn new(checked: &Checked, strict: bool) -> Self {
        let errors = checked.errors.iter().flat_map(problems);
        let warnings = checked.warnings.iter().map(|warning| Problem {
            is_error: strict,
            code: warning.code,
            key: warning.key.clone(),
            location: warning.location.clone(),
            message: warning.to_string(),
        });
        Self {
            problems: errors.chain(warnings).collect(),
            strict,
            errors: checked.errors.iter().map(|error| causes(error)).collect(),
            warnings: checked.warnings.iter().map(ToString::to_string).collect(),
        }
    }

    fn is_valid(&self) -> bool {
        self.problems.iter().all(|problem| !problem.is_error)
    }

    fn as_text(&self) -> Result<(), Failure> {
        let mut errors = self.errors.clone();
        if self.strict {
            errors.extend(self.warnings.iter().cloned());
        } else {
            for warning in &self.warnings {
                // With a closed standard error, only the exit code is left.
                drop(writeln!(io::stderr(), "warning: {warning}"));
            }
        }
        if errors.is_empty() {
            return print(format_args!("the configuration is valid"));
        }
        Err(Failure::failed(errors.join("\nerror: ")))
    }

    fn as_json(&self) -> Result<(), Failure> {
        let count = |is_error| {
            self.problems.iter().filter(|problem| problem.is_error == is_error).count() as u64
        };
        let problems: Vec<Value> = self.problems.iter().map(Problem::as_json).collect();
        let report = json!({
            "version": JSON_VERSION,
            "valid": self.is_valid(), "strict": self.strict,
            "errors": count(true), "warnings": count(false), "problems": problems,
        });
        print(format_args!("{report:#}"))?;
        match count(true) {
            0 => Ok(()),
            errors => {
                let errors = counted(errors, "error", "errors");
                Err(Failure::failed(format!("the configuration has {errors}")))
            }
        }
    }
}

impl Problem {
    fn as_json(&self) -> Value {
        let Self { is_error, code, key, location, message } = self;
        let level = if *is_error { "error" } else { "warning" };
        let mut problem = json!({ "level": level, "code": code, "key": key, "message": message });
        let place = location.as_ref().map_or_else(|| json!({ "layer": null }), Location::to_json);
        if let (Value::Object(problem), Value::Object(place)) = (&mut problem, place) {
            problem.extend(place);
        }
        problem
    }
}

/// Converts an error; one about several missing settings is one problem for each.
fn problems(error: &StartError) -> Vec<Problem> {
    let one = |code, key: Option<&String>, location: Option<&Location>| {
        vec![Problem {
            is_error: true,
            code,
            key: key.cloned(),
            location: location.cloned(),
            message: causes(error),
        }]
    };
    match error {
        StartError::Managed(_) => one("managed_config_invalid", None, None),
        StartError::Invalid(ValidationError::Test { location, .. }) => {
            one("test_failed", None, Some(location))
        }
        StartError::Invalid(ValidationError::Config(error)) => match error {
            ConfigError::Read { origin, .. } => {
                one("file_unreadable", None, Some(&origin.clone().into()))
            }
            ConfigError::Syntax { origin, syntax } => {
                let location = Location { origin: origin.clone(), line: Some(syntax.line) };
                one("syntax_invalid", None, Some(&location))
            }
            ConfigError::UnknownKey { key, location, .. } => {
                one("key_unknown", Some(key), Some(location))
            }
            ConfigError::MissingKey { key, .. } => one("key_missing", Some(key), None),
            ConfigError::Value { key, location, .. } => {
                let is_file = key.ends_with("_file");
                let code = if is_file { "file_unusable" } else { "value_invalid" };
                one(code, Some(key), Some(location))
            }
            ConfigError::Incomplete(missing) => missing.settings().map(missing_setting).collect(),
        },
    }
}

fn missing_setting(missing: &MissingSetting) -> Problem {
    Problem {
        is_error: true,
        code: "setting_missing",
        key: Some(missing.key()),
        location: None,
        message: missing.to_string(),
    }
}
