//! The manifest that a receiver returns for one platform.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    ArtifactName, FORMAT, MAX_ARTIFACT_BYTES, MAX_MANIFEST_BYTES, MAX_OFFERED, Platform,
    PlatformWord, Rollout, Version,
};
use crate::{Digest, minisign::MAX_SIGNATURE_BYTES};

/// Releases for one platform, the response to `GET /update/manifest.json`. Unknown members are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct UpdateManifest {
    /// Version of the format.
    pub v: u64,
    os: PlatformWord,
    arch: PlatformWord,
    /// Releases newer than the version in the request, the newest first; at most 8.
    pub releases: Vec<UpdateRelease>,
}

/// A release with its artifact for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct UpdateRelease {
    /// Version of the release.
    pub version: Version,
    /// Time of the release, RFC 3339 in UTC.
    pub published_at: String,
    /// Machines that it is meant for.
    pub rollout: Rollout,
    /// Name of the file with the program.
    pub artifact: ArtifactName,
    /// Size of the file in bytes, 1 to 256 Mi.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: Digest,
    /// Text of the file's `.minisig`, absent if it is not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minisig: Option<String>,
}

impl UpdateManifest {
    /// Makes the manifest of a platform. Keeps as many of `releases` as the format permits: the newest one that
    /// goes to all machines, then those that go to some, then the newest.
    #[must_use]
    pub fn new(platform: &Platform, mut releases: Vec<UpdateRelease>) -> Self {
        releases.sort_by(|a, b| b.version.cmp(&a.version));
        while releases.len() > MAX_OFFERED {
            releases.remove(least_useful(&releases));
        }
        let Platform { os, arch } = platform.clone();
        let mut manifest = Self { v: FORMAT, os, arch, releases };
        while manifest.to_json().len() > MAX_MANIFEST_BYTES && !manifest.releases.is_empty() {
            manifest.releases.remove(least_useful(&manifest.releases));
        }
        manifest
    }

    /// Returns the platform of the artifacts.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform { os: self.os.clone(), arch: self.arch.clone() }
    }

    /// Returns the text of the manifest.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has strings as keys")
    }

    /// Parses a manifest and checks its values.
    ///
    /// # Errors
    /// [`ManifestError`]: nothing of the manifest may be used.
    ///
    /// ```
    /// use siem_protocol::update::UpdateManifest;
    /// let manifest = UpdateManifest::parse(br#"{"v":1,"os":"linux","arch":"x86_64","releases":[]}"#)?;
    /// assert_eq!(manifest.platform().os(), "linux");
    /// # Ok::<(), siem_protocol::update::ManifestError>(())
    /// ```
    pub fn parse(body: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = parse(body, MAX_MANIFEST_BYTES)?;
        if manifest.releases.len() > MAX_OFFERED {
            return Err(ManifestError::Releases);
        }
        manifest.releases.iter().try_for_each(UpdateRelease::check)?;
        Ok(manifest)
    }
}

/// Returns the place of the release, among those of a manifest, that the fewest machines miss: the oldest that
/// goes to no machine, or that a newer one for all machines replaces, or any but the one for all.
fn least_useful(releases: &[UpdateRelease]) -> usize {
    let last = releases.len().saturating_sub(1);
    let full = releases.iter().position(|it| it.rollout == Rollout::ALL);
    let is_replaced = |at: usize| full.is_some_and(|full| at > full);
    let reaches_none = |at: usize| releases[at].rollout.halted || releases[at].rollout.percent == 0;
    (0..releases.len())
        .rev()
        .find(|at| reaches_none(*at))
        .or_else(|| Some(last).filter(|at| is_replaced(*at)))
        .or_else(|| (0..releases.len()).rev().find(|at| full != Some(*at)))
        .unwrap_or(last)
}

impl UpdateRelease {
    /// Checks the ranges of its values.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let wrong = |key| Err(ManifestError::Value { version: self.version.clone(), key });
        if self.rollout.percent > 100 {
            return wrong("rollout.percent");
        }
        if humantime::parse_rfc3339(&self.published_at).is_err() {
            return wrong("published_at");
        }
        if self.size == 0 || self.size > MAX_ARTIFACT_BYTES {
            return wrong("size");
        }
        if self.minisig.as_ref().is_some_and(|text| text.len() > MAX_SIGNATURE_BYTES) {
            return wrong("minisig");
        }
        Ok(())
    }
}

/// Reason why a manifest or a catalog is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is too large.
    #[error("the manifest is larger than {} KiB", .0 >> 10)]
    TooLarge(usize),
    /// It is not JSON, lacks a member, or a member has the wrong type.
    #[error("the manifest cannot be read")]
    Json(#[from] serde_json::Error),
    /// An array is in the place of an object.
    #[error("the manifest has an array where an object is expected")]
    Array,
    /// Its format is not supported.
    #[error("the manifest has format {0}, expected {FORMAT}")]
    Format(u64),
    /// It has too many releases.
    #[error("the manifest has too many releases")]
    Releases,
    /// A value is out of range.
    #[error("`{key}` of release {version} in the manifest is out of range")]
    Value {
        /// Version of the release.
        version: Version,
        /// The member.
        key: &'static str,
    },
    /// A version, an artifact or a platform of a release is there twice.
    #[error("{0} is twice in the manifest")]
    Duplicate(String),
}

