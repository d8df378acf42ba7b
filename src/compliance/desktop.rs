//! SignedInAccount is signed in to Claude Desktop, as far as its folder says.
//!
//! It names the account by its id, and no e-mail address. The organisation is known by the paths of
//! its sessions: `claude-code-sessions/<account>/<organisation>/`; in `local-agent-mode-sessions` the
//! two have been seen in either order, so the account's id says which is which.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::Value;
use siem_protocol::names::source;

use super::account::{Account, SignInState, SignedInAccount, text};
use crate::platform::{Paths, file};

/// A longer file is none of its own.
const MOST: u64 = 4 << 20;
/// So many folders are looked at: one for each account, and in it one for each organisation.
const MOST_FOLDERS: usize = 1000;
/// The file that names the account.
pub const FILE: &str = "config.json";
/// How the package of one that came from the Store is named, before the name of who signed it.
const PACKAGE: &str = "Claude_";

/// The folders in which a Claude Desktop may keep its files.
#[must_use]
pub fn folders(paths: &Paths) -> Vec<PathBuf> {
    let mut folders = vec![paths.claude_desktop.clone()];
    let packages = paths.store_packages.iter().flat_map(|packages| inside(packages));
    let packages = packages.map(|(_, package)| package);
    let packages = packages.filter(|it| name(it).is_some_and(|name| name.starts_with(PACKAGE)));
    folders.extend(packages.map(|it| it.join("LocalCache").join("Roaming").join("Claude")));
    folders.sort();
    folders
}

impl Account {
    /// SignedInAccount is signed in to the Claude Desktop that keeps its files in `folder`; `None` where none is
    /// installed.
    #[must_use]
    pub fn of_claude_desktop(folder: &Path) -> Option<Self> {
        let place = folder.join(FILE);
        let standing = match read(&place) {
            Ok(Some(account)) => {
                let organization = organization_of(folder, &account);
                SignInState::SignedIn(SignedInAccount {
                    email: None,
                    organization,
                    account: Some(account),
                })
            }
            Ok(None) => SignInState::Unknown(format!("`{}` names no account", place.display())),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                // A folder without its file is one that is left over.
                return None;
            }
            Err(why) => {
                SignInState::Unknown(format!("`{}` cannot be read: {why}", place.display()))
            }
        };
        Some(Self { source: source::CLAUDE_DESKTOP, place, standing })
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let Some((file, _)) = file::open_regular(path)? else {
        return Err(io::Error::other("it is no file"));
    };
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    let known: Value = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    Ok(text(&known["lastKnownAccountUuid"]))
}

/// The organisation that `account` had a session for last.
fn organization_of(folder: &Path, account: &str) -> Option<String> {
    let of_code = folder.join("claude-code-sessions").join(account);
    let mut found = inside(&of_code);
    for (time, outer) in inside(&folder.join("local-agent-mode-sessions")) {
        let within = inside(&outer);
        if name(&outer).is_some_and(|name| name.eq_ignore_ascii_case(account)) {
            found.extend(within);
        } else if within
            .iter()
            .any(|(_, inner)| name(inner).is_some_and(|name| name.eq_ignore_ascii_case(account)))
        {
            found.push((time, outer));
        }
    }
    let ids = found.iter().filter(|(_, path)| name(path).is_some_and(is_id));
    let (_, last) = ids.max_by_key(|(time, _)| *time)?;
    name(last).map(str::to_owned)
}

