//! A compressed archive in the format of POSIX `tar`, with regular files only.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};

/// Size of a block; files and the end are filled up to it.
const BLOCK: usize = 512;

/// Writes files into an archive.
pub(super) struct Archive<W: Write> {
    output: GzEncoder<W>,
    /// Modification time of all files, in seconds since 1970.
    modified: u64,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(output: W, modified: u64) -> Self {
        Self { output: GzEncoder::new(output, Compression::default()), modified }
    }

    /// Adds a file that only its owner can read after it was extracted.
    ///
    /// # Errors
    /// Errors of writing; [`io::ErrorKind::InvalidInput`] if the name is longer than 100 bytes.
    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(&header(name, bytes.len(), self.modified)?)?;
        self.output.write_all(bytes)?;
        let rest = bytes.len().next_multiple_of(BLOCK) - bytes.len();
        self.output.write_all(&[0; BLOCK][..rest])
    }

    /// Writes the end, and returns the output.
    ///
    /// # Errors
    /// Errors of writing.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.finish()
    }
}

/// Returns the header of a file, as in
/// <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html> ("ustar").
fn header(name: &str, size: usize, modified: u64) -> io::Result<[u8; BLOCK]> {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    if name.len() > 100 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name is too long"));
    }
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{modified:011o}\0").as_bytes());
    // The checksum counts its own field as spaces.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\0");
    put(263, b"00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::Command;

    use super::*;

    /// The system's `tar` is the judge of the format.
    #[test]
    fn tar_extracts_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Vec::new(), 1_795_291_200);
        let files = [("a/one.json", b"{}\n".to_vec()), ("a/block", vec![b'x'; BLOCK])];
        for (name, bytes) in &files {
            archive.add(name, bytes).unwrap();
        }
        assert!(archive.add(&"x".repeat(101), b"").is_err());
        std::fs::write(directory.path().join("a.tar.gz"), archive.finish().unwrap()).unwrap();
        let mut tar = Command::new("tar");
        let status = tar.current_dir(directory.path()).args(["-xzf", "a.tar.gz"]).status();
        assert!(status.unwrap().success());
        for (name, bytes) in files {
            assert_eq!(std::fs::read(directory.path().join(name)).unwrap(), bytes, "{name}");
        }
    }
}
