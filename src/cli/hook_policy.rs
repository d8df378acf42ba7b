//! Policy that a hook uses, by the order in which its sources prove something: the managed
//! configuration with the organisation's signature, the machine's file where it locks the policy, the
//! file that the daemon wrote, and the machine's file again.

use std::path::{Path, PathBuf};

use siem_protocol::{
    Digest, ManagedConfig,
    agent_event::PolicySource,
    managed::{Audience, Compliance},
};

use crate::{
    compliance::policy_file::{self, LocatedPolicy, PolicyFileError, StoredPolicy},
    config::MachinePolicy,
    platform::{Paths, Timestamp, identify},
    siem::SignedConfig,
    text::causes,
};

/// Policy that a hook uses.
#[derive(Debug)]
pub(super) struct HookPolicy {
    pub(super) compliance: Compliance,
    pub(super) source: PolicySource,
    /// Reason why a source that comes first is not used, though it is there or should be.
    pub(super) problem: Option<String>,
    /// State directory of the daemon.
    pub(super) state_dir: PathBuf,
    /// Hash of the daemon's configuration, and time since which its policy is in force.
    pub(super) stored: Option<(Digest, Timestamp)>,
}

impl HookPolicy {
    /// Finds the policy; `None` if no agent has run for this user and the machine's file has none.
    pub(super) fn find(paths: &Paths) -> Option<Self> {
        let mut problem = None;
        let machine = MachinePolicy::read(paths).unwrap_or_else(|error| {
            problem = Some(causes(&error));
            MachinePolicy::default()
        });
        let located = policy_file::find(paths);
        let state_dir = state_dir(paths, &located);
        let (policy, missing) = match located {
            Ok(Some(LocatedPolicy { policy, .. })) => (Some(policy), None),
            Ok(None) => (None, Some("there is no policy file".to_owned())),
            Err(error) => (None, Some(causes(&error))),
        };
        let stored = policy.as_ref().map(|policy| (policy.config_hash, policy.at));
        let managed = match machine.keys() {
            [] => Ok(None),
            _ => managed(&machine, &state_dir, policy.as_ref()),
        };
        let (compliance, source) = match (managed, policy) {
            (Ok(Some(compliance)), _) => (compliance, PolicySource::Managed),
            (unused, policy) => {
                problem = problem.or(unused.err());
                match policy {
                    _ if machine.locks_policy() => (machine.policy(), PolicySource::MachineLocked),
                    Some(policy) => (machine.enforce(&policy.compliance), PolicySource::PolicyFile),
                    None if machine.has_policy() || state_dir.is_dir() => {
                        problem = problem.or(missing);
                        (machine.policy(), PolicySource::MachineFallback)
                    }
                    None => return None,
                }
            }
        };
        Some(Self { compliance, source, problem, state_dir, stored })
    }

    /// Returns the hash of the policy: SHA-256 of its JSON.
    pub(super) fn hash(&self) -> Option<Digest> {
        serde_json::to_vec(&self.compliance).ok().map(|json| Digest::of(&json))
    }
}

/// Returns the state directory with the policy file; else the first one that exists.
fn state_dir(paths: &Paths, located: &Result<Option<LocatedPolicy>, PolicyFileError>) -> PathBuf {
    if let Ok(Some(located)) = located {
        return located.state_dir.clone();
    }
    let existing = policy_file::candidate_dirs(paths).find(|dir| dir.is_dir());
    existing.unwrap_or_else(|| paths.default_state_dir.clone())
}

