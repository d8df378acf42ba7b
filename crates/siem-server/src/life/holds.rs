//! Legal holds: data that neither the retention nor an erasure may remove.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};

use super::{Selector, directory, lock, lock_removals, replace};
use crate::regular_file::read_whole_file;

/// A legal hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Number of the hold, from 1.
    pub id: u64,
    /// The data.
    pub selector: Selector,
    /// The reason given.
    pub reason: String,
    /// User of the system who added it.
    pub who: String,
    /// Time, RFC 3339.
    pub at: String,
}

/// The holds of a data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// Number of the next hold: no number is used twice.
    next: u64,
    holds: Vec<Hold>,
}

impl Holds {
    /// Reads the holds of the data directory `data`.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged: nothing may be removed then.
    pub fn read(data: &Path) -> io::Result<Self> {
        match read_whole_file(&directory(data).join("holds.json")) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Adds a hold to the data directory `data`, and returns its number. Waits for the end of an
    /// erasure or a removal by the retention.
    ///
    /// # Errors
    /// If the file cannot be read or written: there is no such hold then.
    pub fn add(data: &Path, hold: Hold) -> io::Result<u64> {
        let _removals = lock_removals(data)?;
        let _held = lock(data)?;
        let mut holds = Self::read(data)?;
        holds.next += 1;
        let id = holds.next;
        holds.holds.push(Hold { id, ..hold });
        holds.write(data)?;
        Ok(id)
    }

    /// Removes a hold, and returns it; `None` if there is no such hold.
    ///
    /// # Errors
    /// If the file cannot be read or written: the hold is still there then.
    pub fn remove(data: &Path, id: u64) -> io::Result<Option<Hold>> {
        let _held = lock(data)?;
        let mut holds = Self::read(data)?;
        let Some(at) = holds.holds.iter().position(|hold| hold.id == id) else { return Ok(None) };
        let removed = holds.holds.remove(at);
        holds.write(data)?;
        Ok(Some(removed))
    }

    fn write(&self, data: &Path) -> io::Result<()> {
        replace(&directory(data).join("holds.json"), &serde_json::to_vec_pretty(self)?)
    }

    /// The holds, in the order of their numbers.
    #[must_use]
    pub fn list(&self) -> &[Hold] {
        &self.holds
    }

    /// Returns a hold that covers a line.
    #[must_use]
    pub fn covers(&self, machine: &str, user: &str, line: &[u8]) -> Option<&Hold> {
        self.holds.iter().find(|hold| hold.selector.covers(machine, user, line))
    }
}
