//! `cargo xtask dist`: what is given away, as far as this machine can build it.

mod check;
pub(crate) mod linux;
mod macos;
mod package;
mod sbom;
mod sums;
mod windows;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde::Deserialize;

use crate::{Failure, sh};

/// Builds what is given away below `target/dist`: a static Linux program, `.deb` and `.rpm` with the
/// user unit, the Windows program as a zip, man pages, completions, samples for an MDM, an SBOM, and
/// the checksums of all of them. Says what could not be built here.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Leaves out the Windows program, which takes as long again.
    #[arg(long)]
    without_windows: bool,
}

/// What is built, for which version, and where it goes.
struct Dist {
    version: String,
    folder: PathBuf,
    /// Where parts lie that go into several packages.
    parts: PathBuf,
    skipped: Vec<String>,
}

impl Dist {
    /// Keeps what came out, or says why nothing did.
    fn skip(&mut self, what: &str, why: &str) {
        println!("skipped: {what}: {why}");
        self.skipped.push(format!("{what}: {why}"));
    }

    /// The file of this name among what is given away.
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let target = sh::target_directory()?;
        let folder = target.join("dist");
        if folder.try_exists()? {
            fs::remove_dir_all(&folder)?;
        }
        let parts = target.join("dist-parts");
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(&parts)?;
        let mut dist = Dist { version: version()?, folder, parts, skipped: Vec::new() };

        println!("── man pages and completions");
        let manual = dist.parts.join("manual");
        let mut write = sh::cargo(["run", "--quiet", "--package", "manual", "--"]);
        sh::succeed(write.arg(&manual))?;
        match env::consts::OS {
            "linux" => linux::build(&mut dist, &manual)?,
            "macos" => macos::build(&mut dist)?,
            _ => {}
        }
        if cfg!(windows) || !self.without_windows {
            windows::build(&mut dist)?;
        }
        sbom::write(&mut dist)?;
        if cfg!(target_os = "linux") {
            let samples = dist.file(&format!("ai-agent-{}-mdm.tar.gz", dist.version));
            package::tar(&sh::workspace().join("config"), "mdm", &samples)?;
        }
        let listed = sums::write(&dist.folder)?;

        println!("\n{listed}");
        for skipped in &dist.skipped {
            println!("skipped: {skipped}");
        }
        println!("all of it lies in {}", dist.folder.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// The version of the agent.
fn version() -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Manifest {
        workspace: Workspace,
    }
    #[derive(Deserialize)]
    struct Workspace {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        version: String,
    }
    let manifest = fs::read_to_string(sh::workspace().join("Cargo.toml"))?;
    Ok(toml::from_str::<Manifest>(&manifest)?.workspace.package.version)
}

/// Copies a file, with the rights that it is to have.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), Failure> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).map_err(|error| format!("`{}`: {error}", from.display()))?;
    set_mode(to, mode)
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt as _;

    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) -> Result<(), Failure> {
    Ok(())
}
