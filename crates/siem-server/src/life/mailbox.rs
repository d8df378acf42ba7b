//! Requests of commands to the process that has the store open.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{Removal, RetentionPolicy, Selector, directory, replace};
use crate::{
    EpochKey,
    ledger::is_zero,
    regular_file::read_whole_file,
    store::{OpenError, create_private},
};

/// Pause between two looks at the directory.
const PAUSE: Duration = Duration::from_millis(50);

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifeRequest {
    /// Erase entries.
    Erase(Selector),
    /// Erase entries of an erased subject that arrived later. No response is written.
    EraseAgain {
        /// Id of the erasure that is repeated.
        of: String,
        /// The subject.
        selector: Selector,
        /// Only entries of this time or before.
        until: Option<SystemTime>,
        /// The epochs with such entries.
        epochs: Vec<EpochKey>,
    },
    /// Erase what arrived since of the subjects of all erasures that stay in force.
    RepeatErasures,
    /// Remove what the retention no longer keeps.
    ApplyRetention(RetentionPolicy),
}

/// Who asks, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// User of the system.
    pub who: String,
    /// The reason given.
    pub why: String,
}

/// Result of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifeResponse {
    /// Entries were erased.
    Erased {
        /// Id of the erasure.
        id: String,
        /// Number of entries.
        entries: u64,
        /// Number of epochs with such entries.
        epochs: usize,
        /// Entries of other sessions that contain the id of the erased session: they stay. The most frequent
        /// ones first, at most 100.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mentions: Vec<Mention>,
        /// Number of all such entries.
        #[serde(default, skip_serializing_if = "is_zero")]
        mentioned: u64,
    },
    /// Later entries of erased subjects were erased.
    Repeated {
        /// Ids of the erasures.
        erasures: Vec<String>,
        /// Number of entries.
        entries: u64,
        /// Number of epochs, and of files that recoveries left, with such entries that a hold covers: they stay.
        held: u64,
    },
    /// What the retention removed.
    Removals(Vec<Removal>),
    /// Nothing was done.
    Refused(String),
}

/// Entries of a machine that contain the id of an erased session, and are not of that session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mention {
    /// Id of the machine.
    pub machine: String,
    /// Id of their session, otherwise the name of their file, their event or their source.
    pub of: String,
    /// Their number.
    pub entries: u64,
}

/// Error of a request.
#[derive(Debug, thiserror::Error)]
pub enum MailboxError {
    /// A file cannot be read or written.
    #[error("cannot read or write `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The store cannot be opened, and no server has it open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The server that has the store open did not answer.
    #[error(
        "the server did not answer within {} s; the request stays in `{path}`: the server or its \
         next start executes it",
        waited.as_secs()
    )]
    Timeout {
        /// The request.
        path: PathBuf,
        /// Time waited.
        waited: Duration,
    },
}

/// Content of a request's file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Letter {
    pub(super) request: LifeRequest,
    pub(super) reason: Reason,
}

fn requests(data: &Path) -> PathBuf {
    directory(data).join("requests")
}

fn response_path(data: &Path, id: &str) -> PathBuf {
    directory(data).join("responses").join(format!("{id}.json"))
}

fn request_path(data: &Path, id: &str) -> PathBuf {
    requests(data).join(format!("{id}.json"))
}

/// Puts the request `id` into the data directory `data`, and waits for the response. `open` is called
/// in between: if it opens the store, that executes the request.
///
/// # Errors
/// [`MailboxError`]; only after a timeout the request may still be executed.
pub fn execute<T>(
    data: &Path,
    id: &str,
    request: LifeRequest,
    reason: Reason,
    limit: Duration,
    open: impl FnOnce() -> Result<T, OpenError>,
) -> Result<LifeResponse, MailboxError> {
    let path = request_path(data, id);
    let failed = |source| MailboxError::Io { path: path.clone(), source };
    create_private(&directory(data).join("responses"))
        .and_then(|()| write(data, id, &Letter { request, reason }))
        .map_err(failed)?;
    let mut store = match open() {
        Ok(store) => Some(store),
        Err(error) => {
            fs::remove_file(&path).map_err(failed)?;
            return Err(error.into());
        }
    };
    let response = response_path(data, id);
    let started = Instant::now();
    let read = loop {
        match read_whole_file(&response) {
            Ok(bytes) => break bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(MailboxError::Io { path: response, source }),
        }
        // A store of this process completes the request before it is closed.
        if started.elapsed() > limit && store.take().is_none() {
            return Err(MailboxError::Timeout { path, waited: limit });
        }
        thread::sleep(PAUSE);
    };
    drop(store);
    let result = serde_json::from_slice(&read).map_err(io::Error::from);
    result
        .and_then(|answer| fs::remove_file(&response).map(|()| answer))
        .map_err(|source| MailboxError::Io { path: response, source })
}

/// Returns the ids of all requests.
pub(super) fn waiting(data: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(requests(data)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            ids.extend(path.file_stem().and_then(|id| id.to_str()).map(str::to_owned));
        }
    }
    ids.sort();
    Ok(ids)
}

/// Reads a request.
pub(super) fn read(data: &Path, id: &str) -> io::Result<Letter> {
    Ok(serde_json::from_slice(&read_whole_file(&request_path(data, id))?)?)
}

/// Writes a request.
pub(super) fn write(data: &Path, id: &str, letter: &Letter) -> io::Result<()> {
    create_private(&requests(data))?;
    replace(&request_path(data, id), &serde_json::to_vec(letter)?)
}

/// Removes a request.
pub(super) fn remove(data: &Path, id: &str) -> io::Result<()> {
    fs::remove_file(request_path(data, id))
}

/// Writes the response, and leaves the request.
pub(super) fn answer(data: &Path, id: &str, response: &LifeResponse) -> io::Result<()> {
    replace(&response_path(data, id), &serde_json::to_vec(response)?)
}

/// Writes the response, and removes the request.
pub(super) fn respond(data: &Path, id: &str, response: &LifeResponse) -> io::Result<()> {
    answer(data, id, response)?;
    remove(data, id)
}
