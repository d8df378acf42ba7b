//! Updates of the agent: the manifest of releases, staged roll-outs, and signatures of artifacts.
//!
//! A receiver has a folder with artifacts, the programs, and a [`ReleaseCatalog`]. An agent gets the
//! [`UpdateManifest`] for its platform, decides by the [`Rollout`] of each release which one is meant
//! for it, downloads the artifact and [verifies](UpdateRelease::verify) it. The receiver decides
//! nothing: it is not trusted with what agents run, and a cache can stand in its place.

mod artifact;
mod catalog;
mod manifest;
mod rollout;
mod version;

use std::{fmt, str::FromStr};

pub use artifact::{ArtifactError, ArtifactName, TrustedComment};
pub use catalog::{CatalogArtifact, CatalogRelease, ReleaseCatalog};
pub use manifest::{ManifestError, UpdateManifest, UpdateRelease};
pub use rollout::{Admission, Rollout};
use serde::{Deserialize, Serialize};
pub use version::{Version, VersionError};

/// Version of the formats in this module.
pub const FORMAT: u64 = 1;
/// Maximum size of a manifest, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 64 << 10;
/// Maximum number of releases in a manifest.
pub const MAX_OFFERED: usize = 8;
/// Maximum size of a catalog, in bytes.
pub const MAX_CATALOG_BYTES: usize = 1 << 20;
/// Maximum size of an artifact, in bytes.
pub const MAX_ARTIFACT_BYTES: u64 = 256 << 20;

/// Operating system and processor that an artifact runs on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    os: PlatformWord,
    arch: PlatformWord,
}

impl Platform {
    /// Makes the platform of two words such as `linux` and `x86_64`: lower-case letters, digits and
    /// `_`, at most 32. Returns `None` for others.
    #[must_use]
    pub fn new(os: &str, arch: &str) -> Option<Self> {
        Some(Self { os: os.parse().ok()?, arch: arch.parse().ok()? })
    }

    /// Returns the operating system: `linux`, `macos` or `windows`.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os.0
    }

    /// Returns the processor's architecture, such as `x86_64` or `aarch64`.
    #[must_use]
    pub fn arch(&self) -> &str {
        &self.arch.0
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.os(), self.arch())
    }
}

/// One word of a platform.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct PlatformWord(String);

impl FromStr for PlatformWord {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if word.is_empty() || word.len() > 32 || !word.bytes().all(is_word) {
            return Err("not a name of a platform: lower-case letters, digits and `_`");
        }
        Ok(Self(word.to_owned()))
    }
}

impl TryFrom<String> for PlatformWord {
    type Error = &'static str;

    fn try_from(word: String) -> Result<Self, Self::Error> {
        word.parse()
    }
}

impl From<PlatformWord> for String {
    fn from(word: PlatformWord) -> Self {
        word.0
    }
}

#[cfg(feature = "schemars")]
impl schemars::JsonSchema for PlatformWord {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PlatformWord".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[a-z0-9_]{1,32}$" })
    }
}
