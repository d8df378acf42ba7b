//! Groups of the user, by name.

/// Returns the names of the groups that this process is in, as the system resolves them, directory
/// services included. Groups without a name are left out; on Windows there are none.
///
/// Runs a program of the system, so it is not for hooks that follow the usual path.
#[must_use]
pub fn user_groups() -> Vec<String> {
    system::names()
}

#[cfg(unix)]
mod system {
    use std::{
        fs,
        process::{Command, Stdio},
    };

    use rustix::process::{getegid, getgroups};

    pub(super) fn names() -> Vec<String> {
        let supplementary = getgroups().unwrap_or_default();
        let mut ids: Vec<u32> = supplementary.iter().map(|group| group.as_raw()).collect();
        ids.push(getegid().as_raw());
        let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
        // `getent` asks directory services too, which a program without the C library of the system
        // cannot do itself. macOS does not have it.
        let found = output("getent", &[&["group".to_owned()], &*ids].concat());
        if let Some(lines) = found {
            return named(&lines, &ids);
        }
        if let Some(names) = output("id", &["-Gn".to_owned()]) {
            return names.split_whitespace().map(str::to_owned).collect();
        }
        named(&fs::read_to_string("/etc/group").unwrap_or_default(), &ids)
    }

    fn output(program: &str, arguments: &[String]) -> Option<String> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
        let output = command.output().ok()?;
        // `getent` exits with 2 when one of the ids has no name.
        let is_done = output.status.success() || output.status.code() == Some(2);
        is_done.then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns the names in lines such as `name:x:1000:members` whose id is one of `ids`.
    fn named(lines: &str, ids: &[String]) -> Vec<String> {
        let name = |line: &str| {
            let mut parts = line.split(':');
            let (name, id) = (parts.next()?, parts.nth(1)?);
            ids.iter().any(|known| known == id).then(|| name.to_owned())
        };
        let mut names: Vec<String> = lines.lines().filter_map(name).collect();
        names.sort();
        names.dedup();
        names
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn groups_are_named_by_their_ids() {
            let lines = "root:x:0:\nstaff:x:50:ann,bob\ndomain users:*:1000:\nodd\nx:y\n";
            let ids = ["50".to_owned(), "1000".to_owned(), "7".to_owned()];
            assert_eq!(named(lines, &ids), ["domain users", "staff"]);
        }

        #[test]
        fn process_is_in_the_groups_that_the_system_names() {
            let names = names();
            let listed = output("id", &["-Gn".to_owned()]).unwrap();
            for name in listed.split_whitespace().filter(|name| name.parse::<u32>().is_err()) {
                assert!(names.iter().any(|known| known.contains(name)), "{name}: {names:?}");
            }
        }
    }
}

#[cfg(not(unix))]
mod system {
    pub(super) fn names() -> Vec<String> {
        Vec::new()
    }
}
