//! Environment variables as a value.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
};

use super::os::Os;

/// Variables that set proxies, or hosts without a proxy.
pub const PROXY_VARIABLES: [&str; 8] = [
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];

/// Variables that replace the certificates that the system trusts.
pub const CERTIFICATE_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Environment variables: those of the process, or those set by a test.
///
/// `Debug` prints names only, because values may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    given: BTreeMap<OsString, OsString>,
    /// Variables that the service was installed with, and the file that stores them.
    service: Option<(PathBuf, BTreeMap<String, OsString>)>,
    /// Variables that are set and have no effect.
    hidden: BTreeSet<&'static str>,
}

impl Environment {
    /// Returns the variables of this process.
    #[must_use]
    pub fn from_process() -> Self {
        std::env::vars_os().collect()
    }

    /// Adds the variables in `text` of `file`, one `NAME=VALUE` per line. Variables of the process
    /// take precedence. This makes commands in a shell see the same variables as the service.
    #[must_use]
    pub fn with_service_variables(mut self, file: &Path, text: &str) -> Self {
        self.service = Some((file.to_owned(), parse_service_variables(text)));
        self
    }

    /// Makes these variables appear unset.
    #[must_use]
    pub fn hide(mut self, names: &[&'static str]) -> Self {
        let set = names.iter().copied().filter(|name| self.get(name).is_some()).collect::<Vec<_>>();
        self.hidden.extend(set);
        self
    }

    /// Returns true if one of these variables is set and hidden. Libraries still see it.
    #[must_use]
    pub fn hides(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.hidden.contains(name))
    }

    /// Returns the file that sets `name`, if the process itself has no such variable.
    #[must_use]
    pub fn service_file_of(&self, name: &str) -> Option<&Path> {
        let (file, service) = self.service.as_ref()?;
        (self.process_value(name).is_none() && service.contains_key(name)).then_some(file.as_path())
    }

    /// Returns the value of `name`; an empty value counts as unset.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        if self.hidden.contains(name) {
            return None;
        }
        let service = || self.service.as_ref()?.1.get(name).map(OsString::as_os_str);
        self.process_value(name).or_else(service)
    }

    /// Returns the value that the process itself was started with.
    #[must_use]
    pub fn process_value(&self, name: &str) -> Option<&OsStr> {
        self.given.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// Sets the home directory.
    #[must_use]
    pub fn with_home(mut self, home: &Path) -> Self {
        self.given.insert(Os::CURRENT.home_variable().into(), home.into());
        self
    }

    /// Returns the names of all variables that are set, sorted. Names that are not UTF-8 are
    /// omitted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let given = self.given.iter().filter(|(_, value)| !value.is_empty());
        let given = given.filter_map(|(name, _)| name.to_str());
        let service =
            self.service.iter().flat_map(|(_, service)| service.keys().map(String::as_str));
        given.chain(service).collect::<BTreeSet<_>>().into_iter()
    }

    /// Returns the names of the variables of the process whose name or value is not UTF-8, with
    /// replacement characters.
    pub fn unreadable_names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let is_unreadable = |text: &OsString| text.to_str().is_none();
        let given = self.given.iter();
        let unreadable =
            given.filter(move |(name, value)| is_unreadable(name) || is_unreadable(value));
        unreadable.map(|(name, _)| name.to_string_lossy())
    }
}

/// Parses stored variables; other lines are ignored.
#[must_use]
pub fn parse_service_variables(text: &str) -> BTreeMap<String, OsString> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect()
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        let given = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self { given: given.collect(), ..Self::default() }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.given.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_value_counts_as_unset() {
        let environment = Environment::from_iter([("A", ""), ("B", "b")]);
        assert_eq!(environment.get("A"), None);
        assert_eq!(environment.get("B"), Some(OsStr::new("b")));
        assert_eq!(environment.names().collect::<Vec<_>>(), ["B"]);
    }

    #[test]
    fn hidden_variable_appears_unset() {
        let environment = Environment::from_iter([("HTTPS_PROXY", "http://p"), ("B", "b")]);
        assert!(!environment.hides(&PROXY_VARIABLES));
        let environment = environment.hide(&PROXY_VARIABLES);
        assert!(environment.hides(&PROXY_VARIABLES) && !environment.hides(&CERTIFICATE_VARIABLES));
        assert_eq!(environment.get("HTTPS_PROXY"), None);
        assert_eq!(environment.get("B"), Some(OsStr::new("b")));
    }

    #[test]
    fn debug_prints_no_value() {
        let environment = Environment::from_iter([("CLAUDE_SIEM_TOKEN", "s3cr3t")]);
        assert_eq!(format!("{environment:?}"), r#"{"CLAUDE_SIEM_TOKEN"}"#);
    }
}
