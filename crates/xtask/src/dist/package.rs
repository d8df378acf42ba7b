//! Packages from a tree of files, made by the tools of each system.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Failure, sh};

/// Debian's name of this processor architecture.
pub(super) const DEBIAN: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// Program in a package of its own.
pub(super) struct Package {
    pub(super) name: &'static str,
    summary: &'static str,
    description: [&'static str; 3],
    /// Names and texts of maintainer scripts.
    scripts: &'static [(&'static str, &'static str)],
}

pub(super) const AGENT: Package = Package {
    name: "ai-agent",
    summary: "Ships Claude Code session logs to a SIEM",
    description: [
        "An unprivileged agent that follows the session files of Claude Code, keeps each",
        "record in a durable outbox, and ships it signed, so that the receiver can prove",
        "that nothing is missing, doubled or changed.",
    ],
    scripts: &[],
};

pub(super) const RECEIVER: Package = Package {
    name: "siem-server",
    summary: "Receives session records from ai-agent",
    description: [
        "A receiver that checks the signature, the sequence and the hash chain of each",
        "batch, stores every record once, byte for byte, and says which machines are",
        "quiet, behind, or have gaps.",
    ],
    scripts: &[("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)],
};

const POSTINST: &str = r#"#!/bin/sh
set -e
if [ "$1" = configure ]; then
    systemd-sysusers --root="${DPKG_ROOT:-/}" siem-server.conf
    if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl try-restart siem-server.service
    fi
fi
"#;
const PRERM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ] && [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
    systemctl disable --now siem-server.service
fi
"#;
// The records in /var/lib/siem-server stay, also after a purge.
const POSTRM: &str = r#"#!/bin/sh
set -e
if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
"#;

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
pub(super) fn deb(
    package: &Package,
    tree: &Path,
    parts: &Path,
    version: &str,
    to: &Path,
) -> Result<(), Failure> {
    let Package { name, summary, description, scripts } = package;
    let root = parts.join("deb");
    if root.try_exists()? {
        fs::remove_dir_all(&root)?;
    }
    sh::succeed(Command::new("cp").arg("-a").arg(tree).arg(&root))?;
    fs::create_dir_all(root.join("DEBIAN"))?;
    let kilobytes = sizes(tree)?.div_ceil(1024);
    let description = description.join("\n ");
    // The scripts call `systemd-sysusers`.
    let depends = if scripts.is_empty() { "" } else { "Depends: systemd\n" };
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: {DEBIAN}\nSection: admin\n\
         Priority: optional\nMaintainer: ai-agent <ai-agent@localhost>\n\
         Installed-Size: {kilobytes}\n{depends}Description: {summary}\n {description}\n"
    );
    fs::write(root.join("DEBIAN/control"), control)?;
    for (name, text) in *scripts {
        let path = root.join("DEBIAN").join(name);
        fs::write(&path, text)?;
        super::set_mode(&path, 0o755)?;
    }
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
    let Package { name, summary, description, .. } = AGENT;
    let spec = format!(
        "Name: {name}\nVersion: {version}\nRelease: 1\nSummary: {summary}\nLicense: MIT\n\
         AutoReqProv: no\n%global __os_install_post %{{nil}}\n%global debug_package %{{nil}}\n\
         %description\n{}\n%install\ncp -a {}/. %{{buildroot}}\n%files\n%defattr(-,root,root)\n{}\n",
        description.join("\n"),
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
