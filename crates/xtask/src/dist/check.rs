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

/// Installs a package below a folder, uses it, and removes it: no file may be left.
pub(super) fn deb(dist: &mut Dist, package: &Path, tree: &Path) -> Result<(), Failure> {
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
        sh::succeed(dpkg.arg(at).arg("--force-script-chrootless").args(arguments).arg(package))
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
    let program = root.join("usr/bin/ai-agent");
    let home = root.join("home");
    fs::create_dir_all(home.join(".claude/projects/p"))?;
    fs::write(home.join(".claude/projects/p/s.jsonl"), "{\"type\":\"user\"}\n")?;
    let mut try_out = Command::new(&program);
    sh::succeed(try_out.args(["run", "--test"]).env_clear().env("HOME", &home))?;
    dpkg(&["--purge"], Path::new("ai-agent"))?;
    match names(&root)?.as_slice() {
        [] => Ok(()),
        left => Err(format!("the package leaves {left:?} behind").into()),
    }
}
