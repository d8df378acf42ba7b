//! Test of `.github/release.sh`, which makes one release of the files of all systems.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use siem_protocol::{
    minisign::OrganisationKey,
    update::{Platform, ReleaseCatalog},
};
use test_requires::requires;

use crate::sh;

/// A folder that is deleted on drop.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Writes what `cargo xtask dist` writes for one system, as far as the script reads it.
fn write_part(parts: &Path, os: &str, arch: &str, version: &str) {
    let (part, name) = (parts.join(os), format!("ai-agent-{version}-{os}-{arch}"));
    fs::create_dir_all(&part).unwrap();
    let content = format!("for {os}");
    let sha256 = Command::new("sh").args(["-c", "printf %s \"$0\" | sha256sum", &content]).output();
    let sha256 = String::from_utf8(sha256.unwrap().stdout).unwrap()[..64].to_owned();
    let manifest = serde_json::json!({ "v": 1, "releases": [{
        "version": version, "published_at": "2026-11-30T00:00:00Z", "rollout": { "percent": 100 },
        "artifacts": [{ "os": os, "arch": arch, "artifact": name, "size": content.len(), "sha256": sha256 }],
    }] });
    fs::write(part.join("manifest.json"), manifest.to_string()).unwrap();
    fs::write(part.join(name), content).unwrap();
    fs::write(part.join("ai-agent.cdx.json"), "the same on all systems").unwrap();
    fs::write(part.join("SHA256SUMS"), "of this part").unwrap();
}

fn folder(name: &str) -> Folder {
    let path = env::temp_dir().join(format!("ai-agent-release-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    Folder(path)
}

fn minisign(arguments: &[&str], folder: &Path) -> bool {
    sh::works(Command::new("minisign").args(arguments).current_dir(folder))
}

/// Collects the parts as the workflow does.
fn collect(folder: &Path) -> bool {
    script(folder, &["parts", "collected"])
}

fn script(folder: &Path, arguments: &[&str]) -> bool {
    let mut script = Command::new(sh::workspace().join(".github/release.sh"));
    script.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    script.status().unwrap().success()
}

#[requires(minisign, jq)]
#[test]
fn release_of_two_systems_has_one_signed_manifest() {
    let folder = folder("signed");
    write_part(&folder.0.join("parts"), "linux", "x86_64", "0.3.0");
    write_part(&folder.0.join("parts"), "macos", "aarch64", "0.3.0");
    assert!(collect(&folder.0));
    assert!(minisign(&["-G", "-W", "-s", "key", "-p", "key.pub"], &folder.0));
    assert!(script(&folder.0, &["collected", "dist", "key"]));

    let dist = folder.0.join("dist");
    let public = fs::read_to_string(folder.0.join("key.pub")).unwrap();
    let public: OrganisationKey = public.parse().unwrap();
    let catalog = ReleaseCatalog::parse(&fs::read(dist.join("manifest.json")).unwrap()).unwrap();
    for (os, arch) in [("linux", "x86_64"), ("macos", "aarch64")] {
        let platform = Platform::new(os, arch).unwrap();
        let release = catalog.manifest(&platform, None).releases.remove(0);
        let program = fs::File::open(dist.join(release.artifact.as_str())).unwrap();
        release.verify(&platform, std::slice::from_ref(&public), program).unwrap();
    }
    assert!(minisign(&["-V", "-p", "../key.pub", "-m", "SHA256SUMS"], &dist));
    let sums = fs::read_to_string(dist.join("SHA256SUMS")).unwrap();
    let names: Vec<_> = sums.lines().map(|line| &line[66..]).collect();
    let programs = ["ai-agent-0.3.0-linux-x86_64", "ai-agent-0.3.0-macos-aarch64"];
    assert_eq!(names, [&programs[..], &["ai-agent.cdx.json", "manifest.json"]].concat());
    assert!(sh::works(Command::new("sha256sum").args(["--check", "SHA256SUMS"]).current_dir(dist)));
}

#[requires(jq)]
#[test]
fn release_of_two_versions_is_refused() {
    let folder = folder("versions");
    write_part(&folder.0.join("parts"), "linux", "x86_64", "0.3.0");
    write_part(&folder.0.join("parts"), "macos", "aarch64", "0.2.0");
    assert!(!collect(&folder.0));
}

/// A tag can be moved to other code; the digest of a commit cannot.
#[test]
fn workflows_name_actions_by_digest() {
    let mut actions = 0;
    for file in sh::files_below(&sh::workspace().join(".github/workflows")).unwrap() {
        let text = fs::read_to_string(&file).unwrap();
        for (_, action) in text.lines().filter_map(|line| line.split_once("uses: ")) {
            let (_, reference) = action.split_once('@').unwrap();
            let (digest, version) = reference.split_once(" # v").unwrap_or_default();
            let is_digest = digest.len() == 40 && digest.bytes().all(|it| it.is_ascii_hexdigit());
            assert!(is_digest && !version.is_empty(), "{}: {action}", file.display());
            actions += 1;
        }
    }
    assert!(actions > 0);
}
