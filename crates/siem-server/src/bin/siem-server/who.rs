//! User who runs a command, for the logs of what was done.

use std::env;

/// Variables in which a program may say who called it.
const CLAIMS: [&str; 2] = ["SUDO_USER", crate::as_owner::CALLER];
/// Length of a claim that is recorded, in characters.
const MAX_CLAIM: usize = 64;

/// Returns the user of the process, as the system knows it, and what the environment claims:
/// `root(0) login=alice(1000) SUDO_USER=alice`.
///
/// `login` is the user who logged in, if the system keeps it and it is another one: no program without
/// special rights can change it.
pub(crate) fn who() -> String {
    let mut who = process_user();
    who.extend(login_user().filter(|login| !who.contains(login)).map(|it| format!("login={it}")));
    for name in CLAIMS {
        let claim = env::var(name).unwrap_or_default();
        // A claim with spaces could imitate the fields before it.
        let is_plain = |c: &char| !c.is_control() && !c.is_whitespace();
        let claim: String = claim.chars().filter(is_plain).take(MAX_CLAIM).collect();
        who.extend((!claim.is_empty()).then(|| format!("{name}={claim}")));
    }
    who.join(" ")
}

#[cfg(unix)]
fn process_user() -> Vec<String> {
    vec![user(rustix::process::getuid().as_raw())]
}

#[cfg(not(unix))]
fn process_user() -> Vec<String> {
    let name = env::var("USERNAME").unwrap_or_else(|_| "unknown".to_owned());
    vec![format!("USERNAME={name}")]
}

/// Returns the user who logged in, which Linux keeps for its audit.
fn login_user() -> Option<String> {
    let uid = std::fs::read_to_string("/proc/self/loginuid").ok()?.trim().parse().ok()?;
    (uid != u32::MAX).then(|| user(uid))
}

/// Returns name and number of a user; only the number if the user is not one of this machine.
fn user(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    match name_of(&users, uid) {
        Some(name) => format!("{name}({uid})"),
        None => format!("({uid})"),
    }
}

fn name_of(users: &str, uid: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_user_is_found_by_number() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbad\nu:x:1000:1000::/home/u:/bin/sh\n";
        assert_eq!(name_of(users, 1000), Some("u"));
        assert_eq!(name_of(users, 0), Some("root"));
        assert_eq!(name_of(users, 7), None);
    }
}