/// The folders in `folder`, with the time that each was changed.
fn inside(folder: &Path) -> Vec<(SystemTime, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let folders = entries.flatten().filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_dir)?;
        Some((metadata.modified().ok()?, entry.path()))
    });
    folders.take(MOST_FOLDERS).collect()
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Whether it is a UUID, as accounts and organisations are named.
fn is_id(name: &str) -> bool {
    uuid::Uuid::try_parse(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Os;

    const ACCOUNT: &str = "0a0a0a0a-0000-4000-8000-000000000001";
    const OTHER: &str = "0b0b0b0b-0000-4000-8000-000000000002";
    const ORG: &str = "0c0c0c0c-0000-4000-8000-000000000003";
    const OLD_ORG: &str = "0d0d0d0d-0000-4000-8000-000000000004";

    fn folder(config: &str, sessions: &[&[&str]]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), config).unwrap();
        for path in sessions {
            fs::create_dir_all(folder.path().join(path.iter().collect::<PathBuf>())).unwrap();
        }
        folder
    }

    fn signed_in(organization: Option<&str>) -> SignInState {
        SignInState::SignedIn(SignedInAccount {
            email: None,
            organization: organization.map(str::to_owned),
            account: Some(ACCOUNT.into()),
        })
    }

    #[test]
    fn the_organisation_is_that_of_the_accounts_sessions_in_either_order() {
        let config = format!(r#"{{"lastKnownAccountUuid":"{ACCOUNT}","oauth:tokenCache":"x"}}"#);
        let (code, cowork) = ("claude-code-sessions", "local-agent-mode-sessions");
        let table: [(&[&[&str]], Option<&str>); 6] = [
            (&[], None),
            (&[&[code, ACCOUNT, ORG]], Some(ORG)),
            // Somebody else was signed in before.
            (&[&[code, OTHER, OLD_ORG], &[code, ACCOUNT, ORG]], Some(ORG)),
            (&[&[code, OTHER, OLD_ORG]], None),
            (&[&[cowork, ACCOUNT, ORG]], Some(ORG)),
            (&[&[cowork, ORG, ACCOUNT], &[cowork, OLD_ORG, OTHER]], Some(ORG)),
        ];
        for (sessions, organization) in table {
            let folder = folder(&config, sessions);
            let account = Account::of_claude_desktop(folder.path()).unwrap();
            assert_eq!(account.standing, signed_in(organization), "{sessions:?}");
            assert_eq!(account.source, "claude-desktop");
        }
        let odd = folder(&config, &[&[code, ACCOUNT, "no-id"]]);
        assert_eq!(Account::of_claude_desktop(odd.path()).unwrap().standing, signed_in(None));
    }

    /// Where a directory can be opened to set its time.
    #[cfg(unix)]
    #[test]
    fn the_organisation_of_the_last_session_counts() {
        let config = format!(r#"{{"lastKnownAccountUuid":"{ACCOUNT}"}}"#);
        let sessions = |organization| ["claude-code-sessions", ACCOUNT, organization];
        let folder = folder(&config, &[&sessions(ORG), &sessions(OLD_ORG)]);
        let old = folder.path().join(sessions(OLD_ORG).iter().collect::<PathBuf>());
        let past = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
        fs::File::open(old).unwrap().set_modified(past).unwrap();
        assert_eq!(
            Account::of_claude_desktop(folder.path()).unwrap().standing,
            signed_in(Some(ORG))
        );
    }

    #[test]
    fn one_from_the_store_keeps_its_files_in_its_package() {
        let home = tempfile::tempdir().unwrap();
        let local = home.path().join("AppData").join("Local");
        let variables =
            [("HOME", home.path().as_os_str()), ("USERPROFILE", home.path().as_os_str())];
        let mut paths = Paths::on(Os::CURRENT, &variables.into_iter().collect()).unwrap();
        paths.store_packages = Some(local.join("Packages"));
        assert_eq!(folders(&paths), [paths.claude_desktop.clone()]);

        for package in ["Claude_pzs8sxrjxfjjc", "Claudette_1", "Other_2"] {
            fs::create_dir_all(local.join("Packages").join(package)).unwrap();
        }
        let its = local.join("Packages").join("Claude_pzs8sxrjxfjjc");
        let mut expected =
            [paths.claude_desktop.clone(), its.join("LocalCache").join("Roaming").join("Claude")];
        expected.sort();
        assert_eq!(folders(&paths), expected);
    }

    #[test]
    fn what_makes_no_sense_is_not_known() {
        for config in
            ["", "{", "[]", "{}", r#"{"lastKnownAccountUuid":7}"#, r#"{"lastKnownAccountUuid":""}"#]
        {
            let folder = folder(config, &[]);
            let account = Account::of_claude_desktop(folder.path()).unwrap();
            assert!(matches!(account.standing, SignInState::Unknown(_)), "{config}");
        }
        assert_eq!(Account::of_claude_desktop(Path::new("/nowhere")), None);
    }
}
