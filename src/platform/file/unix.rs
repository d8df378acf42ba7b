//! Files on Unix.

use std::{
    ffi::OsString,
    fs::{self, DirEntry, File, Metadata, OpenOptions},
    io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use rustix::{
    fs::{OFlags, SeekFrom},
    io::Errno,
};

use super::{FileId, FileInfo, Stamp, kind};
use crate::platform::long_path;

pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(bytes, offset)
}

pub(super) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        // No data up to the end of the file.
        Err(Errno::NXIO) => Ok(None),
        // The file system does not report holes.
        Err(_) => Ok(Some(offset)),
    }
}

pub(super) fn occupied(metadata: &Metadata) -> u64 {
    // The unit is 512 bytes, whatever the size of a block.
    metadata.blocks().saturating_mul(512)
}

pub(super) fn check_creatable(directory: &Path) -> io::Result<()> {
    use rustix::fs::{Access, access};

    Ok(access(directory, Access::WRITE_OK | Access::EXEC_OK)?)
}

pub(super) fn stamp(file: &File) -> io::Result<Stamp> {
    Ok(stamp_of(&file.metadata()?))
}

pub(super) fn inspect(path: &Path) -> io::Result<FileInfo> {
    match fs::symlink_metadata(path) {
        Err(error) if long_path::is_too_long(&error, path) => {
            inspect_open(&long_path::open_for_metadata(path)?)
        }
        found => Ok(info(&found?)),
    }
}

pub(super) fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    match options.open(path) {
        Err(error) if long_path::is_too_long(&error, path) => {
            long_path::open(path, OFlags::RDONLY | TRAPS)
        }
        opened => opened,
    }
}

pub(super) fn inspect_entry(entry: &DirEntry) -> io::Result<FileInfo> {
    Ok(info(&entry.metadata()?))
}

pub(super) fn inspect_open(file: &File) -> io::Result<FileInfo> {
    Ok(info(&file.metadata()?))
}

fn info(metadata: &Metadata) -> FileInfo {
    FileInfo { kind: kind(metadata.file_type()), stamp: stamp_of(metadata) }
}

fn stamp_of(metadata: &Metadata) -> Stamp {
    let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000) + nanos;
    Stamp {
        size: metadata.size(),
        modified: nanos(metadata.mtime(), metadata.mtime_nsec()),
        changed: nanos(metadata.ctime(), metadata.ctime_nsec()),
        id: Some(FileId { volume: metadata.dev(), file: metadata.ino() }),
    }
}

/// Flags that keep a FIFO from blocking, a symlink from being followed, and a terminal from
/// becoming that of the process.
const TRAPS: OFlags = OFlags::NONBLOCK.union(OFlags::NOFOLLOW).union(OFlags::NOCTTY);

pub(super) fn without_traps(options: &mut OpenOptions) {
    options.custom_flags(i32::from_ne_bytes(TRAPS.bits().to_ne_bytes()));
}

pub(super) fn is_symlink_or_socket(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno == Some(Errno::LOOP) || errno == Some(Errno::NXIO)
}

pub(super) fn is_io_error(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::IO)
}

pub(super) fn is_out_of_files(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno == Some(Errno::MFILE) || errno == Some(Errno::NFILE)
}

#[cfg(not(target_vendor = "apple"))]
pub(super) fn drop_from_cache(file: &File, offset: u64, len: u64) {
    let len = std::num::NonZeroU64::new(len);
    // It is advice: a failure does no harm.
    let advice = rustix::fs::Advice::DontNeed;
    rustix::fs::fadvise(file, offset, len, advice).unwrap_or_default();
}

#[cfg(target_vendor = "apple")]
pub(super) fn drop_from_cache(_: &File, _: u64, _: u64) {}

pub(super) fn open_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

pub(super) fn path_to_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

pub(super) fn path_from_bytes(bytes: Vec<u8>) -> OsString {
    OsString::from_vec(bytes)
}
