//! Files: ids, stamps, opening without blocking, and reading at an offset.

mod read_at;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::{
    ffi::OsString,
    fs::{self, DirEntry, File, FileType, OpenOptions},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

pub use read_at::ReadAt;
use serde::{Deserialize, Serialize};
#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

use super::call_scope::in_scope;

/// Id of a file within the file system. It survives renames, and may be reused after a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// Id of the volume.
    pub volume: u64,
    /// Id of the file in the volume.
    pub file: u64,
}

/// Metadata of a file: as long as it is unchanged, the bytes are too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Modification time, in nanoseconds since 1970.
    #[serde(default)]
    pub modified: i64,
    /// Time of the last change of data or metadata; 0 where the system has none.
    #[serde(default)]
    pub changed: i64,
    /// Id; `None` in rows of versions that did not always store it.
    #[serde(default)]
    pub id: Option<FileId>,
}

/// Kind of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symlink, or a junction on Windows.
    Link,
    /// FIFO, device or socket.
    Other,
}

/// Kind and stamp of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Kind.
    pub kind: FileKind,
    /// Stamp.
    pub stamp: Stamp,
}

impl Stamp {
    /// Returns the stamp of an open file.
    ///
    /// # Errors
    /// The error of the system.
    pub fn of(file: &File) -> io::Result<Self> {
        #[cfg(all(test, unix))]
        super::faults::check_open(super::faults::Call::Stat, file)?;
        system::stamp(file)
    }

    /// Returns whether both stamps are equal; a missing id equals any id.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        let id = self.id.and(other.id);
        Self { id, ..*self } == Self { id: other.id.and(self.id), ..*other }
    }
}

/// Returns kind and stamp of the entry at `path`; a symlink is not followed.
///
/// # Errors
/// The error of the system.
pub fn inspect(path: &Path) -> io::Result<FileInfo> {
    #[cfg(all(test, unix))]
    super::faults::check(super::faults::Call::Stat, path)?;
    system::inspect(path)
}

/// Returns kind and stamp of the file at `path`, or of the target of a symlink there.
///
/// # Errors
/// The error of the system.
pub fn inspect_target(path: &Path) -> io::Result<FileInfo> {
    let info = inspect(path)?;
    if info.kind == FileKind::Link { inspect(&path.canonicalize()?) } else { Ok(info) }
}

/// Returns kind and stamp of a directory entry; a symlink is not followed.
///
/// # Errors
/// The error of the system; `NotFound` for a deleted file that is listed only because it is open.
pub(super) fn inspect_entry(entry: &DirEntry) -> io::Result<FileInfo> {
    #[cfg(all(test, unix))]
    super::faults::check(super::faults::Call::Stat, &entry.path())?;
    system::inspect_entry(entry)
}

/// Opens a regular file for reading, and returns it with its stamp; `None` if the path is something
/// else.
///
/// Never blocks on a FIFO, and does not follow a symlink as the last component. Other processes may
/// still write, rename, replace and delete the file.
///
/// # Errors
/// The error of the system when opening the file or reading its metadata.
pub fn open_regular(path: &Path) -> io::Result<Option<(File, Stamp)>> {
    #[cfg(all(test, unix))]
    super::faults::check(super::faults::Call::Open, path)?;
    let mut options = OpenOptions::new();
    options.read(true);
    system::without_traps(&mut options);
    let file = match system::open(&options, path) {
        Ok(file) => file,
        Err(error) if system::is_symlink_or_socket(&error) => return Ok(None),
        // Windows cannot open a directory this way.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.is_dir() => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    #[cfg(all(test, unix))]
    super::faults::check_open(super::faults::Call::Stat, &file)?;
    let FileInfo { kind, stamp } = system::inspect_open(&file)?;
    Ok((kind == FileKind::File).then_some((file, stamp)))
}

/// Maximum size of a file that an administrator or a user writes: a configuration, certificates.
pub const MAX_WRITTEN_BY_HAND: u64 = 16 << 20;

/// Reads a regular file of at most `most` bytes, or the one to which a symlink leads.
///
/// Never blocks on a FIFO, and reads neither an endless device nor a huge file of holes. In a
/// [scope](super::bounded::BoundedCalls::scope) its time is limited too.
///
/// # Errors
/// The error of the system, or that the path is something else or too large.
pub fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let of_call = path.to_owned();
    in_scope(path, move || read_at_once(&of_call, most))
}

