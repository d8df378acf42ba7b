//! Managed configuration: validates the server's response, and reads the copy in the state directory.

use std::{error::Error, io, path::Path};

use siem_protocol::{Digest, Identity, ManagedConfig, ManagedError, agent_event::ConfigProof};

use super::{
    config_sequence::{self, ConfigCopy, HighestSerial, SequenceError},
    config_sources::ConfigSources,
};
use crate::{
    config::{ConfigError, ConfigWarning, LoadedConfig, ManagedSettings, Settings},
    pipeline::{
        assembly,
        config_status::ManagedLayer,
        record_stages::RecordStages,
        validate::{self, TestScope},
    },
    platform::{Timestamp, user_groups},
    siem::{OrganisationError, SignedConfig},
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
    /// Hash, serial and expiry of the managed layer.
    pub(crate) managed: Option<ManagedLayer>,
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
    let revision = |managed: &ManagedSettings| {
        managed.revision.clone().unwrap_or_else(|| "unnamed".to_owned())
    };
    Ok(Candidate {
        stages,
        revision: managed.as_ref().map(revision),
        managed: managed.zip(answer.as_ref()).map(|(managed, answer)| {
            layer(&managed.config, Digest::of(answer.body.as_bytes()), &loaded.settings)
        }),
        loaded: Box::new(loaded),
        answer,
        files,
    })
}

fn layer(config: &ManagedConfig, hash: Digest, settings: &Settings) -> ManagedLayer {
    let proof = match (settings.managed_keys.is_empty(), settings.require_signature) {
        (false, _) => ConfigProof::Organisation,
        (true, true) => ConfigProof::SharedSecret,
        (true, false) => ConfigProof::Nothing,
    };
    let expires = config.expires.as_deref().and_then(|at| humantime::parse_rfc3339(at).ok());
    ManagedLayer {
        hash,
        proof,
        serial: config.serial,
        issued: config.issued.clone(),
        expires: expires.map(Timestamp::from),
    }
}

/// Decision about a managed configuration whose signature is valid.
pub(super) enum Admission {
    /// It is meant for this device and user.
    Meant,
    /// It is meant for others, and counts as if there were none.
    NotMeant,
}

