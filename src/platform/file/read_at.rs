//! Reading at an offset.

use std::{fs::File, io};

use super::system;
#[cfg(all(test, unix))]
use crate::platform::faults;

/// Reads bytes at any offset without moving a position.
pub trait ReadAt {
    /// Reads at `offset` into `bytes`, and returns the number of bytes; 0 at the end.
    ///
    /// # Errors
    /// The error of the system.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Returns the offset of the first byte at `offset` or after it that the file system stores, or
    /// `None` if there is none: the bytes before it are a hole, and are read as NUL. Where the system
    /// does not report holes, every byte is stored.
    ///
    /// # Errors
    /// The error of the system.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }

    /// Reads at `offset` until `bytes` is full or the file ends, and returns the number of bytes.
    ///
    /// # Errors
    /// The error of the system; an interrupted call is repeated.
    fn fill_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.fill_to(bytes, offset, u64::MAX)
    }

    /// Same as [`fill_at`](Self::fill_at) for a file whose size was `end` a moment ago: no further
    /// read is made to detect the end there. A read that ends elsewhere is continued, since some
    /// file systems return fewer bytes than there are.
    ///
    /// # Errors
    /// The error of the system; an interrupted call is repeated.
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
        #[cfg(all(test, unix))]
        faults::check_open(faults::Call::Read, self)?;
        system::read_at(self, bytes, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        system::next_data(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Returns three bytes per call, and counts the calls.
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

    /// Saves one call per file, and reads on if the file ends elsewhere.
    #[test]
    fn fill_to_makes_no_extra_read_at_the_known_end() {
        for (end, filled, calls) in [(6, 6, 2), (7, 9, 4), (0, 0, 0), (20, 9, 4), (u64::MAX, 9, 4)]
        {
            let file = Slow(b"123456789", Cell::default());
            let mut bytes = [0; 100];
            assert_eq!(file.fill_to(&mut bytes, 0, end).unwrap(), filled, "{end}");
            assert_eq!(file.1.get(), calls, "{end}");
        }
    }
}
