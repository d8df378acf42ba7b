//! Access rules of a file on Windows; they are read from the system elsewhere.
//!
//! The rule equals that on Unix, where a secret has mode 0600, or 0640 if it belongs to root: a
//! file of the user is for the user only, and a file of the system may be readable by a group too.

use std::path::Path;

use super::error::SecretFileError;

pub(super) const SYSTEM: &str = "S-1-5-18";
pub(super) const ADMINISTRATORS: &str = "S-1-5-32-544";
const TRUSTED_INSTALLER: &str = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464";
const USERS: &str = "S-1-5-32-545";
const EVERYONE: &str = "S-1-1-0";
const AUTHENTICATED: &str = "S-1-5-11";
const INTERACTIVE: &str = "S-1-5-4";
const ANONYMOUS: &str = "S-1-5-7";
const GUESTS: &str = "S-1-5-32-546";
/// The owner of a file, independent of who that is.
const OWNER: &str = "S-1-3-4";

/// Last part of the ids of the guest user and the guest group, of a machine or a domain.
const OF_GUESTS: [&str; 2] = ["-501", "-514"];

const ALL: u32 = 0x1000_0000;
/// `FILE_READ_DATA`, `GENERIC_READ`, `GENERIC_ALL`.
const READ: u32 = 0x1 | 0x8000_0000 | ALL;
/// `FILE_WRITE_DATA`, `FILE_APPEND_DATA`, `DELETE`, `WRITE_DAC`, `WRITE_OWNER`, `GENERIC_WRITE`,
/// `GENERIC_ALL`: rights to change the content, replace the file, or change its access list.
const CHANGE: u32 = 0x2 | 0x4 | 0x1_0000 | 0x4_0000 | 0x8_0000 | 0x4000_0000 | ALL;

/// Owner and access list of a file.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// Id of the owner, as in `S-1-5-18`.
    pub(super) owner: String,
    /// Access list; without one every user has full access.
    pub(super) rules: Option<Vec<Rule>>,
}

/// Entry of an access list.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Id of a user or group.
    pub(super) who: String,
    /// Access mask.
    pub(super) what: u32,
    /// True if the entry allows access. Entries that deny access are ignored: refusing a file
    /// unnecessarily is easy to fix.
    pub(super) allows: bool,
    /// True if the entry applies only to the content of a directory.
    pub(super) is_inherited_only: bool,
}

impl Access {
    /// Returns whether the file belongs to the user `me` or to the system.
    pub(super) fn is_ours(&self, me: &str) -> bool {
        is_trusted(&self.owner, me)
    }

    /// Returns whether every user of the machine may read the file.
    pub(super) fn is_readable_by_all(&self) -> bool {
        let Some(rules) = &self.rules else { return true };
        rules.iter().any(|rule| {
            rule.grants(READ)
                && [EVERYONE, AUTHENTICATED, INTERACTIVE, USERS].contains(&rule.who.as_str())
        })
    }

    /// Describes who may read or change a file of `me` and should not; `None` if the file is
    /// private.
    pub(super) fn unwanted_access(&self, me: &str) -> Option<String> {
        let Some(rules) = &self.rules else {
            return Some("has no access list, so every user can read and change it".to_owned());
        };
        let found = unwanted_access(rules, me, |_| false);
        (!found.is_empty()).then(|| words(&found))
    }

    /// Checks a file with a secret, for the user `me`.
    pub(super) fn check_secret(&self, path: &Path, me: &str) -> Result<(), SecretFileError> {
        if !self.is_ours(me) {
            return Err(SecretFileError::Owner {
                path: path.to_owned(),
                owner: named(&self.owner),
                allowed_owner: "you or to the administrators",
                remedy: format!(
                    "`icacls \"{}\" /setowner \"*{me}\"`, as an administrator",
                    path.display()
                ),
            });
        }
        let is_of_system = is_trusted(&self.owner, SYSTEM);
        let refused = |open: String, found: &[(&str, &str)]| SecretFileError::Open {
            path: path.to_owned(),
            open,
            remedy: remedy(path, me, is_of_system, found),
        };
        let Some(rules) = &self.rules else {
            let open = "has no access list, so every user can read and change it (a drive with FAT \
                        has none for any file)";
            return Err(refused(open.to_owned(), &[]));
        };
        let found = unwanted_access(rules, me, |who| is_of_system && !is_anybody(who));
        if found.is_empty() { Ok(()) } else { Err(refused(words(&found), &found)) }
    }
}

impl Rule {
    fn grants(&self, what: u32) -> bool {
        self.allows && !self.is_inherited_only && self.what & what != 0
    }
}