fn read_at_once(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let no_file = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    let mut path = path.to_owned();
    let mut kind = inspect(&path)?.kind;
    if kind == FileKind::Link {
        path = fs::canonicalize(&path)?;
        kind = inspect(&path)?.kind;
    }
    // Opening a device may have an effect.
    if kind != FileKind::File {
        return Err(no_file());
    }
    let (file, _) = open_regular(&path)?.ok_or_else(no_file)?;
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_large(most));
    }
    Ok(bytes)
}

/// Returns the error about a file that has more than `most` bytes.
pub fn too_large(most: u64) -> io::Error {
    let most = config_text::Size(most);
    io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {most}"))
}

/// Returns what keeps a path from being that of a directory: the path, or the part of it that exists and
/// is something else, such as a file or a link without a target. `None` if it is a directory, or one could
/// be created there.
///
/// In a [scope](super::bounded::BoundedCalls::scope) the time is limited.
pub fn in_place_of_directory(path: &Path) -> Option<PathBuf> {
    let of_call = path.to_owned();
    let find = move || {
        let exists = of_call.ancestors().find_map(|part| match fs::metadata(part) {
            Ok(found) => Some((!found.is_dir()).then(|| part.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::symlink_metadata(part).is_ok().then(|| Some(part.to_owned()))
            }
            Err(_) => None,
        });
        Ok(exists.flatten())
    };
    in_scope(path, find).ok().flatten()
}

/// Checks whether this process may append to the file at `path`, or create it if it does not exist, and
/// changes nothing. On Windows only a file that exists is checked.
///
/// In a [scope](super::bounded::BoundedCalls::scope) the time is limited.
///
/// # Errors
/// The error of the system that the agent would get.
pub fn check_appendable(path: &Path) -> io::Result<()> {
    let of_call = path.to_owned();
    in_scope(path, move || match OpenOptions::new().append(true).open(&of_call) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match of_call.parent() {
            Some(directory) => system::check_creatable(directory),
            None => Err(error),
        },
        Err(error) => Err(error),
    })
}

/// Returns the disk space that an open file occupies, in bytes; its size where the system does not
/// report that.
///
/// # Errors
/// The error of the system.
pub fn occupied(file: &File) -> io::Result<u64> {
    Ok(system::occupied(&file.metadata()?))
}

/// Returns whether an error means that a file system cannot be reached at present, as those of a
/// network or a broken disk, and not that a path is wrong.
#[must_use]
pub fn is_unavailable(error: &io::Error) -> bool {
    use io::ErrorKind::{Deadlock, NotConnected, StaleNetworkFileHandle, TimedOut};
    matches!(error.kind(), Deadlock | NotConnected | StaleNetworkFileHandle | TimedOut)
        || system::is_io_error(error)
}

/// Returns whether an error means that too many files are open, in this process or the whole
/// system.
#[must_use]
pub fn is_out_of_files(error: &io::Error) -> bool {
    system::is_out_of_files(error)
}

/// Returns the maximum number of open files of this process; `None` if the system sets no limit.
#[must_use]
pub fn open_limit() -> Option<u64> {
    system::open_limit()
}

/// Removes bytes of a file that were read from the system's cache, so that they do not displace
/// others. Does nothing where the system has no such call.
pub fn drop_from_cache(file: &File, offset: u64, len: u64) {
    system::drop_from_cache(file, offset, len);
}

/// Converts a path into bytes that can be stored; works for any path.
#[must_use]
pub fn path_to_bytes(path: &Path) -> Vec<u8> {
    system::path_to_bytes(path)
}

