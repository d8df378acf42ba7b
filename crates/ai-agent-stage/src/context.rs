//! Services of the agent that are available to a stage while it is built.

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::Arc,
};

use siem_protocol::Identity;

use crate::{BuildError, Clock, Source, Waker};

/// Services of the agent for a stage. The agent creates one for the stages it builds; tests use
/// [`testing::context`](crate::testing::context).
#[derive(Clone)]
pub struct Context(Arc<ContextParts>);

/// Services that a [`Context`] is made from, by the program that builds stages.
///
/// Exhaustive on purpose: such a program must decide about every service. A test replaces single
/// ones: `ContextParts { is_once: true, ..testing::context() }`.
#[derive(Clone)]
pub struct ContextParts {
    /// Identity of the agent: machine, user, operating system.
    pub identity: Identity,
    /// Home directory of the user.
    pub home: PathBuf,
    /// Clock of the agent.
    pub clock: Arc<dyn Clock>,
    /// True if everything is read once.
    pub is_once: bool,
    /// Opener that [`Context::follow_log`] uses; `None` if the program cannot follow files.
    pub log_opener: Option<Arc<dyn LogOpener>>,
    /// Value that [`Context::host`] returns.
    pub host: Option<Arc<dyn Any + Send + Sync>>,
}

/// Opens followers of log files for [`Context::follow_log`].
pub trait LogOpener: Send + Sync {
    /// Opens a follower of the log file at `path`, which hands over lines of at most
    /// `max_line_bytes` bytes in one piece.
    fn open(&self, path: &Path, max_line_bytes: u64, waker: Waker) -> Box<dyn Source>;
}

impl From<ContextParts> for Context {
    fn from(parts: ContextParts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Context {
    /// Identity of the agent: machine, user, operating system.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// `path` with a leading `~` replaced by the home directory.
    #[must_use]
    pub fn expand(&self, path: &Path) -> PathBuf {
        match path.strip_prefix("~") {
            Ok(rest) if rest.as_os_str().is_empty() => self.0.home.clone(),
            Ok(rest) => self.0.home.join(rest),
            Err(_) => path.to_owned(),
        }
    }

    /// Clock of the agent.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// Returns true if everything is read once, so that no source needs to watch for changes.
    #[must_use]
    pub fn is_once(&self) -> bool {
        self.0.is_once
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
        let Some(opener) = &self.0.log_opener else {
            return Err(BuildError::Unavailable { service: "a follower of log files" });
        };
        Ok(opener.open(path, max_line_bytes, waker))
    }

    /// Services of the program that runs the pipeline, if they are a `T`. The agent's built-in
    /// stages use this; it is not a stable interface.
    #[must_use]
    pub fn host<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.host.as_deref()?.downcast_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn expand_replaces_only_a_leading_tilde() {
        let context = Context::from(ContextParts { home: "/home/u".into(), ..testing::context() });
        assert_eq!(context.expand(Path::new("~/x")), Path::new("/home/u/x"));
        assert_eq!(context.expand(Path::new("~")), Path::new("/home/u"));
        assert_eq!(context.expand(Path::new("/x/~")), Path::new("/x/~"));
        assert_eq!(context.expand(Path::new("~x")), Path::new("~x"));
    }

    #[test]
    fn host_returns_only_the_type_that_was_set() {
        let host: Arc<dyn Any + Send + Sync> = Arc::new(7_u32);
        let context = Context::from(ContextParts { host: Some(host), ..testing::context() });
        assert_eq!(context.host::<u32>(), Some(&7));
        assert_eq!(context.host::<u64>(), None);
    }
}
