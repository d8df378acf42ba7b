//! `ai-agent hooks status`.

use std::path::Path;

use clap::Args;
use serde_json::{Value, json};

use super::{
    failure::Failure,
    hook_files::{InstalledHook, installed},
    output::{JSON_VERSION, print},
};
use crate::compliance::{
    client_files::{ClientSettingsFile, ClientSettingsFiles},
    hook_response::Hook,
};

/// Show which settings files contain the hooks, and whether they are active
///
/// Exits 1 if a hook is not active.
#[derive(Args)]
pub(super) struct Arguments {
    /// Print one JSON object, as described in docs/scripts.md
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn execute(
        &self,
        settings: &ClientSettingsFiles,
        home: &Path,
    ) -> Result<(), Failure> {
        let files = settings.read_all();
        let hooks = installed(&files, home);
        let is_active =
            |hook: &Hook| hooks.iter().any(|it| it.hook == *hook && it.problem.is_none());
        let inactive = Hook::ALL.into_iter().filter(|hook| !is_active(hook));
        let inactive: Vec<_> = inactive.map(Hook::name).collect();
        match self.json {
            true => print(format_args!("{:#}", as_json(&files, &hooks, &inactive)))?,
            false => show(&files, &hooks)?,
        }
        if inactive.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "Claude Code does not run ai-agent for {}: `ai-agent hooks install` adds the hooks to \
             the user's settings, or with `--managed` to the machine's",
            inactive.join(" and ")
        )))
    }
}

fn show(files: &[ClientSettingsFile], hooks: &[InstalledHook]) -> Result<(), Failure> {
    for file in files {
        let owner = owner(file.is_managed);
        let path = file.path.display();
        match &file.hooks {
            Err(error) => print(format_args!("{owner:<8} `{path}`: {error}"))?,
            Ok(hooks) if hooks.ours.is_empty() => {
                print(format_args!("{owner:<8} `{path}`: no hooks of ai-agent"))?;
            }
            Ok(_) => {}
        }
        for hook in hooks.iter().filter(|hook| hook.path == file.path) {
            let name = hook.hook.name();
            match &hook.problem {
                None => print(format_args!("{owner:<8} `{path}`: {name} is active"))?,
                Some(problem) => print(format_args!("{owner:<8} `{path}`: {name} {problem}"))?,
            }
        }
    }
    Ok(())
}

fn as_json(files: &[ClientSettingsFile], hooks: &[InstalledHook], inactive: &[&str]) -> Value {
    let file = |file: &ClientSettingsFile| {
        json!({
            "path": file.path.to_string_lossy(),
            "owner": owner(file.is_managed),
            "error": file.hooks.as_ref().err(),
        })
    };
    let hook = |hook: &InstalledHook| {
        json!({
            "name": hook.hook.name(),
            "path": hook.path.to_string_lossy(),
            "owner": owner(hook.is_managed),
            "active": hook.problem.is_none(),
            "code": hook.problem.as_ref().map(|problem| problem.code()),
            "problem": hook.problem.as_ref().map(ToString::to_string),
        })
    };
    json!({
        "version": JSON_VERSION,
        "active": inactive.is_empty(),
        "inactive": inactive,
        "files": files.iter().map(file).collect::<Vec<_>>(),
        "hooks": hooks.iter().map(hook).collect::<Vec<_>>(),
    })
}

fn owner(is_managed: bool) -> &'static str {
    if is_managed { "managed" } else { "user" }
}
