//! Reads the signed-in accounts, each again when its file has changed, without waiting for a file that
//! does not answer.

use std::{
    collections::BTreeMap,
    mem,
    path::{Path, PathBuf},
    time::Duration,
};

use super::file_watch::StampReader;
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
    stamps: StampReader,
    files: BTreeMap<PathBuf, WatchedAccount>,
    /// Directories in which a Claude Desktop may store its files.
    desktop: Latest<Vec<PathBuf>>,
    accounts: Vec<Account>,
    /// Uptime at which the files are read again though their stamps are the same.
    due: Duration,
}

#[derive(Default)]
struct WatchedAccount {
    /// The account with the stamp of the file before it was read; `None` for a program that is not
    /// installed.
    reading: Latest<(Option<Stamp>, Option<Account>)>,
    /// True if the first wait for the file is over.
    was_awaited: bool,
    /// True if there was a file at the last look.
    has_file: bool,
    /// True if the file must be read though its stamp is the same.
    is_due: bool,
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
        let paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
        let stamps = self.stamps.read(&context.calls, &paths);
        self.files.retain(|path, _| paths.contains(path));
        self.accounts.clear();
        for file in files {
            let watched = self.files.entry(file.path().to_owned()).or_default();
            watched.is_due |= is_due;
            let stamp = stamps.get(file.path()).copied().flatten();
            self.accounts.extend(watched.read(&file, stamp, context));
        }
    }

    /// Accounts as last read; one that was never read is unknown.
    pub(super) fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// Returns true if there was a file at `path` at the last refresh.
    pub(super) fn has_file(&self, path: &Path) -> bool {
        self.files.get(path).is_some_and(|watched| watched.has_file)
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
    /// Returns the account in a file with this stamp, read again if that has changed.
    fn read(
        &mut self,
        file: &AccountFile,
        stamp: Option<Stamp>,
        context: &AgentContext,
    ) -> Option<Account> {
        self.has_file = stamp.is_some();
        let known = self.reading.value();
        if self.is_due || known.is_none_or(|(known, _)| *known != stamp) {
            let (paths, environment) = (context.paths.clone(), context.environment.clone());
            let of_call = file.clone();
            let read = move |_: &_| (stamp, of_call.read(&paths, &environment));
            let is_first = !mem::replace(&mut self.was_awaited, true);
            let patience = if is_first { FIRST_PATIENCE } else { PATIENCE };
            let is_read = self.reading.refresh(&context.calls, file.path(), patience, read);
            self.is_due &= !is_read;
        }
        match self.reading.value() {
            Some((_, account)) => account.clone(),
            None => Some(file.unread("does not answer")),
        }
    }
}
