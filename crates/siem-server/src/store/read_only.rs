//! Reads a data directory beside a running receiver, without changing anything in it.
//!
//! A batch is in the files of its epoch soon after its response. What only the journal has is not
//! read: it is in the files after the next start.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use super::{
    DataFormat, EpochLines, OldPart,
    catalog::{Catalog, Key},
    epoch::Stem,
    erased_lines::ErasedLines,
    index_record::scan,
    note::{Note, Sender},
};
use crate::{
    fleet::StatsQuery,
    life::RetainedEpochs,
    regular_file::open_regular_file,
    stats::Stats,
    trust::{DeviceKey, EpochOwner, Registry},
};

/// Error of a data directory that is read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{path}`")]
pub struct ReadError {
    /// File or directory.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Lines of one batch as they are stored, and where they come from.
#[derive(Clone, Copy, Debug)]
pub struct StoredLines<'a> {
    /// Sender of the batch.
    pub sender: &'a siem_protocol::Identity,
    /// Id of the epoch.
    pub epoch: &'a str,
    /// Key of the device that owns the epoch, if there is one.
    pub device: Option<DeviceKey>,
    /// Time of receipt, RFC 3339.
    pub received_at: &'a str,
    /// The lines as received, each with a newline.
    pub lines: &'a [u8],
}

/// Reads the statistics of a data directory.
///
/// # Errors
/// [`ReadError`] if a file cannot be read.
pub fn read_stats(
    data: &Path,
    query: &StatsQuery,
    registry: Option<&Registry>,
) -> Result<Stats, ReadError> {
    Ok(ReadOnlyStore::open(data)?.catalog.stats(query, registry))
}

/// A data directory that is read.
#[derive(Debug)]
pub(crate) struct ReadOnlyStore {
    catalog: Catalog,
    machines: PathBuf,
}

impl ReadOnlyStore {
    /// Reads the indexes of a data directory.
    pub(crate) fn open(data: &Path) -> Result<Self, ReadError> {
        check_version(data)?;
        let machines = data.join("machines");
        let mut catalog = Catalog::default();
        for stem in epochs(&machines)? {
            let path = stem.index(&machines);
            let mut key = None;
            read_notes(&path, |_, note, length| {
                key = key.take().or_else(|| note.sender.as_ref().map(key_of));
                if let Some(key) = &key {
                    catalog.record(key, &note, length);
                }
                Ok(())
            })
            .map_err(|source| ReadError { path, source })?;
        }
        catalog.order_lineages();
        Ok(Self { catalog, machines })
    }

    /// Returns the devices that own epochs.
    pub(crate) fn epoch_owners(&self) -> Vec<EpochOwner> {
        self.catalog.epoch_owners()
    }
}

impl RetainedEpochs for ReadOnlyStore {
    fn stats(&self, query: StatsQuery) -> io::Result<Stats> {
        Ok(self.catalog.stats(&query, None))
    }

    fn older(&self, time: String) -> io::Result<Vec<OldPart>> {
        Ok(self.catalog.older(&time).into_iter().map(OldPart::new).collect())
    }

    fn lines(&self) -> io::Result<Box<dyn Iterator<Item = io::Result<EpochLines>> + '_>> {
        Ok(Box::new(lines_below(&self.machines).map_err(io::Error::other)?))
    }
}

/// Returns the epochs of a data directory. Each is read when the iterator reaches it.
pub(crate) fn read_epochs(
    data: &Path,
) -> Result<impl Iterator<Item = io::Result<EpochLines>>, ReadError> {
    check_version(data)?;
    lines_below(&data.join("machines"))
}

fn lines_below(
    machines: &Path,
) -> Result<impl Iterator<Item = io::Result<EpochLines>> + use<>, ReadError> {
    let (found, machines) = (epochs(machines)?, machines.to_owned());
    Ok(found.into_iter().map(move |stem| EpochLines::read(&machines, &stem, 0)))
}