/// Returns ids with too many rights: those that may change the file, and those that may read it
/// unless `may_read` permits that.
fn unwanted_access<'a>(
    rules: &'a [Rule],
    me: &str,
    may_read: impl Fn(&str) -> bool,
) -> Vec<(&'a str, &'static str)> {
    let mut found = Vec::new();
    for rule in rules.iter().filter(|rule| !is_trusted(&rule.who, me) && rule.who != OWNER) {
        let can = match (rule.grants(READ) && !may_read(&rule.who), rule.grants(CHANGE)) {
            (false, false) => continue,
            (true, false) => "read",
            (false, true) => "change",
            (true, true) => "read and change",
        };
        if !found.contains(&(rule.who.as_str(), can)) {
            found.push((rule.who.as_str(), can));
        }
    }
    found
}

fn words(found: &[(&str, &str)]) -> String {
    let each: Vec<_> = found.iter().map(|(who, can)| format!("{} {can} it", named(who))).collect();
    format!("lets {}", each.join(", "))
}

/// Returns whether an id has full control of the machine anyway, or is the user.
fn is_trusted(who: &str, me: &str) -> bool {
    who == me || [SYSTEM, ADMINISTRATORS, TRUSTED_INSTALLER].contains(&who)
}

/// Returns whether an id includes users without an account.
fn is_anybody(who: &str) -> bool {
    let is_guest =
        || who.starts_with("S-1-5-21-") && OF_GUESTS.iter().any(|end| who.ends_with(end));
    [EVERYONE, ANONYMOUS, GUESTS].contains(&who) || is_guest()
}

/// Formats an id, with its name if the name is the same on all machines.
fn named(who: &str) -> String {
    let name = match who {
        EVERYONE => "Everyone",
        ANONYMOUS => "Anonymous",
        AUTHENTICATED => "Authenticated Users",
        INTERACTIVE => "Interactive",
        USERS => "Users",
        GUESTS => "Guests",
        who => return who.to_owned(),
    };
    format!("{name} ({who})")
}

