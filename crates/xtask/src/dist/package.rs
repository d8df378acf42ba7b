//! Packages from a tree of files, made by the tools of each system.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Failure, sh};

/// Functions for the services of all users.
macro_rules! agent_functions {
    () => {
        include_str!("scripts/agents.sh")
    };
}

/// Maintainer script of the agent's Debian package.
macro_rules! agent_script {
    ($body:literal) => {
        concat!("#!/bin/sh\nset -e\n", agent_functions!(), "\n", include_str!($body))
    };
}

/// Debian's name of this processor architecture.
pub(super) const DEBIAN: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// Time of all files in packages, in seconds since 1970. A package is the same bytes whenever it is built.
const TIME: &str = "0";

/// Program in a package of its own.
pub(super) struct Package {
    pub(super) name: &'static str,
    summary: &'static str,
    description: [&'static str; 3],
    /// Packages that the maintainer scripts need.
    depends: &'static str,
    /// Names and texts of Debian's maintainer scripts.
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
    depends: "",
    scripts: &[
        ("postinst", agent_script!("scripts/agent.postinst")),
        ("prerm", agent_script!("scripts/agent.prerm")),
        ("postrm", agent_script!("scripts/agent.postrm")),
    ],
};

pub(super) const RECEIVER: Package = Package {
    name: "siem-server",
    summary: "Receives session records from ai-agent",
    description: [
        "A receiver that checks the signature, the sequence and the hash chain of each",
        "batch, stores every record once, byte for byte, and says which machines are",
        "quiet, behind, or have gaps.",
    ],
    depends: "Depends: systemd\n",
    scripts: &[
        ("postinst", include_str!("scripts/receiver.postinst")),
        ("prerm", include_str!("scripts/receiver.prerm")),
        ("postrm", include_str!("scripts/receiver.postrm")),
    ],
};

/// Scripts of the agent's `.rpm`. Their argument is the number of versions that are installed afterwards.
const RPM_SCRIPTS: [(&str, &str); 3] = [
    (
        "post",
        "for_each_user reload_manager\nif [ \"$1\" -gt 1 ]; then for_each_user restart_agent; fi\n",
    ),
    ("preun", "if [ \"$1\" -eq 0 ]; then disable_for_all; for_each_user stop_agent; fi\n"),
    ("postun", "if [ \"$1\" -eq 0 ]; then for_each_user reload_manager; fi\n"),
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

/// Compression of a package.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Small: for a release.
    Small,
    /// Fast: for a test.
    None,
}

/// Makes a Debian package.
pub(super) fn deb(
    package: &Package,
    tree: &Path,
    parts: &Path,
    version: &str,
    compression: Compression,
    to: &Path,
) -> Result<(), Failure> {
    let Package { name, summary, description, depends, scripts } = package;
    let root = parts.join("deb");
    if root.try_exists()? {
        fs::remove_dir_all(&root)?;
    }
    sh::succeed(Command::new("cp").arg("-a").arg(tree).arg(&root))?;
    fs::create_dir_all(root.join("DEBIAN"))?;
    let kilobytes = sizes(tree)?.div_ceil(1024);
    let description = description.join("\n ");
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
    let compression = match compression {
        Compression::Small => "-Zxz",
        Compression::None => "-Znone",
    };
    let mut build = Command::new("dpkg-deb");
    // Later times are replaced by this one.
    build.env("SOURCE_DATE_EPOCH", TIME);
    sh::succeed(build.args(["--root-owner-group", compression, "--build"]).arg(&root).arg(to))
}

/// Makes an RPM package and returns its path.
pub(super) fn rpm(
    tree: &Path,
    parts: &Path,
    version: &str,
    compression: Compression,
) -> Result<PathBuf, Failure> {
    let top = parts.join("rpm");
    if top.try_exists()? {
        fs::remove_dir_all(&top)?;
    }
    fs::create_dir_all(&top)?;
    let Package { name, summary, description, .. } = AGENT;
    // The package owns this directory with all that is in it; the others belong to the system.
    let own = format!("usr/share/doc/{name}");
    let mut files: Vec<String> = sh::files_below(tree)?
        .iter()
        .filter_map(|file| file.strip_prefix(tree).ok())
        .filter(|file| !file.starts_with(&own))
        .map(|file| {
            // rpmbuild compresses man pages and renames them.
            let star = if file.starts_with("usr/share/man") { "*" } else { "" };
            format!("/{}{star}", file.display())
        })
        .collect();
    files.push(format!("/{own}"));
    let scripts: String = RPM_SCRIPTS
        .iter()
        // `%` starts a macro.
        .map(|(name, body)| format!("%{name}\n{}\n{body}", agent_functions!().replace('%', "%%")))
        .collect();
    let spec = format!(
        "Name: {name}\nVersion: {version}\nRelease: 1\nSummary: {summary}\nLicense: MIT\n\
         AutoReqProv: no\n%global __os_install_post %{{nil}}\n%global debug_package %{{nil}}\n\
         %global use_source_date_epoch_as_buildtime 1\n\
         %global clamp_mtime_to_source_date_epoch 1\n%global _buildhost localhost\n\
         %description\n{}\n%install\ncp -a {}/. %{{buildroot}}\n{scripts}\
         %files\n%defattr(-,root,root)\n{}\n",
        description.join("\n"),
        tree.display(),
        files.join("\n"),
    );
    let file = top.join("ai-agent.spec");
    fs::write(&file, spec)?;
    let mut build = Command::new("rpmbuild");
    build.args(["--quiet", "-bb", "--target", env::consts::ARCH, "--define"]);
    build.arg(format!("_topdir {}", top.display())).env("SOURCE_DATE_EPOCH", TIME);
    if compression == Compression::None {
        build.args(["--define", "_binary_payload w0.ufdio"]);
    }
    sh::succeed(build.args(["--define", "_build_id_links none"]).arg(&file))?;
    let made = sh::files_below(&top.join("RPMS"))?;
    made.into_iter().next().ok_or_else(|| "rpmbuild has made nothing".into())
}

/// Returns the size of all files below a folder, in bytes.
fn sizes(folder: &Path) -> Result<u64, Failure> {
    sh::files_below(folder)?.iter().map(|file| Ok(fs::metadata(file)?.len())).sum()
}
