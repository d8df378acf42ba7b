//! Program for macOS on this processor architecture, and its LaunchAgent.

use std::{env, fs};

use super::{Dist, copy, package};
use crate::{Failure, sh};

pub(super) fn build(dist: &mut Dist) -> Result<(), Failure> {
    println!("── the macOS program");
    let [program] = sh::build(["ai-agent"], ["ai-agent"], true)?;
    let name = format!("ai-agent-{}-{}-macos", dist.version, env::consts::ARCH);
    let folder = dist.parts.join(&name);
    if folder.try_exists()? {
        fs::remove_dir_all(&folder)?;
    }
    let source = sh::workspace();
    copy(&program, &folder.join("ai-agent"), 0o755)?;
    for (from, to) in [
        ("LICENSE", "LICENSE"),
        ("config/mdm/ai-agent.plist", "ai-agent.plist"),
        ("config/mdm/ai-agent.mobileconfig", "ai-agent.mobileconfig"),
    ] {
        copy(&source.join(from), &folder.join(to), 0o644)?;
    }
    sh::succeed(
        std::process::Command::new("cp")
            .arg("-R")
            .arg(dist.parts.join("manual"))
            .arg(folder.join("manual")),
    )?;
    package::tar(&dist.parts, &name, &dist.file(&format!("{name}.tar.gz")))
}
