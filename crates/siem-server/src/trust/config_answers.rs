//! Answers of devices to the managed configurations that they were offered, and roll-outs that
//! halted, `config-answers.ndjson`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::journal::Fold;

/// Number of devices whose answers are kept: names are claims of senders.
const MAX_DEVICES: usize = 200_000;
/// Number of devices from which a request alone adds no other one. It needs the token only, and could
/// otherwise take the places of those that send signed batches.
const MAX_OFFERED: usize = MAX_DEVICES / 2;
/// Length of a reason that is kept, in characters.
pub(super) const MAX_REASON: usize = 500;

/// Machine and user.
pub(super) type DeviceName = (String, String);

/// Answers of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceConfig {
    /// Id of the machine.
    pub machine: String,
    /// Name of the user.
    pub user: String,
    /// Operating system.
    pub os: String,
    /// Groups of the user, if they were needed to choose a configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// The configuration that the device was offered last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offered: Option<ConfigAnswer>,
    /// The configuration in force, as of its last batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_force: Option<ConfigAnswer>,
    /// The configuration that it refused last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<ConfigAnswer>,
    /// True if an operator continued the roll-out in spite of this refusal.
    #[serde(skip)]
    is_refusal_accepted: bool,
}

/// A configuration, and when the device got or answered it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConfigAnswer {
    /// SHA-256 of the configuration.
    pub hash: Digest,
    /// Time, RFC 3339.
    pub at: String,
    /// Reason of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Roll-out of a configuration that halted once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RolloutMark {
    /// Time since which it is halted.
    pub(super) halted: Option<String>,
}

/// A line of `config-answers.ndjson`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum AnswerLine {
    /// A device was offered a configuration.
    Offered {
        at: String,
        machine: String,
        user: String,
        os: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups: Option<Vec<String>>,
        hash: Digest,
    },
    /// A batch named the configuration in force; none without one.
    InForce { at: String, machine: String, user: String, os: String, hash: Option<Digest> },
    /// A device refused a configuration.
    Refused { at: String, machine: String, user: String, os: String, hash: Digest, reason: String },
    /// The roll-out of a configuration halted.
    Halted { at: String, hash: Digest, applied: u64, refused: u64 },
    /// An operator continued it in spite of so many refusals.
    Resumed { at: String, hash: Digest, refused: u64 },
}

/// Answers of all devices.
#[derive(Debug, Default)]
pub(super) struct ConfigAnswers {
    devices: HashMap<DeviceName, DeviceConfig>,
    rollouts: HashMap<Digest, RolloutMark>,
    superfluous: u64,
}

impl Fold for ConfigAnswers {
    type Line = AnswerLine;

    fn apply(&mut self, line: AnswerLine) {
        let answer = |hash, at, reason| Some(ConfigAnswer { hash, at, reason });
        match line {
            AnswerLine::Offered { at, machine, user, os, groups, hash } => {
                let Some(device) = self.device(machine, user, os) else { return };
                device.groups = groups;
                let before = std::mem::replace(&mut device.offered, answer(hash, at, None));
                self.superfluous += u64::from(before.is_some());
            }
            AnswerLine::InForce { at, machine, user, os, hash } => {
                let Some(device) = self.device(machine, user, os) else { return };
                let now = hash.and_then(|hash| answer(hash, at, None));
                let before = std::mem::replace(&mut device.in_force, now);
                let refused = device.refused.take_if(|it| Some(it.hash) == hash);
                device.is_refusal_accepted &= refused.is_none();
                self.superfluous += u64::from(before.is_some()) + u64::from(refused.is_some());
            }
            AnswerLine::Refused { at, machine, user, os, hash, reason } => {
                let Some(device) = self.device(machine, user, os) else { return };
                let before = std::mem::replace(&mut device.refused, answer(hash, at, Some(reason)));
                device.is_refusal_accepted = false;
                self.superfluous += u64::from(before.is_some());
            }
            AnswerLine::Halted { at, hash, .. } => {
                self.rollouts.entry(hash).or_default().halted = Some(at);
            }
            AnswerLine::Resumed { hash, .. } => {
                self.rollouts.insert(hash, RolloutMark::default());
                // The same devices when the file is read again: a refusal that came later is below.
                for device in self.devices.values_mut().filter(|it| it.refuses(&hash)) {
                    device.is_refusal_accepted = true;
                }
            }
        }
    }

    fn superfluous(&self) -> u64 {
        self.superfluous
    }

