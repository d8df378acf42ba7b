//! The releases in a folder, from which manifests are made.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    ArtifactName, FORMAT, MAX_CATALOG_BYTES, ManifestError, Platform, PlatformWord, Rollout,
    UpdateManifest, UpdateRelease, Version, manifest,
};
use crate::Digest;

/// All releases of a folder, as its file `manifest.json` lists them. Unknown members, such as those of later
/// releases, are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct ReleaseCatalog {
    /// Version of the format.
    pub v: u64,
    /// The releases.
    pub releases: Vec<CatalogRelease>,
    /// Unknown members.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A release for all of its platforms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct CatalogRelease {
    /// Version of the release.
    pub version: Version,
    /// Time of the release, RFC 3339 in UTC.
    pub published_at: String,
    /// Machines that it is meant for.
    pub rollout: Rollout,
    /// Artifacts, one for each platform.
    pub artifacts: Vec<CatalogArtifact>,
    /// Unknown members.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The program of a release for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct CatalogArtifact {
    os: PlatformWord,
    arch: PlatformWord,
    /// Name of the file.
    pub artifact: ArtifactName,
    /// Size of the file in bytes.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: Digest,
    /// Text of the file's `.minisig`, absent if it is not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minisig: Option<String>,
    /// Unknown members.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Default for ReleaseCatalog {
    fn default() -> Self {
        Self { v: FORMAT, releases: Vec::new(), unknown: Map::new() }
    }
}

impl ReleaseCatalog {
    /// Parses a catalog and checks its values.
    ///
    /// # Errors
    /// [`ManifestError`]: nothing of the catalog may be used.
    pub fn parse(body: &[u8]) -> Result<Self, ManifestError> {
        let catalog: Self = manifest::parse(body, MAX_CATALOG_BYTES)?;
        catalog.check()?;
        Ok(catalog)
    }

    /// Returns the text of the catalog, for people to read.
    ///
    /// # Errors
    /// [`ManifestError`] if [`parse`](Self::parse) would refuse it.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        if text.len() > MAX_CATALOG_BYTES {
            return Err(ManifestError::TooLarge(MAX_CATALOG_BYTES));
        }
        Ok(text)
    }

    /// Returns the manifest of a platform: its releases newer than `installed`, or all.
    #[must_use]
    pub fn manifest(&self, platform: &Platform, installed: Option<&Version>) -> UpdateManifest {
        let newer = self.releases.iter().filter(|it| installed.is_none_or(|old| it.version > *old));
        UpdateManifest::new(platform, newer.filter_map(|it| it.for_platform(platform)).collect())
    }

    /// Reports whether any release has an artifact for a platform.
    #[must_use]
    pub fn has_platform(&self, platform: &Platform) -> bool {
        self.releases.iter().any(|release| release.for_platform(platform).is_some())
    }

    /// Returns the artifact of this name.
    #[must_use]
    pub fn artifact(&self, name: &ArtifactName) -> Option<&CatalogArtifact> {
        let mut artifacts = self.releases.iter().flat_map(|release| &release.artifacts);
        artifacts.find(|artifact| artifact.artifact == *name)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let mut seen = BTreeSet::new();
        let mut once = |text: String| {
            if seen.contains(&text) {
                Err(ManifestError::Duplicate(text))
            } else {
                Ok(seen.insert(text))
            }
        };
        for release in &self.releases {
            once(format!("version {}", release.version))?;
            for artifact in &release.artifacts {
                once(format!("artifact {}", artifact.artifact))?;
                once(format!("{} for {}", release.version, artifact.platform()))?;
                release.with(artifact).check()?;
            }
        }
        Ok(())
    }
}

impl CatalogRelease {
    fn for_platform(&self, platform: &Platform) -> Option<UpdateRelease> {
        let mut artifacts = self.artifacts.iter();
        artifacts.find(|artifact| artifact.platform() == *platform).map(|it| self.with(it))
    }

    /// Returns the release with one of its artifacts.
    #[must_use]
    pub fn with(&self, artifact: &CatalogArtifact) -> UpdateRelease {
        UpdateRelease {
            version: self.version.clone(),
            published_at: self.published_at.clone(),
            rollout: self.rollout.clone(),
            artifact: artifact.artifact.clone(),
            size: artifact.size,
            sha256: artifact.sha256,
            minisig: artifact.minisig.clone(),
        }
    }
}

impl CatalogArtifact {
    /// Makes an unsigned artifact from its content.
    #[must_use]
    pub fn new(platform: &Platform, name: ArtifactName, content: &[u8]) -> Self {
        let Platform { os, arch } = platform.clone();
        let (size, sha256) = (content.len() as u64, Digest::of(content));
        Self { os, arch, artifact: name, size, sha256, minisig: None, unknown: Map::new() }
    }

