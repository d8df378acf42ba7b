//! The environment, as a value.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::Path,
};

use super::Os;

/// Environment variables: the process's own, or those that a test makes up.
///
/// `Debug` prints names only, because values may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The variables of this process, as they are now.
    #[must_use]
    pub fn from_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// The value of `name`. An empty value counts as not given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The same with a home directory.
    #[must_use]
    pub fn with_home(mut self, home: &Path) -> Self {
        self.0.insert(Os::CURRENT.home_variable().into(), home.into());
        self
    }

    /// The names of all variables that are given, in order. Names that are no UTF-8 are left out.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let given = self.0.iter().filter(|(_, value)| !value.is_empty());
        given.filter_map(|(name, _)| name.to_str())
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_value_counts_as_not_given() {
        let environment = Environment::from_iter([("A", ""), ("B", "b")]);
        assert_eq!(environment.get("A"), None);
        assert_eq!(environment.get("B"), Some(OsStr::new("b")));
        assert_eq!(environment.names().collect::<Vec<_>>(), ["B"]);
    }

    #[test]
    fn prints_no_value() {
        let environment = Environment::from_iter([("CLAUDE_SIEM_TOKEN", "s3cr3t")]);
        assert_eq!(format!("{environment:?}"), r#"{"CLAUDE_SIEM_TOKEN"}"#);
    }
}