/// Converts the result of [`path_to_bytes`] back.
#[must_use]
pub fn path_from_bytes(bytes: Vec<u8>) -> OsString {
    system::path_from_bytes(bytes)
}

pub(super) fn kind(found: FileType) -> FileKind {
    if found.is_file() {
        FileKind::File
    } else if found.is_dir() {
        FileKind::Directory
    } else if found.is_symlink() {
        FileKind::Link
    } else {
        FileKind::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn open_regular_refuses_fifo_and_symlink_without_blocking() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo.jsonl");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        assert!(open_regular(&fifo).unwrap().is_none());

        let file = directory.path().join("file.jsonl");
        fs::write(&file, "x").unwrap();
        let link = directory.path().join("link.jsonl");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(open_regular(&link).unwrap().is_none());
        assert!(open_regular(directory.path()).unwrap().is_none());
        assert!(open_regular(&file).unwrap().is_some());
    }

    /// A configuration file that was a FIFO blocked the agent, and one that was `/dev/zero` took all of
    /// the memory.
    #[cfg(target_os = "linux")]
    #[test]
    fn read_bounded_refuses_what_blocks_or_never_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), mode).unwrap();
        File::create(path("holes")).unwrap().set_len(1 << 40).unwrap();
        fs::write(path("file"), "four").unwrap();
        for (link, to) in [("zero", "/dev/zero"), ("to-fifo", "fifo"), ("to-file", "file")] {
            std::os::unix::fs::symlink(to, path(link)).unwrap();
        }
        for (name, kind) in [
            ("", io::ErrorKind::InvalidInput),
            ("fifo", io::ErrorKind::InvalidInput),
            ("to-fifo", io::ErrorKind::InvalidInput),
            ("zero", io::ErrorKind::InvalidInput),
            ("holes", io::ErrorKind::FileTooLarge),
            ("none", io::ErrorKind::NotFound),
        ] {
            assert_eq!(read_bounded(&path(name), 1 << 20).unwrap_err().kind(), kind, "{name}");
        }
        assert_eq!(read_bounded(&path("to-file"), 4).unwrap(), b"four");
        let too_large = read_bounded(&path("file"), 3).unwrap_err();
        assert_eq!(too_large.kind(), io::ErrorKind::FileTooLarge);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn hole_ends_at_the_next_data() {
        use std::os::unix::fs::FileExt as _;

        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"x", 64 << 20).unwrap();
        file.set_len(128 << 20).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(64 << 20));
        assert_eq!(file.next_data(64 << 20).unwrap(), Some(64 << 20));
        assert_eq!(file.next_data(96 << 20).unwrap(), None);
        assert_eq!(file.next_data(200 << 20).unwrap(), None);
        assert!((1..1 << 20).contains(&occupied(&file).unwrap()));
    }

    #[test]
    fn file_id_survives_a_rename() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&from, "x").unwrap();
        let (file, stamp) = open_regular(&from).unwrap().unwrap();
        assert_eq!(inspect(&from).unwrap(), FileInfo { kind: FileKind::File, stamp });
        fs::rename(&from, &to).unwrap();
        fs::write(&from, "y").unwrap();
        let ids = [&to, &from].map(|path| inspect(path).unwrap().stamp.id);
        assert_eq!(ids[0], stamp.id);
        assert_ne!(ids[1], stamp.id);
        assert_eq!(Stamp::of(&file).unwrap().id, stamp.id);
        assert_eq!(inspect(directory.path()).unwrap().kind, FileKind::Directory);
    }

    /// A listing on Windows shows the size at the last close: bytes written since by a process that
    /// holds the file open were not found.
    #[test]
    fn inspect_entry_sees_bytes_written_to_an_open_file() {
        use std::io::Write as _;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"one").unwrap();
        let entry = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap();
        assert_eq!(inspect_entry(&entry).unwrap(), inspect(&path).unwrap());
        assert_eq!(inspect(&path).unwrap().stamp.size, 3);
    }
}
