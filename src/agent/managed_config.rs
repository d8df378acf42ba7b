//! A configuration with what the server manages on top, and what it said last.

use std::path::Path;

use tracing::warn;

use super::config_sources::Surroundings;
use crate::{
    cli::Failure,
    config::{ConfigError, LoadedConfig, ManagedSettings},
    pipeline::{
        assembly,
        record_stages::RecordStages,
        validate::{self, TestScope},
    },
    siem::SignedConfig,
    stages::Context,
    text::causes,
};

/// A configuration that nothing is wrong with.
pub(crate) struct Candidate {
    pub(crate) loaded: Box<LoadedConfig>,
    /// Its filters and enrichers.
    pub(crate) stages: RecordStages,
    /// Its managed layer, as it came.
    pub(crate) answer: Option<SignedConfig>,
    /// The revision of that.
    pub(crate) revision: Option<String>,
}

/// Reads the configuration in force without asking the server: with what it said last. Logs the
/// warnings.
pub(crate) fn last_in_force(
    surroundings: &Surroundings,
    explicit: Option<&Path>,
) -> Result<LoadedConfig, Failure> {
    let local = surroundings.load_managed(explicit, None).map_err(Failure::usage)?;
    let accepted = last_accepted(surroundings, explicit, &local);
    let loaded = accepted.map_or(local, |candidate| *candidate.loaded);
    for warning in &loaded.warnings {
        warn!(code = "config_warning", "{warning}");
    }
    Ok(loaded)
}

fn last_accepted(
    surroundings: &Surroundings,
    explicit: Option<&Path>,
    local: &LoadedConfig,
) -> Option<Candidate> {
    let kept = kept(&local.settings.agent.state_dir);
    let answer =
        kept.inspect_err(|reason| warn!(code = "managed_config_unreadable", "{reason}")).ok()??;
    let context = surroundings.context(local, None, true);
    match assembly::manager(local, &context) {
        Ok(Some(manager)) if manager.accepts(&answer) => {}
        Ok(Some(_)) => {
            warn!(code = "managed_config_foreign", "{KEPT_IS_FOREIGN}");
            return None;
        }
        Ok(None) => return None,
        Err(_) => warn!(
            code = "managed_config_unverified",
            "managed configuration that was kept is not verified: that takes the token and the \
             HMAC secret"
        ),
    }
    let candidate = accept(surroundings, explicit, Some(answer), &context, TestScope::Managed);
    candidate
        .inspect_err(|reason| warn!(code = "managed_config_invalid", reason, "{KEPT_IS_WRONG}"))
        .ok()
}

pub(crate) const KEPT_IS_WRONG: &str = "managed configuration that was kept has no effect";
pub(crate) const KEPT_IS_FOREIGN: &str = "managed configuration that was kept has a wrong \
     signature: it, or the HMAC secret, was changed on this machine";

/// Puts an answer over the local layers, or leaves them alone without one; or says why that is
/// refused whole.
pub(crate) fn accept(
    surroundings: &Surroundings,
    explicit: Option<&Path>,
    answer: Option<SignedConfig>,
    context: &Context,
    tests: TestScope,
) -> Result<Candidate, String> {
    let read = |answer: &SignedConfig| {
        ManagedSettings::read(answer.body.as_bytes(), answer.etag.as_deref())
            .map_err(|error| causes(&error))
    };
    let managed = answer.as_ref().map(read).transpose()?;
    let wrong = |error: ConfigError| causes(&error);
    let mut loaded = surroundings.load_managed(explicit, managed.as_ref()).map_err(wrong)?;
    let stages = validate::validate(&loaded, context, tests).map_err(|refusal| causes(&refusal))?;
    loaded.warnings.extend(managed.iter().flat_map(|managed| managed.warnings.clone()));
    let revision = managed.map(|managed| {
        // One without a name is in force all the same.
        managed.revision.unwrap_or_else(|| "unnamed".to_owned())
    });
    Ok(Candidate { loaded: Box::new(loaded), stages, answer, revision })
}

/// What the server said last, if that is kept; or why it can't be had.
pub(crate) fn kept(state_dir: &Path) -> Result<Option<SignedConfig>, String> {
    SignedConfig::load(state_dir)
        .map_err(|error| format!("managed configuration that was kept cannot be read: {error}"))
}
