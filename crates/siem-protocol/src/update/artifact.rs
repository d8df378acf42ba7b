//! Names, signatures and verification of artifacts.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Platform, UpdateRelease, Version};
use crate::{
    Digest,
    agent_event::UpdateReason,
    minisign::{MinisignError, OrganisationKey, ReadError},
};

/// Prefix of the names of artifacts, and the name in their signatures.
const PROGRAM: &str = "ai-agent";

/// Name of a file with a program: `ai-agent-` and letters, digits, `.`, `_` and `-`, at most 128
/// bytes. So it is never a path, a hidden file or the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArtifactName(String);

impl ArtifactName {
    /// Returns the usual name of a version's program for a platform.
    ///
    /// ```
    /// use siem_protocol::update::{ArtifactName, Platform};
    /// let platform = Platform::new("windows", "x86_64").unwrap();
    /// let name = ArtifactName::of(&"0.3.0".parse().unwrap(), &platform);
    /// assert_eq!(name.as_str(), "ai-agent-0.3.0-windows-x86_64.exe");
    /// ```
    #[must_use]
    pub fn of(version: &Version, platform: &Platform) -> Self {
        let suffix = if platform.os() == "windows" { ".exe" } else { "" };
        Self(format!("{PROGRAM}-{version}-{}-{}{suffix}", platform.os(), platform.arch()))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ArtifactName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let rest = name.strip_prefix(PROGRAM).and_then(|rest| rest.strip_prefix('-'));
        let is_name = rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(is_safe));
        // Windows drops a dot at the end, so that two names would be one file.
        if !is_name || name.len() > 128 || name.ends_with('.') {
            return Err("not the name of an artifact, such as `ai-agent-0.3.0-linux-x86_64`");
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for ArtifactName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<ArtifactName> for String {
    fn from(name: ArtifactName) -> Self {
        name.0
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(feature = "schemars")]
impl schemars::JsonSchema for ArtifactName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ArtifactName".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "pattern": "^ai-agent-[0-9A-Za-z._-]+$", "maxLength": 128,
        })
    }
}

/// Comment that the signature of an artifact covers. It says what the signed bytes are, so that a
/// signature of another version or platform is not taken for this one. Its text is `ai-agent`, the
/// version, the operating system and the architecture, each after one space.
///
/// ```
/// use siem_protocol::update::TrustedComment;
/// let comment: TrustedComment = "ai-agent 0.3.0 linux x86_64".parse().unwrap();
/// assert_eq!(comment.platform.arch(), "x86_64");
/// assert!("ai-agent  0.3.0 linux x86_64".parse::<TrustedComment>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedComment {
    /// Version of the program.
    pub version: Version,
    /// Platform that it runs on.
    pub platform: Platform,
}

impl FromStr for TrustedComment {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<_> = text.splitn(5, ' ').collect();
        let parse = || {
            let [PROGRAM, version, os, arch] = words[..] else { return None };
            Some(Self { version: version.parse().ok()?, platform: Platform::new(os, arch)? })
        };
        parse().ok_or("not a trusted comment such as `ai-agent 0.3.0 linux x86_64`")
    }
}

impl fmt::Display for TrustedComment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PROGRAM} {} {}", self.version, self.platform)
    }
}

impl UpdateRelease {
    /// Verifies the artifact for `platform`: its size, its hash, the signature by one of `keys`, and
    /// what the signature says that it is. Reads `content` once, at most one byte beyond the size.
    ///
    /// # Errors
    /// [`ArtifactError`]: the file must not be run.
    pub fn verify(
        &self,
        platform: &Platform,
        keys: &[OrganisationKey],
        content: impl Read,
    ) -> Result<(), ArtifactError> {
        let minisig = self.minisig.as_deref().ok_or(ArtifactError::Unsigned)?;
        let content = content.take(self.size.saturating_add(1));
        let mut content = Measured { content, size: 0, sha256: Sha256::new() };
        let mut signed = Err(ReadError::Minisign(MinisignError::UnknownKey));
        for key in keys {
            signed = key.verify_reader(&mut content, minisig);
            // The content was not read yet if the key is another.
            if !matches!(signed, Err(ReadError::Minisign(MinisignError::UnknownKey))) {
                break;
            }
        }
        let was_read =
            matches!(signed, Ok(_) | Err(ReadError::Minisign(MinisignError::WrongSignature)));
        if was_read {
            // A damaged download is a better explanation than a wrong signature.
            self.check_measured(content)?;
        }
        let found = signed?;
        let expected = TrustedComment { version: self.version.clone(), platform: platform.clone() };
        let expected = expected.to_string();
        if found.trusted_comment() == expected {
            return Ok(());
        }
        let found = found.trusted_comment().to_owned();
        Err(ArtifactError::OtherArtifact { found, expected })
    }

