//! Account that Claude Desktop uses, according to its directory.
//!
//! The configuration contains the account id but no e-mail address. The organisation is derived
//! from the paths of the account's sessions: `claude-code-sessions/<account>/<organisation>/`. In
//! `local-agent-mode-sessions` the two ids occur in either order, so the account id tells which is
//! which.

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

/// Maximum size of the configuration file.
const MOST: u64 = 4 << 20;
/// Maximum number of directories that are read in each directory.
const MOST_FOLDERS: usize = 1000;
/// File that contains the account id.
pub const FILE: &str = "config.json";
/// Prefix of the package name of a Claude Desktop from the Microsoft Store; the publisher's id
/// follows.
const PACKAGE: &str = "Claude_";

/// Returns the directories in which a Claude Desktop may store its files.
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
    /// Returns the account of the Claude Desktop that stores its files in `folder`; `None` if it is
    /// not installed.
    #[must_use]
    pub fn of_claude_desktop(folder: &Path) -> Option<Self> {
        let path = folder.join(FILE);
        let state = match read(&path) {
            Ok(Some(account)) => {
                let organization = organization_of(folder, &account);
                SignInState::SignedIn(SignedInAccount {
                    email: None,
                    organization,
                    account: Some(account),
                })
            }
            Ok(None) => SignInState::Unknown(format!("`{}` contains no account", path.display())),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                // A directory without the file was left behind by an uninstall.
                return None;
            }
            Err(why) => SignInState::Unknown(format!("cannot read `{}`: {why}", path.display())),
        };
        Some(Self { source: source::CLAUDE_DESKTOP, path, state })
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    let Some((file, _)) = file::open_regular(path)? else {
        return Err(io::Error::other("not a regular file"));
    };
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    let known: Value = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    Ok(text(&known["lastKnownAccountUuid"]))
}

/// Returns the organisation of the latest session of `account`.
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

/// Returns the subdirectories of `folder`, with their modification times.
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

/// Returns whether a name is a UUID, as the ids of accounts and organisations are.
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
    fn organisation_is_found_in_session_paths_in_either_order() {
        let config = format!(r#"{{"lastKnownAccountUuid":"{ACCOUNT}","oauth:tokenCache":"x"}}"#);
        let (code, cowork) = ("claude-code-sessions", "local-agent-mode-sessions");
        let table: [(&[&[&str]], Option<&str>); 6] = [
            (&[], None),
            (&[&[code, ACCOUNT, ORG]], Some(ORG)),
            // Another user was signed in before.
            (&[&[code, OTHER, OLD_ORG], &[code, ACCOUNT, ORG]], Some(ORG)),
            (&[&[code, OTHER, OLD_ORG]], None),
            (&[&[cowork, ACCOUNT, ORG]], Some(ORG)),
            (&[&[cowork, ORG, ACCOUNT], &[cowork, OLD_ORG, OTHER]], Some(ORG)),
        ];
        for (sessions, organization) in table {
            let folder = folder(&config, sessions);
            let account = Account::of_claude_desktop(folder.path()).unwrap();
            assert_eq!(account.state, signed_in(organization), "{sessions:?}");
            assert_eq!(account.source, "claude-desktop");
        }
        let odd = folder(&config, &[&[code, ACCOUNT, "no-id"]]);
        assert_eq!(Account::of_claude_desktop(odd.path()).unwrap().state, signed_in(None));
    }

    /// Only Unix can open a directory to set its time.
    #[cfg(unix)]
    #[test]
    fn organisation_of_the_latest_session_is_used() {
        let config = format!(r#"{{"lastKnownAccountUuid":"{ACCOUNT}"}}"#);
        let sessions = |organization| ["claude-code-sessions", ACCOUNT, organization];
        let folder = folder(&config, &[&sessions(ORG), &sessions(OLD_ORG)]);
        let old = folder.path().join(sessions(OLD_ORG).iter().collect::<PathBuf>());
        let past = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
        fs::File::open(old).unwrap().set_modified(past).unwrap();
        assert_eq!(Account::of_claude_desktop(folder.path()).unwrap().state, signed_in(Some(ORG)));
    }

    #[test]
    fn store_app_has_its_files_in_its_package() {
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
    fn unusable_configuration_gives_unknown_state() {
        for config in
            ["", "{", "[]", "{}", r#"{"lastKnownAccountUuid":7}"#, r#"{"lastKnownAccountUuid":""}"#]
        {
            let folder = folder(config, &[]);
            let account = Account::of_claude_desktop(folder.path()).unwrap();
            assert!(matches!(account.state, SignInState::Unknown(_)), "{config}");
        }
        assert_eq!(Account::of_claude_desktop(Path::new("/nowhere")), None);
    }
}