    fn remainder(&self, line: AnswerLine) -> Option<AnswerLine> {
        let of =
            |machine: &String, user: &String| self.devices.get(&(machine.clone(), user.clone()));
        let is = |answer: &Option<ConfigAnswer>, hash: &Digest, at: &String| {
            answer.as_ref().is_some_and(|it| it.hash == *hash && it.at == *at)
        };
        let remains = match &line {
            AnswerLine::Offered { at, machine, user, hash, .. } => {
                of(machine, user).is_some_and(|device| is(&device.offered, hash, at))
            }
            AnswerLine::InForce { at, machine, user, hash, .. } => {
                of(machine, user).is_some_and(|device| match hash {
                    Some(hash) => is(&device.in_force, hash, at),
                    None => device.in_force.is_none(),
                })
            }
            AnswerLine::Refused { at, machine, user, hash, .. } => {
                of(machine, user).is_some_and(|device| is(&device.refused, hash, at))
            }
            AnswerLine::Halted { .. } | AnswerLine::Resumed { .. } => true,
        };
        remains.then_some(line)
    }
}

impl DeviceConfig {
    /// Reports whether this is the configuration that the device refused last.
    fn refuses(&self, hash: &Digest) -> bool {
        self.refused.as_ref().is_some_and(|it| it.hash == *hash)
    }
}

impl ConfigAnswers {
    /// Returns the device of a line, unless there are too many.
    fn device(&mut self, machine: String, user: String, os: String) -> Option<&mut DeviceConfig> {
        let name = (machine, user);
        if !self.devices.contains_key(&name) && self.devices.len() >= MAX_DEVICES {
            return None;
        }
        let (machine, user) = name.clone();
        let device = self.devices.entry(name).or_insert_with(|| DeviceConfig {
            machine,
            user,
            ..DeviceConfig::default()
        });
        device.os = os;
        Some(device)
    }

    /// Reports whether a line about a device can be kept.
    pub(super) fn accepts(&self, line: &AnswerLine) -> bool {
        let has_place = |machine: &String, user: &String, most| {
            let is_known = || self.devices.contains_key(&(machine.clone(), user.clone()));
            self.devices.len() < most || is_known()
        };
        match line {
            AnswerLine::Offered { machine, user, .. } => has_place(machine, user, MAX_OFFERED),
            AnswerLine::InForce { machine, user, .. }
            | AnswerLine::Refused { machine, user, .. } => has_place(machine, user, MAX_DEVICES),
            AnswerLine::Halted { .. } | AnswerLine::Resumed { .. } => true,
        }
    }

