//! Groups of the user, by name.

use std::{io, path::Path};

use super::call_scope::in_scope;

/// Returns the names of the groups that this process is in, as the system resolves them, directory
/// services included. Groups without a name are left out; on Windows there are none.
///
/// Runs a program of the system, so it is not for hooks that follow the usual path.
///
/// # Errors
/// The directory service does not answer within seconds, or names of groups are ambiguous.
pub fn user_groups() -> io::Result<Vec<String>> {
    in_scope(Path::new(system::PROGRAM), system::names)
}

#[cfg(unix)]
mod system {
    use std::{
        fs,
        io::{self, Read as _},
        process::{Child, Command, Stdio},
        sync::mpsc,
        thread,
        time::{Duration, Instant},
    };

    use rustix::process::{getegid, getgroups};

    /// Program that asks directory services too, which a program without the C library of the system
    /// cannot do itself. macOS does not have it.
    pub(super) const PROGRAM: &str = "getent";

    /// Time within which a program must end. A directory service that cannot be reached lets it wait
    /// for minutes.
    const LIMIT: Duration = Duration::from_secs(4);

    pub(super) fn names() -> io::Result<Vec<String>> {
        let supplementary = getgroups().unwrap_or_default();
        let mut ids: Vec<u32> = supplementary.iter().map(|group| group.as_raw()).collect();
        ids.push(getegid().as_raw());
        let ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
        let mut getent = Command::new(PROGRAM);
        getent.arg("group").args(&ids);
        if let Some(lines) = output(getent, LIMIT)? {
            return Ok(named(&lines, &ids));
        }
        let begun = Instant::now();
        let id = |option: &str| {
            let mut id = Command::new("id");
            id.arg(option);
            output(id, LIMIT.saturating_sub(begun.elapsed()))
        };
        if let Some(names) = id("-Gn")?
            && let Some(listed) = id("-G")?
        {
            return one_word_names(&names, &listed);
        }
        Ok(named(&fs::read_to_string("/etc/group").unwrap_or_default(), &ids))
    }

    /// Returns the output of a program; `None` if it cannot be started or fails.
    ///
    /// # Errors
    /// It has not ended within `limit`, and was killed.
    fn output(mut command: Command, limit: Duration) -> io::Result<Option<String>> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut child) = command.spawn() else { return Ok(None) };
        let Some(mut stdout) = child.stdout.take() else { return Ok(None) };
        let (sender, read) = mpsc::sync_channel(1);
        let reader = move || {
            let mut bytes = Vec::new();
            let is_read = stdout.read_to_end(&mut bytes).is_ok();
            // The receiver may have given up.
            drop(sender.send(is_read.then_some(bytes)));
        };
        let reader = thread::Builder::new().name("program-output".into()).spawn(reader);
        let read = reader.ok().and_then(|_| read.recv_timeout(limit).ok());
        let Some(bytes) = read else {
            drop(child.kill());
            reap(child);
            let program = command.get_program().display();
            let problem = format!("`{program}` does not answer, which asks the directory service");
            return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
        };
        let status = child.wait()?;
        // `getent` exits with 2 when one of the ids has no name.
        let is_done = status.success() || status.code() == Some(2);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(bytes.filter(|_| is_done).map(text))
    }

    /// Waits for the end of a killed process, which may be in a call that nothing interrupts.
    fn reap(mut child: Child) {
        drop(thread::Builder::new().name("program-end".into()).spawn(move || child.wait()));
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

    /// Returns the names in the output of `id -Gn` for the groups in that of `id -G`, without those of
    /// groups that have only a number.
    ///
    /// # Errors
    /// A name contains a space, so that it is not known where names end.
    fn one_word_names(names: &str, ids: &str) -> io::Result<Vec<String>> {
        let names: Vec<&str> = names.split_whitespace().collect();
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if names.len() != ids.len() {
            let problem = "`id -Gn` prints names of groups that contain spaces";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let is_name = |name: &&str| !ids.contains(name);
        Ok(names.into_iter().filter(is_name).map(str::to_owned).collect())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn names_with_spaces_are_ambiguous() {
            let names = one_word_names("staff 7 wheel\n", "50 7 0\n").unwrap();
            assert_eq!(names, ["staff", "wheel"]);
            let error = one_word_names("staff domain users\n", "50 1000\n").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }

        #[test]
        fn groups_are_named_by_their_ids() {
            let lines = "root:x:0:\nstaff:x:50:ann,bob\ndomain users:*:1000:\nodd\nx:y\n";
            let ids = ["50".to_owned(), "1000".to_owned(), "7".to_owned()];
            assert_eq!(named(lines, &ids), ["domain users", "staff"]);
        }

        #[test]
        fn process_is_in_the_groups_that_the_system_names() {
            let names = names().unwrap();
            let mut id = Command::new("id");
            id.arg("-Gn");
            let listed = output(id, LIMIT).unwrap().unwrap();
            for name in listed.split_whitespace().filter(|name| name.parse::<u32>().is_err()) {
                assert!(names.iter().any(|known| known.contains(name)), "{name}: {names:?}");
            }
        }

        /// A directory service that could not be reached stopped the loop that watches configuration.
        #[test]
        fn program_that_does_not_end_is_killed() {
            let folder = tempfile::tempdir().unwrap();
            let id = folder.path().join("id");
            let mut sleep = Command::new("sh");
            sleep.args(["-c", "echo $$ > \"$0\"; exec sleep 600"]).arg(&id);
            let begun = Instant::now();
            let error = output(sleep, Duration::from_secs(1)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let id = fs::read_to_string(id).unwrap().trim().parse().unwrap();
            let process = rustix::process::Pid::from_raw(id).unwrap();
            while rustix::process::test_kill_process(process).is_ok() {
                assert!(begun.elapsed() < Duration::from_secs(60), "it still runs");
                thread::sleep(Duration::from_millis(1));
            }
        }

        #[test]
        fn program_that_fails_has_no_output() {
            assert_eq!(output(Command::new("false"), LIMIT).unwrap(), None);
            assert_eq!(output(Command::new("/none/program"), LIMIT).unwrap(), None);
        }
    }
}

#[cfg(not(unix))]
mod system {
    pub(super) const PROGRAM: &str = "";

    pub(super) fn names() -> std::io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}
