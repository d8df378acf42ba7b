//! Checks of the release files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Dist;
use crate::{Failure, sh};

/// Fails if a program needs any library of the system.
pub(super) fn is_static(program: &Path) -> Result<(), Failure> {
    let output = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let text = text.trim();
    println!("ldd: {text}");
    if text.contains("statically linked") || text.contains("not a dynamic executable") {
        Ok(())
    } else {
        Err(format!("`{}` is not static", program.display()).into())
    }
}

/// Makes the program ship to a receiver that it finds by a name server and trusts by the
/// certificates of the system.
pub(super) fn names_and_tls(dist: &mut Dist, program: &Path) -> Result<(), Failure> {
    let part = "the static program with a name server and TLS";
    let mut isolated = Command::new("unshare");
    isolated.args(["--net", "--mount", "--map-root-user"]);
    let tools = ["python3", "openssl"].into_iter().find(|tool| !sh::has_program(tool));
    if let Some(tool) = tools {
        dist.skip(part, &format!("{tool} is not there"));
        return Ok(());
    }
    let mut probe = Command::new("unshare");
    if !sh::works(probe.args(["--net", "--mount", "--map-root-user", "true"])) {
        dist.skip(part, "the system does not allow network namespaces");
        return Ok(());
    }
    let script = dist.parts.join("names_and_tls.py");
    fs::write(&script, include_str!("names_and_tls.py"))?;
    sh::succeed(isolated.args(["python3", "-B"]).arg(script).arg(program))
}

/// Installs a package below a folder, runs its program by `try_out`, which gets that folder, and removes the
/// package: no file may be left.
pub(super) fn deb(
    dist: &mut Dist,
    name: &str,
    package: &Path,
    tree: &Path,
    try_out: impl FnOnce(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if !sh::is_root() {
        dist.skip("the .deb installed and removed", "needs root");
        return Ok(());
    }
    let root = dist.parts.join("root");
    if root.try_exists()? {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(root.join("var/lib/dpkg"))?;
    fs::write(root.join("var/lib/dpkg/status"), "")?;
    let dpkg = |arguments: &[&str], package: &Path| {
        let mut dpkg = Command::new("dpkg");
        let at = format!("--root={}", root.display());
        // The folder has no package that this one could depend on.
        dpkg.arg(at).args(["--force-script-chrootless", "--force-depends"]);
        sh::succeed(dpkg.args(arguments).arg(package))
    };
    dpkg(&["--install"], package)?;
    let names = |folder: &Path| -> Result<Vec<PathBuf>, Failure> {
        let files = sh::files_below(&folder.join("usr"))?;
        let names = files.iter().filter_map(|file| file.strip_prefix(folder).ok());
        Ok(names.map(Path::to_owned).collect())
    };
    if names(&root)? != names(tree)? {
        return Err("the package installs unexpected files".into());
    }
    try_out(&root)?;
    dpkg(&["--purge"], Path::new(name))?;
    match names(&root)?.as_slice() {
        [] => Ok(()),
        left => Err(format!("the package leaves {left:?} behind").into()),
    }
}

/// Lets the installed agent read a session.
pub(super) fn agent(root: &Path) -> Result<(), Failure> {
    let home = root.join("home");
    fs::create_dir_all(home.join(".claude/projects/p"))?;
    fs::write(home.join(".claude/projects/p/s.jsonl"), "{\"type\":\"user\"}\n")?;
    let mut try_out = Command::new(root.join("usr/bin/ai-agent"));
    sh::succeed(try_out.args(["run", "--test"]).env_clear().env("HOME", &home))
}

/// Lets the installed receiver check its configuration, and the system the unit. The package must have made
/// the user of the unit.
pub(super) fn receiver(root: &Path) -> Result<(), Failure> {
    let users = fs::read_to_string(root.join("etc/passwd"))?;
    if !users.lines().any(|user| user.starts_with("siem-server:")) {
        return Err("the package has not made the user `siem-server`".into());
    }
    let program = root.join("usr/bin/siem-server");
    let mut check = Command::new(&program);
    check.args(["config", "check", "--config"]);
    check.arg(root.join("usr/share/doc/siem-server/examples/config.toml")).env_clear();
    let secrets = ["CLAUDE_SIEM_TOKEN", "CLAUDE_SIEM_HMAC_SECRET"];
    sh::succeed(check.envs(secrets.map(|name| (name, "0123456789abcdef0123456789abcdef"))))?;
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/siem-server.service"))?;
    // `verify` requires the program to exist.
    let unit = unit.replace("/usr/bin/siem-server", &program.display().to_string());
    let file = root.join("siem-server.service");
    fs::write(&file, unit)?;
    if sh::has_program("systemd-analyze") {
        sh::succeed(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(file))?;
    }
    Ok(())
}
