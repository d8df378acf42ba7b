//! The server's part of the configuration: its answers, the stored one, and the serials.

use std::mem;

use siem_protocol::{
    Digest,
    agent_event::{ConfigProof, PolicyFile},
};
use tracing::{info, warn};

use super::{
    super::{
        config_sequence::{ConfigCopy, HighestSerial},
        handle::ReloadOutcome,
        managed_config::{self, Admission, AdmissionError, Candidate, Refusal, StoredError},
        poll_schedule::Outcome,
    },
    ConfigManager, HIGHEST_SERIAL,
};
use crate::{
    pipeline::{
        config_status::{ConfigOrigin, ManagedLayer},
        outbox::Outbox,
        validate::TestScope,
    },
    siem::{Connection, FetchError, FetchedConfig, SignedConfig},
    text::causes,
};

impl ConfigManager {
    /// Returns the server that manages this agent, and the `ETag` of its last response.
    pub(in crate::agent) fn manager(&self) -> Option<(Connection, Option<String>)> {
        let manager = self.manager.clone()?;
        // An answer signed with another secret is fetched again: at the next start it would prove
        // nothing.
        let answer = self.answer.as_ref().filter(|answer| manager.accepts(answer));
        let etag = answer.and_then(|answer| answer.etag.clone());
        Some((manager, etag))
    }

    /// Reads the highest serial from the outbox of the previous pipeline. Without one, the stored
    /// managed configuration does not count: an old one may have been put in its place.
    pub(in crate::agent) fn read_highest_serial(&mut self) {
        if self.loaded.settings.managed_keys.is_empty() {
            return;
        }
        let outbox = Outbox::open_existing(&self.state_dir.join("outbox.redb"));
        let highest = outbox.and_then(|outbox| match outbox {
            Some(outbox) => outbox.memo(HIGHEST_SERIAL),
            None => Ok(None),
        });
        // A damaged outbox is replaced when the pipeline starts.
        self.highest = highest.unwrap_or_else(|error| {
            let reason = causes(&error);
            warn!(code = "config_serial_unknown", reason, "cannot read the serial applied last");
            None
        });
    }

    /// Stores the highest serial. Without it, a later start needs the server.
    pub(super) fn store_highest(&self, highest: HighestSerial) {
        let Some(outbox) = &self.outbox else { return };
        if let Err(error) = outbox.set_memo(HIGHEST_SERIAL, &highest) {
            warn!(
                code = "config_serial_store_failed",
                %error,
                "cannot store the serial of the managed configuration"
            );
        }
    }

    /// Puts the stored managed configuration in force; returns whether there was a valid one.
    pub(in crate::agent) fn restore_managed(&mut self) -> bool {
        let Some(manager) = &self.manager else { return false };
        let accepted = match managed_config::stored(&self.state_dir) {
            Ok(None) => return false,
            Ok(Some(answer)) => {
                let (settings, identity) = (&self.loaded.settings, &self.context.identity);
                if settings.managed_keys.is_empty() && !manager.accepts(&answer) {
                    Err(StoredError::Refused(managed_config::STORED_IS_FOREIGN.to_owned()))
                } else {
                    self.bounded(|| {
                        managed_config::admit_stored(&answer, settings, identity, self.highest)
                    })
                    .and_then(|()| self.accept_stored(answer))
                }
            }
            Err(reason) => Err(StoredError::Refused(reason)),
        };
        match accepted {
            Ok(candidate) => {
                info!(revision = candidate.revision, "stored managed configuration is in force");
                self.start_with(candidate);
                true
            }
            Err(StoredError::Unproven(reason)) => {
                warn!(
                    code = "managed_config_unproven",
                    reason,
                    "stored managed configuration is not used until the server sends it again"
                );
                false
            }
            Err(StoredError::Refused(reason)) => {
                // Reported to the server too: a person who changes the stored copy brings the local
                // configuration back into force.
                self.refuse(ConfigOrigin::Server, Digest::of(reason.as_bytes()), reason);
                false
            }
        }
    }

    fn accept_stored(&self, answer: SignedConfig) -> Result<Candidate, StoredError> {
        self.accept(Some(answer), TestScope::Managed).map_err(|Refusal { reason, .. }| {
            StoredError::Refused(format!("{}: {reason}", managed_config::STORED_IS_INVALID))
        })
    }

