//! What the program is made of: an SBOM in the form of CycloneDX.

use std::fs;

use super::Dist;
use crate::{Failure, sh};

const TOOL: &str = "cyclonedx";

pub(super) fn write(dist: &mut Dist) -> Result<(), Failure> {
    println!("── SBOM");
    if !sh::has_subcommand(TOOL) {
        dist.skip("SBOM", "`cargo install --locked cargo-cyclonedx` is wanted");
        return Ok(());
    }
    let name = format!("ai-agent-{}.cdx", dist.version);
    let mut make = sh::cargo([TOOL, "--format", "json", "--no-build-deps", "--target"]);
    make.args([super::linux::TARGET, "--override-filename", &name]);
    make.arg("--manifest-path").arg(sh::workspace().join("Cargo.toml"));
    sh::succeed(&mut make)?;
    // It writes one beside each manifest of the workspace.
    let file = format!("{name}.json");
    for path in sh::files_below(&sh::workspace().join("crates"))? {
        if path.ends_with(&file) {
            fs::remove_file(path)?;
        }
    }
    let made = sh::workspace().join(&file);
    fs::copy(&made, dist.file(&file))?;
    Ok(fs::remove_file(made)?)
}
