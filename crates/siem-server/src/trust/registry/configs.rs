//! Managed configurations in the registry: what was offered, and what devices answered.

use siem_protocol::{Digest, Identity};

use super::{
    super::{
        config_answers::{AnswerLine, ConfigAnswers, DeviceConfig, MAX_REASON},
        journal::{Durability, JournalError},
    },
    Registry, RegistryError,
};
use crate::configs::{DeviceFacts, Rollout};

/// Refusal of a managed configuration, as an agent reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRefusal {
    /// SHA-256 of the refused body; none from agents that do not say it.
    pub hash: Option<Digest>,
    /// Reason.
    pub reason: String,
}

/// A roll-out that has just halted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HaltedRollout {
    /// Number of devices that have the configuration in force.
    pub applied: u64,
    /// Number of devices that refuse it.
    pub refused: u64,
}

/// Answers of devices.
impl Registry {
    /// Returns the answers of a device.
    #[must_use]
    pub fn device_config(&self, machine: &str, user: &str) -> Option<DeviceConfig> {
        let name = (machine.to_owned(), user.to_owned());
        self.answers.read(|answers| answers.get(&name).cloned())
    }

    /// Passes the answers of each device to `show`, in any order.
    pub fn each_device_config(&self, show: impl FnMut(&DeviceConfig)) {
        self.answers.read(|answers| answers.devices().for_each(show));
    }

    /// Returns the answers of all devices, ordered by machine and user.
    #[must_use]
    pub fn device_configs(&self) -> Vec<DeviceConfig> {
        let mut devices: Vec<_> = self.answers.read(|answers| answers.devices().cloned().collect());
        devices.sort_by(|one, other| (&one.machine, &one.user).cmp(&(&other.machine, &other.user)));
        devices
    }

    /// Returns the hashes of the configurations whose roll-out is halted.
    #[must_use]
    pub fn halted_rollouts(&self) -> Vec<Digest> {
        self.answers.read(|answers| answers.halted().collect())
    }

    /// Reports whether any device refuses a configuration.
    pub(crate) fn has_refusals(&self) -> bool {
        self.answers.read(|answers| answers.devices().any(|device| device.refused.is_some()))
    }

    /// Notes that a configuration was offered to a device.
    ///
    /// # Errors
    /// [`RegistryError::Journal`].
    pub fn note_offered(&self, facts: &DeviceFacts, hash: Digest) -> Result<(), RegistryError> {
        let name = (facts.machine.clone(), facts.user.clone());
        let is_known = |answers: &ConfigAnswers| {
            answers.get(&name).is_some_and(|device| {
                device.offered.as_ref().is_some_and(|it| it.hash == hash)
                    && device.groups == facts.groups
            })
        };
        if self.answers.read(is_known) {
            return Ok(());
        }
        let DeviceFacts { machine, user, os, groups, .. } = facts.clone();
        let (at, os) = (self.now(), os.unwrap_or_default());
        let line = AnswerLine::Offered { at, machine, user, os, groups, hash };
        Ok(self.append_answer(line, |answers| !is_known(answers))?)
    }

    /// Reports whether a batch of a device says something new: about the configuration in force, or
    /// with a refusal.
    #[must_use]
    pub fn has_new_answer(
        &self,
        identity: &Identity,
        in_force: Option<Digest>,
        refusals: &[ConfigRefusal],
    ) -> bool {
        let name = (identity.machine_id.clone(), identity.user.clone());
        !refusals.is_empty()
            || self.answers.read(|answers| {
                let known = answers.get(&name);
                known.is_none_or(|it| it.in_force.as_ref().map(|it| it.hash) != in_force)
            })
    }

