//! `cargo xtask dist`: the release files, as far as this machine can build them.

mod check;
pub(crate) mod lifecycle;
pub(crate) mod linux;
mod macos;
mod manual;
pub(crate) mod msi;
mod package;
mod receiver;
#[cfg(all(test, target_os = "linux"))]
mod release_script;
mod reproducible;
mod sbom;
mod sums;
pub(crate) mod updates;
mod windows;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde::Deserialize;

use self::{
    lifecycle::Format,
    package::{Compression, Package},
};
use crate::{Failure, machine, sh};

/// Build the release files below `target/dist`: a static Linux program, `.deb` and `.rpm` with the
/// user unit, the receiver and its `.deb`, the Windows program as a zip, man pages, completions, samples for an MDM, an SBOM,
/// and checksums. Prints the parts that could not be built here.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Skip the Windows program, which doubles the time
    #[arg(long)]
    without_windows: bool,

    /// Private key of minisign, to sign the programs that agents update to
    #[arg(long, value_name = "FILE")]
    sign_key: Option<PathBuf>,

    /// Only install, upgrade and remove packages of a debug build, which takes seconds
    #[arg(long)]
    debug: bool,

    /// Only build the Linux program, twice in different folders, and fail if the bytes differ
    #[arg(long)]
    check_reproducible: bool,
}

/// Version and folders of the release files.
struct Dist {
    version: String,
    folder: PathBuf,
    /// Folder of parts that several packages contain.
    parts: PathBuf,
    skipped: Vec<String>,
}

impl Dist {
    /// Records a result, or prints why there is none.
    fn skip(&mut self, part: &str, reason: &str) {
        println!("skipped: {part}: {reason}");
        self.skipped.push(format!("{part}: {reason}"));
    }

    /// Makes the Debian package of a tree. Returns `None` if the tool is missing.
    fn deb(&mut self, package: &Package, tree: &Path) -> Result<Option<PathBuf>, Failure> {
        let name = package.name;
        if !sh::has_program("dpkg-deb") {
            self.skip(&format!(".deb of {name}"), "dpkg-deb is not installed");
            return Ok(None);
        }
        println!("── .deb of {name}");
        let deb = self.file(&format!("{name}_{}_{}.deb", self.version, package::DEBIAN));
        package::deb(package, tree, &self.parts, &self.version, Compression::Small, &deb)?;
        Ok(Some(deb))
    }

    /// Returns the path of a release file.
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        updates::check_key(self.sign_key.as_deref())?;
        if self.debug {
            return packages_of_debug_build();
        }
        if self.check_reproducible {
            reproducible::check()?;
            return Ok(ExitCode::SUCCESS);
        }
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
        manual::write(&manual, manual::agent)?;
        match env::consts::OS {
            "linux" => {
                linux::build(&mut dist, &manual)?;
                receiver::build(&mut dist)?;
                lifecycle::check_release(&mut dist)?;
            }
            "macos" => macos::build(&mut dist)?,
            _ => {}
        }
        if cfg!(windows) || !self.without_windows {
            windows::build(&mut dist)?;
        }
        sbom::write(&mut dist)?;
        updates::write(&mut dist, self.sign_key.as_deref())?;
        if cfg!(target_os = "linux") {
            let samples = dist.file(&format!("ai-agent-{}-mdm.tar.gz", dist.version));
            package::tar(&sh::workspace().join("config"), "mdm", &samples)?;
        }
        let listed = sums::write(&dist.folder)?;

        println!("\n{listed}");
        for skipped in &dist.skipped {
            println!("skipped: {skipped}");
        }
        println!("written to {}", dist.folder.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the programs and checks their packages.
fn packages_of_debug_build() -> Result<ExitCode, Failure> {
    if let Some(why) = machine::lacking() {
        return Err(why.into());
    }
    sh::build(["ai-agent", "siem-server"], ["ai-agent", "siem-server"], false)?;
    let checked = lifecycle::check_debug_build(&[Format::Deb, Format::Rpm])?;
    println!("checked: {checked:?}");
    Ok(ExitCode::SUCCESS)
}

/// Version of the agent.
pub(crate) fn version() -> Result<String, Failure> {
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

/// Copies a file and sets its permissions.
pub(crate) fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), Failure> {
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
