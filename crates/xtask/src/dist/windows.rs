//! Program for Windows: built there, or with the cross tools beside the workspace; as a zip, and as
//! an installer.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Dist, copy, msi};
use crate::{Failure, cross, sh, shared};

pub(super) fn build(dist: &mut Dist) -> Result<(), Failure> {
    println!("── the Windows program");
    let Some(program) = program(dist)? else { return Ok(()) };
    let name = format!("ai-agent-{}-x86_64-windows", dist.version);
    let folder = dist.parts.join(&name);
    if folder.try_exists()? {
        fs::remove_dir_all(&folder)?;
    }
    copy(&program, &folder.join("ai-agent.exe"), 0o755)?;
    let source = sh::workspace();
    for (from, to) in [
        ("LICENSE", "LICENSE.txt"),
        ("config/default.toml", "default.toml"),
        ("config/mdm/intune.ps1", "intune.ps1"),
        ("config/mdm/config.toml", "config.toml"),
        ("config/mdm/managed-settings.json", "managed-settings.json"),
    ] {
        copy(&source.join(from), &folder.join(to), 0o644)?;
    }
    let completions = dist.parts.join("manual/completions/_ai-agent.ps1");
    copy(&completions, &folder.join("completions.ps1"), 0o644)?;
    let zip = dist.file(&format!("{name}.zip"));
    let mut pack = Command::new(if cfg!(windows) { "python" } else { "python3" });
    pack.current_dir(&dist.parts).args(["-m", "zipfile", "-c"]).arg(zip).arg(&name);
    sh::succeed(&mut pack)?;
    installer(dist, &folder, &name)
}

/// Makes an installer from the files in `folder`, and installs it under wine.
fn installer(dist: &mut Dist, folder: &Path, name: &str) -> Result<(), Failure> {
    println!("── the Windows installer");
    if !msi::can_make() {
        dist.skip("Windows installer", "`wixl` is missing, which is part of msitools");
        return Ok(());
    }
    let version = dist.version.clone();
    msi::make(folder, &version, &dist.file(&format!("{name}.msi")))?;
    if let Some(why) = msi::check(&folder.join("ai-agent.exe"), &version)? {
        dist.skip("the Windows installer run", why);
    }
    Ok(())
}

/// Builds the program; `None` if that is not possible.
fn program(dist: &mut Dist) -> Result<Option<PathBuf>, Failure> {
    if cfg!(windows) {
        let [program] = sh::build(["ai-agent"], ["ai-agent"], true)?;
        return Ok(Some(program));
    }
    let cross = match shared::find() {
        Ok(shared) => shared.join("tools/cross"),
        Err(why) => {
            dist.skip("Windows zip", &why);
            return Ok(None);
        }
    };
    if !cross.is_file() {
        dist.skip("Windows zip", "tools/cross is missing; the hosted runner builds it");
        return Ok(None);
    }
    let mut build = Command::new(&cross);
    build.current_dir(sh::workspace()).args(["build-windows", "--release"]);
    sh::succeed(build.args(["--package", "ai-agent", "--bin", "ai-agent"]))?;
    Ok(Some(cross::target()?.join(cross::TARGET).join("release/ai-agent.exe")))
}
