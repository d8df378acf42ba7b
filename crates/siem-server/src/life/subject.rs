//! Entries that an erasure is about, and erasures that stay in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{
    Erasure, Hold, Holds, Selector, directory, erasures, lock,
    long_lines::{self, LongLines},
    replace,
    session::Relation,
};
use crate::{EpochKey, clock, entry_lines, regular_file::read_whole_file};

/// Entries that an erasure is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) selector: Selector,
    /// Only entries of this time or before.
    pub(super) until: Option<SystemTime>,
    /// Id of the erasure that is repeated.
    pub(super) of: Option<String>,
    /// Only entries of these epochs.
    pub(super) epochs: Option<Vec<EpochKey>>,
    /// Lines whose parts are all among the entries.
    pub(super) long_lines: LongLines,
}

impl Subject {
    /// All entries that a selector selects.
    pub(super) fn new(selector: Selector) -> Self {
        Self { selector, until: None, of: None, epochs: None, long_lines: LongLines::default() }
    }

    /// Reports whether all parts of a line belong to the entries if one of them does.
    pub(super) fn has_long_lines(&self) -> bool {
        matches!(self.selector, Selector::Session(_) | Selector::Mentions(_))
    }

    /// Returns a hold that covers one of the entries.
    pub(super) fn hold<'h>(
        &self,
        holds: &'h Holds,
        machine: &str,
        user: &str,
        line: &[u8],
    ) -> Option<&'h Hold> {
        holds.covers(machine, user, line).or_else(|| {
            // A part that does not name the session is held like the one that does.
            let is_same = |hold: &&Hold| match &hold.selector {
                Selector::Session(id) | Selector::Mentions(id) => id == self.selector.text(),
                Selector::User(_) | Selector::Machine(_) => false,
            };
            let held = holds.list().iter().find(is_same)?;
            self.long_lines.have_part(machine, user, line).then_some(held)
        })
    }

    /// Returns the relation of a line of an epoch to the entries. `user` sent it.
    pub(super) fn relation(&self, machine: &str, user: &str, line: &[u8]) -> Relation {
        match self.selector.relation(machine, user, line) {
            Relation::Part if self.until.is_some_and(|it| time(line).is_none_or(|at| at > it)) => {
                Relation::None
            }
            Relation::None | Relation::Mention(_)
                if self.long_lines.have_part(machine, user, line) =>
            {
                Relation::Part
            }
            relation => relation,
        }
    }

    /// Reports whether a line of an epoch is one of the entries. `user` sent it.
    pub(super) fn selects(&self, machine: &str, user: &str, line: &[u8]) -> bool {
        self.relation(machine, user, line) == Relation::Part
    }

    /// Reports whether a line that a recovery left may be one of the entries.
    pub(super) fn may_select(&self, machine: &str, user: &str, line: &[u8]) -> bool {
        let is_part = self.selector.relation(machine, user, line) == Relation::Part;
        (is_part || self.long_lines.have_part(machine, user, line)) && self.may_be_in_time(line)
    }

    /// Reports whether a line may be of a time at which it is one of the entries.
    pub(super) fn may_be_in_time(&self, line: &[u8]) -> bool {
        self.until.is_none_or(|until| time(line).is_none_or(|time| time <= until))
    }
}

fn time(line: &[u8]) -> Option<SystemTime> {
    std::str::from_utf8(line).ok().and_then(entry_lines::time_of)
}

/// An erasure that stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) id: String,
    pub(super) selector: Selector,
    pub(super) until: Option<SystemTime>,
    pub(super) reason: String,
    /// Number of erasures that repeated it.
    pub(super) repeats: usize,
    /// Lines whose parts are all erased.
    pub(super) long_lines: LongLines,
}

impl Standing {
    /// The entries of some epochs.
    pub(super) fn subject(&self, epochs: Vec<EpochKey>) -> Subject {
        let (selector, of) = (self.selector.clone(), Some(self.id.clone()));
        let long_lines = self.long_lines.clone();
        Subject { selector, until: self.until, of, epochs: Some(epochs), long_lines }
    }
}

/// Reports whether an erasure is one that stays in force, unless it was ended.
pub(super) fn is_lasting(erasure: &Erasure) -> bool {
    erasure.repeats.is_none() && erasure.stopped_by_hold.is_none()
}