    /// Evaluates an answer of the server: the outcome for the schedule, and the configuration to put
    /// in force, if any.
    pub(in crate::agent) fn evaluate(
        &mut self,
        fetched: Result<FetchedConfig, FetchError>,
    ) -> (Outcome, Option<Candidate>) {
        let now = self.context.clock.now();
        self.outcome = ReloadOutcome::Unchanged;
        let answer = match fetched {
            Ok(FetchedConfig::Answer(answer)) => answer,
            Ok(FetchedConfig::Unchanged { is_signed }) => {
                if is_signed {
                    self.status.change(|status| status.signed_at = Some(now));
                }
                self.mark_server_reached();
                return (Outcome::Answered, None);
            }
            // The answer before stays in force: a server retracts it with an empty configuration.
            Ok(FetchedConfig::Nothing) => {
                self.mark_server_reached();
                return (Outcome::Answered, None);
            }
            Err(failure) if failure.is_refusal() => {
                self.mark_attempted(ConfigOrigin::Server, None);
                self.refuse(ConfigOrigin::Server, failure.content(), causes(&failure));
                return (Outcome::Answered, None);
            }
            Err(failure) => {
                let reason = causes(&failure);
                if !mem::replace(&mut self.is_server_away, true) {
                    warn!(
                        code = "managed_config_fetch_failed",
                        reason, "managed configuration could not be fetched"
                    );
                }
                self.outcome = ReloadOutcome::Unavailable(reason);
                let passes = failure.is_passing();
                return (if passes { Outcome::Failed } else { Outcome::Answered }, None);
            }
        };
        self.mark_server_reached();
        self.evaluate_answer(answer)
    }

    /// Evaluates a managed configuration: the outcome for the schedule, and the configuration to put
    /// in force, if it is new and valid.
    fn evaluate_answer(&mut self, answer: SignedConfig) -> (Outcome, Option<Candidate>) {
        let now = self.context.clock.now();
        if self.manager.as_ref().is_some_and(|manager| manager.has_signed(&answer)) {
            self.status.change(|status| status.signed_at = Some(now));
        }
        if self.answer.as_ref().is_some_and(|known| known.body == answer.body) {
            self.store(&answer);
            self.answer = Some(answer);
            self.clear_refusal(ConfigOrigin::Server);
            return (Outcome::Answered, None);
        }
        let content = Digest::of(answer.body.as_bytes());
        let (settings, identity) = (&self.loaded.settings, &self.context.identity);
        let is_of_organisation = !settings.managed_keys.is_empty();
        let (highest, fresh) = (self.highest, ConfigCopy::Fresh);
        let admit = || managed_config::admit(&answer, is_of_organisation, identity, highest, fresh);
        let admitted = self.bounded(admit);
        if let Err(error @ AdmissionError::Groups(_)) = &admitted {
            self.note_unknown_groups(causes(error));
            return (Outcome::Failed, None);
        }
        self.are_groups_unknown = false;
        let accepted = match admitted {
            Ok(Admission::Meant) => self.accept(Some(answer), TestScope::Managed),
            Ok(Admission::NotMeant) => {
                self.note_other_audience(content);
                return (Outcome::Answered, None);
            }
            Err(error) => Err(Refusal::new(&error, Digest::ZERO)),
        };
        let revision = accepted.as_ref().ok().and_then(|candidate| candidate.revision.clone());
        self.mark_attempted(ConfigOrigin::Server, revision);
        let refuse = |refusal: Refusal| {
            self.refuse(ConfigOrigin::Server, content, refusal.reason);
        };
        (Outcome::Answered, accepted.map_err(refuse).ok())
    }

    /// Notes that it is not known whether a configuration is meant for this user. As with a server
    /// that is away, what is in force stays, and nothing is reported: a refusal would count against
    /// the roll-out of a configuration that may be fine.
    fn note_unknown_groups(&mut self, reason: String) {
        if !mem::replace(&mut self.are_groups_unknown, true) {
            warn!(
                code = "managed_config_fetch_failed",
                reason, "managed configuration waits for the groups of the user"
            );
        }
        self.outcome = ReloadOutcome::Unavailable(reason);
    }

    /// Logs once that a configuration is meant for others. As after a 404, what is in force stays:
    /// a roll-out to a part of the fleet must not retract what the rest has.
    fn note_other_audience(&mut self, content: Digest) {
        if self.not_meant.replace(content) != Some(content) {
            info!(
                code = "managed_config_not_meant",
                "managed configuration of the server is not meant for this device and user"
            );
        }
    }

    /// Notes the serial of a configuration of the organisation before it is stored, and warns if the
    /// configuration is out of date.
    pub(super) fn note_serial(&mut self, managed: Option<&ManagedLayer>) {
        let Some(managed) = managed else { return };
        if let Some(expires) = managed.expires.filter(|at| *at <= self.context.clock.now()) {
            warn!(
                code = "managed_config_expired",
                %expires,
                "managed configuration is out of date and stays in force: sign a new one"
            );
        }
        let Some(serial) = managed.serial.filter(|_| managed.proof == ConfigProof::Organisation)
        else {
            return;
        };
        if self.highest.is_none_or(|highest| highest.serial < serial) {
            let highest = HighestSerial { serial, content: managed.hash };
            self.highest = Some(highest);
            self.store_highest(highest);
        }
    }

    /// Stores an answer for times when the server is away.
    pub(super) fn store(&mut self, answer: &SignedConfig) {
        if let Err(error) = self.files.write(PolicyFile::Managed, answer.to_file()) {
            warn!(
                code = "managed_config_store_failed",
                %error,
                "cannot store the managed configuration for times when the server is away"
            );
        }
    }

    fn mark_server_reached(&mut self) {
        if mem::take(&mut self.is_server_away) {
            info!("server of the managed configuration answers again");
        }
    }
}