    pub(super) fn get(&self, name: &DeviceName) -> Option<&DeviceConfig> {
        self.devices.get(name)
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = &DeviceConfig> {
        self.devices.values()
    }

    pub(super) fn rollout(&self, hash: &Digest) -> Option<&RolloutMark> {
        self.rollouts.get(hash)
    }

    pub(super) fn halted(&self) -> impl Iterator<Item = Digest> {
        self.rollouts.iter().filter(|(_, mark)| mark.halted.is_some()).map(|(hash, _)| *hash)
    }

    /// Number of devices whose answer to a configuration counts and that have it in force, and of those
    /// that refuse it, without those whose refusal an operator accepted.
    ///
    /// Once the key of any device is confirmed, only such devices count: others can be made up.
    pub(super) fn new_answers(
        &self,
        hash: &Digest,
        is_confirmed: impl Fn(&DeviceConfig) -> bool,
    ) -> (u64, u64) {
        let any_confirmed = self.devices.values().any(&is_confirmed);
        let counts = |it: &&DeviceConfig| !any_confirmed || is_confirmed(it);
        self.devices.values().fold((0, 0), |(applied, refused), device| {
            let applies = device.in_force.as_ref().is_some_and(|it| it.hash == *hash);
            let refuses = device.refuses(hash) && !device.is_refusal_accepted;
            if (applies || refuses) && counts(&device) {
                (applied + u64::from(applies), refused + u64::from(refuses))
            } else {
                (applied, refused)
            }
        })
    }

    /// Number of devices that have a configuration in force, and of those that refuse it.
    pub(super) fn counts(&self, hash: &Digest) -> (u64, u64) {
        let is = |answer: &Option<ConfigAnswer>| answer.as_ref().is_some_and(|it| it.hash == *hash);
        self.devices.values().fold((0, 0), |(applied, refused), device| {
            (applied + u64::from(is(&device.in_force)), refused + u64::from(is(&device.refused)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(at: &str) -> (String, String, String, String) {
        (at.into(), "m".into(), "u".into(), "linux".into())
    }

    fn offered(at: &str, hash: Digest) -> AnswerLine {
        let (at, machine, user, os) = name(at);
        AnswerLine::Offered { at, machine, user, os, groups: None, hash }
    }

    fn in_force(at: &str, hash: Option<Digest>) -> AnswerLine {
        let (at, machine, user, os) = name(at);
        AnswerLine::InForce { at, machine, user, os, hash }
    }

    fn refused(at: &str, hash: Digest) -> AnswerLine {
        let (at, machine, user, os) = name(at);
        AnswerLine::Refused { at, machine, user, os, hash, reason: "r".into() }
    }

    fn fold(lines: &[AnswerLine]) -> ConfigAnswers {
        let mut answers = ConfigAnswers::default();
        lines.iter().for_each(|line| answers.apply(line.clone()));
        answers
    }

    #[test]
    fn accepted_config_is_no_longer_refused() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let mut answers = fold(&[in_force("1", Some(one)), offered("2", two), refused("3", two)]);
        assert_eq!((answers.counts(&one), answers.counts(&two)), ((1, 0), (0, 1)));
        answers.apply(in_force("4", Some(two)));
        assert_eq!((answers.counts(&one), answers.counts(&two)), ((0, 0), (1, 0)));
    }

    #[test]
    fn remaining_lines_give_the_same_state() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let lines = [
            in_force("1", None),
            offered("2", one),
            refused("3", one),
            AnswerLine::Halted { at: "4".into(), hash: one, applied: 0, refused: 1 },
            AnswerLine::Resumed { at: "5".into(), hash: one, refused: 1 },
            in_force("6", Some(one)),
            offered("7", two),
            refused("8", two),
            refused("9", two),
        ];
        for end in 0..=lines.len() {
            let whole = fold(&lines[..end]);
            let kept: Vec<_> =
                lines[..end].iter().cloned().filter_map(|line| whole.remainder(line)).collect();
            let again = fold(&kept);
            assert_eq!(again.devices, whole.devices, "{end}");
            assert_eq!(again.rollouts, whole.rollouts, "{end}");
            assert!(whole.superfluous <= (end - kept.len()) as u64, "{end}");
        }
    }

    #[test]
    fn requests_leave_places_for_devices_that_send_batches() {
        let mut answers = fold(&[]);
        let hash = Digest::of(b"1");
        let named = |line: AnswerLine, name: usize| match line {
            AnswerLine::Offered { at, user, os, groups, hash, .. } => {
                AnswerLine::Offered { at, machine: name.to_string(), user, os, groups, hash }
            }
            other => other,
        };
        for name in 0..MAX_OFFERED {
            let line = named(offered("1", hash), name);
            assert!(answers.accepts(&line));
            answers.apply(line);
        }
        assert!(!answers.accepts(&named(offered("2", hash), MAX_OFFERED)));
        assert!(answers.accepts(&named(offered("2", hash), 0)), "it is known");
        assert!(answers.accepts(&in_force("2", None)));
        answers.apply(in_force("2", None));
        assert!(answers.accepts(&offered("3", hash)), "its batches made it known");
    }

    #[test]
    fn resumed_rollout_accepts_the_refusals_before() {
        let hash = Digest::of(b"1");
        let halted = AnswerLine::Halted { at: "2".into(), hash, applied: 0, refused: 1 };
        let mut answers = fold(&[refused("1", hash), halted]);
        assert_eq!(answers.halted().collect::<Vec<_>>(), [hash]);
        let refusals = |answers: &ConfigAnswers| answers.new_answers(&hash, |_| false).1;
        assert_eq!(refusals(&answers), 1);
        answers.apply(AnswerLine::Resumed { at: "3".into(), hash, refused: 1 });
        assert_eq!(answers.halted().count(), 0);
        assert_eq!((answers.counts(&hash), refusals(&answers)), ((0, 1), 0));
        answers.apply(in_force("4", Some(hash)));
        answers.apply(refused("5", hash));
        assert_eq!(refusals(&answers), 1, "it had applied it since");
    }

    #[test]
    fn made_up_devices_do_not_count_beside_confirmed_ones() {
        let hash = Digest::of(b"1");
        let answer = |machine: &str, refuses: bool| {
            let (at, _, user, os) = name("1");
            let machine = machine.to_owned();
            match refuses {
                true => AnswerLine::Refused { at, machine, user, os, hash, reason: "r".into() },
                false => AnswerLine::InForce { at, machine, user, os, hash: Some(hash) },
            }
        };
        let lines = [answer("a", true), answer("b", true), answer("c", true), answer("d", false)];
        let mut answers = fold(&lines);
        let is_confirmed = |device: &DeviceConfig| device.machine.starts_with("real");
        assert_eq!(answers.new_answers(&hash, is_confirmed), (1, 3), "none is confirmed");
        answers.apply(answer("real-1", false));
        assert_eq!(answers.new_answers(&hash, is_confirmed), (1, 0));
        answers.apply(answer("real-2", true));
        assert_eq!(answers.new_answers(&hash, is_confirmed), (1, 1));
        assert_eq!(answers.counts(&hash), (2, 4));
    }
}
