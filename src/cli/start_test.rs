//! `ai-agent --start-test`: the release before an update finds out why the new one has failed to start. Not
//! for people: the arguments are stable.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use super::{context::CliContext, failure::Failure};
use crate::{
    platform::{LockError, LockRole, StateLock},
    update::{
        ProgramFiles,
        guard::{START_TEST, withdraw_start},
    },
};

/// Question if this program could start in the place of another one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct StartTest {
    /// Program in place, which has failed to start.
    program: PathBuf,
    /// Process in which it has failed.
    pid: u32,
    config: Option<PathBuf>,
}

impl StartTest {
    /// Returns the test that a command line demands.
    pub(super) fn requested(arguments: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut arguments = arguments.into_iter().skip(1);
        (arguments.next()? == START_TEST).then_some(())?;
        let program = arguments.next()?.into();
        let pid = arguments.next()?.to_str()?.parse().ok()?;
        let has_config = arguments.next().is_some_and(|argument| argument == "--config");
        let config = arguments.next().filter(|_| has_config).map(PathBuf::from);
        Some(Self { program, pid, config })
    }

    /// Takes the start of the other program back if this one could not start either.
    pub(super) fn run(&self) -> ExitCode {
        match self.start() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => {
                // If this fails, the start counts.
                drop(withdraw_start(&ProgramFiles::of(&self.program)));
                ExitCode::FAILURE
            }
        }
    }

    /// Starts as an agent does, up to the store: a release that cannot open it is to blame itself.
    fn start(&self) -> Result<(), Failure> {
        let context = CliContext::new(self.config.as_deref())?;
        let startable = context.load_startable()?;
        let state_dir = &startable.loaded().settings.agent.state_dir;
        match StateLock::acquire(state_dir, LockRole::Command) {
            // The process that has failed has not ended yet.
            Err(LockError::Held { holder, .. }) if holder.pid == Some(self.pid) => Ok(()),
            locked => locked.map(drop).map_err(Failure::failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_test_is_the_first_argument() {
        let requested = |line: &str| StartTest::requested(line.split(' ').map(OsString::from));
        let test = |config: Option<&str>| {
            let config = config.map(PathBuf::from);
            Some(StartTest { program: "/b/ai-agent".into(), pid: 7, config })
        };
        assert_eq!(requested("ai-agent --start-test /b/ai-agent 7"), test(None));
        assert_eq!(requested("ai-agent --start-test /b/ai-agent 7 --config a"), test(Some("a")));
        assert_eq!(requested("ai-agent --start-test /b/ai-agent x"), None);
        assert_eq!(requested("ai-agent run --start-test /b/ai-agent 7"), None);
    }
}
