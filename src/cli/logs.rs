//! `ai-agent logs`.

use std::{
    io::{self, Write as _},
    path::Path,
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use clap::Args;

use super::{context::CliContext, failure::Failure, output::note};
use crate::{
    logging,
    platform::{
        LogReader,
        watch::{ChangeKind, DirectoryWatcher, WatchEvent},
    },
};

/// Interval of the checks for new lines, in case the system's notifications are incomplete.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// The same without notifications.
const CHECK_INTERVAL_WITHOUT_WATCHER: Duration = Duration::from_secs(1);

/// Print the last lines of the agent's log
///
/// The log files are `agent.log` in the directory `logs` of the state directory, and the rotated files
/// beside it. Works without a running agent.
#[derive(Args)]
pub(super) struct Arguments {
    /// Number of lines
    #[arg(short = 'n', long = "lines", value_name = "COUNT", default_value_t = 100)]
    lines: u64,
    /// Print new lines until stopped, also after the log was rotated
    #[arg(short, long)]
    follow: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let dir = logging::dir(&CliContext::new(explicit)?.state_dir()?);
        let mut reader = LogReader::new(&dir);
        if !reader.has_files() {
            let dir = dir.display();
            return Err(Failure::failed(format!(
                "there is no log in `{dir}`: the agent has not run with this configuration"
            )));
        }
        // Before the first lines are read, so that no change is missed.
        let changes = self.follow.then(|| Changes::new(&dir));
        let done = reader.read_last(self.lines, &mut print).and_then(|()| {
            note_cut(&mut reader);
            match &changes {
                Some(changes) => follow(&mut reader, changes),
                None => Ok(()),
            }
        });
        match done {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            done => done.map_err(|error| {
                Failure::failed(format!("cannot read the log in `{}`: {error}", dir.display()))
            }),
        }
    }
}

fn follow(reader: &mut LogReader, changes: &Changes) -> io::Result<()> {
    loop {
        reader.read_new(&mut print)?;
        note_cut(reader);
        changes.wait();
    }
}

fn note_cut(reader: &mut LogReader) {
    if reader.take_cut() {
        note("a log file is larger than those of the agent: only lines at its end are printed");
    }
}

fn print(piece: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(piece)?;
    stdout.flush()
}

/// Notifications about changes in a directory.
struct Changes {
    changed: Receiver<()>,
    /// `None` where the system cannot watch the directory.
    watcher: Option<DirectoryWatcher>,
}

impl Changes {
    fn new(dir: &Path) -> Self {
        // One notification is enough, however many changes there are.
        let (sender, changed) = mpsc::sync_channel(1);
        let watcher = DirectoryWatcher::new(move |event| {
            if !matches!(event, WatchEvent::Changed { kind: ChangeKind::Metadata, .. }) {
                sender.try_send(()).ok();
            }
        });
        let watches = |watcher: &DirectoryWatcher| {
            watcher.watch_roots(&[dir], |_| ()).and_then(|()| watcher.watch(dir)).is_ok()
        };
        Self { changed, watcher: watcher.ok().filter(watches) }
    }

    /// Waits for a change, or until it is time to check.
    fn wait(&self) {
        let interval = match self.watcher {
            Some(_) => CHECK_INTERVAL,
            None => CHECK_INTERVAL_WITHOUT_WATCHER,
        };
        let changed = self.changed.recv_timeout(interval);
        // Without a watcher, nothing is ever received.
        if changed == Err(mpsc::RecvTimeoutError::Disconnected) {
            std::thread::sleep(interval);
        }
    }
}
