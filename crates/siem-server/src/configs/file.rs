//! One managed configuration, with its signature and its roll-out.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use siem_protocol::{
    Digest, ManagedConfig, ManagedError,
    managed::{Audience, MAX_BYTES, WrongValue},
    minisign::{MAX_SIGNATURE_BYTES, MinisignError, OrganisationKey},
};

use super::{
    precedence::Specificity,
    rollout::{Rollout, RolloutError},
};
use crate::{error_text::causes, regular_file::read_regular_file};

/// Maximum length of a file's name, in bytes.
const MAX_NAME: usize = 100;
/// Maximum size of the file of a roll-out, in bytes.
const MAX_ROLLOUT_BYTES: u64 = 64 << 10;

/// Ending of the file with the organisation's signature.
pub(super) const MINISIG: &str = ".minisig";
/// Ending of the file with the roll-out.
pub(super) const ROLLOUT: &str = ".rollout";

/// A managed configuration that can be served.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConfigFile {
    /// Name of the file.
    pub name: String,
    /// True for the file that is served to devices for which no other file is meant.
    pub is_fallback: bool,
    /// The configuration, as in the file.
    pub body: Vec<u8>,
    /// Text of the organisation's signature, from the file beside it.
    pub minisig: Option<Vec<u8>>,
    /// SHA-256 of `body`.
    pub hash: Digest,
    /// Its content.
    pub config: ManagedConfig,
    /// Its staged roll-out; all devices of the audience without one.
    pub rollout: Option<Rollout>,
    /// True if there is a roll-out that cannot be read: it counts as halted.
    pub is_rollout_broken: bool,
}

impl ConfigFile {
    /// Returns the audience, if the file restricts it.
    #[must_use]
    pub fn audience(&self) -> Option<&Audience> {
        self.config.audience.as_ref()
    }

    /// Returns the specificity of the audience.
    #[must_use]
    pub fn specificity(&self) -> Specificity {
        self.audience().map(Specificity::of).unwrap_or_default()
    }
}

