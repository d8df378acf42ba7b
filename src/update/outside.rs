//! A thread for the work of updates that the sandbox of the agent does not permit: writing beside the
//! program, and starting a new one.
//!
//! Landlock restricts the thread that asks for it and those that it starts. This thread is started before,
//! and only by an agent that has such work.

use std::{
    io,
    sync::{
        OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
};

type Job = Box<dyn FnOnce() + Send>;

static JOBS: OnceLock<Sender<Job>> = OnceLock::new();

/// Starts the thread, unless it runs. Must be called before the process is restricted.
///
/// # Errors
/// The error of the system: no thread can be started.
pub(crate) fn start() -> io::Result<()> {
    if JOBS.get().is_some() {
        return Ok(());
    }
    let (sender, jobs) = channel::<Job>();
    thread::Builder::new()
        .name("updates".into())
        .spawn(move || jobs.iter().for_each(|job| job()))?;
    JOBS.get_or_init(|| sender);
    Ok(())
}

/// Runs `job` on the thread, or on this one if it was not started, and returns its result. Blocks.
///
/// # Errors
/// A job has panicked.
pub(crate) fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let Some(jobs) = JOBS.get() else { return Ok(job()) };
    let (sender, result) = channel();
    let failed = || io::Error::other("the thread of updates has ended");
    jobs.send(Box::new(move || drop(sender.send(job())))).map_err(|_| failed())?;
    result.recv().map_err(|_| failed())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;

    use test_requires::requires;

    use super::*;
    use crate::platform::Sandbox;

    /// Regression: a new program could not be confirmed, since its agent may not write beside it.
    #[requires(landlock)]
    #[test]
    fn job_is_not_restricted_by_the_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("record");
        start().unwrap();
        let restricted = thread::spawn(move || {
            let sandbox = Sandbox::apply(&[], &[], &[]);
            assert!(sandbox.status().unwrap().active);
            assert!(fs::write(&file, "1").is_err());
            run(move || fs::write(&file, "1")).unwrap().unwrap();
        });
        restricted.join().unwrap();
        assert_eq!(fs::read(dir.path().join("record")).unwrap(), b"1");
    }
}
