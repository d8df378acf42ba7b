//! Services of the agent that are available to a stage while it is built.

use std::{
    any::Any,
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use siem_protocol::Identity;

use crate::{BuildError, Clock, Source, Waker};

/// Opens a follower of the log file at a path, with the maximum length of a line in bytes. See
/// [`Context::follow_log`].
pub type LogOpener = Arc<dyn Fn(&Path, u64, Waker) -> Box<dyn Source> + Send + Sync>;

/// Services of the agent for a stage. The agent creates one for the stages it builds; tests use
/// [`testing::context`](crate::testing::context).
#[derive(Clone)]
pub struct Context {
    identity: Identity,
    home: PathBuf,
    clock: Arc<dyn Clock>,
    variables: BTreeMap<OsString, OsString>,
    state_dir: Option<PathBuf>,
    is_once: bool,
    poll_interval: Duration,
    log_opener: Option<LogOpener>,
    host: Option<Arc<dyn Any + Send + Sync>>,
}

impl Context {
    /// Creates the context of a continuous run without a state directory.
    #[must_use]
    pub fn new(identity: Identity, home: impl Into<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        Self {
            identity,
            home: home.into(),
            clock,
            variables: BTreeMap::new(),
            state_dir: None,
            is_once: false,
            poll_interval: Duration::from_secs(300),
            log_opener: None,
            host: None,
        }
    }

    /// Sets the environment variables.
    #[must_use]
    pub fn with_variables(
        mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        self.variables = variables.into_iter().collect();
        self
    }

    /// Sets the directory where the agent keeps its state.
    #[must_use]
    pub fn with_state_dir(mut self, state_dir: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(state_dir.into());
        self
    }

    /// Sets whether everything is read once.
    #[must_use]
    pub fn with_once(mut self, is_once: bool) -> Self {
        self.is_once = is_once;
        self
    }

    /// Sets the longest time between two full sweeps.
    #[must_use]
    pub fn with_poll_interval(mut self, poll_interval: Duration) -> Self {
        self.poll_interval = poll_interval;
        self
    }

    /// Sets the opener that [`follow_log`](Self::follow_log) uses.
    #[must_use]
    pub fn with_log_follower(mut self, opener: LogOpener) -> Self {
        self.log_opener = Some(opener);
        self
    }

    /// Sets the value that [`host`](Self::host) returns.
    #[must_use]
    pub fn with_host<T: Any + Send + Sync>(mut self, host: T) -> Self {
        self.host = Some(Arc::new(host));
        self
    }

    /// Identity of the agent: machine, user, operating system.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Home directory of the user.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// `path` with a leading `~` replaced by the home directory.
    #[must_use]
    pub fn expand(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("~") {
            Ok(rest) if rest.as_os_str().is_empty() => self.home.clone(),
            Ok(rest) => self.home.join(rest),
            Err(_) => path.to_owned(),
        }
    }

    /// Value of an environment variable; an empty one counts as not set.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        let value = self.variables.get(OsStr::new(name)).map(OsString::as_os_str);
        value.filter(|value| !value.is_empty())
    }

    /// Clock of the agent.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Directory where the agent keeps its state; `None` in a dry run, which stores nothing.
    #[must_use]
    pub fn state_dir(&self) -> Option<&Path> {
        self.state_dir.as_deref()
    }

    /// Returns true if everything is read once, so that no source needs to watch for changes.
    #[must_use]
    pub fn is_once(&self) -> bool {
        self.is_once
    }

    /// The longest time between two full sweeps.
    #[must_use]
    pub fn poll_interval(&self) -> Duration {
        self.poll_interval
    }

    /// Follows a log file and the files that it was rotated to. The result hands over their lines; a
    /// source forwards its calls to it and can replace lines by records of its own. The rows are
    /// JSON objects, to which the source can add members.
    ///
    /// # Errors
    /// [`BuildError::Unavailable`] if the program cannot follow files.
    pub fn follow_log(
        &self,
        path: &Path,
        max_line_bytes: u64,
        waker: Waker,
    ) -> Result<Box<dyn Source>, BuildError> {
        let open = self.log_opener.as_ref();
        let open =
            open.ok_or_else(|| BuildError::Unavailable { service: "a follower of log files" })?;
        Ok(open(path, max_line_bytes, waker))
    }

    /// Services of the program that runs the pipeline, if they are a `T`. The agent's built-in
    /// stages use this; it is not a stable interface.
    #[must_use]
    pub fn host<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.host.as_deref()?.downcast_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expand_replaces_only_a_leading_tilde() {
        let context = Context { home: "/home/u".into(), ..crate::testing::context() };
        assert_eq!(context.expand(Path::new("~/x")), Path::new("/home/u/x"));
        assert_eq!(context.expand(Path::new("~")), Path::new("/home/u"));
        assert_eq!(context.expand(Path::new("/x/~")), Path::new("/x/~"));
        assert_eq!(context.expand(Path::new("~x")), Path::new("~x"));
    }

    #[test]
    fn host_returns_only_the_type_that_was_set() {
        let context = crate::testing::context().with_host(7_u32);
        assert_eq!(context.host::<u32>(), Some(&7));
        assert_eq!(context.host::<u64>(), None);
    }
}
