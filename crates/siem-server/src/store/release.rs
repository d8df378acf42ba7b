//! Removal of the first lines of a file, so that the others keep their positions.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use crate::regular_file::open_regular_file;

/// Size of the blocks that are overwritten at once.
const BLOCK: usize = 64 << 10;

/// Removes the bytes of a file before position `end`, where a line begins. On Linux their space is
/// released; a file system that cannot do that keeps it, and the bytes are overwritten with newlines.
///
/// The file keeps its size, and a newline before `end`: what is read of the bytes is one line of NUL, or
/// empty lines. Repeating it changes nothing.
pub(super) fn release(file: &File, end: u64) -> io::Result<()> {
    let length = file.metadata()?.len();
    // The newline of the last removed line.
    let bytes = end.min(length).saturating_sub(1);
    if bytes == 0 || punch(file, bytes)? {
        return Ok(());
    }
    overwrite(file, bytes)
}

/// Makes a hole; `false` if the file system has none.
#[cfg(target_os = "linux")]
fn punch(file: &File, bytes: u64) -> io::Result<bool> {
    use rustix::{
        fs::{FallocateFlags, fallocate},
        io::Errno,
    };

    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, 0, bytes) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn punch(_: &File, _: u64) -> io::Result<bool> {
    Ok(false)
}

/// Opens a file of lines at the first one that was not removed, and returns its position there.
///
/// # Errors
/// Errors of the file system.
pub fn open_lines(path: &Path) -> io::Result<(File, u64)> {
    let mut file = open_regular_file(path)?;
    let start = data_start(&file)?;
    file.seek(SeekFrom::Start(start))?;
    Ok((file, start))
}

/// Returns the position of the first bytes that are not in a hole.
#[cfg(target_os = "linux")]
fn data_start(file: &File) -> io::Result<u64> {
    use rustix::{
        fs::{SeekFrom, seek},
        io::Errno,
    };

    match seek(file, SeekFrom::Data(0)) {
        // The file is empty, or the file system knows no holes.
        Err(Errno::NXIO | Errno::INVAL) => Ok(0),
        start => Ok(start?),
    }
}

#[cfg(not(target_os = "linux"))]
fn data_start(_: &File) -> io::Result<u64> {
    Ok(0)
}

fn overwrite(mut file: &File, bytes: u64) -> io::Result<()> {
    let newlines = [b'\n'; BLOCK];
    file.seek(SeekFrom::Start(0))?;
    let mut rest = bytes;
    while rest > 0 {
        let size = usize::try_from(rest).unwrap_or(BLOCK).min(BLOCK);
        file.write_all(&newlines[..size])?;
        rest -= size as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _};

    use super::*;

    #[test]
    fn removed_bytes_are_erased_and_the_rest_is_unchanged() {
        let text = "one\n".repeat(50_000) + "two\n";
        let end = text.len() as u64 - 4;
        for release in [release, |file: &File, end: u64| overwrite(file, end - 1)] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            for _ in 0..2 {
                release(&file, end).unwrap();
                let mut left = String::new();
                file.seek(SeekFrom::Start(0)).unwrap();
                file.read_to_string(&mut left).unwrap();
                assert_eq!(left.len(), text.len());
                assert!(left.ends_with("\ntwo\n") && !left.contains("one"), "some text is left");
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn space_of_removed_bytes_is_released() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lines");
        fs::write(&path, "x\n".repeat(1 << 20)).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        release(&file, 2 << 20).unwrap();
        file.sync_all().unwrap();
        assert!(file.metadata().unwrap().blocks() < before / 4);
        let (mut file, start) = open_lines(&path).unwrap();
        let mut left = Vec::new();
        file.read_to_end(&mut left).unwrap();
        assert_eq!(start + left.len() as u64, 2 << 20);
        assert!(left.len() < 5000, "{}", left.len());
    }
}