    /// Returns the platform that it runs on.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform { os: self.os.clone(), arch: self.arch.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(os: &str) -> Platform {
        Platform::new(os, "x86_64").unwrap()
    }

    fn artifact(version: &str, os: &str) -> CatalogArtifact {
        let name = format!("ai-agent-{version}-{os}-x86_64").parse().unwrap();
        CatalogArtifact::new(&platform(os), name, format!("{version} for {os}").as_bytes())
    }

    fn release(version: &str, systems: &[&str]) -> CatalogRelease {
        CatalogRelease {
            version: version.parse().unwrap(),
            published_at: "2026-01-31T00:00:00Z".to_owned(),
            rollout: Rollout::ALL,
            artifacts: systems.iter().map(|os| artifact(version, os)).collect(),
            unknown: Map::new(),
        }
    }

    fn catalog() -> ReleaseCatalog {
        let releases = vec![
            release("0.3.0", &["linux", "macos"]),
            release("0.4.0", &["linux"]),
            release("0.2.0", &["linux", "macos"]),
        ];
        ReleaseCatalog { releases, ..ReleaseCatalog::default() }
    }

    fn offered(os: &str, installed: Option<&str>) -> Vec<String> {
        let installed = installed.map(|text| text.parse().unwrap());
        let manifest = catalog().manifest(&platform(os), installed.as_ref());
        manifest.releases.iter().map(|release| release.version.to_string()).collect()
    }

    #[test]
    fn catalog_reads_back() {
        let text = catalog().to_json().unwrap();
        assert_eq!(ReleaseCatalog::parse(&text).unwrap(), catalog());
    }

    #[test]
    fn unknown_members_of_later_releases_are_kept() {
        let mut json = serde_json::to_value(catalog()).unwrap();
        for at in ["", "/releases/1", "/releases/1/artifacts/0"] {
            json.pointer_mut(at).unwrap()["later"] = serde_json::json!({ "a": [1] });
        }
        let parsed = ReleaseCatalog::parse(json.to_string().as_bytes()).unwrap();
        let written: Value = serde_json::from_slice(&parsed.to_json().unwrap()).unwrap();
        assert_eq!(written, json);
        // What would restrict a roll-out is refused.
        json["releases"][1]["rollout"]["later"] = true.into();
        assert!(ReleaseCatalog::parse(json.to_string().as_bytes()).is_err());
    }

    #[test]
    fn halted_releases_hide_no_older_full_one() {
        let mut many = catalog();
        for minor in 10..30 {
            let mut release = release(&format!("0.{minor}.0"), &["linux"]);
            release.rollout.halted = true;
            many.releases.push(release);
        }
        let manifest = many.manifest(&platform("linux"), None);
        let offered: Vec<_> = manifest.releases.iter().map(|it| it.version.to_string()).collect();
        let halted = ["0.29.0", "0.28.0", "0.27.0", "0.26.0", "0.25.0"];
        assert_eq!(offered, [&halted[..], &["0.4.0", "0.3.0", "0.2.0"]].concat());
        // Newer ones that go to a part of the machines hide it neither.
        for release in &mut many.releases[3..] {
            release.rollout = Rollout { percent: 1, ..Rollout::ALL };
        }
        let manifest = many.manifest(&platform("linux"), None);
        assert_eq!(manifest.releases.last().unwrap().version.to_string(), "0.4.0");
        assert_eq!(manifest.releases[6].version.to_string(), "0.23.0");
    }

    #[test]
    fn manifest_has_newer_releases_of_the_platform() {
        assert_eq!(offered("linux", Some("0.2.0")), ["0.4.0", "0.3.0"]);
        assert_eq!(offered("macos", Some("0.2.0")), ["0.3.0"]);
        assert_eq!(offered("linux", Some("0.4.0")), [""; 0]);
        assert_eq!(offered("linux", None), ["0.4.0", "0.3.0", "0.2.0"]);
        assert!(!catalog().has_platform(&platform("windows")));
    }

    #[test]
    fn duplicates_are_refused() {
        let mut twice = catalog();
        twice.releases.push(release("0.3.0", &[]));
        assert!(matches!(twice.to_json(), Err(ManifestError::Duplicate(_))));

        let mut shared = catalog();
        shared.releases[1].artifacts.push(artifact("0.3.0", "macos"));
        assert!(matches!(shared.to_json(), Err(ManifestError::Duplicate(_))));

        let mut same_platform = catalog();
        let other = CatalogArtifact::new(&platform("linux"), "ai-agent-x".parse().unwrap(), b"x");
        same_platform.releases[1].artifacts.push(other);
        assert!(matches!(same_platform.to_json(), Err(ManifestError::Duplicate(_))));
    }

    #[test]
    fn artifact_is_found_by_its_name() {
        let name = "ai-agent-0.4.0-linux-x86_64".parse().unwrap();
        assert_eq!(catalog().artifact(&name).unwrap().sha256, Digest::of(b"0.4.0 for linux"));
        assert_eq!(catalog().artifact(&"ai-agent-0.4.0-macos-x86_64".parse().unwrap()), None);
    }
}
