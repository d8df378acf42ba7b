//! Problems of a set of managed configurations, all at once.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use serde::Serialize;
use siem_protocol::managed::Audience;

use super::{
    file::ConfigFile,
    folder::FileSet,
    precedence::{is_empty, overlap},
};

/// Severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is not served, or a device may get another one than intended.
    Error,
    /// The file is served, but part of it may not have the effect that is expected.
    Warning,
}

/// A problem of a managed configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ConfigProblem {
    /// Name of the file.
    pub file: String,
    /// Severity.
    pub severity: Severity,
    /// Stable name of the problem.
    pub code: &'static str,
    /// Explanation for people.
    pub message: String,
}

impl ConfigProblem {
    fn new(file: &str, severity: Severity, code: &'static str, message: String) -> Self {
        Self { file: file.to_owned(), severity, code, message }
    }
}

/// Returns all problems of the files, ordered by file. `is_signed` means that agents verify them with
/// the organisation's key, and so refuse lower serials.
#[must_use]
pub fn check(set: &FileSet, is_signed: bool, now: SystemTime) -> Vec<ConfigProblem> {
    let mut problems: Vec<ConfigProblem> = Vec::new();
    for (name, found) in &set.problems {
        let severity = Severity::Error;
        problems.extend(
            found.iter().map(|it| ConfigProblem::new(name, severity, it.code(), it.text())),
        );
    }
    for file in &set.files {
        problems.extend(check_file(file, now));
    }
    for (at, one) in set.files.iter().enumerate() {
        for other in &set.files[at + 1..] {
            problems.extend(tie(one, other));
            if is_signed {
                problems.extend(lower_serial(one, other).or_else(|| lower_serial(other, one)));
            }
        }
    }
    if is_signed {
        problems.extend(reused_serials(&set.files));
    }
    for name in &set.orphans {
        let message = "there is no configuration of this name beside it".to_owned();
        problems.push(ConfigProblem::new(name, Severity::Warning, "orphan", message));
    }
    problems.sort();
    problems
}

fn check_file(file: &ConfigFile, now: SystemTime) -> Vec<ConfigProblem> {
    let audience_empty = file.audience().is_some_and(is_empty);
    [
        (file.config.is_expired(now), "expired", "`expires` has passed: agents report an alarm"),
        (audience_empty, "audience_empty", "the audience includes no device"),
    ]
    .into_iter()
    .filter(|(applies, ..)| *applies)
    .map(|(_, code, text)| ConfigProblem::new(&file.name, Severity::Warning, code, text.to_owned()))
    .collect()
}

fn audience(file: &ConfigFile) -> Audience {
    file.audience().cloned().unwrap_or_default()
}

/// Two files that are as specific, and a device may be meant by both. A roll-out is meant to replace
/// one with a lower serial.
fn tie(one: &ConfigFile, other: &ConfigFile) -> Option<ConfigProblem> {
    let is_tie = !one.is_fallback
        && !other.is_fallback
        && one.specificity() == other.specificity()
        && overlap(&audience(one), &audience(other));
    if !is_tie {
        return None;
    }
    let error = |file: &ConfigFile, code, message| {
        Some(ConfigProblem::new(&file.name, Severity::Error, code, message))
    };
    let (lower, higher) =
        if one.config.serial < other.config.serial { (one, other) } else { (other, one) };
    if one.rollout.is_none() && other.rollout.is_none() {
        let message = format!(
            "its audience is as specific as that of `{}`, and a device may be in both: change one \
             audience, or give one file a roll-out",
            other.name
        );
        return error(one, "tie", message);
    }
    if lower.config.serial == higher.config.serial {
        let (lower, higher) =
            if lower.rollout.is_some() { (higher, lower) } else { (lower, higher) };
        let message = format!(
            "its serial is not different from that of `{}`: a roll-out needs a higher serial than \
             the file that it replaces",
            lower.name
        );
        return error(higher, "rollout_serial", message);
    }
    (higher.rollout.is_none() && lower.rollout.is_some()).then(|| {
        let message = format!("its roll-out has no effect: `{}` has a higher serial", higher.name);
        ConfigProblem::new(&lower.name, Severity::Warning, "rollout_superseded", message)
    })
}

/// A file that takes precedence, with a lower serial: a device that has the other one refuses it.
fn lower_serial(winner: &ConfigFile, loser: &ConfigFile) -> Option<ConfigProblem> {
    let wins = !winner.is_fallback
        && (loser.is_fallback || winner.specificity() > loser.specificity())
        && overlap(&audience(winner), &audience(loser));
    let (serial, other) = (winner.config.serial?, loser.config.serial?);
    (wins && serial < other).then(|| {
        let message = format!(
            "its serial {serial} is lower than that of `{}`, {other}: a device that applied that one \
             refuses this one",
            loser.name
        );
        ConfigProblem::new(&winner.name, Severity::Warning, "serial_lower", message)
    })
}

/// Files with one serial: a device that applied one of them refuses the other.
fn reused_serials(files: &[Arc<ConfigFile>]) -> Vec<ConfigProblem> {
    let mut first: BTreeMap<u64, &ConfigFile> = BTreeMap::new();
    let mut problems = Vec::new();
    for file in files {
        let Some(serial) = file.config.serial else { continue };
        let known = first.entry(serial).or_insert(file);
        if known.hash != file.hash {
            let message = format!(
                "its serial {serial} is that of `{}` too: a device that applied one refuses the other",
                known.name
            );
            problems.push(ConfigProblem::new(
                &file.name,
                Severity::Error,
                "serial_reused",
                message,
            ));
        }
    }
    problems
}