/// Parses `body`, of which the member `v` and the kinds of its values were checked before.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8], max: usize) -> Result<T, ManifestError> {
    if body.len() > max {
        return Err(ManifestError::TooLarge(max));
    }
    let value: Value = serde_json::from_slice(body)?;
    if has_array_as_object(&value) {
        return Err(ManifestError::Array);
    }
    match value.get("v").and_then(Value::as_u64) {
        Some(format) if format != FORMAT => Err(ManifestError::Format(format)),
        _ => Ok(serde_json::from_slice(body)?),
    }
}

/// Finds arrays that serde would read as a struct, member by member.
fn has_array_as_object(value: &Value) -> bool {
    let items = |value: &Value, key| {
        value.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice).to_vec()
    };
    let releases = items(value, "releases");
    value.is_array()
        || releases.iter().any(|release| {
            release.is_array()
                || release.get("rollout").is_some_and(Value::is_array)
                || items(release, "artifacts").iter().any(Value::is_array)
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn release(version: &str) -> UpdateRelease {
        UpdateRelease {
            version: version.parse().unwrap(),
            published_at: "2026-01-31T00:00:00Z".to_owned(),
            rollout: Rollout::ALL,
            artifact: format!("ai-agent-{version}-linux-x86_64").parse().unwrap(),
            size: 7,
            sha256: Digest::of(b"program"),
            minisig: None,
        }
    }

    fn manifest(versions: &[&str]) -> UpdateManifest {
        let releases = versions.iter().map(|version| release(version)).collect();
        UpdateManifest::new(&Platform::new("linux", "x86_64").unwrap(), releases)
    }

    fn versions(manifest: &UpdateManifest) -> Vec<String> {
        manifest.releases.iter().map(|release| release.version.to_string()).collect()
    }

    #[test]
    fn manifest_reads_back_with_the_newest_first() {
        let made = manifest(&["0.9.0", "0.10.0", "0.10.0-rc.1"]);
        assert_eq!(versions(&made), ["0.10.0", "0.10.0-rc.1", "0.9.0"]);
        assert_eq!(UpdateManifest::parse(&made.to_json()).unwrap(), made);
    }

    #[test]
    fn manifest_keeps_the_releases_that_fit() {
        let names: Vec<_> = (0..20).map(|n| format!("0.{n}.0")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert_eq!(versions(&manifest(&names)).len(), MAX_OFFERED);

        let large = |version: &&str| UpdateRelease {
            rollout: Rollout { groups: vec!["g".repeat(20_000)], ..Rollout::ALL },
            ..release(version)
        };
        let platform = Platform::new("linux", "x86_64").unwrap();
        let made = UpdateManifest::new(&platform, names.iter().map(large).collect());
        assert_eq!(versions(&made), ["0.19.0", "0.18.0", "0.17.0"]);
        assert!(UpdateManifest::parse(&made.to_json()).is_ok());
    }

    #[test]
    fn unknown_members_are_ignored() {
        let mut json = serde_json::to_value(manifest(&["1.0.0"])).unwrap();
        json["new"] = json!([1]);
        json["releases"][0]["new"] = json!({});
        assert_eq!(
            UpdateManifest::parse(json.to_string().as_bytes()).unwrap(),
            manifest(&["1.0.0"])
        );
    }

    #[test]
    fn wrong_value_refuses_the_whole_manifest() {
        let wrong = [
            ("/v", json!(2)),
            ("/v", json!("1")),
            ("/os", json!("Linux")),
            ("/arch", json!("../x")),
            ("/releases", json!({})),
            ("/releases/0", json!(["1.0.0"])),
            ("/releases/0/version", json!("1.0")),
            ("/releases/0/published_at", json!("yesterday")),
            ("/releases/0/rollout", json!([100])),
            ("/releases/0/rollout", json!(null)),
            ("/releases/0/rollout/percent", json!(101)),
            ("/releases/0/rollout/percent", json!(300)),
            ("/releases/0/artifact", json!("../ai-agent")),
            ("/releases/0/size", json!(0)),
            ("/releases/0/size", json!(MAX_ARTIFACT_BYTES + 1)),
            ("/releases/0/size", json!(-1)),
            ("/releases/0/sha256", json!("00")),
            ("/releases/0/minisig", json!("s".repeat(MAX_SIGNATURE_BYTES + 1))),
        ];
        for (at, value) in wrong {
            let mut json = serde_json::to_value(manifest(&["1.0.0"])).unwrap();
            json["releases"][0]["minisig"] = json!("s");
            assert!(UpdateManifest::parse(json.to_string().as_bytes()).is_ok());
            *json.pointer_mut(at).unwrap() = value;
            assert!(UpdateManifest::parse(json.to_string().as_bytes()).is_err(), "{json}");
        }
        for text in ["", "[]", "{}", "null", "[1,\"linux\",\"x86_64\",[]]"] {
            assert!(UpdateManifest::parse(text.as_bytes()).is_err(), "{text}");
        }
        let long = [b" ".repeat(MAX_MANIFEST_BYTES), manifest(&[]).to_json()].concat();
        assert!(matches!(UpdateManifest::parse(&long), Err(ManifestError::TooLarge(_))));
    }

    #[test]
    fn too_many_releases_are_refused() {
        let mut made = manifest(&["1.0.0"]);
        made.releases = vec![made.releases[0].clone(); MAX_OFFERED + 1];
        assert!(matches!(UpdateManifest::parse(&made.to_json()), Err(ManifestError::Releases)));
    }
}
