//! Programs of release 0.1, for the tests of upgrades and roll-backs.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::Outcome;
use crate::{Failure, sh};

/// Variable by which the tests find the programs.
pub(super) const VARIABLE: &str = "AI_AGENT_RELEASE_0_1";
/// Commit of the release.
const COMMIT: &str = "af4252b";
const PROGRAMS: [&str; 2] = ["ai-agent", "demo-server"];

/// Builds the programs below the target directory, unless they are there or [`VARIABLE`] names others.
pub(super) fn build() -> Outcome {
    if env::var_os(VARIABLE).is_some() {
        return Outcome::Ok(Some(format!("{VARIABLE} names the programs")));
    }
    if !sh::works(sh::git(["cat-file", "-e"]).arg(format!("{COMMIT}^{{commit}}"))) {
        return Outcome::Skipped(format!("commit {COMMIT} is not in this clone"));
    }
    match build_programs() {
        Ok(_) => Outcome::Ok(None),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn build_programs() -> Result<(), Failure> {
    let folder = folder()?;
    if has_programs(&folder.join("target/debug")) {
        return Ok(());
    }
    let source = folder.join("source");
    if !source.is_dir() {
        fs::create_dir_all(&folder)?;
        sh::succeed(sh::git(["worktree", "prune"]).stdin(std::process::Stdio::null()))?;
        sh::succeed(sh::git(["worktree", "add", "--detach"]).arg(&source).arg(COMMIT))?;
    }
    let mut build = sh::cargo(["build", "--package", "ai-agent", "--package", "siem-server"]);
    build.arg("--bins").arg("--target-dir").arg(folder.join("target"));
    // The configuration of this workspace must not apply.
    sh::succeed(build.current_dir(source).env_remove("CARGO_TARGET_DIR"))
}

fn folder() -> Result<PathBuf, Failure> {
    Ok(sh::target_directory()?.join("release-0.1"))
}

/// Returns the folder with the programs, if they were built.
pub(super) fn programs() -> Option<PathBuf> {
    let given = env::var_os(VARIABLE).map(PathBuf::from);
    given.or_else(|| Some(folder().ok()?.join("target/debug"))).filter(|it| has_programs(it))
}

fn has_programs(folder: &Path) -> bool {
    let is_there = |name: &str| folder.join(format!("{name}{}", env::consts::EXE_SUFFIX)).is_file();
    PROGRAMS.iter().all(|name| is_there(name))
}
