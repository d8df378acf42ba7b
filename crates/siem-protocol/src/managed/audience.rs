//! Devices that a managed configuration is meant for.

use serde::{Deserialize, Serialize};

use crate::{Digest, Identity};

/// Devices that a managed configuration is meant for.
///
/// Each member that is present must include the device; an absent one includes all, an empty list
/// none. Values are compared exactly, case matters. An unknown member is an error, unlike elsewhere:
/// a device that ignored a restriction would apply what is meant for others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Audience {
    /// Ids of machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machines: Option<Vec<String>>,
    /// Names of users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<String>>,
    /// Names of groups of the system, one of which the user must be in. A user on Windows is in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Operating systems: `linux`, `macos` or `windows`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<Vec<String>>,
    /// Part of the machines, 0 to 100: see [`Audience::bucket`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<u64>,
}

impl Audience {
    /// Reports whether the device of `identity`, which has these `groups`, is included.
    ///
    /// ```
    /// use siem_protocol::managed::Audience;
    /// let audience = Audience { percentage: Some(100), ..Audience::default() };
    /// # let identity = siem_protocol::Identity {
    /// #     machine_id: "m".into(), hostname: "h".into(), user: "u".into(), os: "linux".into(),
    /// #     arch: "x86_64".into(), agent_version: "0.1.0".into(),
    /// # };
    /// assert!(audience.includes(&identity, &[]));
    /// ```
    #[must_use]
    pub fn includes(&self, identity: &Identity, groups: &[String]) -> bool {
        let lists = |list: &Option<Vec<String>>, value: &String| {
            list.as_ref().is_none_or(|list| list.contains(value))
        };
        let in_group = |wanted: &Vec<String>| groups.iter().any(|group| wanted.contains(group));
        lists(&self.machines, &identity.machine_id)
            && lists(&self.users, &identity.user)
            && lists(&self.os, &identity.os)
            && self.groups.as_ref().is_none_or(in_group)
            && self.percentage.is_none_or(|part| Self::bucket(&identity.machine_id) < part)
    }

    /// Returns the bucket of a machine, 0 to 99: a percentage includes the buckets below it. It is
    /// the first 8 bytes of `SHA-256("ai-agent audience v1\n" ‖ machine id)` as a big-endian number,
    /// modulo 100. So a machine that 10 % include is also among 20 %, in each configuration.
    #[must_use]
    pub fn bucket(machine_id: &str) -> u64 {
        let digest = Digest::of(format!("ai-agent audience v1\n{machine_id}").as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) % 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            machine_id: "m-1".into(),
            hostname: "h".into(),
            user: "u".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            agent_version: "0.1.0".into(),
        }
    }

    fn includes(audience: &str, groups: &[&str]) -> bool {
        let groups: Vec<_> = groups.iter().map(|group| (*group).to_owned()).collect();
        serde_json::from_str::<Audience>(audience).unwrap().includes(&identity(), &groups)
    }

    #[test]
    fn every_present_member_must_include_the_device() {
        for (audience, included) in [
            ("{}", true),
            (r#"{"machines":["m-0","m-1"]}"#, true),
            (r#"{"machines":[]}"#, false),
            (r#"{"machines":["M-1"]}"#, false),
            (r#"{"machines":["m-1"],"users":["v"]}"#, false),
            (r#"{"users":["u"],"os":["linux","macos"]}"#, true),
            (r#"{"os":["windows"]}"#, false),
            (r#"{"groups":["dev"]}"#, true),
            (r#"{"groups":["ops"]}"#, false),
            (r#"{"percentage":0}"#, false),
            (r#"{"percentage":100}"#, true),
        ] {
            assert_eq!(includes(audience, &["dev", "eu"]), included, "{audience}");
        }
        assert!(!includes(r#"{"groups":["dev"]}"#, &[]));
    }

    #[test]
    fn unknown_restriction_is_an_error() {
        assert!(serde_json::from_str::<Audience>(r#"{"tenants":["a"]}"#).is_err());
    }

    /// The values are part of the protocol: an operator computes them to predict a roll-out.
    #[test]
    fn bucket_of_a_machine_is_fixed() {
        assert_eq!(["m-1", "m-2", ""].map(Audience::bucket), [16, 66, 81]);
    }

    #[test]
    fn buckets_are_evenly_filled() {
        let below =
            |part| (0..10_000).filter(|n| Audience::bucket(&format!("machine-{n}")) < part).count();
        assert!((800..1200).contains(&below(10)), "{}", below(10));
        assert!((4700..5300).contains(&below(50)), "{}", below(50));
    }
}
