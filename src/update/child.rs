//! Child processes with a deadline and bounded output.

use std::{
    io::{self, Read},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::platform::own_program;

/// Part of each output stream that is kept, in bytes.
const MAX_OUTPUT: u64 = 16 << 10;
/// Interval between two checks of a child.
const PAUSE: Duration = Duration::from_millis(10);
/// Time after the child's end in which its output is read: a process that it started may hold the pipe.
const OUTPUT_WAIT: Duration = Duration::from_secs(1);
/// Longest time that a program may be held by another one: a virus scanner, or the child of another thread,
/// which inherits a file that was just written.
const BUSY_WAIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// End of a child process.
#[derive(Debug)]
pub(crate) struct ChildEnd {
    pub(crate) status: ExitStatus,
    /// Start of the output.
    pub(crate) stdout: String,
    /// Start of the error output.
    pub(crate) stderr: String,
}

/// Reason why a child process has no end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    #[error("cannot be started")]
    NotStarted(#[source] io::Error),
    #[error("has not ended within {} s and was killed", .0.as_secs())]
    TimedOut(Duration),
}

impl ChildError {
    /// Returns true if the program is whole, as far as it is known: another program holds it.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::NotStarted(error) if own_program::is_busy(error))
    }
}

/// Runs `command` without input, and kills it after `limit`.
///
/// # Errors
/// [`ChildError`].
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<ChildEnd, ChildError> {
    let mut begun = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = loop {
        match command.spawn() {
            Err(error)
                if own_program::is_busy(&error) && begun.elapsed() < BUSY_WAIT.min(limit) =>
            {
                thread::sleep(PAUSE);
            }
            started => break started.map_err(ChildError::NotStarted)?,
        }
    };
    begun = Instant::now();
    let (stdout, stderr) = (capture(child.stdout.take()), capture(child.stderr.take()));
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if begun.elapsed() < limit => thread::sleep(PAUSE),
            _ => {
                drop(child.kill());
                drop(child.wait());
                return Err(ChildError::TimedOut(limit));
            }
        }
    };
    let text = |pipe: mpsc::Receiver<Vec<u8>>| {
        let bytes = pipe.recv_timeout(OUTPUT_WAIT).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(ChildEnd { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Reads a pipe to its end on a thread of its own, and sends its start.
fn capture(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut kept = Vec::new();
        drop(pipe.by_ref().take(MAX_OUTPUT).read_to_end(&mut kept));
        // A full pipe would stop the child.
        drop(io::copy(&mut pipe, &mut io::sink()));
        drop(sender.send(kept));
    });
    receiver
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<ChildEnd, ChildError> {
        run(Command::new("/bin/sh").args(["-c", script]), limit)
    }

    #[test]
    fn output_of_a_child_is_bounded_and_never_blocks_it() {
        let minute = Duration::from_secs(60);
        let end = shell("echo a; echo b >&2; exit 3", minute).unwrap();
        assert_eq!((end.status.code(), &*end.stdout, &*end.stderr), (Some(3), "a\n", "b\n"));
        let end = shell("head -c 1000000 /dev/zero", minute).unwrap();
        assert!(end.status.success());
        assert_eq!(end.stdout.len() as u64, MAX_OUTPUT);
    }

    #[test]
    fn child_that_hangs_is_killed() {
        let end = shell("exec tail -f /dev/null", Duration::from_millis(50));
        assert!(matches!(end, Err(ChildError::TimedOut(_))), "{end:?}");
        let none = run(&mut Command::new("/none/such"), Duration::from_secs(60));
        assert!(matches!(&none, Err(error) if !error.is_busy()), "{none:?}");
    }

    #[test]
    fn program_that_is_held_is_waited_for() {
        use std::{fs, os::unix::fs::OpenOptionsExt as _};

        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::copy("/bin/sh", &program).unwrap();
        let held = fs::OpenOptions::new().append(true).mode(0o700).open(&program).unwrap();
        let start = |limit| run(Command::new(&program).args(["-c", "exit 3"]), limit);
        let busy = start(Duration::from_millis(30));
        assert!(matches!(&busy, Err(error) if error.is_busy()), "{busy:?}");
        thread::scope(|scope| {
            let started = scope.spawn(|| start(Duration::from_secs(60)));
            drop(held);
            assert_eq!(started.join().unwrap().unwrap().status.code(), Some(3));
        });
    }
}

#[cfg(windows)]
#[cfg(test)]
mod windows_tests {
    use std::{fs, os::windows::fs::OpenOptionsExt as _};

    use super::*;

    /// Virus scanners read a program that was just written.
    #[test]
    fn program_that_is_held_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program.exe");
        let system = std::env::var("SystemRoot").unwrap();
        fs::copy(format!(r"{system}\System32\cmd.exe"), &program).unwrap();
        let held = fs::OpenOptions::new().read(true).share_mode(0).open(&program).unwrap();
        let start = |limit| run(Command::new(&program).args(["/C", "exit 3"]), limit);
        let busy = start(Duration::from_millis(30));
        assert!(matches!(&busy, Err(error) if error.is_busy()), "{busy:?}");
        thread::scope(|scope| {
            let started = scope.spawn(|| start(Duration::from_secs(60)));
            drop(held);
            assert_eq!(started.join().unwrap().unwrap().status.code(), Some(3));
        });
    }
}
