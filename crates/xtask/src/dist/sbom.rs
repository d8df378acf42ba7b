//! Components of the program on all systems: an SBOM in CycloneDX format.

use std::fs;

use serde::Deserialize;

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
    let mut make = sh::cargo([TOOL, "--format", "json", "--spec-version", "1.5"]);
    make.args(["--no-build-deps", "--target", "all", "--override-filename", &name]);
    make.arg("--manifest-path").arg(sh::workspace().join("Cargo.toml"));
    let made = sh::succeed(&mut make);
    let file = format!("{name}.json");
    let sbom = fs::read_to_string(sh::workspace().join(&file));
    // The tool writes one beside each manifest of the workspace.
    for package in sh::packages()? {
        let path = package.join(&file);
        if path.try_exists()? {
            fs::remove_file(path)?;
        }
    }
    made?;
    Ok(fs::write(dist.file(&file), without_this_machine(&sbom?)?)?)
}

/// Names the packages of the workspace without the path where they were built.
fn without_this_machine(sbom: &str) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Sbom {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        component: Component,
    }
    #[derive(Deserialize)]
    struct Component {
        #[serde(rename = "bom-ref")]
        name: String,
    }
    let agent = serde_json::from_str::<Sbom>(sbom)?.metadata.component.name;
    let (workspace, _) = agent.split_once('#').ok_or("the SBOM does not name the agent")?;
    Ok(sbom.replace(workspace, "path+file:///ai-agent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sbom_hides_the_build_path() {
        let sbom = r#"{"metadata":{"component":{"bom-ref":"path+file:///home/dev/a#ai-agent@1.0.0"}},
            "components":[{"bom-ref":"path+file:///home/dev/a/crates/b#1.0.0"}]}"#;
        let sbom = without_this_machine(sbom).unwrap();
        assert!(!sbom.contains("/home"), "{sbom}");
        assert!(sbom.contains(r#""path+file:///ai-agent/crates/b#1.0.0""#), "{sbom}");
    }
}
