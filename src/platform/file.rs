//! Files as the system knows them: ids, stamps, opening without a trap, reading at a place.

use std::{
    ffi::OsString,
    fs::{DirEntry, File, FileType, OpenOptions},
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
    /// Its id; none in rows of versions that did not always ask for it.
    #[serde(default)]
    pub id: Option<FileId>,
}

/// What kind of thing lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink, a FIFO, a device.
    Other,
}

/// What lies at a path, and how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Its kind.
    pub kind: FileKind,
    /// How it looks.
    pub stamp: Stamp,
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
        self.fill_to(bytes, offset, u64::MAX)
    }

    /// The same for a file that ended at `end` a moment ago: whether it goes on by now is not asked
    /// once just that was read. A read that ends elsewhere is asked on, since not every file system
    /// gives all that there is at once.
    ///
    /// # Errors
    /// What the system says; an interrupted call is repeated.
    fn fill_to(&self, bytes: &mut [u8], offset: u64, end: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() && offset + filled as u64 != end {
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
    /// The stamp of an open file.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(file: &File) -> io::Result<Self> {
        system::stamp(file)
    }

    /// Whether both show the same; an id that is not told agrees with any.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        let id = self.id.and(other.id);
        Self { id, ..*self } == Self { id: other.id.and(self.id), ..*other }
    }
}

/// Looks at what lies at `path`; a symlink there is not followed.
///
/// # Errors
/// What the system says.
pub fn inspect(path: &Path) -> io::Result<FileInfo> {
    system::inspect(path)
}

/// Looks at what a directory lists; a symlink is not followed.
///
/// # Errors
/// What the system says; `NotFound` for what is deleted and only listed as long as it is open.
pub fn inspect_entry(entry: &DirEntry) -> io::Result<FileInfo> {
    system::inspect_entry(entry)
}

