//! Child processes that never outlive this one.

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

/// Time in which a program must report that it is ready.
const START: Duration = Duration::from_secs(30);
/// Number of log lines to show after a failure.
const LAST_WORDS: usize = 12;

/// A child process, stopped on drop.
pub(super) struct Child {
    name: &'static str,
    process: process::Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts the program, with its standard error in `log`.
    pub(super) fn start(
        name: &'static str,
        mut command: Command,
        log: PathBuf,
    ) -> Result<Self, Failure> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        command.env("NO_COLOR", "1");
        // Ctrl-C is meant for this program, which stops the children one after the other.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let process =
            command.spawn().map_err(|error| format!("cannot start the {name}: {error}"))?;
        Ok(Self { name, process, log, ended: None })
    }

    /// Waits for the first line on standard output, and returns the text after `prefix`.
    pub(super) fn first_line(&mut self, prefix: &str) -> Result<String, Failure> {
        let out = self.process.stdout.take().ok_or("standard output was read before")?;
        let (sender, receiver) = mpsc::channel();
        // Keeps reading after the first line, so that the program can keep writing.
        thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // Only the first line is awaited.
                sender.send(line).unwrap_or_default();
            }
        });
        match receiver.recv_timeout(START) {
            Ok(line) => match line.strip_prefix(prefix) {
                Some(rest) => Ok(rest.to_owned()),
                None => Err(format!("unexpected output of the {}: `{line}`", self.name).into()),
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(self.died()?),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(format!("the {} did not start{}", self.name, self.log_excerpt()).into())
            }
        }
    }

    /// Status, once the program has exited.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Returns an error if the program has exited.
    pub(super) fn must_run(&mut self) -> Result<(), Failure> {
        match self.ended()? {
            Some(status) => Err(self.obituary(status)),
            None => Ok(()),
        }
    }

    /// Stops the program, by force if it does not react.
    pub(super) fn end(&mut self, patience: Duration) -> Result<ExitStatus, Failure> {
        self.ask_to_end();
        let started = Instant::now();
        while started.elapsed() < patience {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.process.kill()?;
        self.process.wait()?;
        let name = self.name;
        Err(format!("the {name} did not exit within {} s", patience.as_secs()).into())
    }

    /// Describes an unexpected exit.
    pub(super) fn obituary(&self, status: ExitStatus) -> Failure {
        format!("the {} exited with {status}{}", self.name, self.log_excerpt()).into()
    }

    /// Describes a failure of a program that runs.
    pub(super) fn complaint(&self, what: &str) -> Failure {
        format!("the {} {what}{}", self.name, self.log_excerpt()).into()
    }

    fn died(&mut self) -> Result<Failure, Failure> {
        let status = self.process.wait()?;
        self.ended = Some(status);
        Ok(self.obituary(status))
    }

    fn log_excerpt(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
        if last.is_empty() { String::new() } else { format!(":\n  {}", last.join("\n  ")) }
    }

    #[cfg(unix)]
    fn ask_to_end(&self) {
        use rustix::process::{Pid, Signal, kill_process};

        // The process was not waited for yet, so that its id is still its own.
        if self.ended.is_none() {
            kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap_or_default();
        }
    }

    /// On this system the child received the Ctrl-C itself.
    #[cfg(not(unix))]
    fn ask_to_end(&self) {}
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // It may have exited just now.
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
    fn first_line_is_returned() {
        let mut child = child("echo ready at 7; echo more; exec sleep 60", "first");
        assert_eq!(child.first_line("ready at ").unwrap(), "7");
        assert!(child.must_run().is_ok());
        assert!(!child.end(Duration::from_secs(5)).unwrap().success());
        fs::remove_file(&child.log).unwrap();
    }

    #[test]
    fn exit_message_contains_the_end_of_the_log() {
        let mut child = child("echo error: no token >&2; exit 2", "died");
        let message = child.first_line("ready at ").unwrap_err().to_string();
        assert_eq!(message, "the child exited with exit status: 2:\n  error: no token");
        fs::remove_file(&child.log).unwrap();
    }

    #[test]
    fn child_that_ignores_signals_is_killed() {
        let mut child = child("trap '' TERM; echo deaf; while :; do sleep 0.1; done", "deaf");
        child.first_line("deaf").unwrap();
        let message = child.end(Duration::from_millis(300)).unwrap_err().to_string();
        assert_eq!(message, "the child did not exit within 0 s");
        assert!(child.ended().unwrap().is_some());
        fs::remove_file(&child.log).unwrap();
    }
}
