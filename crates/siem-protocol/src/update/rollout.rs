//! Machines that a release is meant for.

use serde::{Deserialize, Serialize};

use super::Version;
use crate::{Digest, agent_event::UpdateReason};

/// Number of parts that machines are divided into.
const BUCKETS: u64 = 10_000;

/// Machines that a release is meant for.
///
/// An unknown member is an error, unlike elsewhere: an agent that ignored a restriction would install
/// what is meant for others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Part of the machines, 0 to 100: see [`Rollout::bucket`].
    #[cfg_attr(feature = "schemars", schemars(range(max = 100)))]
    pub percent: u8,
    /// Names of groups of the system, one of which the user must be in. An empty list is no restriction.
    /// Case matters; a user on Windows is in none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// True if no machine may install the release now.
    #[serde(default, skip_serializing_if = "is_false")]
    pub halted: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Rollout {
    /// A roll-out to all machines.
    pub const ALL: Self = Self { percent: 100, groups: Vec::new(), halted: false };

    /// Decides whether a machine may install the release `version`; `groups` are those of the user.
    ///
    /// ```
    /// use siem_protocol::update::{Admission, Rollout};
    /// let version = "0.3.0".parse().unwrap();
    /// let halted = Rollout { halted: true, ..Rollout::ALL };
    /// assert_eq!(Rollout::ALL.admits("m", &version, &[]), Admission::Admitted);
    /// assert_eq!(halted.admits("m", &version, &[]), Admission::Halted);
    /// ```
    #[must_use]
    pub fn admits(&self, machine_id: &str, version: &Version, groups: &[String]) -> Admission {
        let in_group = || groups.iter().any(|group| self.groups.contains(group));
        if self.halted {
            Admission::Halted
        } else if !self.groups.is_empty() && !in_group() {
            Admission::OtherGroup
        } else if Self::bucket(machine_id, version) >= u64::from(self.percent) * (BUCKETS / 100) {
            Admission::NotYet
        } else {
            Admission::Admitted
        }
    }

    /// Returns the bucket of a machine, 0 to 9999: a percentage includes the buckets below its
    /// hundredfold. It is the first 8 bytes of `SHA-256("ai-agent update v1\n" ‖ version ‖ "\n" ‖
    /// machine id)` as a big-endian number, modulo 10,000. A machine that 10 % include is also among
    /// 20 %; another version starts with other machines.
    #[must_use]
    pub fn bucket(machine_id: &str, version: &Version) -> u64 {
        let digest = Digest::of(format!("ai-agent update v1\n{version}\n{machine_id}").as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) % BUCKETS
    }
}

/// Decision about a machine and a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The machine may install the release.
    Admitted,
    /// The roll-out is halted.
    Halted,
    /// The machine is not among the percentage yet.
    NotYet,
    /// The user is in none of the groups.
    OtherGroup,
}

impl Admission {
    /// Returns why the machine may not install the release, `None` if it may.
    #[must_use]
    pub fn reason(self) -> Option<UpdateReason> {
        match self {
            Self::Admitted => None,
            Self::Halted => Some(UpdateReason::Halted),
            Self::NotYet => Some(UpdateReason::NotYet),
            Self::OtherGroup => Some(UpdateReason::OtherGroup),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn every_restriction_must_admit_the_machine() {
        let user = ["dev".to_owned(), "eu".to_owned()];
        let admits = |json: &str| {
            let rollout: Rollout = serde_json::from_str(json).unwrap();
            rollout.admits("m-1", &version("0.3.0"), &user)
        };
        assert_eq!(admits(r#"{"percent":100}"#), Admission::Admitted);
        assert_eq!(admits(r#"{"percent":0}"#), Admission::NotYet);
        assert_eq!(admits(r#"{"percent":100,"halted":true}"#), Admission::Halted);
        assert_eq!(admits(r#"{"percent":100,"groups":["eu"]}"#), Admission::Admitted);
        assert_eq!(admits(r#"{"percent":100,"groups":["EU"]}"#), Admission::OtherGroup);
        assert_eq!(admits(r#"{"percent":0,"groups":["eu"]}"#), Admission::NotYet);
    }

    #[test]
    fn unknown_restriction_is_an_error() {
        for json in
            [r#"{"percent":1,"tenants":[]}"#, r#"{}"#, r#"{"percent":-1}"#, r#"{"percent":0.5}"#]
        {
            assert!(serde_json::from_str::<Rollout>(json).is_err(), "{json}");
        }
    }

    /// The values are part of the protocol: an operator computes them to predict a roll-out.
    #[test]
    fn bucket_of_a_machine_is_fixed() {
        let of = |machine, release| Rollout::bucket(machine, &version(release));
        assert_eq!(
            [of("m-1", "0.3.0"), of("m-1", "0.4.0"), of("m-2", "0.3.0")],
            [7743, 9716, 8917]
        );
    }

    #[test]
    fn percentage_includes_its_part_of_the_machines() {
        for percent in [1, 10, 50] {
            let rollout = Rollout { percent, ..Rollout::ALL };
            let version = version("0.3.0");
            let admitted = (0..10_000).filter(|n| {
                rollout.admits(&format!("machine-{n}"), &version, &[]) == Admission::Admitted
            });
            let wanted = 100 * usize::from(percent);
            let count = admitted.count();
            assert!(count.abs_diff(wanted) < wanted / 4 + 50, "{count} of {percent} %");
        }
    }

    proptest! {
        #[test]
        fn raised_percentage_keeps_admitted_machines(machine in ".{0,20}", low in 0u8..=100, high in 0u8..=100) {
            let admits = |percent| Rollout { percent, ..Rollout::ALL }.admits(&machine, &version("1.0.0"), &[]);
            if low <= high && admits(low) == Admission::Admitted {
                prop_assert_eq!(admits(high), Admission::Admitted);
            }
        }
    }
}
