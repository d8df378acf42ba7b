//! Files of a support bundle.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::redact::Redactor;
use crate::{
    agent::startable,
    cli::{
        context::CliContext,
        doctor,
        failure::Failure,
        output::JSON_VERSION,
        status::collect::{Depth, collect as collect_status},
        update,
    },
    config::{self, ConfigValue, LoadedConfig},
    logging,
    pipeline::assembly,
    platform::{LogReader, Os, Timestamp, random_bytes},
    text::causes,
};

/// Number of the last lines of the log.
const LOG_LINES: u64 = 20_000;

/// A file in the bundle.
pub(super) struct BundleFile {
    pub(super) name: &'static str,
    /// What it contains.
    pub(super) about: &'static str,
    pub(super) bytes: Vec<u8>,
}

/// Collects all files, the list of them first.
pub(super) fn collect(context: &CliContext, now: Timestamp) -> Result<Vec<BundleFile>, Failure> {
    let state_dir = context.state_dir()?;
    let loaded = context.load_in_force();
    let (redactor, is_complete) = redactor(context, loaded.as_ref().ok())?;
    let json = |name, about, value| BundleFile {
        name,
        about,
        bytes: format!("{:#}\n", redactor.value(value)).into_bytes(),
    };
    let status = collect_status(context, Depth::Outbox)?.json();
    let checks = doctor::as_json(&doctor::collect(context, false));
    let updates = loaded.as_ref().map_or_else(
        |failure| Ok(json!({ "version": JSON_VERSION, "errors": [failure.message()] })),
        |loaded| update::status_json(loaded).map(|(json, _)| json),
    )?;
    let mut files = vec![
        json("status.json", "as `ai-agent status --json` prints it", status),
        json("update.json", "as `ai-agent update status --json` prints it", updates),
        json("doctor.json", "as `ai-agent doctor --json` prints it", checks),
        json(
            "config.json",
            "values in force and their origin, without secrets",
            configuration(context, loaded),
        ),
    ];
    if is_complete {
        let bytes = redactor.log(&last_log(&state_dir)).into_bytes();
        files.push(BundleFile { name: "agent.log", about: "last lines of the log", bytes });
    }
    let list = list(&files, is_complete, now);
    files.insert(0, json("contents.json", "this list, and what is left out", list));
    Ok(files)
}

/// Returns the redactor; and false if it lacks secrets or directories with sessions, since a part of the
/// configuration cannot be read.
fn redactor(
    context: &CliContext,
    in_force: Option<&LoadedConfig>,
) -> Result<(Redactor, bool), Failure> {
    let (paths, sources) = (context.paths(), &context.sources);
    let roots_of = |loaded: &LoadedConfig| {
        assembly::session_roots(loaded, &sources.check_context(loaded)).ok()
    };
    let defaults = config::load_files(&[], None, paths).map_err(Failure::failed)?;
    // If there are errors elsewhere, the values without errors still name all directories.
    let configured = in_force.and_then(roots_of).or_else(|| {
        let checked = startable::check(sources);
        roots_of(checked.loaded.as_ref()?).filter(|_| !checked.has_wrong_sources())
    });
    let (mut secrets, has_all_layers) = sources.inputs().secret_values();
    if let Some(loaded) = in_force {
        secrets.extend(loaded.secret_values(paths));
    }
    let is_complete = has_all_layers && configured.is_some();
    let mut roots = vec![paths.home.join(".claude/projects"), paths.claude_desktop.clone()];
    roots.extend(roots_of(&defaults).into_iter().chain(configured).flatten());
    roots.sort();
    roots.dedup();
    add_targets(&mut roots);
    let salt = random_bytes().map_err(Failure::failed)?;
    Ok((Redactor::new(secrets, &paths.home, &roots, salt), is_complete))
}

/// Adds the directories that links among `roots` lead to. The root directory is left out: each path and URL
/// would count as a name in it.
fn add_targets(roots: &mut Vec<PathBuf>) {
    let linked: Vec<PathBuf> = roots.iter().filter_map(|root| root.canonicalize().ok()).collect();
    roots.extend(linked.into_iter().filter(|root| root.components().count() > 1));
}

/// Values in force. Not shown if there is a mistake: under a misspelt key, a secret would not be
/// recognised.
fn configuration(context: &CliContext, loaded: Result<LoadedConfig, Failure>) -> Value {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(failure) => return json!({ "version": JSON_VERSION, "errors": [failure.message()] }),
    };
    let mistakes = assembly::check(&loaded, &context.stage_context(&loaded));
    if !mistakes.is_empty() {
        let errors: Vec<_> = mistakes.iter().map(|error| causes(error)).collect();
        return json!({ "version": JSON_VERSION, "errors": errors });
    }
    let values = loaded.effective_values();
    let value = |it: &ConfigValue| json!({ "key": it.key(), "value": it.value, "origin": it.location.to_string() });
    json!({
        "version": JSON_VERSION,
        "hash": loaded.settings.config_hash().to_string(),
        "warnings": loaded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "values": values.iter().map(value).collect::<Vec<_>>(),
    })
}

/// Last lines of the log; empty if there is none.
fn last_log(state_dir: &Path) -> String {
    let mut bytes = Vec::new();
    let mut reader = LogReader::new(&logging::dir(state_dir));
    let read = reader.read_last(LOG_LINES, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if reader.take_cut() {
        text += "a log file is larger than those of the agent: only lines at its end are here\n";
    }
    if let Err(error) = read {
        text += &format!("the log cannot be read: {error}\n");
    }
    text
}

fn list(files: &[BundleFile], has_log: bool, now: Timestamp) -> Value {
    let mut left_out = vec![
        "tokens, keys, passwords and other secrets",
        "content of sessions, entries and dead letters",
        "names of sessions and projects: replaced by digests that differ in each bundle",
        "answers of receivers behind their status, since they may quote a record",
        "names in e-mail addresses, and the path of the home directory",
    ];
    if !has_log {
        left_out.push(
            "the log: a part of the configuration is wrong, so its secrets or directories are unknown",
        );
    }
    let file = |file: &BundleFile| json!({ "name": file.name, "about": file.about, "bytes": file.bytes.len() });
    json!({
        "version": JSON_VERSION,
        "at": now.to_string(),
        "agent": crate::version::version(),
        "os": Os::CURRENT.name(),
        "arch": std::env::consts::ARCH,
        "files": files.iter().map(file).collect::<Vec<_>>(),
        "left_out": left_out,
    })
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn targets_of_links_are_roots_unless_they_are_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let [plain, link, to_all] = ["plain", "link", "all"].map(|name| folder.join(name));
        std::fs::create_dir(&plain).unwrap();
        symlink(&plain, &link).unwrap();
        symlink("/", &to_all).unwrap();
        let mut roots = vec![link.clone(), to_all.clone(), folder.join("none")];
        add_targets(&mut roots);
        assert_eq!(roots, [link, to_all, folder.join("none"), plain]);
    }
}
