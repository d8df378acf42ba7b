//! Download of a release, which is resumed after an interruption.

use std::{
    fs::{self, File},
    io::{self, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::header;
use siem_protocol::{agent_event::UpdateReason, update::UpdateRelease};
use siem_sinks::http::{NoAnswer, Streamed};
use tokio::{task::spawn_blocking, time::timeout};

use super::{
    clean_up::remove_others,
    error::UpdateError,
    state::{PartialDownload, StoredState},
};
use crate::{
    platform::{own_program, secure_file},
    siem::{
        Connection,
        releases::{Resume, start_of_body, strong_etag},
    },
};

/// Bytes that stay free on the disk beside the download and the two copies of the program, so that
/// an update never stops the agent from storing what it reads.
const RESERVE: u64 = 256 << 20;

/// Limits of a download.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Longest time without a byte.
    pub(crate) patience: Duration,
    /// Lowest mean rate in bytes per second.
    pub(crate) slowest: u64,
    /// Number of attempts in a row, each of which must have made progress.
    pub(crate) attempts: u32,
    /// Returns the free space of the disk in bytes, if it is known.
    pub(crate) free_space: fn(&Path) -> Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            slowest: 16 << 10,
            attempts: 5,
            free_space: crate::platform::free_space,
        }
    }
}

impl Limits {
    /// Returns the longest time that the transfer of `bytes` may take.
    fn time(&self, bytes: u64) -> Duration {
        self.patience + Duration::from_secs(bytes / self.slowest)
    }
}

/// Outcome of one attempt that did not fail.
enum Attempt {
    Complete,
    /// The transfer was cut.
    Interrupted(UpdateError),
}

/// Download of a release into a directory.
pub(super) struct Download<'a> {
    pub(super) connection: &'a Connection,
    pub(super) release: &'a UpdateRelease,
    pub(super) dir: &'a Path,
    /// Directory of the program, if it is known.
    pub(super) program_dir: Option<&'a Path>,
    pub(super) limits: Limits,
}

