//! `ai-agent audit status`: checks that the rules are loaded and the log is readable.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    install::is_ours,
    tools::{RULES, find, output_line},
};
use crate::{
    cli::{
        failure::Failure,
        output::{JSON_VERSION, print},
    },
    config::{self, ConfigInputs},
    platform::{Environment, Paths, is_root},
};

/// Options of `audit status`.
#[derive(Args)]
pub(super) struct Options {
    /// Log file of auditd
    #[arg(long, value_name = "FILE", default_value = ai_agent_auditd::LOG)]
    log: PathBuf,
    /// Print one JSON object, as described in docs/scripts.md
    #[arg(long)]
    json: bool,
}

impl Options {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let environment = Environment::from_process();
        let status = AuditStatus {
            file: fs::metadata(RULES).err().map(|error| error.to_string()),
            rules: rules(),
            log: fs::File::open(&self.log).err().map(|error| error.to_string()),
            is_read: is_read(&environment, explicit),
        };
        match self.json {
            true => print(format_args!("{:#}", status.json(&self.log)))?,
            false => status.show(&self.log)?,
        }
        if !status.rules.are_loaded() {
            return Err(Failure::failed(
                "no rules are loaded, as far as is known: `ai-agent audit install` installs them",
            ));
        }
        match status.log {
            Some(_) => Err(Failure::failed("cannot read the log")),
            None => Ok(()),
        }
    }
}

/// State of the rules and the log.
struct AuditStatus {
    /// Reason why the file of the rules is not there.
    file: Option<String>,
    rules: Rules,
    /// Reason why the log cannot be read.
    log: Option<String>,
    /// True if the agent reads the log; `None` if its configuration cannot be read.
    is_read: Option<bool>,
}

impl AuditStatus {
    fn show(&self, log: &Path) -> Result<(), Failure> {
        let file = self.file.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        print(format_args!("rules file    `{RULES}`{file}"))?;
        print(format_args!("rules loaded  {}", self.rules.text()))?;
        let state = match &self.log {
            None => "readable".to_owned(),
            Some(error) => format!("{error}: see docs/audit.md, \"Reading the log\""),
        };
        print(format_args!("log           `{}`: {state}", log.display()))?;
        if let Some(is_read) = self.is_read {
            let word = if is_read { "reads it" } else { "is not in `pipeline.sources`" };
            print(format_args!("source        `auditd` {word}"))?;
        }
        Ok(())
    }

    fn json(&self, log: &Path) -> Value {
        let count = match self.rules {
            Rules::Known { count, .. } => Some(count),
            Rules::Unknown { .. } => None,
        };
        json!({
            "version": JSON_VERSION,
            "rules_file": { "path": RULES, "error": self.file },
            "rules": { "code": self.rules.code(), "count": count, "text": self.rules.text() },
            "log": { "path": log.to_string_lossy(), "error": self.log },
            "source": self.is_read,
        })
    }
}

/// Our rules in the kernel.
enum Rules {
    Known {
        count: usize,
        /// True unless auditing is disabled.
        is_enabled: bool,
        /// True unless auditd is not running.
        has_daemon: bool,
    },
    Unknown {
        code: &'static str,
        text: String,
    },
}

impl Rules {
    fn unknown(code: &'static str, text: impl Into<String>) -> Self {
        Self::Unknown { code, text: text.into() }
    }

    fn are_loaded(&self) -> bool {
        matches!(self, Self::Known { count: 1.., .. })
    }

    /// Stable code, as docs/scripts.md lists it.
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown { code, .. } => code,
            Self::Known { count: 0, .. } => "not_loaded",
            Self::Known { is_enabled: false, .. } => "disabled",
            Self::Known { has_daemon: false, .. } => "daemon_stopped",
            Self::Known { .. } => "loaded",
        }
    }

    fn text(&self) -> String {
        let (count, is_enabled, has_daemon) = match self {
            Self::Unknown { text, .. } => return text.clone(),
            Self::Known { count, is_enabled, has_daemon } => (count, is_enabled, has_daemon),
        };
        let mut text = count.to_string();
        if !is_enabled {
            text += ", but auditing is disabled: run `sudo auditctl -e 1`";
        }
        if !has_daemon {
            text += ", but auditd is not running: run `sudo systemctl enable --now auditd`";
        }
        text
    }
}

fn rules() -> Rules {
    let auditctl = match find("auditctl") {
        Ok(Some(auditctl)) => auditctl,
        Ok(None) => return Rules::unknown("not_installed", "none: auditctl is not installed"),
        Err(refused) => {
            return Rules::unknown("unknown", format!("unknown: {}", refused.message()));
        }
    };
    let query = |argument: &str| Command::new(&auditctl).arg(OsStr::new(argument)).output();
    let (list, state) = match (query("-l"), query("-s")) {
        (Ok(list), Ok(state)) if list.status.success() => (list, state),
        (Ok(list), _) if is_root() => {
            return Rules::unknown("unknown", format!("unknown: {}", output_line(&list)));
        }
        (Err(error), _) => return Rules::unknown("unknown", format!("unknown: {error}")),
        _ => {
            let text = "unknown without root: run `sudo ai-agent audit status`";
            return Rules::unknown("needs_root", text);
        }
    };
    let list = String::from_utf8_lossy(&list.stdout);
    let state = String::from_utf8_lossy(&state.stdout);
    let value = |name: &str| {
        state.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    Rules::Known {
        count: list.lines().filter(|line| is_ours(line)).count(),
        is_enabled: value("enabled ") != Some(0),
        has_daemon: value("pid ") != Some(0),
    }
}

/// Returns whether the agent reads the log; `None` if its configuration cannot be read.
fn is_read(environment: &Environment, explicit: Option<&Path>) -> Option<bool> {
    let paths = Paths::from_environment(environment).ok()?;
    let inputs = ConfigInputs { paths: &paths, environment, explicit, managed: None };
    let loaded = config::load(&inputs).ok()?;
    Some(loaded.settings.pipeline.sources.iter().any(|source| source.stage == "auditd"))
}