/// Opens a regular file to read it, and says how it looks; `None` when something else lies there
/// by now.
///
/// Never waits for a FIFO's writer, and does not follow a symlink as the last component. Others may
/// go on to write, rename, replace and delete the file.
///
/// # Errors
/// What the system says to opening the file or asking for its metadata.
pub fn open_regular(path: &Path) -> io::Result<Option<(File, Stamp)>> {
    let mut options = OpenOptions::new();
    options.read(true);
    system::without_traps(&mut options);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if system::is_symlink_or_socket(&error) => return Ok(None),
        // Windows opens no directory that way.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.is_dir() => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let FileInfo { kind, stamp } = system::inspect_open(&file)?;
    Ok((kind == FileKind::File).then_some((file, stamp)))
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

fn kind(found: FileType) -> FileKind {
    if found.is_file() {
        FileKind::File
    } else if found.is_dir() {
        FileKind::Directory
    } else {
        FileKind::Other
    }
}

#[cfg(unix)]
mod system {
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

    use rustix::{fs::OFlags, io::Errno};

    use super::{FileId, FileInfo, Stamp, kind};

    pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(bytes, offset)
    }

    pub(super) fn stamp(file: &File) -> io::Result<Stamp> {
        Ok(stamp_of(&file.metadata()?))
    }

    pub(super) fn inspect(path: &Path) -> io::Result<FileInfo> {
        Ok(info(&fs::symlink_metadata(path)?))
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
        fs::{DirEntry, File, OpenOptions},
        io,
        os::windows::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::{FileExt as _, OpenOptionsExt as _},
        },
        path::Path,
    };

    use super::{FileId, FileInfo, Stamp, kind};

    /// `FILE_READ_ATTRIBUTES`: no way in which others open the file forbids this.
    const READ_ATTRIBUTES: u32 = 0x0080;
    /// `FILE_SHARE_READ`, `FILE_SHARE_WRITE` and `FILE_SHARE_DELETE`, which renaming asks for too.
    const SHARE_ALL: u32 = 0x0001 | 0x0002 | 0x0004;
    /// `FILE_FLAG_OPEN_REPARSE_POINT`: opens a link itself.
    const OPEN_REPARSE_POINT: u32 = 0x0020_0000;
    /// `FILE_FLAG_BACKUP_SEMANTICS`: opens a directory too.
    const BACKUP_SEMANTICS: u32 = 0x0200_0000;
    /// `ERROR_DELETE_PENDING`.
    const DELETE_PENDING: i32 = 303;
    /// `ERROR_TOO_MANY_OPEN_FILES`.
    const TOO_MANY_OPEN_FILES: i32 = 4;

    pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(bytes, offset)
    }

    pub(super) fn stamp(file: &File) -> io::Result<Stamp> {
        let information = winapi_util::file::information(file)?;
        // 100 ns since 1601; only compared and set against 1970.
        let since_1601 = information.last_write_time().unwrap_or_default();
        let since_1970 = i128::from(since_1601) - 116_444_736_000_000_000;
        let modified = i64::try_from(since_1970 * 100).unwrap_or_default();
        let id =
            FileId { volume: information.volume_serial_number(), file: information.file_index() };
        Ok(Stamp { size: information.file_size(), modified, changed: 0, id: Some(id) })
    }

    pub(super) fn inspect(path: &Path) -> io::Result<FileInfo> {
        let mut options = OpenOptions::new();
        options.access_mode(READ_ATTRIBUTES).share_mode(SHARE_ALL);
        inspect_open(&options.custom_flags(OPEN_REPARSE_POINT | BACKUP_SEMANTICS).open(path)?)
    }

    pub(super) fn inspect_open(file: &File) -> io::Result<FileInfo> {
        Ok(FileInfo { kind: kind(file.metadata()?.file_type()), stamp: stamp(file)? })
    }

    /// The file is asked itself: a listing tells no id, and of a file that its writer holds open
    /// the size of when it was closed last.
    ///
    /// Whoever may list a directory may look at what lies in it. Refused is a look at a file that
    /// was deleted while someone holds it open: its name stays until the last handle is closed, and
    /// that may be ours.
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Gives three bytes at a time, and counts the calls.
    struct Slow(&'static [u8], Cell<usize>);

    impl ReadAt for Slow {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            self.1.set(self.1.get() + 1);
            let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..));
            let rest = rest.unwrap_or_default();
            let count = rest.len().min(bytes.len()).min(3);
            bytes[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }
    }

    /// One call less for each file, and nothing is left out when the file ends elsewhere by now.
    #[test]
    fn what_ends_where_it_was_said_to_is_not_asked_for_more() {
        for (end, filled, calls) in [(6, 6, 2), (7, 9, 4), (0, 0, 0), (20, 9, 4), (u64::MAX, 9, 4)]
        {
            let file = Slow(b"123456789", Cell::default());
            let mut bytes = [0; 100];
            assert_eq!(file.fill_to(&mut bytes, 0, end).unwrap(), filled, "{end}");
            assert_eq!(file.1.get(), calls, "{end}");
        }
    }

    #[cfg(target_os = "linux")]
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
        let (file, stamp) = open_regular(&from).unwrap().unwrap();
        assert_eq!(inspect(&from).unwrap(), FileInfo { kind: FileKind::File, stamp });
        std::fs::rename(&from, &to).unwrap();
        std::fs::write(&from, "y").unwrap();
        let ids = [&to, &from].map(|path| inspect(path).unwrap().stamp.id);
        assert_eq!(ids[0], stamp.id);
        assert_ne!(ids[1], stamp.id);
        assert_eq!(Stamp::of(&file).unwrap().id, stamp.id);
        assert_eq!(inspect(directory.path()).unwrap().kind, FileKind::Directory);
    }

    /// A listing on Windows shows a file as it was when it was closed last: what its writer, who
    /// holds it open, wrote since was not found.
    #[test]
    fn an_entry_shows_what_is_written_to_an_open_file() {
        use std::io::Write as _;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"one").unwrap();
        let entry = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap();
        assert_eq!(inspect_entry(&entry).unwrap(), inspect(&path).unwrap());
        assert_eq!(inspect(&path).unwrap().stamp.size, 3);
    }
}
