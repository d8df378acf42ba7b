//! A program that runs beside this one, and never longer.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{self, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::Failure;

/// How long a program may take until it says that it is ready.
const START: Duration = Duration::from_secs(30);
/// How many lines of a log are its last words.
const LAST_WORDS: usize = 12;

/// A program that was started. It is ended when this is dropped.
pub(super) struct Child {
    name: &'static str,
    process: process::Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts it, its standard error in `log`.
    pub(super) fn start(
        name: &'static str,
        mut command: Command,
        log: PathBuf,
    ) -> Result<Self, Failure> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        command.env("NO_COLOR", "1");
        // Ctrl-C is for this program, which ends the others one after the other.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let process =
            command.spawn().map_err(|error| format!("the {name} could not be started: {error}"))?;
        Ok(Self { name, process, log, ended: None })
    }

    /// Waits for its first line on standard output, and gives what stands there behind `prefix`.
    pub(super) fn first_line(&mut self, prefix: &str) -> Result<String, Failure> {
        let out = self.process.stdout.take().ok_or("standard output was read before")?;
        let (sender, receiver) = mpsc::channel();
        // Reads on after the first line, or the program would find nobody to write to.
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // Only the first one is waited for.
                sender.send(line).unwrap_or_default();
            }
        });
        match receiver.recv_timeout(START) {
            Ok(line) => match line.strip_prefix(prefix) {
                Some(rest) => Ok(rest.to_owned()),
                None => Err(format!("the {} said `{line}`", self.name).into()),
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(self.died()?),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(format!("the {} did not start{}", self.name, self.last_words()).into())
            }
        }
    }

    /// Its status, once it has ended.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Complains when it has ended.
    pub(super) fn must_run(&mut self) -> Result<(), Failure> {
        match self.ended()? {
            Some(status) => Err(self.obituary(status)),
            None => Ok(()),
        }
    }

    /// Asks it to end, and makes it when it does not.
    pub(super) fn end(&mut self, patience: Duration) -> Result<ExitStatus, Failure> {
        self.ask_to_end();
        let began = Instant::now();
        while began.elapsed() < patience {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.process.kill()?;
        self.process.wait()?;
        let name = self.name;
        Err(format!("the {name} did not end within {} s", patience.as_secs()).into())
    }

    /// What is to be said of one that ended and should not have.
    pub(super) fn obituary(&self, status: ExitStatus) -> Failure {
        format!("the {} ended with {status}{}", self.name, self.last_words()).into()
    }

    fn died(&mut self) -> Result<Failure, Failure> {
        let status = self.process.wait()?;
        self.ended = Some(status);
        Ok(self.obituary(status))
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
        if last.is_empty() { String::new() } else { format!(":\n  {}", last.join("\n  ")) }
    }

    #[cfg(unix)]
    fn ask_to_end(&self) {
        use rustix::process::{Pid, Signal, kill_process};

        // It was not waited for yet, so the number is still its own.
        if self.ended.is_none() {
            kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap_or_default();
        }
    }

    /// There it has had the Ctrl-C itself.
    #[cfg(not(unix))]
    fn ask_to_end(&self) {}
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // It may have ended just now.
            drop(self.process.kill());
            drop(self.process.wait());
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    fn child(script: &str, name: &str) -> Child {
        let log = std::env::temp_dir().join(format!("xtask-{}-{name}.log", process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Child::start("child", command, log).unwrap()
    }

    #[test]
    fn gives_the_first_line() {
        let mut child = child("echo ready at 7; echo more; exec sleep 60", "first");
        assert_eq!(child.first_line("ready at ").unwrap(), "7");
        assert!(child.must_run().is_ok());
        assert!(!child.end(Duration::from_secs(5)).unwrap().success());
        fs::remove_file(&child.log).unwrap();
    }

    #[test]
    fn tells_the_last_words_of_one_that_died() {
        let mut child = child("echo error: no token >&2; exit 2", "died");
        let message = child.first_line("ready at ").unwrap_err().to_string();
        assert_eq!(message, "the child ended with exit status: 2:\n  error: no token");
        fs::remove_file(&child.log).unwrap();
    }

    #[test]
    fn ends_one_that_does_not_want_to() {
        let mut child = child("trap '' TERM; echo deaf; while :; do sleep 0.1; done", "deaf");
        child.first_line("deaf").unwrap();
        let message = child.end(Duration::from_millis(300)).unwrap_err().to_string();
        assert_eq!(message, "the child did not end within 0 s");
        assert!(child.ended().unwrap().is_some());
        fs::remove_file(&child.log).unwrap();
    }
}