/// Returns the command that makes a file private. It uses ids, since names depend on the language.
pub(super) fn remedy(path: &Path, me: &str, is_of_system: bool, found: &[(&str, &str)]) -> String {
    let (who, right) = if is_of_system { (USERS, "R") } else { (me, "F") };
    let mut line = format!(
        "`icacls \"{}\" /inheritance:r /grant:r \"*{SYSTEM}:F\" \"*{ADMINISTRATORS}:F\" \
         \"*{who}:{right}\"",
        path.display()
    );
    let others = found.iter().filter(|(other, _)| *other != who);
    for (at, (other, _)) in others.enumerate() {
        line.push_str(if at == 0 { " /remove " } else { " " });
        line.push_str(&format!("\"*{other}\""));
    }
    line.push('`');
    if is_of_system {
        line.push_str(", as an administrator");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "S-1-5-21-1-2-3-1001";
    const OTHER: &str = "S-1-5-21-1-2-3-1002";
    const DOMAIN_USERS: &str = "S-1-5-21-1-2-3-513";

    const READS: u32 = 0x0012_0089;
    const RUNS: u32 = 0x0012_00A0;
    const EVERYTHING: u32 = 0x001F_01FF;

    fn rule(who: &str, what: u32) -> Rule {
        Rule { who: who.to_owned(), what, allows: true, is_inherited_only: false }
    }

    /// Access list as in a user's profile, and `more`.
    fn access(owner: &str, more: impl IntoIterator<Item = Rule>) -> Access {
        let usual = [SYSTEM, ADMINISTRATORS, ME].map(|who| rule(who, EVERYTHING));
        Access { owner: owner.to_owned(), rules: Some(usual.into_iter().chain(more).collect()) }
    }

    fn check_secret(access: &Access) -> Result<(), String> {
        access.check_secret(Path::new(r"C:\s"), ME).map_err(|error| error.to_string())
    }

    #[test]
    fn file_of_the_user_is_for_the_user_only() {
        assert_eq!(check_secret(&access(ME, [])), Ok(()));
        assert_eq!(check_secret(&access(ME, [rule(OTHER, RUNS), rule(OWNER, EVERYTHING)])), Ok(()));
        for who in [OTHER, DOMAIN_USERS, USERS, AUTHENTICATED, EVERYONE, "S-1-5-19"] {
            for what in [READS, 0x1, 0x8000_0000, ALL, EVERYTHING] {
                assert!(check_secret(&access(ME, [rule(who, what)])).is_err(), "{who} {what:x}");
            }
        }
    }

    #[test]
    fn file_of_the_system_is_readable_by_users_with_an_account() {
        for owner in [SYSTEM, ADMINISTRATORS, TRUSTED_INSTALLER] {
            for who in [OTHER, DOMAIN_USERS, USERS, AUTHENTICATED] {
                assert_eq!(check_secret(&access(owner, [rule(who, READS)])), Ok(()), "{who}");
            }
            let guests = ["S-1-5-21-1-2-3-501", "S-1-5-21-1-2-3-514"];
            for who in [EVERYONE, ANONYMOUS, GUESTS].into_iter().chain(guests) {
                assert!(check_secret(&access(owner, [rule(who, READS)])).is_err(), "{who}");
            }
        }
    }

    #[test]
    fn other_users_may_not_change_a_secret() {
        for owner in [ME, ADMINISTRATORS] {
            for what in [0x2, 0x4, 0x1_0000, 0x4_0000, 0x8_0000, 0x4000_0000, ALL] {
                assert!(check_secret(&access(owner, [rule(USERS, what)])).is_err(), "{what:x}");
            }
        }
        assert!(check_secret(&access(OTHER, [])).is_err());
    }

    #[test]
    fn file_without_access_list_is_open_to_all() {
        for owner in [ME, SYSTEM] {
            let access = Access { owner: owner.to_owned(), rules: None };
            assert!(check_secret(&access).unwrap_err().contains("has no access list"));
            assert!(access.is_readable_by_all());
            assert!(access.unwanted_access(ME).is_some());
        }
    }

    #[test]
    fn deny_and_inherit_only_entries_grant_nothing() {
        let forbids = Rule { allows: false, ..rule(EVERYONE, READS) };
        let below = Rule { is_inherited_only: true, ..rule(EVERYONE, READS) };
        let access = access(ME, [forbids, below]);
        assert_eq!(check_secret(&access), Ok(()));
        assert!(!access.is_readable_by_all());
        assert_eq!(access.unwanted_access(ME), None);
    }

    #[test]
    fn readable_by_all_and_ownership_are_detected() {
        for who in [EVERYONE, USERS, AUTHENTICATED, INTERACTIVE] {
            assert!(access(ADMINISTRATORS, [rule(who, READS)]).is_readable_by_all(), "{who}");
        }
        assert!(!access(ADMINISTRATORS, [rule(DOMAIN_USERS, READS)]).is_readable_by_all());
        assert!(!access(ADMINISTRATORS, [rule(EVERYONE, RUNS)]).is_readable_by_all());
        let is_ours = |owner| access(owner, []).is_ours(ME);
        assert!(is_ours(ME) && is_ours(SYSTEM) && is_ours(ADMINISTRATORS));
        assert!(!is_ours(OTHER) && !is_ours(USERS));
        // A directory with a secret must be private for every owner.
        let unwanted_access = access(ADMINISTRATORS, [rule(USERS, READS)]).unwanted_access(ME);
        assert_eq!(unwanted_access.as_deref(), Some("lets Users (S-1-5-32-545) read it"));
    }

    #[test]
    fn error_contains_the_command_that_fixes_it() {
        let rules = [rule(EVERYONE, EVERYTHING), rule(OTHER, 0x2), rule(OTHER, 0x2)];
        assert_eq!(
            check_secret(&access(ME, rules)).unwrap_err(),
            r#"the secret file `C:\s` lets Everyone (S-1-1-0) read and change it, S-1-5-21-1-2-3-1002 change it: fix it with `icacls "C:\s" /inheritance:r /grant:r "*S-1-5-18:F" "*S-1-5-32-544:F" "*S-1-5-21-1-2-3-1001:F" /remove "*S-1-1-0" "*S-1-5-21-1-2-3-1002"`"#
        );
        // Users who may continue to read the file keep that right.
        let rules = [rule(USERS, EVERYTHING)];
        assert_eq!(
            check_secret(&access(ADMINISTRATORS, rules)).unwrap_err(),
            r#"the secret file `C:\s` lets Users (S-1-5-32-545) change it: fix it with `icacls "C:\s" /inheritance:r /grant:r "*S-1-5-18:F" "*S-1-5-32-544:F" "*S-1-5-32-545:R"`, as an administrator"#
        );
        assert_eq!(
            check_secret(&access(OTHER, [])).unwrap_err(),
            r#"the secret file `C:\s` belongs to S-1-5-21-1-2-3-1002, who could change it: it must belong to you or to the administrators, fix it with `icacls "C:\s" /setowner "*S-1-5-21-1-2-3-1001"`, as an administrator"#
        );
    }
}
