//! Packages from a tree of files, made by the tools of each system.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Failure, sh};

/// Debian's name of this processor architecture.
pub(super) const DEBIAN: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
const SUMMARY: &str = "Ships Claude Code session logs to a SIEM";
const DESCRIPTION: [&str; 3] = [
    "An unprivileged agent that follows the session files of Claude Code, keeps each",
    "record in a durable outbox, and ships it signed, so that the receiver can prove",
    "that nothing is missing, doubled or changed.",
];

/// Archives `name` of `folder`.
pub(super) fn tar(folder: &Path, name: &str, to: &Path) -> Result<(), Failure> {
    let mut tar = Command::new("tar");
    // The same bytes from the same files, if the tool supports that.
    if cfg!(target_os = "linux") {
        tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]);
    }
    sh::succeed(tar.arg("-czf").arg(to).arg("-C").arg(folder).arg(name))
}

/// Makes a Debian package.
pub(super) fn deb(tree: &Path, parts: &Path, version: &str, to: &Path) -> Result<(), Failure> {
    let root = parts.join("deb");
    if root.try_exists()? {
        fs::remove_dir_all(&root)?;
    }
    sh::succeed(Command::new("cp").arg("-a").arg(tree).arg(&root))?;
    fs::create_dir_all(root.join("DEBIAN"))?;
    let kilobytes = sizes(tree)?.div_ceil(1024);
    let description = DESCRIPTION.join("\n ");
    let control = format!(
        "Package: ai-agent\nVersion: {version}\nArchitecture: {DEBIAN}\nSection: admin\n\
         Priority: optional\nMaintainer: ai-agent <ai-agent@localhost>\n\
         Installed-Size: {kilobytes}\nDescription: {SUMMARY}\n {description}\n"
    );
    fs::write(root.join("DEBIAN/control"), control)?;
    let mut build = Command::new("dpkg-deb");
    sh::succeed(build.args(["--root-owner-group", "-Zxz", "--build"]).arg(&root).arg(to))
}

/// Makes an RPM package and returns its path.
pub(super) fn rpm(tree: &Path, parts: &Path, version: &str) -> Result<PathBuf, Failure> {
    let top = parts.join("rpm");
    if top.try_exists()? {
        fs::remove_dir_all(&top)?;
    }
    fs::create_dir_all(&top)?;
    let files: Vec<String> = sh::files_below(tree)?
        .iter()
        .filter_map(|file| file.strip_prefix(tree).ok())
        .map(|file| {
            // rpmbuild compresses man pages and renames them.
            let star = if file.starts_with("usr/share/man") { "*" } else { "" };
            format!("/{}{star}", file.display())
        })
        .collect();
    let spec = format!(
        "Name: ai-agent\nVersion: {version}\nRelease: 1\nSummary: {SUMMARY}\nLicense: MIT\n\
         AutoReqProv: no\n%global __os_install_post %{{nil}}\n%global debug_package %{{nil}}\n\
         %description\n{}\n%install\ncp -a {}/. %{{buildroot}}\n%files\n%defattr(-,root,root)\n{}\n",
        DESCRIPTION.join("\n"),
        tree.display(),
        files.join("\n"),
    );
    let file = top.join("ai-agent.spec");
    fs::write(&file, spec)?;
    let mut build = Command::new("rpmbuild");
    build.args(["--quiet", "-bb", "--target", env::consts::ARCH, "--define"]);
    build.arg(format!("_topdir {}", top.display()));
    sh::succeed(build.args(["--define", "_build_id_links none"]).arg(&file))?;
    let made = sh::files_below(&top.join("RPMS"))?;
    made.into_iter().next().ok_or_else(|| "rpmbuild has made nothing".into())
}

/// Returns the size of all files below a folder, in bytes.
fn sizes(folder: &Path) -> Result<u64, Failure> {
    sh::files_below(folder)?.iter().map(|file| Ok(fs::metadata(file)?.len())).sum()
}
