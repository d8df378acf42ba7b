//! `ai-agent audit status`: checks that the rules are loaded and the log is readable.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;

use super::{
    install::is_ours,
    tools::{RULES, find, output_line},
};
use crate::{
    cli::{failure::Failure, output::print},
    config::{self, ConfigInputs},
    platform::{Environment, Paths, is_root},
};

/// Options of `audit status`.
#[derive(Args)]
pub(super) struct Options {
    /// Log file of auditd
    #[arg(long, value_name = "FILE", default_value = ai_agent_auditd::LOG)]
    log: PathBuf,
}

impl Options {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let environment = Environment::from_process();
        let (rules, are_loaded) = rules();
        print(format_args!("rules file    {}", file()))?;
        print(format_args!("rules loaded  {rules}"))?;
        let log = fs::File::open(&self.log).map(drop);
        let state = match &log {
            Ok(()) => "readable".to_owned(),
            Err(error) => format!("{error}: see docs/audit.md, \"Reading the log\""),
        };
        print(format_args!("log           `{}`: {state}", self.log.display()))?;
        if let Some(is_read) = is_read(&environment, explicit) {
            let word = if is_read { "reads it" } else { "is not in `pipeline.sources`" };
            print(format_args!("source        `auditd` {word}"))?;
        }
        if are_loaded && log.is_ok() {
            return Ok(());
        }
        Err(Failure::failed(if are_loaded {
            "cannot read the log"
        } else {
            "no rules are loaded, as far as is known: `ai-agent audit install` installs them"
        }))
    }
}

fn file() -> String {
    match fs::metadata(RULES) {
        Ok(_) => format!("`{RULES}`"),
        Err(error) => format!("`{RULES}`: {error}"),
    }
}

/// Number of our rules in the kernel as text, and whether there are any.
fn rules() -> (String, bool) {
    let auditctl = match find("auditctl") {
        Ok(Some(auditctl)) => auditctl,
        Ok(None) => return ("none: auditctl is not installed".to_owned(), false),
        Err(refused) => return (format!("unknown: {}", refused.message()), false),
    };
    let query = |argument: &str| Command::new(&auditctl).arg(OsStr::new(argument)).output();
    let (list, state) = match (query("-l"), query("-s")) {
        (Ok(list), Ok(state)) if list.status.success() => (list, state),
        (Ok(list), _) if is_root() => return (format!("unknown: {}", output_line(&list)), false),
        (Err(error), _) => return (format!("unknown: {error}"), false),
        _ => return ("unknown without root: run `sudo ai-agent audit status`".to_owned(), false),
    };
    let list = String::from_utf8_lossy(&list.stdout);
    let count = list.lines().filter(|line| is_ours(line)).count();
    let state = String::from_utf8_lossy(&state.stdout);
    let value = |name: &str| {
        state.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    let mut text = count.to_string();
    if value("enabled ") == Some(0) {
        text += ", but auditing is disabled: run `sudo auditctl -e 1`";
    }
    if value("pid ") == Some(0) {
        text += ", but auditd is not running: run `sudo systemctl enable --now auditd`";
    }
    (text, count > 0)
}

/// Returns whether the agent reads the log; `None` if its configuration cannot be read.
fn is_read(environment: &Environment, explicit: Option<&Path>) -> Option<bool> {
    let paths = Paths::from_environment(environment).ok()?;
    let inputs = ConfigInputs { paths: &paths, environment, explicit, managed: None };
    let loaded = config::load(&inputs).ok()?;
    Some(loaded.settings.pipeline.sources.iter().any(|source| source.stage == "auditd"))
}
