//! Files as the system knows them: ids, stamps, opening without a trap, reading at a place.

use std::{
    ffi::OsString,
    fs::{File, Metadata, OpenOptions},
    io,
    path::Path,
};

use serde::{Deserialize, Serialize};

/// What the file system calls a file: stays over renames, may be used again after a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// The volume.
    pub volume: u64,
    /// The file in the volume.
    pub file: u64,
}

/// How a file looked from outside: as long as it is the same, so are the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Bytes in the file.
    pub size: u64,
    /// When its bytes were changed, in nanoseconds since 1970.
    #[serde(default)]
    pub modified: i64,
    /// When anything about it was changed; 0 where the system does not say.
    #[serde(default)]
    pub changed: i64,
    /// Its id; none where only an open file tells it.
    #[serde(default)]
    pub id: Option<FileId>,
}

/// Bytes that can be read at any place, without moving a position.
pub trait ReadAt {
    /// Reads at `offset` into `bytes`, and says how many; 0 at the end.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Reads at `offset` until `bytes` is full or the file ends, and says how many.
    ///
    /// # Errors
    /// What the system says; an interrupted call is repeated.
    fn fill_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

impl ReadAt for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        system::read_at(self, bytes, offset)
    }
}

impl Stamp {
    /// The stamp that `metadata` tells.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        system::stamp(metadata)
    }

    /// Whether both show the same; an id that is not told agrees with any.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        let id = self.id.and(other.id);
        Self { id, ..*self } == Self { id: other.id.and(self.id), ..*other }
    }
}

/// The id of the file at `path`, whose metadata is at hand; none when it can't be told.
#[must_use]
pub fn identify(path: &Path, stamp: &Stamp) -> Option<FileId> {
    stamp.id.or_else(|| system::id_of_file(&File::open(path).ok()?))
}

/// The id of an open file; none when it can't be told.
#[must_use]
pub fn identify_open(file: &File, stamp: &Stamp) -> Option<FileId> {
    stamp.id.or_else(|| system::id_of_file(file))
}

/// Opens a regular file to read it; `None` when something else lies there by now.
///
/// Never waits for a FIFO's writer, and does not follow a symlink as the last component.
///
/// # Errors
/// What the system says to opening the file or asking for its metadata.
pub fn open_regular(path: &Path) -> io::Result<Option<(File, Metadata)>> {
    let mut options = OpenOptions::new();
    options.read(true);
    system::without_traps(&mut options);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if system::is_symlink_or_socket(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

/// Whether an error says that too many files are open, here or in the whole system.
#[must_use]
pub fn is_out_of_files(error: &io::Error) -> bool {
    system::is_out_of_files(error)
}

/// How many files this process may hold open at once; none where the system sets no limit.
#[must_use]
pub fn open_limit() -> Option<u64> {
    system::open_limit()
}

/// A path as bytes, to be kept: any path survives.
#[must_use]
pub fn path_to_bytes(path: &Path) -> Vec<u8> {
    system::path_to_bytes(path)
}

/// The path that [`path_to_bytes`] kept.
#[must_use]
pub fn path_from_bytes(bytes: Vec<u8>) -> OsString {
    system::path_from_bytes(bytes)
}

#[cfg(unix)]
mod system {
    use std::{
        ffi::OsString,
        fs::{File, Metadata, OpenOptions},
        io,
        os::unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
        },
        path::Path,
    };

    use rustix::{fs::OFlags, io::Errno};

    use super::{FileId, Stamp};

    pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(bytes, offset)
    }

    pub(super) fn stamp(metadata: &Metadata) -> Stamp {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000) + nanos;
        Stamp {
            size: metadata.size(),
            modified: nanos(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanos(metadata.ctime(), metadata.ctime_nsec()),
            id: Some(FileId { volume: metadata.dev(), file: metadata.ino() }),
        }
    }

    pub(super) fn id_of_file(file: &File) -> Option<FileId> {
        stamp(&file.metadata().ok()?).id
    }

    pub(super) fn without_traps(options: &mut OpenOptions) {
        let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        options.custom_flags(i32::from_ne_bytes(flags.bits().to_ne_bytes()));
    }

    pub(super) fn is_symlink_or_socket(error: &io::Error) -> bool {
        let errno = Errno::from_io_error(error);
        errno == Some(Errno::LOOP) || errno == Some(Errno::NXIO)
    }

    pub(super) fn is_out_of_files(error: &io::Error) -> bool {
        let errno = Errno::from_io_error(error);
        errno == Some(Errno::MFILE) || errno == Some(Errno::NFILE)
    }

    pub(super) fn open_limit() -> Option<u64> {
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current
    }

    pub(super) fn path_to_bytes(path: &Path) -> Vec<u8> {
        path.as_os_str().as_bytes().to_vec()
    }

    pub(super) fn path_from_bytes(bytes: Vec<u8>) -> OsString {
        OsString::from_vec(bytes)
    }
}

#[cfg(windows)]
mod system {
    use std::{
        ffi::OsString,
        fs::{File, Metadata, OpenOptions},
        io,
        os::windows::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
        },
        path::Path,
    };

    use super::{FileId, Stamp};

    /// `FILE_FLAG_OPEN_REPARSE_POINT`: opens a link itself.
    const OPEN_REPARSE_POINT: u32 = 0x0020_0000;
    /// `ERROR_TOO_MANY_OPEN_FILES`.
    const TOO_MANY_OPEN_FILES: i32 = 4;

    pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(bytes, offset)
    }

    pub(super) fn stamp(metadata: &Metadata) -> Stamp {
        // 100 ns since 1601; only compared and set against 1970.
        let since_1970 = i128::from(metadata.last_write_time()) - 116_444_736_000_000_000;
        let modified = i64::try_from(since_1970 * 100).unwrap_or(i64::MAX);
        Stamp { size: metadata.file_size(), modified, changed: 0, id: None }
    }

    pub(super) fn id_of_file(file: &File) -> Option<FileId> {
        let information = winapi_util::file::information(file).ok()?;
        let volume = information.volume_serial_number();
        Some(FileId { volume, file: information.file_index() })
    }

    pub(super) fn without_traps(options: &mut OpenOptions) {
        // The standard library shares reading, writing and deleting already.
        options.custom_flags(OPEN_REPARSE_POINT);
    }

    pub(super) fn is_symlink_or_socket(_: &io::Error) -> bool {
        false
    }

    pub(super) fn is_out_of_files(error: &io::Error) -> bool {
        error.raw_os_error() == Some(TOO_MANY_OPEN_FILES)
    }

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
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_and_a_symlink_are_no_regular_files_and_do_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo.jsonl");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        assert!(open_regular(&fifo).unwrap().is_none());

        let file = directory.path().join("file.jsonl");
        std::fs::write(&file, "x").unwrap();
        let link = directory.path().join("link.jsonl");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(open_regular(&link).unwrap().is_none());
        assert!(open_regular(directory.path()).unwrap().is_none());
        assert!(open_regular(&file).unwrap().is_some());
    }

    #[test]
    fn an_id_stays_over_a_rename() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::write(&from, "x").unwrap();
        let before = Stamp::of(&std::fs::symlink_metadata(&from).unwrap()).id;
        std::fs::rename(&from, &to).unwrap();
        assert_eq!(Stamp::of(&std::fs::symlink_metadata(&to).unwrap()).id, before);
    }
}