    /// Verifies the size and the hash of the artifact, not who made it. Reads `content` once, at most one
    /// byte beyond the size.
    ///
    /// # Errors
    /// [`ArtifactError`]: the file is damaged or cannot be read.
    pub fn verify_hash(&self, content: impl Read) -> Result<(), ArtifactError> {
        let content = content.take(self.size.saturating_add(1));
        let mut content = Measured { content, size: 0, sha256: Sha256::new() };
        io::copy(&mut content, &mut io::sink()).map_err(ArtifactError::Read)?;
        self.check_measured(content)
    }

    fn check_measured<R>(&self, measured: Measured<R>) -> Result<(), ArtifactError> {
        if measured.size != self.size {
            return Err(ArtifactError::WrongSize { expected: self.size });
        }
        let found = Digest::from_bytes(measured.sha256.finalize().into());
        if found != self.sha256 {
            return Err(ArtifactError::WrongHash { found, expected: self.sha256 });
        }
        Ok(())
    }
}

/// Counts and hashes what is read.
struct Measured<R> {
    content: R,
    size: u64,
    sha256: Sha256,
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.size += count as u64;
        self.sha256.update(&buffer[..count]);
        Ok(count)
    }
}

/// Reason why an artifact must not be run.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The release has no signature.
    #[error("the release is not signed")]
    Unsigned,
    /// The size differs from the manifest's.
    #[error("the size of the artifact is not the {expected} bytes of the manifest")]
    WrongSize {
        /// Size in the manifest, in bytes.
        expected: u64,
    },
    /// The hash differs from the manifest's.
    #[error("the artifact has the SHA-256 {found}, the manifest says {expected}")]
    WrongHash {
        /// Hash of the file.
        found: Digest,
        /// Hash in the manifest.
        expected: Digest,
    },
    /// The signature does not verify.
    #[error("the signature of the artifact was refused")]
    Signature(#[source] MinisignError),
    /// The signature is for another version or platform.
    #[error("the signature is for `{found}`, expected `{expected}`")]
    OtherArtifact {
        /// Trusted comment of the signature.
        found: String,
        /// Comment that it should have.
        expected: String,
    },
    /// The file cannot be read.
    #[error("cannot read the artifact")]
    Read(#[source] io::Error),
}

impl ArtifactError {
    /// Returns the reason for events: `None` if the file could not be read.
    #[must_use]
    pub fn reason(&self) -> Option<UpdateReason> {
        Some(match self {
            Self::Unsigned => UpdateReason::Unsigned,
            Self::WrongSize { .. } => UpdateReason::WrongSize,
            Self::WrongHash { .. } => UpdateReason::WrongHash,
            Self::Signature(MinisignError::UnknownKey) => UpdateReason::UnknownKey,
            Self::Signature(_) => UpdateReason::WrongSignature,
            Self::OtherArtifact { .. } => UpdateReason::OtherArtifact,
            Self::Read(_) => return None,
        })
    }
}

impl From<ReadError> for ArtifactError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Minisign(error) => Self::Signature(error),
            ReadError::Io(error) => Self::Read(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_are_refused() {
        let long = format!("ai-agent-{}", "a".repeat(120));
        for name in [
            "",
            "ai-agent",
            "ai-agent-",
            "../ai-agent-1",
            "ai-agent-/../x",
            "ai-agent-1/x",
            "ai-agent-1\\x",
            "ai-agent-1.",
            "ai-agent-1 ",
            "ai-agent-\0",
            "manifest.json",
            "NUL",
            "ai-agent-1:x",
            "ai-agent-é",
            ".ai-agent-1",
            &long,
        ] {
            assert!(name.parse::<ArtifactName>().is_err(), "{name:?}");
        }
        assert!("ai-agent-0.3.0-rc.1-linux-x86_64".parse::<ArtifactName>().is_ok());
        assert!(long[..128].parse::<ArtifactName>().is_ok());
    }

    #[test]
    fn trusted_comment_is_parsed_exactly() {
        let text = "ai-agent 0.3.0-rc.1 linux x86_64";
        assert_eq!(text.parse::<TrustedComment>().unwrap().to_string(), text);
        for wrong in [
            "",
            "ai-agent",
            "ai-agent 0.3.0 linux",
            "other 0.3.0 linux x86_64",
            "ai-agent 0.3 linux x86_64",
            "ai-agent 0.3.0 linux x86_64 ",
            " ai-agent 0.3.0 linux x86_64",
            "ai-agent 0.3.0\tlinux x86_64",
            "ai-agent 0.3.0 linux x86_64 more",
            "AI-AGENT 0.3.0 linux x86_64",
            "ai-agent 0.3.0 Linux x86_64",
        ] {
            assert!(wrong.parse::<TrustedComment>().is_err(), "{wrong:?}");
        }
    }
}
