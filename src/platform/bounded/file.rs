//! Files that are read without waiting for ever.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::BoundedCalls;
use crate::platform::{
    disk,
    file::{self, ReadAt, Stamp},
};

/// An open file. If its file system is not on a disk of this machine, it is read and closed on helper
/// threads.
#[derive(Debug)]
pub struct BoundedFile {
    /// `None` only while it is dropped.
    file: Option<Arc<File>>,
    /// `None` if the file system is on a disk of this machine.
    remote: Option<Remote>,
}

#[derive(Debug)]
struct Remote {
    calls: BoundedCalls,
    place: PathBuf,
}

/// A file that was opened on a helper thread, where its file system was determined too.
#[derive(Debug)]
pub struct OpenedFile {
    file: File,
    is_local: bool,
}

impl OpenedFile {
    /// Determines the file system of a file. Must be called on a helper thread.
    #[must_use]
    pub fn new(file: File) -> Self {
        let is_local = disk::is_local(&file);
        #[cfg(all(test, unix))]
        let is_local = is_local && !crate::platform::faults::is_hang();
        Self { file, is_local }
    }

    /// Returns the file, which is read in `place`.
    #[must_use]
    pub fn into_bounded(self, calls: &BoundedCalls, place: &Path) -> BoundedFile {
        let Self { file, is_local } = self;
        let remote = || Remote { calls: calls.clone(), place: place.to_owned() };
        let remote = (!is_local).then(remote);
        BoundedFile { file: Some(Arc::new(file)), remote }
    }
}

impl BoundedFile {
    /// Returns the size of the file in bytes.
    ///
    /// # Errors
    /// The error of the system, or [`DoesNotAnswer`](super::DoesNotAnswer).
    pub fn size(&self) -> io::Result<u64> {
        self.run(|file| Ok(file.metadata()?.len()))
    }

    /// Returns the disk space that the file occupies, in bytes; see [`file::occupied`].
    ///
    /// # Errors
    /// The error of the system, or [`DoesNotAnswer`](super::DoesNotAnswer).
    pub fn occupied(&self) -> io::Result<u64> {
        self.run(file::occupied)
    }

    /// Returns the stamp of the file.
    ///
    /// # Errors
    /// The error of the system, or [`DoesNotAnswer`](super::DoesNotAnswer).
    pub fn stamp(&self) -> io::Result<Stamp> {
        self.run(Stamp::of)
    }

    /// Returns the stamp of the file if its file system is on a disk of this machine; `None` otherwise,
    /// or if the system reports an error.
    #[must_use]
    pub fn local_stamp(&self) -> Option<Stamp> {
        let file = self.file.as_ref().filter(|_| self.remote.is_none())?;
        Stamp::of(file).ok()
    }

    /// Runs `call` with the file, on a helper thread if its file system is not on a disk of this
    /// machine.
    ///
    /// # Errors
    /// The error of the call, or [`DoesNotAnswer`](super::DoesNotAnswer).
    pub fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = self.file()?;
        let Some(Remote { calls, place }) = &self.remote else { return call(file) };
        let file = Arc::clone(file);
        calls.run(place, move || call(&file))
    }

    fn file(&self) -> io::Result<&Arc<File>> {
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl ReadAt for BoundedFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.remote.is_none() {
            return self.file()?.read_at(bytes, offset);
        }
        let len = bytes.len();
        // A thread that hangs must not have the bytes of the caller.
        let read = self.run(move |file| {
            let mut read = vec![0; len];
            let count = file.read_at(&mut read, offset)?;
            read.truncate(count);
            Ok(read)
        })?;
        bytes[..read.len()].copy_from_slice(&read);
        Ok(read.len())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.run(move |file| file.next_data(offset))
    }
}

impl Drop for BoundedFile {
    fn drop(&mut self) {
        if let (Some(file), Some(Remote { calls, place })) = (self.file.take(), &self.remote) {
            calls.discard(place, file);
        }
    }
}
