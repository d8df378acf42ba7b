//! Reads a data directory beside a running receiver, without changing anything in it.
//!
//! A batch is in the files of its epoch soon after its response. What only the journal has is not
//! read: it is in the files after the next start.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use super::{
    catalog::{Catalog, Key},
    epoch::Stem,
    note::{Note, Sender},
    recover::stems,
};
use crate::{
    fleet::StatsQuery,
    stats::Stats,
    trust::{DeviceKey, Registry},
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
    let machines = data.join("machines");
    let mut catalog = Catalog::default();
    for stem in epochs(&machines)? {
        let path = stem.notes(&machines);
        let mut key = None;
        read_notes(&path, |note, length| {
            key = key.take().or_else(|| note.sender.as_ref().map(key_of));
            if let Some(key) = &key {
                catalog.record(key, &note, length);
            }
            Ok(())
        })
        .map_err(|source| ReadError { path, source })?;
    }
    catalog.order_lineages();
    Ok(catalog.stats(query, registry))
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
    let (notes, lines) = (stem.notes(machines), stem.lines(machines));
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReadError { path, source }
    };
    let mut file = File::open(&lines).map_err(failed(&lines))?;
    // Notes of earlier releases name sender and device only where they changed.
    let (mut sender, mut device): (Option<Sender>, _) = (None, None);
    let mut shown = Ok(());
    let mut text = Vec::new();
    read_notes(&notes, |note, _| {
        sender = note.sender.or(sender.take());
        device = note.device.as_ref().map(|device| device.key).or(device);
        let Some(sender) = sender.as_ref().filter(|_| note.bytes > 0 && shown.is_ok()) else {
            return Ok(());
        };
        text.clear();
        file.seek(SeekFrom::Start(note.lines_at))?;
        file.by_ref().take(note.bytes).read_to_end(&mut text)?;
        shown = show(StoredLines {
            sender: &sender.identity,
            epoch: &sender.epoch,
            device,
            received_at: &note.at,
            lines: &text,
        });
        Ok(())
    })
    .map_err(failed(&notes))?;
    shown
}

fn epochs(machines: &Path) -> Result<Vec<Stem>, ReadError> {
    match stems(machines) {
        Ok(stems) => Ok(stems.into_iter().collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(ReadError { path: machines.to_owned(), source }),
    }
}

fn key_of(sender: &Sender) -> Key {
    (sender.identity.machine_id.clone(), sender.epoch.clone())
}

/// Passes each undamaged note on with its length.
fn read_notes(path: &Path, mut show: impl FnMut(Note, u64) -> io::Result<()>) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)? as u64;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
        if let Ok(note) = serde_json::from_slice(&line) {
            show(note, length)?;
        }
    }
}
