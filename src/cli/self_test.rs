//! `ai-agent --self-test`: a new release tests itself with the files of this machine before the running
//! release installs it. Not for people: the arguments and the last line of the output are stable.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{context::CliContext, failure::Failure, hook_answer};
use crate::{
    pipeline::outbox::Outbox,
    platform::secure_file,
    text::causes,
    update::self_test::{COPY_PREFIX, SELF_TEST, success},
    version::version,
};

/// Largest store that is copied, in bytes: a copy must not fill the disk or take long.
const MAX_STORE: u64 = 64 << 20;
/// Number of attempts to copy a store while an agent writes to it.
const COPIES: u32 = 5;

/// A self-test.
pub(super) struct SelfTest {
    config: Option<PathBuf>,
}

impl SelfTest {
    /// Returns the self-test that a command line demands.
    pub(super) fn requested(arguments: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut arguments = arguments.into_iter().skip(1);
        (arguments.next()? == SELF_TEST).then_some(())?;
        let has_config = arguments.next().is_some_and(|argument| argument == "--config");
        let config = arguments.next().filter(|_| has_config).map(PathBuf::from);
        Some(Self { config })
    }

    /// Tests this program, and prints the result.
    pub(super) fn run(&self) -> ExitCode {
        use io::Write as _;

        match self.execute() {
            Ok(()) => match writeln!(io::stdout(), "{}", success(version())) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            },
            Err(failure) => {
                drop(writeln!(io::stderr(), "{}", failure.message()));
                ExitCode::FAILURE
            }
        }
    }

    fn execute(&self) -> Result<(), Failure> {
        let context = CliContext::new(self.config.as_deref())?;
        let startable = context.load_startable()?;
        open_copy_of_store(&startable.loaded().settings.agent.state_dir)
            .map_err(Failure::failed)?;
        hook_answer::answer_every_hook();
        Ok(())
    }
}

/// Opens a copy of the store in `state_dir`, in a directory of its own there.
fn open_copy_of_store(state_dir: &Path) -> Result<(), String> {
    let store = state_dir.join("outbox.redb");
    match fs::metadata(&store) {
        Ok(found) if found.len() <= MAX_STORE => {}
        // A larger store is opened by the new program at its start.
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot inspect `{}`: {error}", store.display())),
    }
    let dir = state_dir.join("update").join(format!("{COPY_PREFIX}{}", std::process::id()));
    let opened = open_copy(&store, &dir);
    drop(fs::remove_dir_all(&dir));
    opened
}

fn open_copy(store: &Path, dir: &Path) -> Result<(), String> {
    let copy = dir.join("outbox.redb");
    for _ in 0..COPIES {
        secure_file::create_dir(dir)
            .and_then(|()| fs::copy(store, &copy))
            .map_err(|error| format!("cannot copy `{}`: {error}", store.display()))?;
        match Outbox::open_existing(&copy) {
            Ok(_) => return Ok(()),
            // An agent that writes meanwhile leaves a copy with pages of different moments.
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(causes(&error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(line: &str) -> Option<Option<PathBuf>> {
        SelfTest::requested(line.split(' ').map(OsString::from)).map(|test| test.config)
    }

    #[test]
    fn self_test_is_the_first_argument() {
        assert_eq!(requested("ai-agent --self-test"), Some(None));
        assert_eq!(requested("ai-agent --self-test --config a b"), Some(Some("a".into())));
        assert_eq!(requested("ai-agent run --self-test"), None);
        assert_eq!(requested("ai-agent"), None);
    }

    #[test]
    fn copy_of_a_store_is_opened_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        open_copy_of_store(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "there is no store");
        let store = dir.path().join("outbox.redb");
        let outbox = Outbox::open(&store, &[], || "e".into()).unwrap();
        let before = fs::read(&store).unwrap();
        // It is open in another process.
        open_copy_of_store(dir.path()).unwrap();
        drop(outbox);
        open_copy_of_store(dir.path()).unwrap();
        assert!(!before.is_empty());
        assert_eq!(fs::read_dir(dir.path().join("update")).unwrap().count(), 0);
    }
}