/// Reason why a managed configuration with a valid signature is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdmissionError {
    #[error(transparent)]
    Content(#[from] ManagedError),
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    #[error("its audience has groups, and those of the user are not known")]
    Groups(#[source] io::Error),
}

/// Decides whether a managed configuration is meant for the device and user of `identity`, and
/// whether it may follow the one with the `highest` serial. The latter is checked only if the
/// organisation has signed it: a number that each holder of the shared secret can choose proves
/// nothing.
///
/// # Errors
/// [`AdmissionError`].
pub(super) fn admit(
    answer: &SignedConfig,
    is_of_organisation: bool,
    identity: &Identity,
    highest: Option<HighestSerial>,
    copy: ConfigCopy,
) -> Result<Admission, AdmissionError> {
    let config = ManagedConfig::parse(answer.body.as_bytes())?;
    if !is_meant(&config, identity).map_err(AdmissionError::Groups)? {
        return Ok(Admission::NotMeant);
    }
    if is_of_organisation {
        let content = Digest::of(answer.body.as_bytes());
        config_sequence::check(&config, content, highest, copy)?;
    }
    Ok(Admission::Meant)
}

/// Checks that a managed configuration has the members that one of the organisation needs.
///
/// # Errors
/// The first member that is missing.
pub(crate) fn check_members(config: &ManagedConfig) -> Result<(), Box<dyn Error>> {
    config_sequence::check(config, Digest::ZERO, None, ConfigCopy::Fresh)?;
    Ok(())
}

/// Returns whether a managed configuration is meant for a device and its user.
///
/// # Errors
/// The groups of the user count, and are not known since the directory service does not answer.
pub(crate) fn is_meant(config: &ManagedConfig, identity: &Identity) -> io::Result<bool> {
    let Some(audience) = &config.audience else { return Ok(true) };
    // Only an audience with groups is worth a request to a directory service.
    let groups = if audience.groups.is_some() { user_groups()? } else { Vec::new() };
    Ok(audience.includes(identity, &groups))
}

/// Reason why the stored managed configuration is not used.
pub(super) enum StoredError {
    /// It was changed, or an older one was put in its place: that is reported.
    Refused(String),
    /// It proves too little. The next response of the server takes its place.
    Unproven(String),
}

/// Decides whether the stored managed configuration may be used.
///
/// # Errors
/// [`StoredError`].
pub(super) fn admit_stored(
    answer: &SignedConfig,
    settings: &Settings,
    identity: &Identity,
    highest: Option<HighestSerial>,
) -> Result<(), StoredError> {
    let is_of_organisation = !settings.managed_keys.is_empty();
    if is_of_organisation {
        let verified = answer.verify_organisation(&settings.managed_keys);
        verified.map_err(|error| match error {
            // It was stored before the machine's file had keys.
            OrganisationError::Unsigned => StoredError::Unproven(causes(&error)),
            OrganisationError::Signature(_) => {
                StoredError::Refused(format!("{STORED_IS_INVALID}: {}", causes(&error)))
            }
        })?;
    }
    match admit(answer, is_of_organisation, identity, highest, ConfigCopy::Stored) {
        Ok(Admission::Meant) => Ok(()),
        Ok(Admission::NotMeant) => {
            Err(StoredError::Unproven("it is not meant for this device and user".to_owned()))
        }
        Err(AdmissionError::Sequence(error @ SequenceError::NoRecord)) => {
            Err(StoredError::Unproven(error.to_string()))
        }
        Err(error @ AdmissionError::Groups(_)) => Err(StoredError::Unproven(causes(&error))),
        Err(error) => Err(StoredError::Refused(format!("{STORED_IS_INVALID}: {}", causes(&error)))),
    }
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
    let mut local = sources.load()?;
    match last_accepted(sources, &local) {
        Ok(Some(candidate)) => Ok(*candidate.loaded),
        Ok(None) => Ok(local),
        Err(warning) => {
            local.warnings.push(*warning);
            Ok(local)
        }
    }
}

/// Returns the stored managed configuration on top of `local`.
///
/// # Errors
/// Warning with the reason why the stored one is not valid.
fn last_accepted(
    sources: &ConfigSources,
    local: &LoadedConfig,
) -> Result<Option<Candidate>, Box<ConfigWarning>> {
    let answer = stored(&local.settings.agent.state_dir)
        .map_err(|reason| ConfigWarning::new("managed_config_unreadable", reason))?;
    let Some(answer) = answer else { return Ok(None) };
    let context = sources.check_context(local);
    if !local.settings.managed_keys.is_empty() {
        let verified = answer.verify_organisation(&local.settings.managed_keys);
        verified.map_err(|error| {
            let message = format!("{STORED_IS_INVALID}: {}", causes(&error));
            ConfigWarning::new("managed_config_foreign", message)
        })?;
    }
    if let Ok(config) = ManagedConfig::parse(answer.body.as_bytes()) {
        match is_meant(&config, &context.identity) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => {
                let message =
                    format!("{STORED_IS_INVALID}: {}", causes(&AdmissionError::Groups(error)));
                return Err(ConfigWarning::new("managed_config_unverified", message).into());
            }
        }
    }
    let mut unverified = None;
    match assembly::manager(local, &context) {
        Ok(Some(manager)) if manager.accepts(&answer) => {}
        _ if !local.settings.managed_keys.is_empty() => {}
        Ok(Some(_)) => {
            return Err(ConfigWarning::new("managed_config_foreign", STORED_IS_FOREIGN).into());
        }
        Ok(None) => return Ok(None),
        Err(_) => {
            let message = "signature of the stored managed configuration is not verified: that needs \
                           the token and the HMAC secret";
            unverified = Some(ConfigWarning::new("managed_config_unverified", message));
        }
    }
    let accepted = accept(sources, Some(answer), &context, TestScope::Managed);
    let mut candidate = accepted.map_err(|Refusal { reason, .. }| {
        ConfigWarning::new("managed_config_invalid", format!("{STORED_IS_INVALID}: {reason}"))
    })?;
    candidate.loaded.warnings.extend(unverified);
    Ok(Some(candidate))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn identity() -> Identity {
        Identity {
            machine_id: "m-1".into(),
            hostname: "h".into(),
            user: "ann".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            agent_version: "0.1.0".into(),
        }
    }

    fn answer(serial: u64, audience: &serde_json::Value, note: u8) -> SignedConfig {
        let body = json!({
            "version": 1, "serial": serial, "issued": "2026-11-29T00:00:00Z",
            "audience": audience, "revision": format!("r{note}"),
        });
        SignedConfig {
            body: body.to_string(),
            nonce: String::new(),
            signature: String::new(),
            etag: None,
            minisig: None,
        }
    }

    proptest! {
        /// Configurations for others, in any order between, neither apply nor change what may apply
        /// later; those that apply are meant for the device and never go back.
        #[test]
        fn only_configs_for_this_device_apply_and_in_order(
            offers in prop::collection::vec((0..12_u64, 0..6_usize, 0..2_u8), 0..40),
        ) {
            let audiences = [
                (json!({}), true),
                (json!({ "machines": ["m-0", "m-1"], "os": ["linux"] }), true),
                (json!({ "users": ["ann"], "percentage": 100 }), true),
                (json!({ "machines": ["m-2"] }), false),
                (json!({ "users": ["ann"], "os": ["macos"] }), false),
                (json!({ "percentage": 0 }), false),
            ];
            let mut highest: Option<HighestSerial> = None;
            for (serial, audience, note) in offers {
                let (audience, is_meant) = &audiences[audience];
                let answer = answer(serial, audience, note);
                let content = Digest::of(answer.body.as_bytes());
                let admitted = admit(&answer, true, &identity(), highest, ConfigCopy::Fresh);
                let may_follow = highest.is_none_or(|highest| {
                    serial > highest.serial
                        || serial == highest.serial && content == highest.content
                });
                match admitted {
                    Ok(Admission::NotMeant) => prop_assert!(!is_meant),
                    Ok(Admission::Meant) => {
                        prop_assert!(*is_meant && may_follow);
                        highest = Some(HighestSerial { serial, content });
                    }
                    Err(_) => prop_assert!(*is_meant && !may_follow),
                }
            }
        }
    }

    /// Without keys of the organisation a serial orders nothing, and the audience counts.
    #[test]
    fn config_of_the_shared_secret_has_an_audience_and_no_order() {
        let highest = Some(HighestSerial { serial: 9, content: Digest::ZERO });
        let admitted = |audience| {
            let answer = answer(1, &audience, 0);
            admit(&answer, false, &identity(), highest, ConfigCopy::Stored).unwrap()
        };
        assert!(matches!(admitted(json!({})), Admission::Meant));
        assert!(matches!(admitted(json!({ "os": ["macos"] })), Admission::NotMeant));
    }
}
