//! Files that hold accounts. They belong to other programs and may be anywhere: reading them may take
//! for ever, so each is a place of its own.

use std::path::{Path, PathBuf};

use siem_protocol::names::source;

use super::{
    account::{self, Account, SignInState},
    desktop,
};
use crate::platform::{
    Environment, Paths,
    bounded::{BoundedCalls, DoesNotAnswer},
};

/// A file that holds an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountFile {
    /// That of Claude Code, unless variables of the process replace the account.
    ClaudeCode(PathBuf),
    /// That of sessions of Claude Code with a directory of their own.
    OtherClaudeCode(PathBuf),
    /// That of a Claude Desktop.
    ClaudeDesktop(PathBuf),
}

impl AccountFile {
    /// Returns all files. `client_dirs` are configuration directories of Claude Code that hooks have
    /// reported, and `desktop` those in which a Claude Desktop may store its files.
    #[must_use]
    pub fn all(
        paths: &Paths,
        environment: &Environment,
        client_dirs: &[PathBuf],
        desktop: &[PathBuf],
    ) -> Vec<Self> {
        let own = account::claude_code_file(&paths.home, environment);
        let others = account::other_claude_code_files(&paths.home, environment, client_dirs);
        let others = others.into_iter().map(Self::OtherClaudeCode);
        let desktop = desktop.iter().map(|folder| Self::ClaudeDesktop(folder.join(desktop::FILE)));
        [Self::ClaudeCode(own)].into_iter().chain(others).chain(desktop).collect()
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::ClaudeCode(path) | Self::OtherClaudeCode(path) | Self::ClaudeDesktop(path) => {
                path
            }
        }
    }

    /// Reads the account; `None` if the program is not installed. May take for ever.
    #[must_use]
    pub fn read(&self, paths: &Paths, environment: &Environment) -> Option<Account> {
        match self {
            Self::ClaudeCode(_) => Some(Account::of_claude_code_with(
                &paths.home,
                environment,
                account::read_sign_in_state,
            )),
            Self::OtherClaudeCode(path) => Some(Account::of_claude_code_in(path)),
            Self::ClaudeDesktop(path) => Account::of_claude_desktop(path.parent()?),
        }
    }

    /// Returns the account in a file that was not read, for this reason.
    #[must_use]
    pub fn unread(&self, why: &str) -> Account {
        let source = match self {
            Self::ClaudeCode(_) | Self::OtherClaudeCode(_) => source::CLAUDE_CODE,
            Self::ClaudeDesktop(_) => source::CLAUDE_DESKTOP,
        };
        let path = self.path().to_owned();
        let state = SignInState::Unknown(format!("`{}` {why}", path.display()));
        Account { source, path, state }
    }
}

/// Reads all accounts; one whose file does not answer is unknown.
#[must_use]
pub fn read_accounts(
    calls: &BoundedCalls,
    paths: &Paths,
    environment: &Environment,
    client_dirs: &[PathBuf],
) -> Vec<Account> {
    let of_call = paths.clone();
    let desktop = match &paths.store_packages {
        Some(packages) => calls.run(packages, move || Ok(desktop::folders(&of_call))),
        None => Ok(desktop::folders(paths)),
    };
    let desktop = desktop.unwrap_or_else(|_| vec![paths.claude_desktop.clone()]);
    let read = |file: AccountFile| {
        let (of_call, paths, environment) = (file.clone(), paths.clone(), environment.clone());
        let read = calls.run(file.path(), move || Ok(of_call.read(&paths, &environment)));
        read.unwrap_or_else(|error| {
            let why = match DoesNotAnswer::of(&error) {
                Some(silent) => silent.to_string(),
                None => format!("cannot be read: {error}"),
            };
            Some(file.unread(&why))
        })
    };
    let files = AccountFile::all(paths, environment, client_dirs, &desktop);
    files.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Os;

    #[test]
    fn account_whose_file_does_not_answer_is_unknown() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let text = r#"{"oauthAccount":{"emailAddress":"me@company.com"}}"#;
        std::fs::write(home.join(".claude.json"), text).unwrap();
        let variable = home.to_str().unwrap();
        let environment = Environment::from_iter([("HOME", variable), ("USERPROFILE", variable)]);
        let paths = Paths::on(Os::CURRENT, &environment).unwrap();
        let (calls, release) = BoundedCalls::with_silent(&home.join(".claude.json"));
        let accounts = read_accounts(&calls, &paths, &environment, &[]);
        assert!(matches!(accounts[0].state, SignInState::Unknown(_)), "{accounts:?}");
        drop(release);
    }
}