/// Passes the stored lines on to `show`, batch by batch: those of an epoch in the order in which
/// they arrived.
///
/// # Errors
/// [`ReadError`] if a file cannot be read; the error of `show`, if that fails.
pub fn read_lines<E: From<ReadError>>(
    data: &Path,
    mut show: impl FnMut(StoredLines<'_>) -> Result<(), E>,
) -> Result<(), E> {
    check_version(data)?;
    let machines = data.join("machines");
    for stem in epochs(&machines)? {
        read_epoch(&machines, &stem, &mut show)?;
    }
    Ok(())
}

fn read_epoch<E: From<ReadError>>(
    machines: &Path,
    stem: &Stem,
    show: &mut impl FnMut(StoredLines<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let (index, lines) = (stem.index(machines), stem.lines(machines));
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReadError { path, source }
    };
    let opened = open_lines(&index, &lines, &mut || {}).map_err(failed(&lines))?;
    let Some((mut file, Removals { count: removed, before: removed_before })) = opened else {
        return Ok(());
    };
    // Notes of earlier releases name sender and device only where they changed.
    let (mut sender, mut device): (Option<Sender>, _) = (None, None);
    let mut shown = Ok(());
    let mut text = Vec::new();
    // The lines of notes before have been removed, and those behind a later removal are in another file.
    let mut removals = 0;
    let mut erased = ErasedLines::open(&index, 0).map_err(failed(&index))?;
    read_notes(&index, |at, note, _| {
        removals += u64::from(note.removed);
        sender = note.sender.or(sender.take());
        device = note.device.as_ref().map(|device| device.key).or(device);
        let Some(sender) = sender.as_ref().filter(|_| {
            let is_left = removals == removed && note.lines_at >= removed_before;
            is_left && note.bytes > 0 && shown.is_ok()
        }) else {
            return Ok(());
        };
        text.clear();
        file.seek(SeekFrom::Start(note.lines_at))?;
        file.by_ref().take(note.bytes).read_to_end(&mut text)?;
        erased.replace(at, &mut text)?;
        // The oldest lines of the epoch may have been removed.
        if text.first().is_none_or(|byte| *byte == 0 || *byte == b'\n') {
            return Ok(());
        }
        shown = show(StoredLines {
            sender: &sender.identity,
            epoch: &sender.epoch,
            device,
            received_at: &note.at,
            lines: &text,
        });
        Ok(())
    })
    .map_err(failed(&index))?;
    shown
}

/// What was removed of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Removals {
    /// How often all lines were removed.
    count: u64,
    /// Position before which there are no lines since.
    before: u64,
}

/// Opens the lines of an epoch, and returns what was removed before; `None` if there are no lines. `opened` is called in between.
fn open_lines(
    index: &Path,
    lines: &Path,
    opened: &mut dyn FnMut(),
) -> io::Result<Option<(File, Removals)>> {
    loop {
        let removed = removals(index)?;
        let file = match open_regular_file(lines) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        opened();
        // The file is deleted before the note about that is written, and a new one created after it.
        if removals(index)?.count == removed.count {
            return Ok(Some((file, removed)));
        }
    }
}

fn removals(index: &Path) -> io::Result<Removals> {
    let mut removals = Removals::default();
    read_notes(index, |_, note, _| {
        removals.count += u64::from(note.removed);
        let before = if note.removed { 0 } else { removals.before.max(note.removed_before) };
        // A repair may have found the file shorter.
        removals.before = before.min(note.lines_at);
        Ok(())
    })?;
    Ok(removals)
}

/// The files of earlier versions are converted when a receiver opens the directory.
pub(super) fn check_version(data: &Path) -> Result<(), ReadError> {
    let failed = |error| ReadError { path: data.to_owned(), source: io::Error::other(error) };
    match DataFormat::read(data).map_err(failed)? {
        Some(format) if format.is_current() => Ok(()),
        None if !data.join("machines").is_dir() => Ok(()),
        _ => {
            let error = "an earlier release wrote it; start the receiver once, which converts it";
            Err(ReadError { path: data.to_owned(), source: io::Error::other(error) })
        }
    }
}

/// Returns the epochs below `machines`, in a stable order. A recovery, which also lists them, may
/// change files.
fn epochs(machines: &Path) -> Result<BTreeSet<Stem>, ReadError> {
    epochs_with(machines, "index")
}

