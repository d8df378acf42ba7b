//! Programs that agents update to, with the manifest that a receiver serves, and their signatures.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Dist, copy};
use crate::{Failure, sh};

/// A program for one platform.
pub(crate) struct Program {
    pub(crate) os: &'static str,
    pub(crate) arch: &'static str,
    pub(crate) path: PathBuf,
}

/// Writes the programs, `manifest.json`, and with `sign_key` the signatures.
pub(super) fn write(dist: &mut Dist, sign_key: Option<&Path>) -> Result<(), Failure> {
    println!("── updates");
    let programs = built(dist)?;
    if programs.is_empty() {
        dist.skip("updates", "no program was built");
        return Ok(());
    }
    if sign_key.is_none() {
        dist.skip("signatures of updates", "no --sign-key; agents refuse unsigned programs");
    }
    write_to(&dist.folder, &dist.version, &programs, sign_key)
}

/// Returns the programs that were built for the packages of this run.
fn built(dist: &Dist) -> Result<Vec<Program>, Failure> {
    let (version, arch) = (&dist.version, env::consts::ARCH);
    let windows = format!("ai-agent-{version}-x86_64-windows");
    let macos = format!("ai-agent-{version}-{arch}-macos");
    let linux = format!("ai-agent-{version}-{arch}-linux.tar.gz");
    let candidates = [
        (linux, "linux", arch, dist.parts.join("tree/usr/bin/ai-agent")),
        (format!("{macos}.tar.gz"), "macos", arch, dist.parts.join(&macos).join("ai-agent")),
        (
            format!("{windows}.zip"),
            "windows",
            "x86_64",
            dist.parts.join(&windows).join("ai-agent.exe"),
        ),
    ];
    let mut programs = Vec::new();
    for (package, os, arch, path) in candidates {
        if dist.file(&package).try_exists()? {
            programs.push(Program { os, arch, path });
        }
    }
    Ok(programs)
}

/// Writes programs of a version, the manifest that lists them, and with `sign_key` their signatures.
pub(crate) fn write_to(
    folder: &Path,
    version: &str,
    programs: &[Program],
    sign_key: Option<&Path>,
) -> Result<(), Failure> {
    let mut artifacts = Vec::new();
    for Program { os, arch, path } in programs {
        let suffix = if *os == "windows" { ".exe" } else { "" };
        let name = format!("ai-agent-{version}-{os}-{arch}{suffix}");
        let file = folder.join(&name);
        copy(path, &file, 0o755)?;
        let content = fs::read(&file)?;
        let sha256 = Sha256::digest(&content);
        let sha256 = sha256.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        let mut artifact = json!({
            "os": os, "arch": arch, "artifact": name, "size": content.len(), "sha256": sha256,
        });
        if let Some(key) = sign_key {
            let comment = format!("ai-agent {version} {os} {arch}");
            artifact["minisig"] = sign(&file, key, &comment)?.into();
        }
        artifacts.push(artifact);
    }
    #[expect(clippy::disallowed_methods, reason = "the date of a release, which nothing compares")]
    let now = SystemTime::now();
    let manifest: Value = json!({ "v": 1, "releases": [{
        "version": version,
        "published_at": humantime::format_rfc3339_seconds(now).to_string(),
        "rollout": { "percent": 100 },
        "artifacts": artifacts,
    }] });
    Ok(fs::write(folder.join("manifest.json"), serde_json::to_string_pretty(&manifest)? + "\n")?)
}

/// Signs a file with a comment, and returns the text of the signature, which is a file too.
fn sign(file: &Path, key: &Path, comment: &str) -> Result<String, Failure> {
    let signature = PathBuf::from(format!("{}.minisig", file.display()));
    let mut minisign = Command::new("minisign");
    minisign.args(["-S", "-s"]).arg(key).arg("-m").arg(file).arg("-x").arg(&signature);
    // Standard input stays open: the key may have a password.
    let status = minisign.args(["-t", comment]).status();
    let status = status.map_err(|error| format!("cannot run minisign: {error}"))?;
    if !status.success() {
        return Err(format!("minisign did not sign `{}`", file.display()).into());
    }
    Ok(fs::read_to_string(signature)?)
}

/// Fails before a long build if signing is not possible.
pub(super) fn check_key(sign_key: Option<&Path>) -> Result<(), Failure> {
    let Some(key) = sign_key else { return Ok(()) };
    if !sh::has_program("minisign") {
        return Err("--sign-key needs the program minisign".into());
    }
    match fs::metadata(key) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(format!("`{}` is not a file", key.display()).into()),
        Err(error) => Err(format!("cannot read `{}`: {error}", key.display()).into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends there")]

    use std::process::Stdio;

    use siem_protocol::{
        minisign::OrganisationKey,
        update::{Platform, ReleaseCatalog},
    };
    use test_requires::requires;

    use super::*;

    /// A folder that is deleted on drop.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                env::temp_dir().join(format!("ai-agent-updates-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        /// Writes the folder of releases for two programs, and returns its catalog.
        fn write(&self, sign_key: Option<&Path>) -> ReleaseCatalog {
            let program = |os, arch| {
                let path = self.0.join(os);
                fs::write(&path, format!("for {os}")).unwrap();
                Program { os, arch, path }
            };
            let programs = [program("linux", "aarch64"), program("windows", "x86_64")];
            write_to(&self.0, "0.3.0-rc.1", &programs, sign_key).unwrap();
            ReleaseCatalog::parse(&fs::read(self.0.join("manifest.json")).unwrap()).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn manifest_is_the_one_that_agents_read() {
        let folder = Folder::new("manifest");
        let catalog = folder.write(None);
        for (os, arch, name) in [
            ("linux", "aarch64", "ai-agent-0.3.0-rc.1-linux-aarch64"),
            ("windows", "x86_64", "ai-agent-0.3.0-rc.1-windows-x86_64.exe"),
        ] {
            let manifest = catalog.manifest(&Platform::new(os, arch).unwrap(), None);
            let release = &manifest.releases[0];
            assert_eq!((release.artifact.as_str(), &release.minisig), (name, &None));
            release.verify_hash(fs::File::open(folder.0.join(name)).unwrap()).unwrap();
        }
    }

    #[requires(minisign)]
    #[test]
    fn signature_is_the_one_that_agents_verify() {
        let folder = Folder::new("signature");
        let (key, public) = (folder.0.join("key"), folder.0.join("key.pub"));
        let mut generate = Command::new("minisign");
        generate.args(["-G", "-W", "-s"]).arg(&key).arg("-p").arg(&public).stdout(Stdio::null());
        assert!(generate.status().unwrap().success());
        let public: OrganisationKey = fs::read_to_string(public).unwrap().parse().unwrap();
        check_key(Some(&key)).unwrap();
        let catalog = folder.write(Some(&key));
        let platform = Platform::new("linux", "aarch64").unwrap();
        let release = catalog.manifest(&platform, None).releases.remove(0);
        release.verify(&platform, &[public], &b"for linux"[..]).unwrap();
    }
}