/// Returns the erasures that stay in force, one for each subject.
///
/// That of a session covers all later entries; that of a user those of the time before it, since
/// the user may come back.
pub(super) fn standing(data: &Path) -> io::Result<Vec<Standing>> {
    let ended = ended(data)?;
    let listed = erasures(data, &[], &[])?;
    let mut found: BTreeMap<(u8, String), Standing> = BTreeMap::new();
    let mut repeats: BTreeMap<String, usize> = BTreeMap::new();
    for Erasure { id, at, selector, reason, repeats: of, stopped_by_hold, .. } in
        listed.into_iter().map(|view| view.erasure)
    {
        if let Some(of) = of {
            *repeats.entry(of).or_default() += 1;
            continue;
        }
        if stopped_by_hold.is_some() || ended.contains(&id) {
            continue;
        }
        let until = match selector {
            Selector::Session(_) | Selector::Mentions(_) => None,
            Selector::User(_) => Some(clock::parse(&at).ok_or(io::ErrorKind::InvalidData)?),
            Selector::Machine(_) => continue,
        };
        let kind = match selector {
            Selector::Mentions(_) => 2,
            _ => u8::from(until.is_some()),
        };
        let key = (kind, selector.text().to_owned());
        let long_lines = LongLines::default();
        found.insert(key, Standing { id, selector, until, reason, repeats: 0, long_lines });
    }
    let mut long_lines = long_lines::read_all(data)?;
    let found = found.into_values().map(|it| {
        let repeats = repeats.get(&it.id).copied().unwrap_or_default();
        Standing { repeats, long_lines: long_lines.remove(&it.id).unwrap_or_default(), ..it }
    });
    Ok(found.collect())
}

fn ended_path(data: &Path) -> std::path::PathBuf {
    directory(data).join("ended-erasures.json")
}

/// Returns the ids of erasures that no longer stay in force.
pub(super) fn ended(data: &Path) -> io::Result<BTreeSet<String>> {
    match read_whole_file(&ended_path(data)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// Ends an erasure of the data directory `data`: later entries of its subject are kept. Reports
/// whether it was in force.
///
/// # Errors
/// If a file cannot be read or written: it is in force still.
pub fn end_erasure(data: &Path, id: &str) -> io::Result<bool> {
    let listed = erasures(data, &[], &[])?;
    let is_known = listed.iter().any(|it| it.erasure.id == id && is_lasting(&it.erasure));
    let _held = lock(data)?;
    let mut ended = ended(data)?;
    if !is_known || !ended.insert(id.to_owned()) {
        return Ok(false);
    }
    replace(&ended_path(data), &serde_json::to_vec_pretty(&ended)?)?;
    Ok(true)
}

/// What was compared with the erasures that stay in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Swept {
    /// Positions in the indexes of epochs up to which all lines were compared.
    epochs: BTreeMap<String, u64>,
    /// Size and time of the files of recoveries, by their paths.
    remains: BTreeMap<String, (u64, u64)>,
}

/// Lets the next comparison begin at the start of some epochs, by the names of their files.
pub(crate) fn forget_swept(data: &Path, names: impl Iterator<Item = String>) -> io::Result<()> {
    let mut swept = Swept::read(data);
    let known = names.filter(|name| swept.epochs.remove(name).is_some()).count();
    if known > 0 { swept.write(data) } else { Ok(()) }
}

impl Swept {
    /// Reads the positions. Without them everything is compared again.
    pub(super) fn read(data: &Path) -> Self {
        let text = read_whole_file(&directory(data).join("swept.json")).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    pub(super) fn write(&self, data: &Path) -> io::Result<()> {
        replace(&directory(data).join("swept.json"), &serde_json::to_vec(self)?)
    }

    /// Returns the position in the index of an epoch, by the name of its files.
    pub(super) fn position(&self, name: &str) -> u64 {
        self.epochs.get(name).copied().unwrap_or_default()
    }

    pub(super) fn set(&mut self, name: &str, position: u64) {
        self.epochs.insert(name.to_owned(), position);
    }

    /// Reports whether this version of a file of a recovery was compared.
    pub(super) fn has_remains(&self, path: &str, version: (u64, u64)) -> bool {
        self.remains.get(path) == Some(&version)
    }

    /// Replaces the versions of the files that were compared.
    pub(super) fn set_remains(&mut self, remains: BTreeMap<String, (u64, u64)>) {
        self.remains = remains;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn forgotten_epoch_is_compared_from_its_start() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(directory(root.path())).unwrap();
        let mut swept = Swept::default();
        swept.set("m/one", 7);
        swept.set("m/other", 9);
        swept.write(root.path()).unwrap();
        let names = ["m/one", "m/unknown"].map(str::to_owned);
        forget_swept(root.path(), names.into_iter()).unwrap();
        let swept = Swept::read(root.path());
        assert_eq!((swept.position("m/one"), swept.position("m/other")), (0, 9));
    }
}