impl Download<'_> {
    /// Downloads the file, or the rest of it, and returns its path. Its size is that of the release;
    /// nothing else is verified.
    ///
    /// # Errors
    /// [`UpdateError`]. What arrived before an interruption is kept for the next attempt.
    pub(super) async fn run(&self, state: &mut StoredState) -> Result<PathBuf, UpdateError> {
        let path = self.dir.join(format!("{}.part", self.release.artifact));
        remove_others(self.dir, &path);
        let done = self.run_at(&path, state).await;
        if let Err(UpdateError::Refused { .. } | UpdateError::Failed { .. }) = &done {
            // Nothing of it is of use, and it takes space.
            drop(fs::remove_file(&path));
            state.download = None;
        }
        done.map(|()| path)
    }

    async fn run_at(&self, path: &Path, state: &mut StoredState) -> Result<(), UpdateError> {
        let open = |error| UpdateError::file("cannot open the download", &error);
        let mut file = open_part(path).await.map_err(open)?;
        let mut attempt = 1;
        loop {
            let before = self.present(&mut file, state)?;
            self.check_space(before)?;
            if before == self.release.size {
                return sync(file).await;
            }
            match self.attempt(&mut file, before, state).await? {
                Attempt::Complete => return sync(file).await,
                Attempt::Interrupted(error) => {
                    let after = file.metadata().map_err(open)?.len();
                    if after <= before || attempt >= self.limits.attempts {
                        return Err(error);
                    }
                    attempt += 1;
                }
            }
        }
    }

    /// Returns the number of bytes that are present of this very file; removes those of another.
    fn present(&self, file: &mut File, state: &StoredState) -> Result<u64, UpdateError> {
        let present = file.metadata().map_err(|error| write_failed(&error))?.len();
        let is_ours =
            state.download.as_ref().is_some_and(|part| part.sha256 == self.release.sha256);
        if is_ours && present <= self.release.size {
            return Ok(present);
        }
        truncate(file, 0)?;
        Ok(0)
    }

    /// Checks that there is space for the rest of the file, and for the copies of the installation, which
    /// may be on another disk.
    fn check_space(&self, present: u64) -> Result<(), UpdateError> {
        let copies = 2 * self.release.size + RESERVE;
        self.check_disk(self.dir, copies + self.release.size.saturating_sub(present))?;
        self.program_dir.map_or(Ok(()), |dir| self.check_disk(dir, copies))
    }

    fn check_disk(&self, dir: &Path, needed: u64) -> Result<(), UpdateError> {
        match (self.limits.free_space)(dir) {
            Some(free) if free < needed => {
                let detail = format!(
                    "the disk of `{}` has {} MiB free, an update needs {} MiB",
                    dir.display(),
                    free >> 20,
                    needed.div_ceil(1 << 20)
                );
                Err(UpdateError::failed(UpdateReason::DiskFull, detail))
            }
            _ => Ok(()),
        }
    }

    async fn attempt(
        &self,
        file: &mut File,
        present: u64,
        state: &mut StoredState,
    ) -> Result<Attempt, UpdateError> {
        let etag = state.download.as_ref().map(|part| part.etag.clone());
        let resume = etag.as_deref().filter(|etag| present > 0 && !etag.is_empty());
        let resume = resume.map(|etag| Resume { offset: present, etag });
        let within = self.limits.time(self.release.size - present);
        let asked = self.connection.release_file(&self.release.artifact, resume, within);
        let asked = timeout(self.limits.patience, asked).await.map_err(|_| self.no_response())?;
        let mut response = asked.map_err(|error| interrupted(&error))?;
        let start = match start_of_body(&response, self.release.size) {
            Ok(start) if start == 0 || start == present => start,
            // The rest of another file, or a range that cannot be: the next attempt gets all of it.
            Ok(_) | Err(206 | 416) => {
                state.download = None;
                truncate(file, 0)?;
                let detail = "the receiver did not send the requested part of the release";
                return Err(UpdateError::unavailable(UpdateReason::Download, detail));
            }
            Err(status) => {
                let detail = format!("the receiver refused the release with status {status}");
                return Err(UpdateError::unavailable(UpdateReason::Download, detail));
            }
        };
        truncate(file, start)?;
        self.check_length(&response, start)?;
        let part = PartialDownload {
            sha256: self.release.sha256,
            etag: strong_etag(&response).unwrap_or_default(),
        };
        if state.download.replace(part.clone()) != Some(part) {
            // Without it, the download starts over after a restart.
            drop(state.write(self.dir));
        }
        self.receive(&mut response, file, start).await
    }

    /// Checks the announced length, so that a file of another size is not downloaded at all.
    fn check_length(&self, response: &Streamed, start: u64) -> Result<(), UpdateError> {
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        match length {
            Some(length) if length != self.release.size - start => Err(self.wrong_size()),
            _ => Ok(()),
        }
    }

    fn no_response(&self) -> UpdateError {
        let time = humantime::format_duration(self.limits.patience);
        let detail = format!("the receiver did not start to send the release within {time}");
        UpdateError::unavailable(UpdateReason::TooSlow, detail)
    }

    fn wrong_size(&self) -> UpdateError {
        let detail = format!("the file has not the {} bytes of the manifest", self.release.size);
        UpdateError::refused(UpdateReason::WrongSize, detail)
    }

    async fn receive(
        &self,
        response: &mut Streamed,
        file: &mut File,
        start: u64,
    ) -> Result<Attempt, UpdateError> {
        let mut present = start;
        loop {
            match response.piece(self.limits.patience).await {
                Ok(Some(piece)) => {
                    present += piece.len() as u64;
                    if present > self.release.size {
                        return Err(self.wrong_size());
                    }
                    file.write_all(&piece).map_err(|error| write_failed(&error))?;
                }
                Ok(None) if present == self.release.size => return Ok(Attempt::Complete),
                // A body without a length ends like this when its sender is interrupted.
                Ok(None) => {
                    let detail = "the response ended before the end of the file";
                    let error = UpdateError::unavailable(UpdateReason::Download, detail);
                    return Ok(Attempt::Interrupted(error));
                }
                Err(error) => return Ok(Attempt::Interrupted(interrupted(&error))),
            }
        }
    }
}

fn interrupted(error: &NoAnswer) -> UpdateError {
    let reason =
        if error.waited.is_some() { UpdateReason::TooSlow } else { UpdateReason::Download };
    UpdateError::unavailable(reason, error.reason.clone())
}

fn write_failed(error: &io::Error) -> UpdateError {
    UpdateError::file("cannot write the download", error)
}

/// Opens a download, which is created. Waits for a virus scanner that holds it.
async fn open_part(path: &Path) -> io::Result<File> {
    let path = path.to_owned();
    let open = move || secure_file::open(secure_file::options().read(true), &path);
    let opened = spawn_blocking(move || own_program::retry_busy(open)).await;
    opened.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Syncs a download, which may take long: other tasks of the thread continue.
async fn sync(file: File) -> Result<(), UpdateError> {
    let synced = spawn_blocking(move || file.sync_all()).await;
    let synced = synced.unwrap_or_else(|error| Err(io::Error::other(error)));
    synced.map_err(|error| write_failed(&error))
}

fn truncate(file: &mut File, length: u64) -> Result<(), UpdateError> {
    let truncated = file.set_len(length).and_then(|()| file.seek(SeekFrom::Start(length)));
    truncated.map(drop).map_err(|error| write_failed(&error))
}
