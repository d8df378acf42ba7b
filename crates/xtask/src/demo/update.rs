//! The update in a demo: a signed release at the receiver, which the agent installs.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::{
    Failure,
    dist::{
        self, copy,
        updates::{self, Program},
    },
    sh,
};

/// Length of the end of a test release's file, which names its version.
const END: usize = 64;

/// An update that is prepared.
pub(super) struct Update {
    /// The program to run: a copy, which the agent replaces.
    pub(super) program: PathBuf,
    /// Part of the agent's configuration.
    pub(super) configuration: String,
    stored: PathBuf,
    from: String,
    to: String,
}

impl Update {
    /// Installs `agent` below `home`, and publishes a newer release in the receiver's directory `stored`. The
    /// private key, made for this demo, is in `directory`.
    pub(super) fn prepare(
        agent: &Path,
        home: &Path,
        stored: &Path,
        directory: &Path,
    ) -> Result<Self, Failure> {
        let from = dist::version()?;
        let to = next(&from).ok_or_else(|| format!("no version follows {from}"))?;
        let suffix = env::consts::EXE_SUFFIX;
        let program = home.join(format!("bin/ai-agent{suffix}"));
        copy(agent, &program, 0o755)?;
        let (key, public) = keys(directory)?;
        let release = directory.join(format!("release{suffix}"));
        write_release(&release, &to)?;
        let (os, arch) = (env::consts::OS, env::consts::ARCH);
        let releases = stored.join("dist");
        fs::create_dir_all(&releases)?;
        updates::write_to(&releases, &to, &[Program { os, arch, path: release }], Some(&key))?;
        let configuration =
            format!("\n[update]\nmode = \"install\"\nkeys = [\"{public}\"]\ninterval = \"5m\"\n");
        Ok(Self { program, configuration, stored: stored.to_owned(), from, to })
    }

    /// Reports whether the new program works, and has reported that. Fails if the previous one is back.
    pub(super) fn is_confirmed(&self) -> Result<bool, Failure> {
        let record = PathBuf::from(format!("{}.update.json", self.program.display()));
        // It is there from the exchange of the programs on.
        let Ok(text) = fs::read(&record) else { return Ok(false) };
        let record: Record = serde_json::from_slice(&text)?;
        match record.state.as_str() {
            "confirmed" => Ok(record.reported),
            "unconfirmed" => Ok(false),
            state => {
                let detail = record.detail.unwrap_or_default();
                Err(format!("the update is {state}: {detail}").into())
            }
        }
    }

    /// Fails if the receiver does not store the event that the new program works.
    pub(super) fn check_event(&self) -> Result<(), Failure> {
        for file in sh::files_below(&self.stored.join("machines"))? {
            let is_lines = file.extension().is_some_and(|extension| extension == "ndjson");
            if is_lines && fs::read_to_string(file)?.contains(r#""event":"update_installed""#) {
                return Ok(());
            }
        }
        Err("the receiver has no event of the update".into())
    }
}

/// Part of the record of an update.
#[derive(Deserialize)]
struct Record {
    state: String,
    #[serde(default)]
    reported: bool,
    detail: Option<String>,
}

impl std::fmt::Display for Update {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.from, self.to)
    }
}

/// Returns the next patch version.
fn next(version: &str) -> Option<String> {
    let (rest, patch) = version.split('-').next()?.rsplit_once('.')?;
    Some(format!("{rest}.{}", patch.parse::<u64>().ok()? + 1))
}

/// Makes a key, and returns its file and the public key.
fn keys(directory: &Path) -> Result<(PathBuf, String), Failure> {
    if !sh::has_program("minisign") && !sh::apt_install(&["minisign"]) {
        return Err("--update needs the program minisign".into());
    }
    let (key, public) = (directory.join("minisign.key"), directory.join("minisign.pub"));
    let mut generate = Command::new("minisign");
    generate.args(["-G", "-f", "-W", "-s"]).arg(&key).arg("-p").arg(&public);
    sh::succeed(generate.stdout(Stdio::null()))?;
    let text = fs::read_to_string(public)?;
    let line = text.lines().nth(1).ok_or("minisign wrote no public key")?;
    Ok((key, line.to_owned()))
}

/// Writes a release of the program that tests of updates use, which has its version at its end.
fn write_release(path: &Path, version: &str) -> Result<(), Failure> {
    let name = "ai-agent-test-release";
    let mut build = sh::cargo(["build", "--package", "ai-agent", "--features", "internals"]);
    sh::succeed(build.args(["--bin", name]))?;
    let built =
        sh::target_directory()?.join("debug").join(format!("{name}{}", env::consts::EXE_SUFFIX));
    // Its symbols are most of a debug build.
    if !sh::works(Command::new("strip").arg("-o").arg(path).arg(&built)) {
        fs::copy(&built, path)?;
    }
    let mut file = fs::File::options().append(true).open(path)?;
    write!(file, "{:<END$}", format!("\n#release {version} none"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_version_is_the_next_patch() {
        assert_eq!(next("0.1.9").as_deref(), Some("0.1.10"));
        assert_eq!(next("1.2.3-rc.1").as_deref(), Some("1.2.4"));
        assert_eq!(next("x"), None);
    }
}
