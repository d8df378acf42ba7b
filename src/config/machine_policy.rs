//! Policy in the machine's file, as a hook reads it: in a process of its own for each prompt, without
//! the other layers and their validation.

use std::{
    io::{self, ErrorKind},
    path::Path,
};

use serde::Deserialize;
use serde_json::{Map, Value};
use siem_protocol::{managed::Compliance, minisign::OrganisationKey};

use super::{
    error::ConfigError,
    locks::KeyPattern,
    origin::LayerOrigin,
    read_layers::{MAX_FILE_BYTES, files_of},
};
use crate::platform::{Paths, file};
use config_text::toml_text::SyntaxError;

/// Table of the policy.
const COMPLIANCE: &str = "compliance";

/// Policy in the machine's file and its `config.d`, and what they lock.
#[derive(Debug, Default)]
pub struct MachinePolicy {
    compliance: Map<String, Value>,
    locked: Vec<KeyPattern>,
    keys: Vec<OrganisationKey>,
}

/// Tables of a file that matter to a hook. Others, and values that are wrong, are the daemon's to
/// report.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Tables {
    locked: Option<Vec<String>>,
    managed: ManagedTable,
    compliance: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ManagedTable {
    keys: Option<Vec<String>>,
}

impl MachinePolicy {
    /// Reads the machine's file and its `config.d`. Without any of them, the policy is empty.
    ///
    /// # Errors
    /// [`ConfigError`] if one of them cannot be read: nothing is known of what the machine requires.
    pub fn read(paths: &Paths) -> Result<Self, ConfigError> {
        let mut policy = Self::default();
        policy.add(&paths.machine_config)?;
        for path in files_of(&paths.machine_config_dir)? {
            policy.add(&path)?;
        }
        Ok(policy)
    }

    fn add(&mut self, path: &Path) -> Result<(), ConfigError> {
        let origin = || LayerOrigin::Machine(path.to_owned());
        let read = file::read_bounded(path, MAX_FILE_BYTES);
        let read = read.and_then(|bytes| {
            String::from_utf8(bytes).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
        });
        let text = match read {
            Ok(text) => text,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(());
            }
            Err(source) => return Err(ConfigError::Read { origin: origin(), source }),
        };
        let Tables { locked, managed, compliance } = toml::from_str(&text).map_err(|error| {
            let syntax = SyntaxError::new(&text, &error);
            ConfigError::Syntax { origin: origin(), syntax }
        })?;
        self.compliance.extend(compliance);
        if let Some(locked) = locked {
            self.locked = locked.iter().map(|key| KeyPattern::new(key)).collect();
        }
        if let Some(keys) = managed.keys {
            self.keys = keys.iter().filter_map(|key| key.parse().ok()).collect();
        }
        Ok(())
    }

    /// Returns the keys of the organisation.
    #[must_use]
    pub fn keys(&self) -> &[OrganisationKey] {
        &self.keys
    }

    /// Returns whether the file has a policy.
    #[must_use]
    pub fn has_policy(&self) -> bool {
        !self.compliance.is_empty()
    }

    /// Returns whether the whole policy is locked.
    #[must_use]
    pub fn locks_policy(&self) -> bool {
        self.locked.iter().any(|pattern| pattern.is(&[COMPLIANCE.to_owned()]))
    }

    /// Returns the policy of the file alone.
    #[must_use]
    pub fn policy(&self) -> Compliance {
        from_members(self.compliance.clone())
    }

    /// Returns the policy of the file with the members of `managed` that it does not lock.
    #[must_use]
    pub fn with_managed(&self, managed: &Compliance) -> Compliance {
        let mut merged = self.compliance.clone();
        merged.extend(members(managed).into_iter().filter(|(key, _)| !self.locks(key)));
        from_members(merged)
    }

    /// Returns `stored` with the members that the file locks as the file has them.
    #[must_use]
    pub fn enforce(&self, stored: &Compliance) -> Compliance {
        if self.locked.is_empty() {
            return stored.clone();
        }
        let mut merged = members(stored);
        merged.retain(|key, _| !self.locks(key));
        let locked = self.compliance.iter().filter(|(key, _)| self.locks(key));
        merged.extend(locked.map(|(key, value)| (key.clone(), value.clone())));
        from_members(merged)
    }

    fn locks(&self, key: &str) -> bool {
        let path = [COMPLIANCE.to_owned(), key.to_owned()];
        self.locked.iter().any(|pattern| pattern.is(&path[..1]) || pattern.is(&path))
    }
}

