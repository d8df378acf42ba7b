//! Copies of files that grow.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use siem_protocol::Digest;

use super::{BackupError, manifest::CopiedFile};
use crate::{
    regular_file::open_regular_file,
    store::{create_private, sync_directory},
};

/// Bytes that are copied before new journals are looked for. A journal holds much more.
const CHUNK: usize = 4 << 20;

/// Open files of all journals: a deleted one can still be read.
pub(super) struct Journals {
    directory: PathBuf,
    files: BTreeMap<u64, (PathBuf, File)>,
}

impl Journals {
    /// Opens the journals of a data directory.
    pub(super) fn pin(data: &Path) -> Result<Self, BackupError> {
        let mut journals = Self { directory: data.join("journal"), files: BTreeMap::new() };
        journals.open_new(None)?;
        Ok(journals)
    }

    /// Opens the journals that were created since.
    pub(super) fn refresh(&mut self) -> Result<(), BackupError> {
        let last = self.files.keys().last().copied();
        self.open_new(last)
    }

    fn open_new(&mut self, after: Option<u64>) -> Result<(), BackupError> {
        let mut found = list(&self.directory).map_err(BackupError::io("read", &self.directory))?;
        found.retain(|number, _| after.is_none_or(|after| *number > after));
        let mut expected = after.map(|after| after + 1);
        for (number, path) in found {
            if expected.is_some_and(|expected| expected != number) {
                return Err(BackupError::Overtaken);
            }
            match open_regular_file(&path) {
                Ok(file) => {
                    expected = after.map(|_| number + 1);
                    self.files.insert(number, (path, file));
                }
                // Before the backup began it was synced elsewhere and deleted.
                Err(error) if error.kind() == io::ErrorKind::NotFound && after.is_none() => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(BackupError::Overtaken);
                }
                Err(error) => return Err(BackupError::io("open", &path)(error)),
            }
        }
        Ok(())
    }

    /// Copies all journals that were opened.
    pub(super) fn copy_to(&mut self, writer: &mut Writer<'_>) -> Result<(), BackupError> {
        for (path, file) in std::mem::take(&mut self.files).into_values() {
            writer.copy_open(&path, file, &mut || Ok(()))?;
        }
        Ok(())
    }
}

fn list(directory: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "journal") {
            let number = path.file_stem().and_then(|stem| stem.to_str()).map(str::parse);
            if let Some(Ok(number)) = number {
                found.insert(number, path);
            }
        }
    }
    Ok(found)
}

/// Returns the regular files below a directory, in order of their paths, without locks and files that
/// are being written. Links to files and directories are followed, such as those of an operator to another
/// disk. A directory or file for which `skip` is true is left out.
pub(super) fn regular_files(
    root: &Path,
    skip: &dyn Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, BackupError> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    let mut linked = BTreeSet::new();
    while let Some(directory) = directories.pop() {
        let failed = || BackupError::io("read", &directory);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed()(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed())?;
            let path = entry.path();
            let name = entry.file_name();
            let is_temporary = path.extension().is_some_and(|ending| ending == "new");
            if skip(&path) || name == "lock" || is_temporary {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(path),
                Ok(kind) if kind.is_file() => files.push(path),
                Ok(kind) if kind.is_symlink() => match fs::metadata(&path) {
                    Ok(found) if found.is_file() => files.push(path),
                    Ok(found) if found.is_dir() => {
                        let real =
                            fs::canonicalize(&path).map_err(BackupError::io("read", &path))?;
                        if !linked.insert(real) {
                            return Err(BackupError::Linked(path));
                        }
                        directories.push(path);
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(BackupError::io("read", &path)(error)),
                },
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed()(error)),
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Writes the copies.
pub(super) struct Writer<'a> {
    source: &'a Path,
    target: &'a Path,
    /// Files that were copied.
    pub(super) files: Vec<CopiedFile>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(source: &'a Path, target: &'a Path) -> Self {
        Self { source, target, files: Vec::new() }
    }

    /// Copies a file up to its present end. One that was deleted since it was listed is left out.
    pub(super) fn copy(&mut self, path: &Path, journals: &mut Journals) -> Result<(), BackupError> {
        match open_regular_file(path) {
            Ok(file) => self.copy_open(path, file, &mut || journals.refresh()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(BackupError::io("open", path)(error)),
        }
    }

    /// Copies an open file up to its present end, and calls `between` after each part.
    pub(super) fn copy_open(
        &mut self,
        path: &Path,
        file: File,
        between: &mut dyn FnMut() -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        let wrong = || BackupError::Path(path.to_owned());
        let relative = path.strip_prefix(self.source).map_err(|_| wrong())?;
        let name = relative.to_str().ok_or_else(wrong)?.replace('\\', "/");
        let target = self.target.join(relative);
        let length = file.metadata().map_err(BackupError::io("read", path))?.len();
        let (size, sha256) = copy_part(path, file.take(length), &target, between)?;
        self.files.push(CopiedFile { path: name, size, sha256 });
        Ok(())
    }
}

/// Copies what `from` has into a new file, with access for the owner only. Returns size and hash.
pub(super) fn copy_part(
    path: &Path,
    mut from: impl io::Read,
    target: &Path,
    between: &mut dyn FnMut() -> Result<(), BackupError>,
) -> Result<(u64, Digest), BackupError> {
    let failed = || BackupError::io("write", target);
    let directory = target.parent().unwrap_or(Path::new("."));
    create_private(directory).map_err(failed())?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut to = options.open(target).map_err(failed())?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let (mut size, mut buffer) = (0, vec![0; CHUNK]);
    loop {
        between()?;
        let read = fill(&mut from, &mut buffer).map_err(BackupError::io("read", path))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        // Files whose oldest lines were removed, and journals, have large holes.
        if buffer[..read].iter().all(|byte| *byte == 0) {
            to.seek_relative(i64::try_from(read).unwrap_or_default()).map_err(failed())?;
        } else {
            to.write_all(&buffer[..read]).map_err(failed())?;
        }
        size += read as u64;
    }
    to.set_len(size).map_err(failed())?;
    to.sync_all().map_err(failed())?;
    sync_directory(directory).map_err(failed())?;
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(hash.finish().as_ref());
    Ok((size, Digest::from_bytes(sha256)))
}

fn fill(from: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
