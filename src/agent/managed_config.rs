//! Managed configuration: validates the server's response, and reads the copy in the state directory.

use std::{error::Error, path::Path};

use siem_protocol::Digest;
use tracing::warn;

use super::config_sources::ConfigSources;
use crate::{
    config::{ConfigError, LoadedConfig, ManagedSettings},
    pipeline::{
        assembly,
        record_stages::RecordStages,
        validate::{self, TestScope},
    },
    siem::SignedConfig,
    stages::AgentContext,
    text::causes,
};

/// Reason for ignoring a stored managed configuration that is wrong.
pub(super) const STORED_IS_INVALID: &str = "stored managed configuration is ignored";
/// Reason for ignoring a stored managed configuration that another secret signed.
pub(super) const STORED_IS_FOREIGN: &str = "stored managed configuration has a wrong signature: \
     it, or the HMAC secret, was changed on this machine";

/// A configuration that passed every check.
pub(crate) struct Candidate {
    pub(crate) loaded: Box<LoadedConfig>,
    /// Its filters and enrichers.
    pub(crate) stages: RecordStages,
    /// Its managed layer, as received.
    pub(crate) answer: Option<SignedConfig>,
    /// Revision of the managed layer.
    pub(crate) revision: Option<String>,
    /// Digest of the files that it was read from.
    pub(crate) files: Digest,
}

/// Reason why a configuration is refused as a whole.
pub(crate) struct Refusal {
    pub(crate) reason: String,
    /// Digest of the files that it was read from.
    pub(crate) files: Digest,
}

impl Refusal {
    pub(super) fn new(error: &dyn Error, files: Digest) -> Self {
        Self { reason: causes(error), files }
    }

    /// Returns a digest of the reason and the files, which is the same for each attempt with them.
    pub(super) fn content(&self) -> Digest {
        Digest::of(&[self.reason.as_bytes(), self.files.as_bytes()].concat())
    }
}

/// Builds and tests the local layers with the managed layer of `answer` on top; without an answer,
/// the local layers alone.
///
/// # Errors
/// [`Refusal`].
pub(crate) fn accept(
    sources: &ConfigSources,
    answer: Option<SignedConfig>,
    context: &AgentContext,
    tests: TestScope,
) -> Result<Candidate, Refusal> {
    let read = |answer: &SignedConfig| {
        ManagedSettings::read(answer.body.as_bytes(), answer.etag.as_deref())
            .map_err(|error| Refusal::new(&error, Digest::ZERO))
    };
    let managed = answer.as_ref().map(read).transpose()?;
    let (files, loaded) = sources.load_with_digest(managed.as_ref());
    let mut loaded = loaded.map_err(|error| Refusal::new(&error, files))?;
    let stages =
        validate::validate(&loaded, context, tests).map_err(|error| Refusal::new(&error, files))?;
    loaded.warnings.extend(managed.iter().flat_map(|managed| managed.warnings.clone()));
    // A managed configuration without a revision is in force all the same.
    let revision = managed.map(|managed| managed.revision.unwrap_or_else(|| "unnamed".to_owned()));
    Ok(Candidate { loaded: Box::new(loaded), stages, answer, revision, files })
}

/// Reads the managed configuration in the state directory, if there is one.
///
/// # Errors
/// The reason why it cannot be read.
pub(crate) fn stored(state_dir: &Path) -> Result<Option<SignedConfig>, String> {
    SignedConfig::load(state_dir)
        .map_err(|error| format!("stored managed configuration cannot be read: {error}"))
}

/// Reads the local layers with the stored managed configuration on top, without contacting the server.
///
/// # Errors
/// The first mistake in the local layers. A managed configuration that is not accepted is left out with
/// a warning.
pub(crate) fn load_last_in_force(sources: &ConfigSources) -> Result<LoadedConfig, ConfigError> {
    let local = sources.load()?;
    let accepted = last_accepted(sources, &local);
    Ok(accepted.map_or(local, |candidate| *candidate.loaded))
}

/// Returns the stored managed configuration on top of `local`, or logs why it is not valid.
fn last_accepted(sources: &ConfigSources, local: &LoadedConfig) -> Option<Candidate> {
    let answer = stored(&local.settings.agent.state_dir)
        .inspect_err(|reason| warn!(code = "managed_config_unreadable", "{reason}"))
        .ok()??;
    let context = sources.stage_context(local, None, true);
    match assembly::manager(local, &context) {
        Ok(Some(manager)) if manager.accepts(&answer) => {}
        Ok(Some(_)) => {
            warn!(code = "managed_config_foreign", "{STORED_IS_FOREIGN}");
            return None;
        }
        Ok(None) => return None,
        Err(_) => warn!(
            code = "managed_config_unverified",
            "signature of the stored managed configuration is not verified: that needs the token \
             and the HMAC secret"
        ),
    }
    accept(sources, Some(answer), &context, TestScope::Managed)
        .inspect_err(|Refusal { reason, .. }| {
            warn!(code = "managed_config_invalid", reason, "{STORED_IS_INVALID}");
        })
        .ok()
}