/// Returns the epochs that have a file with this ending.
pub(super) fn epochs_with(machines: &Path, ending: &str) -> Result<BTreeSet<Stem>, ReadError> {
    let mut found = BTreeSet::new();
    for directory in entries(machines)? {
        if !directory.is_dir() {
            continue;
        }
        for path in entries(&directory)? {
            let name = |path: &Path| Some(path.file_stem()?.to_str()?.to_owned());
            let is_one = path.extension().is_some_and(|found| found == ending);
            let machine = directory.file_name().and_then(|name| name.to_str());
            if let (true, Some(machine), Some(epoch)) = (is_one, machine, name(&path)) {
                found.insert(Stem { machine: machine.to_owned(), epoch });
            }
        }
    }
    Ok(found)
}

/// Lists a directory; a missing one has no entries.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, ReadError> {
    match list(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|source| ReadError { path: directory.to_owned(), source }),
    }
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

fn key_of(sender: &Sender) -> Key {
    (sender.identity.machine_id.clone(), sender.epoch.clone())
}

/// Passes each undamaged note on with the position of its record, and the length of that and of damaged
/// bytes before it.
fn read_notes(
    path: &Path,
    mut show: impl FnMut(u64, Note, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut end = 0;
    let shown = scan(&open_regular_file(path)?, 0, |at, head, text| {
        let Ok(note) = serde_json::from_slice(text) else { return Ok(()) };
        let length = at + head.length() - std::mem::replace(&mut end, at + head.length());
        show(at, note, length)
    });
    shown.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::{
        store::{
            FileStore,
            files::tests::{files, stats, take},
        },
        testing::BatchText,
    };

    #[test]
    fn reading_returns_what_the_store_does_and_changes_no_file() {
        let root = tempfile::tempdir().unwrap();
        let store = FileStore::open(root.path()).unwrap();
        take(&store, &BatchText::new(1, 3)).unwrap();
        let expected = stats(&store);
        drop(store);
        let before = files(root.path());
        let found = read_stats(root.path(), &StatsQuery::all(UNIX_EPOCH), None).unwrap();
        assert_eq!(found, expected);
        let mut lines = Vec::new();
        read_lines(root.path(), |batch| {
            lines.extend_from_slice(batch.lines);
            Ok::<_, ReadError>(())
        })
        .unwrap();
        let stored: Vec<_> = lines.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(stored.len(), 3);
        assert_eq!(files(root.path()), before);
        let missing = read_stats(&root.path().join("none"), &StatsQuery::all(UNIX_EPOCH), None);
        assert_eq!(missing.unwrap(), Stats::default());
    }

    #[test]
    fn removal_after_the_lines_were_opened_opens_the_new_ones() {
        let root = tempfile::tempdir().unwrap();
        let store = FileStore::open(root.path()).unwrap();
        take(&store, &BatchText::new(1, 3)).unwrap();
        let bytes = stats(&store).machines[0].epochs[0].bytes;
        let machines = root.path().join("machines");
        let stem = epochs(&machines).unwrap().pop_first().unwrap();
        let mut opened = 0;
        let mut remove = || {
            opened += 1;
            if opened == 1 {
                let handle = store.handle();
                let key = handle.epochs(None).unwrap().next().unwrap().unwrap().key().unwrap();
                let at = crate::clock::text(UNIX_EPOCH);
                assert_eq!(handle.remove(vec![(key, bytes)], at).unwrap().len(), 1);
                take(&store, &BatchText::new(4, 6)).unwrap();
                stats(&store);
            }
        };
        let (index, lines) = (stem.index(&machines), stem.lines(&machines));
        let (mut file, removed) = open_lines(&index, &lines, &mut remove).unwrap().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let seq = text.lines().next().and_then(|line| crate::batch::seq_of(line.as_bytes()));
        assert_eq!((opened, removed.count, seq), (2, 1, Some(4)));
        let mut shown = Vec::new();
        read_lines(root.path(), |batch| {
            let lines = batch.lines.split_inclusive(|byte| *byte == b'\n');
            shown.extend(lines.filter_map(crate::batch::seq_of));
            Ok::<_, ReadError>(())
        })
        .unwrap();
        assert_eq!(shown, [4, 5, 6]);
    }
}