/// Reason why a file cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// Its name is not one that is served.
    #[error(
        "the name is not one of a configuration: up to {MAX_NAME} letters, digits, `.`, `-` and `_`"
    )]
    Name,
    /// There are too many files.
    #[error("there are more files than the receiver serves, or they are too large together")]
    TooMany,
    /// The file cannot be read.
    #[error("cannot read the managed configuration")]
    Unreadable(#[source] io::Error),
    /// Agents would refuse it.
    #[error("the managed configuration is invalid")]
    Content(#[source] ManagedError),
    /// Agents would refuse it because of a value.
    #[error("the managed configuration is invalid")]
    Value(#[source] WrongValue),
    /// A member is missing that a signed configuration needs.
    #[error("`{0}` is missing, which a configuration signed by the organisation needs")]
    Missing(&'static str),
    /// The signature cannot be read.
    #[error("cannot read the signature `{name}{MINISIG}`")]
    SignatureUnreadable {
        /// Name of the configuration.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// There is no signature, but there are keys of the organisation.
    #[error("the signature `{0}{MINISIG}` is missing (run: minisign -S -m {0})")]
    Unsigned(String),
    /// The signature does not verify.
    #[error("the signature `{name}{MINISIG}` is not valid for this content")]
    Signature {
        /// Name of the configuration.
        name: String,
        /// Cause.
        #[source]
        source: MinisignError,
    },
    /// A key of the organisation cannot be read.
    #[error("cannot read the key of the organisation")]
    KeyUnreadable(#[source] io::Error),
    /// A key of the organisation is wrong.
    #[error("the key of the organisation is wrong")]
    Key(#[source] MinisignError),
    /// There are keys of the organisation, and none can be read.
    #[error("no key of the organisation can be read: the signature cannot be verified")]
    Unverified,
    /// The roll-out cannot be read.
    #[error("cannot read the roll-out `{name}{ROLLOUT}`")]
    RolloutUnreadable {
        /// Name of the configuration.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The roll-out is wrong.
    #[error("the roll-out `{name}{ROLLOUT}` is wrong")]
    Rollout {
        /// Name of the configuration.
        name: String,
        /// Cause.
        #[source]
        source: RolloutError,
    },
}

impl FileProblem {
    /// Returns the stable name of the problem.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::TooMany => "too_many",
            Self::Unreadable(_) => "unreadable",
            Self::Content(_) | Self::Value(_) => "invalid",
            Self::Missing(_) => "member_missing",
            Self::SignatureUnreadable { .. } => "signature_unreadable",
            Self::Unsigned(_) => "unsigned",
            Self::Signature { .. } => "signature",
            Self::KeyUnreadable(_) => "key_unreadable",
            Self::Key(_) => "key",
            Self::Unverified => "unverified",
            Self::RolloutUnreadable { .. } => "rollout_unreadable",
            Self::Rollout { .. } => "rollout_invalid",
        }
    }

    /// Returns the message with its causes.
    #[must_use]
    pub fn text(&self) -> String {
        causes(self)
    }
}

/// Reports whether a file of this name is served.
#[must_use]
pub fn is_config_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.ends_with(".json")
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && name.bytes().all(plain)
}

/// Returns the path of a file beside `path`, whose name has another ending appended.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Reads a configuration with its signature, and checks that agents will accept it. Returns the
/// configuration if it can be served, and all problems. With `keys`, the organisation's signature is
/// verified.
pub(super) fn read(
    path: &Path,
    name: &str,
    is_fallback: bool,
    keys: &[OrganisationKey],
) -> (Option<ConfigFile>, Vec<FileProblem>) {
    let mut problems = Vec::new();
    let body = match read_regular_file(path, MAX_BYTES as u64) {
        Ok(body) => body,
        Err(error) => return (None, vec![FileProblem::Unreadable(error)]),
    };
    let minisig = read_minisig(path, name).unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    let file = match parse(name, is_fallback, body, minisig) {
        Ok(file) => Some(file),
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    if let Some(file) = &file {
        problems.extend(file.config.wrong_values().into_iter().map(FileProblem::Value));
        let may_be_unsigned = problems.iter().any(|it| it.code() == "signature_unreadable");
        let found = verify(file, keys);
        problems
            .extend(found.into_iter().filter(|it| !(may_be_unsigned && it.code() == "unsigned")));
    }
    (file.filter(|_| problems.is_empty()), problems)
}

/// Parses a configuration; it has no roll-out. A content that was served before is served further even
/// if a release of the receiver finds a wrong value in it.
pub(super) fn parse(
    name: &str,
    is_fallback: bool,
    body: Vec<u8>,
    minisig: Option<Vec<u8>>,
) -> Result<ConfigFile, FileProblem> {
    let config = ManagedConfig::parse(&body).map_err(FileProblem::Content)?;
    let hash = Digest::of(&body);
    Ok(ConfigFile {
        name: name.to_owned(),
        is_fallback,
        body,
        minisig,
        hash,
        config,
        rollout: None,
        is_rollout_broken: false,
    })
}

/// Checks the signature and the members that a signed configuration needs, if there are keys.
pub(super) fn verify(file: &ConfigFile, keys: &[OrganisationKey]) -> Vec<FileProblem> {
    if keys.is_empty() {
        return Vec::new();
    }
    let config = &file.config;
    let members = [
        ("serial", config.serial.is_some()),
        ("issued", config.issued.is_some()),
        ("audience", config.audience.is_some()),
    ];
    let missing = members.into_iter().filter(|(_, is_there)| !is_there);
    let mut problems: Vec<_> = missing.map(|(name, _)| FileProblem::Missing(name)).collect();
    let Some(minisig) = &file.minisig else {
        problems.push(FileProblem::Unsigned(file.name.clone()));
        return problems;
    };
    if let Err(source) = verify_signature(&file.body, minisig, keys) {
        problems.push(FileProblem::Signature { name: file.name.clone(), source });
    }
    problems
}

fn verify_signature(
    body: &[u8],
    minisig: &[u8],
    keys: &[OrganisationKey],
) -> Result<(), MinisignError> {
    let text = std::str::from_utf8(minisig).map_err(|_| MinisignError::Signature)?;
    let mut error = MinisignError::UnknownKey;
    for key in keys {
        match key.verify(body, text) {
            Ok(_) => return Ok(()),
            // Says more than that another key did not make the signature.
            Err(wrong) if wrong != MinisignError::UnknownKey => error = wrong,
            Err(_) => {}
        }
    }
    Err(error)
}

fn read_minisig(path: &Path, name: &str) -> Result<Option<Vec<u8>>, FileProblem> {
    match read_regular_file(&beside(path, MINISIG), MAX_SIGNATURE_BYTES as u64) {
        Ok(minisig) => Ok(Some(minisig)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileProblem::SignatureUnreadable { name: name.to_owned(), source }),
    }
}

/// Reads the roll-out of a configuration.
pub(super) fn read_rollout(path: &Path, name: &str) -> Result<Option<Rollout>, FileProblem> {
    let name = name.to_owned();
    match read_regular_file(&beside(path, ROLLOUT), MAX_ROLLOUT_BYTES) {
        Ok(text) => match Rollout::parse(&text) {
            Ok(rollout) => Ok(Some(rollout)),
            Err(source) => Err(FileProblem::Rollout { name, source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileProblem::RolloutUnreadable { name, source }),
    }
}