fn members(policy: &Compliance) -> Map<String, Value> {
    match serde_json::to_value(policy) {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    }
}

/// Reads the members of a policy. One that is wrong is left out, and the others count.
fn from_members(members: Map<String, Value>) -> Compliance {
    if let Ok(policy) = serde_json::from_value(Value::Object(members.clone())) {
        return policy;
    }
    let is_right = |(key, value): &(String, Value)| {
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        serde_json::from_value::<Compliance>(Value::Object(alone)).is_ok()
    };
    let right = members.into_iter().filter(is_right).collect();
    serde_json::from_value(Value::Object(right)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use siem_protocol::managed::Action;

    use super::*;
    use crate::platform::{Environment, Os};

    fn read(files: &[(&str, &str)]) -> Result<MachinePolicy, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let variable = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
        let environment: Environment = [(variable, dir.path())].into_iter().collect();
        let mut paths = Paths::on(Os::CURRENT, &environment).unwrap();
        paths.machine_config = dir.path().join("config.toml");
        paths.machine_config_dir = dir.path().join("config.d");
        fs::create_dir(&paths.machine_config_dir).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        MachinePolicy::read(&paths)
    }

    fn managed() -> Compliance {
        Compliance {
            action: Some(Action::Warn),
            banner: Some("managed".into()),
            ..Compliance::default()
        }
    }

    #[test]
    fn later_files_override_tables_key_by_key() {
        let policy = read(&[
            ("config.toml", "[compliance]\naction = 'warn'\nbanner = 'a'\n[sink.x]\ny = 1"),
            ("config.d/10.toml", "compliance.action = 'block'\n[managed]\nkeys = ['no key']"),
            ("config.d/20.toml", "[pipeline]\nsources = []"),
        ]);
        let policy = policy.unwrap();
        assert_eq!(policy.policy().action, Some(Action::Block));
        assert_eq!(policy.policy().banner.as_deref(), Some("a"));
        assert!(policy.has_policy() && !policy.locks_policy() && policy.keys().is_empty());
        let empty = read(&[]).unwrap();
        assert_eq!((empty.policy(), empty.has_policy()), (Compliance::default(), false));
    }

    #[test]
    fn locked_members_are_those_of_the_file() {
        let file = "locked = ['compliance.action', 'compliance.require_account']\n\
                    [compliance]\naction = 'block'\nbanner = 'machine'";
        let policy = read(&[("config.toml", file)]).unwrap();
        for merged in [policy.with_managed(&managed()), policy.enforce(&managed())] {
            assert_eq!(merged.action, Some(Action::Block));
            assert_eq!(merged.banner.as_deref(), Some("managed"));
        }
        // Locked without a value: no other layer sets it.
        let stored = Compliance { require_account: Some(false), ..managed() };
        assert_eq!(policy.enforce(&stored).require_account, None);
        assert!(!policy.locks_policy());
        let whole = read(&[("config.toml", "locked = ['compliance']")]).unwrap();
        assert!(whole.locks_policy());
        assert_eq!(whole.with_managed(&managed()), Compliance::default());
    }

    #[test]
    fn wrong_value_leaves_the_others_and_wrong_syntax_is_an_error() {
        let file = "[compliance]\naction = 'shout'\nbanner = 'b'";
        let policy = read(&[("config.toml", file)]).unwrap().policy();
        assert_eq!((policy.action, policy.banner.as_deref()), (None, Some("b")));
        assert!(matches!(read(&[("config.toml", "[")]), Err(ConfigError::Syntax { .. })));
    }
}