/// Returns the policy with the managed configuration that the organisation has signed; `None` if there
/// is no managed configuration.
fn managed(
    machine: &MachinePolicy,
    state_dir: &Path,
    policy: Option<&StoredPolicy>,
) -> Result<Option<Compliance>, String> {
    let unused = |reason: String| format!("the managed configuration is not used: {reason}");
    let Some(signed) = SignedConfig::load(state_dir).map_err(|error| unused(error.to_string()))?
    else {
        return match policy.is_some_and(|policy| policy.managed.is_some()) {
            true => Err(unused("its file is missing".to_owned())),
            false => Ok(None),
        };
    };
    let verified = signed.verify_organisation(machine.keys());
    verified.map_err(|error| unused(causes(&error)))?;
    let config = ManagedConfig::parse(signed.body.as_bytes());
    let config = config.map_err(|error| unused(causes(&error)))?;
    // The daemon has determined machine, user and groups, which may take long.
    let is_checked =
        policy.is_some_and(|policy| policy.managed == Some(Digest::of(signed.body.as_bytes())));
    let is_meant = || {
        config.audience.as_ref().is_none_or(|audience| {
            // A hook asks no directory service, so that groups exclude no user here.
            let audience = Audience { groups: None, ..audience.clone() };
            audience.includes(&identify(Some(state_dir)).identity, &[])
        })
    };
    if !is_checked && !is_meant() {
        return Err(unused("it is not meant for this device and user".to_owned()));
    }
    Ok(Some(machine.with_managed(&config.compliance.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use siem_protocol::managed::Action;

    use super::*;
    use crate::platform::{Environment, Os};

    const KEYS: &str = concat!(
        "[managed]\nkeys = ['''",
        include_str!("../../tests/support/policy/org.pub"),
        "''']\n"
    );
    const SIGNED: [&str; 2] = [
        include_str!("../../tests/support/policy/serial-5.json"),
        include_str!("../../tests/support/policy/serial-5.json.minisig"),
    ];

    /// A user's home directory, and a machine's file.
    struct World {
        _home: tempfile::TempDir,
        paths: Paths,
        state_dir: PathBuf,
    }

    impl World {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let variable = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
            let environment: Environment = [(variable, home.path())].into_iter().collect();
            let mut paths = Paths::on(Os::CURRENT, &environment).unwrap();
            paths.machine_config = home.path().join("machine.toml");
            paths.machine_config_dir = home.path().join("machine.d");
            let state_dir = paths.default_state_dir.clone();
            Self { _home: home, paths, state_dir }
        }

        fn machine(self, text: &str) -> Self {
            fs::write(&self.paths.machine_config, text).unwrap();
            self
        }

        fn stored(self, action: Action, managed: Option<Digest>) -> Self {
            fs::create_dir_all(&self.state_dir).unwrap();
            let compliance = Compliance { action: Some(action), ..Compliance::default() };
            let (config_hash, at) = (Digest::ZERO, Timestamp(1));
            StoredPolicy { compliance, config_hash, at, managed }.write(&self.state_dir).unwrap();
            self
        }

        fn managed(self, body: &str, minisig: Option<&str>) -> Self {
            fs::create_dir_all(&self.state_dir).unwrap();
            let signed = SignedConfig {
                body: body.to_owned(),
                nonce: String::new(),
                signature: String::new(),
                etag: None,
                minisig: minisig.map(str::to_owned),
            };
            fs::write(SignedConfig::path(&self.state_dir), signed.to_file()).unwrap();
            self
        }

        fn find(&self) -> Option<(PolicySource, Option<Action>, bool)> {
            let found = HookPolicy::find(&self.paths)?;
            Some((found.source, found.compliance.action, found.problem.is_some()))
        }
    }

    const LOCKED: &str = "locked = ['compliance']\n[compliance]\naction = 'block'\n";
    const OPEN: &str = "[compliance]\naction = 'block'\n";

    #[test]
    fn source_that_proves_most_comes_first() {
        use PolicySource::*;
        let (block, warn) = (Some(Action::Block), Some(Action::Warn));
        let [body, minisig] = SIGNED;
        let world = || World::new().machine(KEYS).stored(Action::Warn, None);
        // Signed by the organisation.
        assert_eq!(world().managed(body, Some(minisig)).find(), Some((Managed, block, false)));
        // Unsigned, edited, or by another key.
        assert_eq!(world().managed(body, None).find(), Some((PolicyFile, warn, true)));
        let edited = body.replace("block", "warn");
        assert_eq!(world().managed(&edited, Some(minisig)).find(), Some((PolicyFile, warn, true)));
        assert_eq!(world().find(), Some((PolicyFile, warn, false)), "there is none");
        let deleted = World::new().machine(KEYS).stored(Action::Warn, Some(Digest::ZERO));
        assert_eq!(deleted.find(), Some((PolicyFile, warn, true)), "the daemon stored one");
        // Without keys a signature counts for nothing.
        let unkeyed = World::new().stored(Action::Warn, None).managed(body, Some(minisig));
        assert_eq!(unkeyed.find(), Some((PolicyFile, warn, false)));
        // The machine's file.
        let locked = World::new().machine(LOCKED);
        assert_eq!(locked.find(), Some((MachineLocked, block, false)), "no agent has run");
        let locked = locked.stored(Action::Warn, None);
        assert_eq!(locked.find(), Some((MachineLocked, block, false)));
        let open = World::new().machine(OPEN);
        assert_eq!(open.find(), Some((MachineFallback, block, true)), "no agent has run");
        let open = open.stored(Action::Warn, None);
        assert_eq!(open.find(), Some((PolicyFile, warn, false)));
        fs::write(open.state_dir.join("policy.json"), "{").unwrap();
        assert_eq!(open.find(), Some((MachineFallback, block, true)));
        fs::remove_file(open.state_dir.join("policy.json")).unwrap();
        assert_eq!(open.find(), Some((MachineFallback, block, true)));
        assert_eq!(World::new().find(), None);
        let broken = World::new().machine("[").stored(Action::Warn, None);
        assert_eq!(broken.find(), Some((PolicyFile, warn, true)));
    }

    #[cfg(unix)]
    #[test]
    fn policy_file_that_is_a_link_is_not_followed() {
        let world = World::new().machine(OPEN).stored(Action::Warn, None);
        let path = world.state_dir.join("policy.json");
        let elsewhere = world.state_dir.join("elsewhere.json");
        fs::rename(&path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        let found = world.find();
        assert_eq!(found, Some((PolicySource::MachineFallback, Some(Action::Block), true)));
    }

    #[test]
    fn config_for_others_counts_only_if_the_daemon_checked_it() {
        let body = include_str!("../../tests/support/policy/other-audience.json");
        let minisig = include_str!("../../tests/support/policy/other-audience.json.minisig");
        let world = World::new().machine(KEYS).stored(Action::Block, None);
        let world = world.managed(body, Some(minisig));
        assert_eq!(world.find(), Some((PolicySource::PolicyFile, Some(Action::Block), true)));
        let checked = Some(Digest::of(body.as_bytes()));
        let world = world.stored(Action::Block, checked);
        assert_eq!(world.find(), Some((PolicySource::Managed, Some(Action::Warn), false)));
    }
}
