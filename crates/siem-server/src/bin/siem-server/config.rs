//! `siem-server config`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use siem_server::{
    config::{ConfigProblem, Inputs, Loaded, load, load_valid_values},
    run::Process,
};

use crate::{failure::Failure, managed, output};

/// File that is read if no other one is given, and need not exist.
const DEFAULT_FILE: &str =
    if cfg!(unix) { "/etc/siem-server/config.toml" } else { "siem-server.toml" };

#[derive(Subcommand)]
pub(crate) enum Command {
    Check(Check),
    Show(Show),
    #[command(flatten)]
    Managed(managed::Command),
}

/// Configuration of the receiver, and values that override it.
#[derive(Args)]
pub(crate) struct ConfigSource {
    /// Configuration file [default: /etc/siem-server/config.toml if it exists]
    #[arg(long, env = "SIEM_SERVER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to listen on, in place of `http.listen`
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Data directory, in place of `store.directory`
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Value of a key, such as `log.format=json`
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = assignment)]
    assignments: Vec<(String, String)>,
}

fn assignment(text: &str) -> Result<(String, String), NotAnAssignment> {
    let (key, value) = text.split_once('=').ok_or(NotAnAssignment)?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[derive(Debug, thiserror::Error)]
#[error("expected KEY=VALUE")]
struct NotAnAssignment;

/// All problems of a configuration, one in a line.
#[derive(Debug)]
pub(crate) struct Problems(pub(crate) Vec<ConfigProblem>);

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        // After the word `error` of the first one.
        f.write_str(&texts.join("\nerror: "))
    }
}

impl std::error::Error for Problems {}

/// Number of problems that were printed as JSON.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {0} {noun}", noun = if *.0 == 1 { "problem" } else { "problems" })]
struct Invalid(usize);

impl ConfigSource {
    /// The configuration of a receiver, maybe with another data directory.
    pub(crate) fn of(config: Option<PathBuf>, data: Option<String>) -> Self {
        Self { config, data, listen: None, assignments: Vec::new() }
    }

    /// Reads all layers.
    pub(crate) fn load(&self) -> Result<Loaded, Vec<ConfigProblem>> {
        load(&self.inputs())
    }

    /// Reads all layers, and the secrets and certificates that they name.
    pub(crate) fn prepare(&self) -> Result<(Loaded, Process), Vec<ConfigProblem>> {
        let (loaded, mut problems) = load_valid_values(&self.inputs());
        let Some(loaded) = loaded else { return Err(problems) };
        match Process::prepare(&loaded) {
            Ok(process) if problems.is_empty() => return Ok((loaded, process)),
            Ok(_) => {}
            // A value that was left out because of a problem is missing here.
            Err(found) => {
                let is_new = |it: &ConfigProblem| problems.iter().all(|known| known.key != it.key);
                let found: Vec<_> = found.into_iter().filter(is_new).collect();
                problems.extend(found);
            }
        }
        Err(problems)
    }

    fn inputs(&self) -> Inputs {
        let named =
            [("--listen", "http.listen", &self.listen), ("--data", "store.directory", &self.data)];
        let named = named.into_iter().filter_map(|(argument, key, value)| {
            Some((argument.to_owned(), key.to_owned(), value.clone()?))
        });
        let set = self.assignments.iter().cloned();
        let set = set.map(|(key, value)| ("--set".to_owned(), key, value));
        let (mut variables, mut unreadable_variables) = (Vec::new(), Vec::new());
        for (name, value) in std::env::vars_os() {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => variables.push((name, value)),
                (Ok(name), Err(_)) => unreadable_variables.push(name),
                (Err(name), _) => unreadable_variables.push(name.to_string_lossy().into_owned()),
            }
        }
        Inputs {
            file: Some(self.config.clone().unwrap_or_else(|| DEFAULT_FILE.into())),
            is_file_optional: self.config.is_none(),
            variables,
            unreadable_variables,
            arguments: named.chain(set).collect(),
        }
    }
}

impl Command {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        match self {
            Self::Check(check) => check.execute(),
            Self::Show(show) => show.execute(),
            Self::Managed(command) => command.execute(),
        }
    }
}

/// Report all problems of the configuration, of the secrets and certificates that it names, and of the
/// managed configurations
///
/// The exit code is 0 if there is no error, 1 if there is one, and 2 for wrong arguments. What managed
/// configurations set is checked by `ai-agent config check FILE`.
#[derive(Args)]
pub(crate) struct Check {
    #[command(flatten)]
    source: ConfigSource,
    /// Fail for warnings too
    #[arg(long)]
    strict: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    fn execute(self) -> Result<(), Failure> {
        let problems = self.source.prepare().err().unwrap_or_default();
        let managed = match self.source.load() {
            Ok(loaded) => managed::problems(managed::options(&loaded.settings)),
            Err(_) => Vec::new(),
        };
        let fails = |it: &&managed::Problem| self.strict || it.severity == managed::Severity::Error;
        let failures = problems.len() + managed.iter().filter(fails).count();
        if self.json {
            let own = problems.iter().map(|problem| {
                let mut problem = problem.to_json();
                problem["severity"] = json!("error");
                problem
            });
            let found: Vec<Value> = own.chain(managed.iter().map(|it| json!(it))).collect();
            output::json(&json!({ "valid": failures == 0, "problems": found }))?;
        } else {
            managed.iter().try_for_each(|problem| managed::print(problem, self.strict))?;
            if failures == 0 {
                output::line("the configuration is valid")?;
            }
        }
        match failures {
            0 => Ok(()),
            _ if !self.json && !problems.is_empty() => Err(Failure::failed(Problems(problems))),
            count => Err(Failure::failed(Invalid(count))),
        }
    }
}

/// Show the value of each key, and where it is set
#[derive(Args)]
pub(crate) struct Show {
    #[command(flatten)]
    source: ConfigSource,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    fn execute(self) -> Result<(), Failure> {
        let loaded = self.source.load().map_err(|found| Failure::failed(Problems(found)))?;
        if self.json {
            let values = loaded.values().into_iter().map(|(key, value, location)| {
                let mut shown = location.to_json();
                shown["key"] = json!(key);
                shown["value"] = serde_json::from_str(&value).unwrap_or(Value::Null);
                shown
            });
            return output::json(&values.collect::<Vec<_>>());
        }
        let lines = loaded.values();
        let width = lines.iter().map(|(key, value, _)| key.len() + value.len()).max().unwrap_or(0);
        lines.iter().try_for_each(|(key, value, location)| {
            let padding = width - key.len() - value.len();
            output::line(&format!("{key} = {value}{:padding$}  # {location}", ""))
        })
    }
}
