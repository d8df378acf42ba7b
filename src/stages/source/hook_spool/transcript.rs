//! Search for the transcript of a session on the disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    platform::{
        bounded::{BoundedCalls, DoesNotAnswer},
        secure_file,
    },
    stages::{
        SessionKey, Sessions,
        session_lines::{FileEvidence, search_file},
    },
};

/// Maximum number of sessions that one read of the spool searches for.
const MAX_SEARCHES: usize = 10;
/// Maximum number of project directories that are searched.
const MAX_PROJECTS: usize = 10_000;

/// Search below the directories of sessions.
pub(super) struct TranscriptSearch<'a> {
    sessions: &'a Sessions,
    calls: &'a BoundedCalls,
    searches: usize,
}

impl<'a> TranscriptSearch<'a> {
    pub(super) fn new(sessions: &'a Sessions, calls: &'a BoundedCalls) -> Self {
        Self { sessions, calls, searches: 0 }
    }

    /// Returns true if no other session may be searched for at present: each costs a look into every
    /// project.
    pub(super) fn is_exhausted(&self) -> bool {
        self.searches >= MAX_SEARCHES
    }

    /// Searches for records of a session in the transcript that a hook named, and in files of that name
    /// or with the session's id as their name in all projects. The name is a hint: lines with another
    /// session's id do not count.
    ///
    /// # Errors
    /// The reason why the session counts as not logged.
    pub(super) fn find(
        &mut self,
        session: &SessionKey,
        transcript: &Path,
    ) -> Result<(), &'static str> {
        self.searches += 1;
        let (key, file) = (session.clone(), transcript.to_owned());
        let named = self.call(place_of(transcript), move || evidence(&key, &file));
        // A place that does not answer may have the records, so that no other reason replaces it.
        let mut why = match named {
            Ok(()) if root_of(transcript, self.calls).is_some() => return Ok(()),
            Ok(()) => "it is not below a directory of sessions",
            Err(why) => why,
        };
        let names = names(session, transcript);
        for root in self.sessions.roots() {
            let (key, names) = (session.clone(), names.clone());
            match self.call(&root.clone(), move || search_root(&root, &names, &key)) {
                Ok(()) => return Ok(()),
                Err(other) if other != ABSENT && why != DOES_NOT_ANSWER => why = other,
                Err(_) => {}
            }
        }
        Err(why)
    }

    /// Runs a search in a place that may not answer.
    fn call(
        &self,
        place: &Path,
        search: impl FnOnce() -> Result<(), &'static str> + Send + 'static,
    ) -> Result<(), &'static str> {
        match self.calls.run(place, move || Ok(search())) {
            Ok(found) => found,
            Err(error) if DoesNotAnswer::of(&error).is_some() => Err(DOES_NOT_ANSWER),
            Err(_) => Err("it cannot be read"),
        }
    }
}

/// Returns the file names that the transcript of a session may have.
fn names(session: &SessionKey, transcript: &Path) -> Vec<PathBuf> {
    let by_id = match session {
        SessionKey::Id(id) => Some(PathBuf::from(format!("{id}.jsonl"))),
        SessionKey::FileName(_) => None,
    };
    let given = transcript.file_name().map(PathBuf::from);
    // An id with a separator would lead elsewhere.
    by_id.into_iter().chain(given).filter(|name| name.components().count() == 1).collect()
}

/// Searches for files with one of these names in all projects of a root.
fn search_root(root: &Path, names: &[PathBuf], session: &SessionKey) -> Result<(), &'static str> {
    let mut why = ABSENT;
    for project in fs::read_dir(root).into_iter().flatten().flatten().take(MAX_PROJECTS) {
        for file in names.iter().map(|name| project.path().join(name)) {
            match evidence(session, &file) {
                Ok(()) => return Ok(()),
                Err(other) if other == OTHER_SESSIONS => why = other,
                Err(_) => {}
            }
        }
    }
    Err(why)
}

/// Reason why a search is incomplete: a file system does not answer.
pub(super) const DOES_NOT_ANSWER: &str = "it does not answer";
const ABSENT: &str = "it does not exist";
const OTHER_SESSIONS: &str = "its lines are those of other sessions";

/// Searches one file for records of a session. Records of old clients have no session id.
fn evidence(session: &SessionKey, file: &Path) -> Result<(), &'static str> {
    let id = match session {
        SessionKey::Id(id) => id,
        SessionKey::FileName(_) => "",
    };
    match (search_file(file, id), session) {
        (Ok(FileEvidence::Lines | FileEvidence::NoIds), _)
        | (Ok(FileEvidence::OtherSessions), SessionKey::FileName(_)) => Ok(()),
        (Ok(FileEvidence::OtherSessions), SessionKey::Id(_)) => Err(OTHER_SESSIONS),
        (Ok(FileEvidence::Empty), _) => Err("it is empty"),
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Err(ABSENT),
        (Err(_), _) => Err("it cannot be read"),
    }
}

/// Returns the root of a transcript: `<X>/projects` of `<X>/projects/<project>/<session>.jsonl`, if X
/// belongs to the user and its path contains no symbolic link.
pub(super) fn root_of(transcript: &Path, calls: &BoundedCalls) -> Option<PathBuf> {
    let is_session = transcript.extension().is_some_and(|ending| ending == "jsonl");
    let root = transcript.parent()?.parent()?;
    let above = root.parent()?.to_owned();
    let is_root = root.file_name().is_some_and(|name| name == "projects");
    let is_plain = is_session && is_root && transcript.is_absolute();
    let is_real_and_ours = move || {
        let is_real = above.canonicalize().is_ok_and(|real| real == above);
        Ok(is_real && secure_file::is_trusted_dir(&above))
    };
    let is_good = is_plain && calls.run(root, is_real_and_ours).unwrap_or(false);
    is_good.then(|| root.to_owned())
}

/// Returns the directory that does not answer if a transcript does not: that of all its sessions.
fn place_of(transcript: &Path) -> &Path {
    let projects = transcript.parent().and_then(Path::parent);
    projects.unwrap_or(transcript)
}

#[cfg(all(test, unix))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::platform::SystemClock;

    #[test]
    fn directory_that_does_not_answer_is_not_learned() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().canonicalize().unwrap().join("projects");
        fs::create_dir(&root).unwrap();
        let transcript = root.join("p/s.jsonl");
        let answering = BoundedCalls::new(Arc::new(SystemClock));
        assert_eq!(root_of(&transcript, &answering).as_ref(), Some(&root));
        let (calls, release) = BoundedCalls::with_silent(&root);
        assert_eq!(root_of(&transcript, &calls), None);
        drop(release);
    }
}
