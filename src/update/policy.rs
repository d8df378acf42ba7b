//! Decision about the releases that a receiver offers: a pure function.

use siem_protocol::{
    agent_event::{UpdateMode, UpdateReason},
    update::{Admission, UpdateRelease, Version},
};

/// Properties of this agent that decide about a release.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation<'a> {
    /// Version of this agent.
    pub(crate) version: &'a Version,
    /// Id of the machine, which decides about staged roll-outs.
    pub(crate) machine_id: &'a str,
    /// Groups of the user.
    pub(crate) groups: &'a [String],
    /// Versions that were installed here and rolled back.
    pub(crate) rolled_back: &'a [Version],
    /// Origin of the wish for an update.
    pub(crate) wish: Wish,
}

/// Origin of the wish for an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The configuration.
    Mode(UpdateMode),
    /// A command of a person, who may get a release before its roll-out reaches this machine.
    Command {
        /// True if an older release is installed, too.
        allows_downgrade: bool,
    },
}

/// Decision about the releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// No release is newer.
    Current,
    /// The newest release is not meant for this machine, for the reason given.
    Waiting(Box<UpdateRelease>, UpdateReason),
    /// The newest release that is meant for this machine was rolled back here.
    RolledBack(Box<UpdateRelease>),
    /// The newest release that is meant for this machine.
    Available(Box<UpdateRelease>),
}

/// Decides about the releases of a manifest, in any order.
#[must_use]
pub(crate) fn decide(releases: &[UpdateRelease], situation: &Situation<'_>) -> Decision {
    let Situation { version, rolled_back, wish, .. } = *situation;
    let is_candidate = |release: &&UpdateRelease| match wish {
        Wish::Command { allows_downgrade: true } => release.version != *version,
        _ => release.version > *version,
    };
    let mut candidates: Vec<&UpdateRelease> = releases.iter().filter(is_candidate).collect();
    candidates.sort_by(|one, other| other.version.cmp(&one.version));
    let Some(newest) = candidates.first().copied() else { return Decision::Current };
    let admitted = candidates.iter().find(|it| refusal(it, situation).is_none());
    match admitted.map(|release| Box::new(UpdateRelease::clone(release))) {
        Some(release)
            if matches!(wish, Wish::Mode(_)) && rolled_back.contains(&release.version) =>
        {
            Decision::RolledBack(release)
        }
        Some(release) => Decision::Available(release),
        None => {
            let reason = refusal(newest, situation).unwrap_or(UpdateReason::NotYet);
            Decision::Waiting(Box::new(newest.clone()), reason)
        }
    }
}

/// Returns why a release is not meant for this machine.
fn refusal(release: &UpdateRelease, situation: &Situation<'_>) -> Option<UpdateReason> {
    let Situation { machine_id, groups, wish, .. } = situation;
    let admission = release.rollout.admits(machine_id, &release.version, groups);
    match wish {
        // A release is halted because of a defect, which concerns everybody.
        Wish::Command { .. } if admission != Admission::Halted => None,
        _ => admission.reason(),
    }
}

