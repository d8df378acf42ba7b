//! Reads the signed-in accounts, each again when its file has changed, without waiting for a file that
//! does not answer.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use super::file_watch;
use crate::{
    compliance::{Account, account_files::AccountFile, desktop},
    platform::{bounded::Latest, file::Stamp},
    stages::AgentContext,
};

/// Longest wait for a file that was read before.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest wait for a file that was never read, so that the first check knows the accounts.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// The signed-in accounts.
#[derive(Default)]
pub(super) struct AccountWatch {
    files: BTreeMap<PathBuf, WatchedAccount>,
    /// Directories in which a Claude Desktop may store its files.
    desktop: Latest<Vec<PathBuf>>,
    accounts: Vec<Account>,
    /// Uptime at which the files are read again though their stamps are the same.
    due: Duration,
}

#[derive(Default)]
struct WatchedAccount {
    reading: Latest<AccountReading>,
    /// True if the first wait for the file is over.
    was_awaited: bool,
}

/// Content of a file with an account.
#[derive(Clone)]
struct AccountReading {
    /// `None` where there is no file.
    stamp: Option<Stamp>,
    /// `None` if the program is not installed.
    account: Option<Account>,
}

impl AccountWatch {
    /// Makes the next refresh read the accounts, even if their files look the same.
    pub(super) fn read_again(&mut self) {
        self.due = Duration::ZERO;
    }

    /// Reads the accounts whose files have changed, and at each `interval` all of them.
    pub(super) fn refresh(&mut self, context: &AgentContext, interval: Duration) {
        let uptime = context.clock.uptime();
        let is_due = uptime >= self.due;
        if is_due {
            self.due = uptime + interval;
        }
        let files = self.account_files(context);
        self.files.retain(|path, _| files.iter().any(|file| file.path() == path));
        self.accounts.clear();
        for file in files {
            let watched = self.files.entry(file.path().to_owned()).or_default();
            self.accounts.extend(watched.read(&file, context, is_due));
        }
    }

    /// Accounts as last read; one that was never read is unknown.
    pub(super) fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// Returns true if there was a file at `path` when it was last read.
    pub(super) fn has_file(&self, path: &Path) -> bool {
        let reading = self.files.get(path).and_then(|watched| watched.reading.value());
        reading.is_some_and(|reading| reading.stamp.is_some())
    }

    fn account_files(&mut self, context: &AgentContext) -> Vec<AccountFile> {
        let AgentContext { paths, environment, sessions, calls, .. } = context;
        let client_dirs = sessions.client_dirs();
        let only = vec![paths.claude_desktop.clone()];
        // Without packages nothing has to be listed.
        let desktop = match &paths.store_packages {
            Some(packages) => {
                let of_call = paths.clone();
                let list = move |_: &_| desktop::folders(&of_call);
                self.desktop.refresh(calls, packages, PATIENCE, list);
                self.desktop.value().unwrap_or(&only)
            }
            None => &only,
        };
        AccountFile::all(paths, environment, &client_dirs, desktop)
    }
}

impl WatchedAccount {
    /// Returns the account in a file, read again if the file has changed or `is_due` is true.
    fn read(
        &mut self,
        file: &AccountFile,
        context: &AgentContext,
        is_due: bool,
    ) -> Option<Account> {
        let known = self.reading.value().cloned();
        let (paths, environment) = (context.paths.clone(), context.environment.clone());
        let of_call = file.clone();
        let read = move |_: &_| {
            let stamp = file_watch::stamp(of_call.path());
            match known {
                Some(known) if !is_due && known.stamp == stamp => known,
                _ => AccountReading { stamp, account: of_call.read(&paths, &environment) },
            }
        };
        let is_first = !std::mem::replace(&mut self.was_awaited, true);
        let patience = if is_first { FIRST_PATIENCE } else { PATIENCE };
        self.reading.refresh(&context.calls, file.path(), patience, read);
        match self.reading.value() {
            Some(reading) => reading.account.clone(),
            None => Some(file.unread("does not answer")),
        }
    }
}