    /// Notes what a batch says about managed configurations. Returns the hashes that the device
    /// refuses for the first time.
    ///
    /// # Errors
    /// [`RegistryError::Journal`].
    pub fn note_answers(
        &self,
        identity: &Identity,
        in_force: Option<Digest>,
        refusals: &[ConfigRefusal],
    ) -> Result<Vec<Digest>, RegistryError> {
        let Identity { machine_id: machine, user, os, .. } = identity;
        let name = (machine.clone(), user.clone());
        let mut new = Vec::new();
        for refusal in refusals {
            let (at, machine, user, os) = (self.now(), machine.clone(), user.clone(), os.clone());
            let reason: String = refusal.reason.chars().take(MAX_REASON).collect();
            let offered = self.answers.read(|answers| {
                let offered = answers.get(&name).and_then(|device| device.offered.as_ref());
                offered.map(|it| it.hash)
            });
            let Some(hash) = refusal.hash.or(offered.filter(|it| Some(*it) != in_force)) else {
                continue;
            };
            // A digest that was never offered is that of a copy on the device.
            if !self.was_offered(&hash) {
                continue;
            }
            let is_new = |answers: &ConfigAnswers| {
                let refused = answers.get(&name).and_then(|device| device.refused.as_ref());
                refused.is_none_or(|it| it.hash != hash)
            };
            let line = AnswerLine::Refused { at, machine, user, os, hash, reason };
            if self.answers.read(is_new) {
                new.push(hash);
                self.append_answer(line, is_new)?;
            }
        }
        if self.has_new_answer(identity, in_force, &[]) {
            let (at, machine, user, os) = (self.now(), machine.clone(), user.clone(), os.clone());
            let line = AnswerLine::InForce { at, machine, user, os, hash: in_force };
            self.append_answer(line, |_| true)?;
        }
        Ok(new)
    }

    /// Halts the roll-out of a configuration if too many devices refuse it. Once any device that answered
    /// has a confirmed key, only those count. Returns the numbers of all devices if it was not halted before.
    ///
    /// # Errors
    /// [`RegistryError::Journal`].
    pub fn halt_if_exceeded(
        &self,
        hash: Digest,
        rollout: &Rollout,
    ) -> Result<Option<HaltedRollout>, RegistryError> {
        let at = self.now();
        let decide = |answers: &ConfigAnswers| {
            if answers.rollout(&hash).is_some_and(|mark| mark.halted.is_some()) {
                return Ok::<_, JournalError>((None, None));
            }
            let (applied, refused) = answers.counts(&hash);
            let (new_applied, new_refused) = self.devices.read(|devices| {
                answers.new_answers(&hash, |it| devices.confirmed_for(&it.machine, &it.user))
            });
            if !rollout.is_exceeded(new_applied, new_refused) {
                return Ok((None, None));
            }
            let line = AnswerLine::Halted { at, hash, applied, refused };
            Ok((Some(line), Some(HaltedRollout { applied, refused })))
        };
        Ok(self.answers.transact(Durability::Synced, decide)?)
    }

    /// Continues the roll-out of a configuration in spite of the refusals so far. Reports whether it
    /// was halted.
    ///
    /// # Errors
    /// [`RegistryError::Journal`].
    pub fn resume_rollout(&self, hash: Digest) -> Result<bool, RegistryError> {
        let at = self.now();
        let decide = |answers: &ConfigAnswers| {
            let is_halted = answers.rollout(&hash).is_some_and(|mark| mark.halted.is_some());
            let (_, refused) = answers.counts(&hash);
            let line = is_halted.then_some(AnswerLine::Resumed { at, hash, refused });
            Ok::<_, JournalError>((line, is_halted))
        };
        Ok(self.answers.transact(Durability::Synced, decide)?)
    }

    fn append_answer(
        &self,
        line: AnswerLine,
        is_needed: impl FnOnce(&ConfigAnswers) -> bool,
    ) -> Result<(), JournalError> {
        // What is lost in a power cut comes with the next request of the device.
        self.answers.transact(Durability::Written, |answers| {
            let is_needed = answers.accepts(&line) && is_needed(answers);
            Ok((is_needed.then_some(line), ()))
        })
    }
}