/// Returns whether the roll-out of a release that is newer than `version` depends on the groups of the
/// user.
#[must_use]
pub(crate) fn needs_groups(releases: &[UpdateRelease], version: &Version) -> bool {
    releases.iter().any(|it| it.version > *version && !it.rollout.groups.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use siem_protocol::{Digest, update::Rollout};

    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn release(text: &str, percent: u8, groups: &[&str], halted: bool) -> UpdateRelease {
        UpdateRelease {
            version: version(text),
            published_at: "2026-01-31T00:00:00Z".to_owned(),
            rollout: Rollout {
                percent,
                groups: groups.iter().map(|&group| group.to_owned()).collect(),
                halted,
            },
            artifact: format!("ai-agent-{text}").parse().unwrap(),
            size: 1,
            sha256: Digest::ZERO,
            minisig: None,
        }
    }

    fn all(text: &str) -> UpdateRelease {
        release(text, 100, &[], false)
    }

    /// Returns the decision of an agent 0.2.0 whose user is in the group `dev`, as text.
    fn decision<'a>(
        releases: &[UpdateRelease],
        rolled_back: impl IntoIterator<Item = &'a str>,
        wish: Wish,
    ) -> String {
        let own = version("0.2.0");
        let rolled_back: Vec<Version> = rolled_back.into_iter().map(version).collect();
        let groups = ["dev".to_owned()];
        let situation = Situation {
            version: &own,
            machine_id: "m-1",
            groups: &groups,
            rolled_back: &rolled_back,
            wish,
        };
        match decide(releases, &situation) {
            Decision::Current => "current".to_owned(),
            Decision::Waiting(it, reason) => format!("{} waits: {}", it.version, reason.as_str()),
            Decision::RolledBack(it) => format!("{} was rolled back", it.version),
            Decision::Available(it) => it.version.to_string(),
        }
    }

    const AUTOMATIC: Wish = Wish::Mode(UpdateMode::Install);
    const BY_HAND: Wish = Wish::Command { allows_downgrade: false };
    const BACK: Wish = Wish::Command { allows_downgrade: true };

    #[test]
    fn newest_release_that_admits_the_machine_is_available() {
        for (releases, expected) in [
            (vec![], "current"),
            (vec![all("0.2.0"), all("0.1.9"), all("0.2.0-rc.1")], "current"),
            (vec![all("0.3.0"), all("0.10.0"), all("0.9.0")], "0.10.0"),
            (vec![all("0.3.0"), release("0.4.0", 0, &[], false)], "0.3.0"),
            (vec![all("0.3.0"), release("0.4.0", 100, &[], true)], "0.3.0"),
            (vec![release("0.4.0", 100, &[], true)], "0.4.0 waits: halted"),
            (vec![release("0.4.0", 0, &[], false)], "0.4.0 waits: not_yet"),
            (vec![release("0.4.0", 100, &["ops"], false)], "0.4.0 waits: other_group"),
            (vec![release("0.4.0", 100, &["ops", "dev"], false)], "0.4.0"),
        ] {
            assert_eq!(decision(&releases, None, AUTOMATIC), expected);
        }
    }

    #[test]
    fn release_that_was_rolled_back_is_not_tried_by_itself() {
        let releases = [all("0.3.0")];
        assert_eq!(decision(&releases, Some("0.3.0"), AUTOMATIC), "0.3.0 was rolled back");
        assert_eq!(decision(&releases, Some("0.3.0"), BY_HAND), "0.3.0");
        let newer = [all("0.3.1"), all("0.3.0")];
        assert_eq!(decision(&newer, Some("0.3.0"), AUTOMATIC), "0.3.1");
        // The newer one was rolled back, too, and then halted.
        let halted = [release("0.3.1", 100, &[], true), all("0.3.0")];
        assert_eq!(decision(&halted, ["0.3.0", "0.3.1"], AUTOMATIC), "0.3.0 was rolled back");
    }

    #[test]
    fn command_ignores_the_roll_out_but_not_a_halt() {
        let staged = [release("0.3.0", 0, &["ops"], false)];
        assert_eq!(decision(&staged, None, BY_HAND), "0.3.0");
        let halted = [release("0.3.0", 100, &[], true)];
        assert_eq!(decision(&halted, None, BY_HAND), "0.3.0 waits: halted");
    }

    #[test]
    fn only_a_command_that_permits_it_installs_an_older_release() {
        let older = [all("0.1.0"), all("0.2.0"), all("0.1.5")];
        assert_eq!(decision(&older, None, AUTOMATIC), "current");
        assert_eq!(decision(&older, None, BY_HAND), "current");
        assert_eq!(decision(&older, None, BACK), "0.1.5");
    }

    proptest! {
        /// Whatever a receiver offers, an agent never goes back by itself, nor takes a halted release.
        #[test]
        fn no_manifest_leads_to_an_older_or_halted_release(
            offers in prop::collection::vec(
                ((0_u8..3, 0_u8..3, 0_u8..3), any::<bool>(), 0_u8..=100, any::<bool>()), 0..8,
            ),
        ) {
            let releases: Vec<_> = offers.iter().map(|((major, minor, patch), pre, percent, halted)| {
                let pre = if *pre { "-rc.1" } else { "" };
                release(&format!("{major}.{minor}.{patch}{pre}"), *percent, &[], *halted)
            }).collect();
            for wish in [AUTOMATIC, BY_HAND] {
                let own = version("0.2.0");
                let situation = Situation {
                    version: &own, machine_id: "m-1", groups: &[], rolled_back: &[], wish,
                };
                if let Decision::Available(release) = decide(&releases, &situation) {
                    prop_assert!(release.version > own && !release.rollout.halted);
                }
            }
        }
    }

    #[test]
    fn groups_are_needed_for_newer_releases_only() {
        let own = version("0.2.0");
        assert!(!needs_groups(&[all("0.3.0"), release("0.1.0", 1, &["dev"], false)], &own));
        assert!(needs_groups(&[release("0.3.0", 1, &["dev"], false)], &own));
    }
}
