//! What the system gives the agent: files, room, watches, open files.

use std::{fs, io, path::Path};

use super::{Finding, Patient};
use crate::{
    pipeline::assembly,
    platform::{self, file, secure_file, watch},
    text::counted,
    units::Size,
};

/// So many open files are enough for the agent beside those of its sources.
const FILES: u64 = 256;

pub(super) fn look(patient: &Patient) -> Vec<Finding> {
    let settings = &patient.loaded.settings;
    let state_dir = &settings.agent.state_dir;
    let mut findings = vec![state_directory(state_dir)];
    findings.push(space(platform::free_space(existing(state_dir)), settings.outbox.max_bytes));
    let mut directories = 0;
    // A source that cannot be built is reported with the configuration.
    let roots = assembly::session_roots(&patient.loaded, &patient.context).unwrap_or_default();
    for root in &roots {
        let seen = Seen::of(root);
        directories += seen.directories;
        findings.extend(sessions(root, &seen));
    }
    if findings.iter().all(|finding| finding.about != "sessions") {
        let first = roots.first().map(|root| root.display().to_string()).unwrap_or_default();
        let says = format!("there are none yet: Claude Code writes them below `{first}`");
        findings.push(Finding::note("sessions", says));
    }
    findings.extend(watch::limit().map(|limit| watches(directories, limit)));
    findings.extend(file::open_limit().map(open_files));
    findings
}

fn state_directory(dir: &Path) -> Finding {
    const ABOUT: &str = "state";

    let shown = dir.display();
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Finding::wrong(
            ABOUT,
            format!(
                "`{shown}` is no directory: move it away, or name another with `state_dir` under [agent]"
            ),
        ),
        Ok(_) if !secure_file::is_trusted_dir(dir) => Finding::wrong(
            ABOUT,
            format!("`{shown}` belongs to another user: each user's agent needs one of its own"),
        ),
        Ok(_) => match tempfile_in(dir) {
            Ok(()) => Finding::well(ABOUT, format!("`{shown}` can be written")),
            Err(error) => Finding::wrong(
                ABOUT,
                format!(
                    "`{shown}` cannot be written: {error}; mend that, or name another with `state_dir` under [agent]"
                ),
            ),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::note(ABOUT, format!("`{shown}` does not exist: the agent has never run"))
        }
        Err(error) => Finding::wrong(ABOUT, format!("`{shown}` cannot be looked at: {error}")),
    }
}

/// Writes a file, and deletes it.
fn tempfile_in(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!("doctor.{}", std::process::id()));
    secure_file::replace(&path, b"written by ai-agent doctor\n")?;
    fs::remove_file(path)
}

/// The nearest directory that is there.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(dir)
}

fn space(free: Option<u64>, room: u64) -> Finding {
    const ABOUT: &str = "disk";

    let Some(free) = free else {
        return Finding::note(ABOUT, "the system does not say how much is free");
    };
    let (shown, wanted) = (Size(free), Size(room));
    if free < room / 10 {
        Finding::wrong(
            ABOUT,
            format!(
                "{shown} are free, and the outbox may take {wanted}: make room, or lower `outbox.max_bytes`"
            ),
        )
    } else if free < room {
        Finding::note(
            ABOUT,
            format!("{shown} are free, less than the {wanted} that the outbox may take"),
        )
    } else {
        Finding::well(ABOUT, format!("{shown} are free, the outbox may take {wanted}"))
    }
}

/// What lies below a directory of sessions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    is_there: bool,
    directories: u64,
    files: u64,
    /// What could not be read, the first of them, and why.
    closed: Option<(String, String)>,
}

impl Seen {
    fn of(root: &Path) -> Self {
        let mut seen = Self::default();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    seen.closed.get_or_insert((folder.display().to_string(), error.to_string()));
                    continue;
                }
            };
            seen.is_there = true;
            seen.directories += 1;
            for entry in entries.flatten() {
                let path = entry.path();
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ending| ending == "jsonl") {
                    seen.files += 1;
                    if let Err(error) = file::open_regular(&path) {
                        seen.closed.get_or_insert((path.display().to_string(), error.to_string()));
                    }
                }
            }
        }
        seen
    }
}

fn sessions(root: &Path, seen: &Seen) -> Option<Finding> {
    let shown = root.display();
    match &seen.closed {
        Some((path, why)) => Some(Finding::wrong(
            "sessions",
            format!("`{path}` cannot be read: {why}; it has to be readable for the agent's user"),
        )),
        None if seen.is_there => Some(Finding::well(
            "sessions",
            format!("{} below `{shown}`", counted(seen.files, "file", "files")),
        )),
        None => None,
    }
}

fn watches(directories: u64, limit: u64) -> Finding {
    if directories < limit / 2 {
        Finding::well("watches", format!("{directories} directories, {limit} may be watched"))
    } else {
        Finding::note(
            "watches",
            format!(
                "{directories} directories, and only {limit} may be watched by all programs of this user: \
                 what is not watched is found by looking, seconds later; raise it with `sysctl \
                 fs.inotify.max_user_watches`"
            ),
        )
    }
}

fn open_files(limit: u64) -> Finding {
    if limit < FILES {
        Finding::note(
            "open files",
            format!(
                "{limit} may be open: the agent makes do with few, and is slower; raise it with `ulimit -n`"
            ),
        )
    } else {
        Finding::well("open files", format!("{limit} may be open"))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn little_room_is_said_before_it_is_none() {
        let state = |free| space(free, 1000).state;
        assert_eq!(state(Some(1000)), State::Well);
        assert_eq!(state(Some(999)), State::Note);
        assert_eq!(state(Some(99)), State::Wrong);
        assert_eq!(state(None), State::Note);
    }

    #[test]
    fn limits_are_noted_where_they_are_met_soon() {
        assert_eq!(watches(10, 8192).state, State::Well);
        assert_eq!(watches(5000, 8192).state, State::Note);
        assert_eq!(open_files(1024).state, State::Well);
        assert_eq!(open_files(64).state, State::Note);
    }

    #[test]
    fn a_state_directory_is_tried_out_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(state_directory(dir.path()).state, State::Well);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(state_directory(&dir.path().join("none")).state, State::Note);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(state_directory(&file).state, State::Wrong);
    }

    #[test]
    fn sessions_are_counted_and_those_that_cannot_be_read_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(sessions(dir.path(), &Seen::of(&dir.path().join("none"))), None);
        fs::create_dir(dir.path().join("p")).unwrap();
        fs::write(dir.path().join("p/s.jsonl"), "{}\n").unwrap();
        let seen = Seen::of(dir.path());
        assert_eq!((seen.directories, seen.files), (2, 1));
        assert_eq!(sessions(dir.path(), &seen).unwrap().state, State::Well);
        let closed = Some(("/x".to_owned(), "no".to_owned()));
        let finding = sessions(dir.path(), &Seen { closed, ..seen }).unwrap();
        assert_eq!(finding.state, State::Wrong);
        assert!(finding.says.starts_with("`/x` cannot be read: no"));
    }
}
