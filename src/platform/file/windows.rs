//! Files on Windows.

use std::{
    ffi::OsString,
    fs::{DirEntry, File, Metadata, OpenOptions},
    io,
    os::windows::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use super::{FileId, FileInfo, Stamp, kind};

/// `FILE_READ_ATTRIBUTES`: allowed with any sharing mode of other processes.
const READ_ATTRIBUTES: u32 = 0x0080;
/// `FILE_SHARE_READ`, `FILE_SHARE_WRITE` and `FILE_SHARE_DELETE`; the last one is required for
/// renames too.
const SHARE_ALL: u32 = 0x0001 | 0x0002 | 0x0004;
/// `FILE_FLAG_OPEN_REPARSE_POINT`: opens the link itself.
const OPEN_REPARSE_POINT: u32 = 0x0020_0000;
/// `FILE_FLAG_BACKUP_SEMANTICS`: opens directories too.
const BACKUP_SEMANTICS: u32 = 0x0200_0000;
/// `ERROR_DELETE_PENDING`.
const DELETE_PENDING: i32 = 303;
/// `ERROR_IO_DEVICE`.
const IO_DEVICE: i32 = 1117;
/// `ERROR_TOO_MANY_OPEN_FILES`.
const TOO_MANY_OPEN_FILES: i32 = 4;

pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek_read(bytes, offset)
}

pub(super) fn next_data(_: &File, offset: u64) -> io::Result<Option<u64>> {
    Ok(Some(offset))
}

pub(super) fn occupied(metadata: &Metadata) -> u64 {
    metadata.len()
}

pub(super) fn check_creatable(_: &Path) -> io::Result<()> {
    Ok(())
}

pub(super) fn stamp(file: &File) -> io::Result<Stamp> {
    let information = winapi_util::file::information(file)?;
    // In units of 100 ns since 1601.
    let since_1601 = information.last_write_time().unwrap_or_default();
    let since_1970 = i128::from(since_1601) - 116_444_736_000_000_000;
    let modified = i64::try_from(since_1970 * 100).unwrap_or_default();
    let id = FileId { volume: information.volume_serial_number(), file: information.file_index() };
    Ok(Stamp { size: information.file_size(), modified, changed: 0, id: Some(id) })
}

pub(super) fn inspect(path: &Path) -> io::Result<FileInfo> {
    let mut options = OpenOptions::new();
    options.access_mode(READ_ATTRIBUTES).share_mode(SHARE_ALL);
    inspect_open(&options.custom_flags(OPEN_REPARSE_POINT | BACKUP_SEMANTICS).open(path)?)
}

pub(super) fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    options.open(path)
}

pub(super) fn inspect_open(file: &File) -> io::Result<FileInfo> {
    Ok(FileInfo { kind: kind(file.metadata()?.file_type()), stamp: stamp(file)? })
}

/// Opens the file itself: a directory listing contains no id, and shows a stale size while a
/// writer holds the file open.
///
/// Permission is denied only for a file that was deleted while open: its name remains until the
/// last handle is closed, which may be ours.
pub(super) fn inspect_entry(entry: &DirEntry) -> io::Result<FileInfo> {
    inspect(&entry.path()).map_err(|error| {
        let is_deleted = error.kind() == io::ErrorKind::PermissionDenied
            || error.raw_os_error() == Some(DELETE_PENDING);
        if is_deleted { io::ErrorKind::NotFound.into() } else { error }
    })
}

pub(super) fn without_traps(options: &mut OpenOptions) {
    options.share_mode(SHARE_ALL).custom_flags(OPEN_REPARSE_POINT);
}

pub(super) fn is_symlink_or_socket(_: &io::Error) -> bool {
    false
}

pub(super) fn is_io_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(IO_DEVICE)
}

pub(super) fn is_out_of_files(error: &io::Error) -> bool {
    error.raw_os_error() == Some(TOO_MANY_OPEN_FILES)
}

pub(super) fn drop_from_cache(_: &File, _: u64, _: u64) {}

pub(super) fn open_limit() -> Option<u64> {
    None
}

pub(super) fn path_to_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().encode_wide().flat_map(u16::to_le_bytes).collect()
}

pub(super) fn path_from_bytes(bytes: Vec<u8>) -> OsString {
    let wide: Vec<u16> =
        bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    OsString::from_wide(&wide)
}
