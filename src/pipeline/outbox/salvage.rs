//! Reads the intact part of a damaged store.
//!
//! The file stays unchanged, so that it can be examined later: writes of redb while it opens the
//! file are kept in memory. Rows with a wrong checksum are not used.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, StorageBackend,
};

use super::{
    DeadLetter, DeadLetterId,
    backup_file::GenerationKey,
    checkpoints::open_checkpoint,
    checksum,
    dead_letters::{open_letter, reported, to_id},
    rows::{OutboxState, from_json},
    store_file::CACHE,
    tables::{CHECKPOINTS, CURSORS, DEAD_LETTERS, META},
};
use crate::{
    platform::{file::ReadAt as _, secure_file},
    tail::{self, GenerationId},
};

/// Longest time spent on a table: damaged pages may lead in circles.
const MAX_TIME: Duration = Duration::from_secs(20);
/// Largest number of bytes that are kept in memory in place of writing them.
const MAX_WRITTEN: usize = 64 << 20;

/// Contents that could be read.
#[derive(Debug, Default)]
pub(super) struct SalvagedContents {
    /// Epoch of the store.
    pub(super) epoch: Option<String>,
    /// Rows with which generations started.
    pub(super) started: BTreeMap<GenerationKey, Vec<u8>>,
    /// Dead letters that were reported to the receiver, as far as known; the entries of others are
    /// read again.
    pub(super) letters: Vec<(DeadLetterId, DeadLetter)>,
    /// Number of dead letters that cannot be read; `None` when unknown.
    pub(super) lost_letters: Option<u64>,
}

/// Reads the intact rows of the store at `path`.
pub(super) fn salvage(path: &Path) -> SalvagedContents {
    let mut salvaged = SalvagedContents::default();
    let is_open = attempt(|| {
        let database = open(path)?;
        // One attempt per table: the pages of one may be intact and those of another damaged.
        attempt(|| read_epoch(&database.begin_read()?, &mut salvaged));
        attempt(|| read_started(&database.begin_read()?, &mut salvaged));
        if let Some(lost) = attempt(|| read_letters(&database.begin_read()?, &mut salvaged)) {
            salvaged.lost_letters = Some(lost);
        }
        // Closing the database would write to it.
        std::mem::forget(database);
        Ok(())
    });
    if is_open.is_none() {
        tracing::warn!(
            code = "outbox_salvage_failed",
            ?path,
            "cannot read the damaged outbox that was moved aside"
        );
    }
    salvaged
}

fn attempt<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Some(done),
        Ok(Err(error)) => {
            tracing::debug!(%error, "cannot read a part of the damaged outbox");
            None
        }
        Err(_) => None,
    }
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    let file = secure_file::open(File::options().read(true), path)?;
    let written = OverlayBlocks { length: file.metadata()?.len(), ..OverlayBlocks::default() };
    let overlay = ReadOnlyOverlay { file, written: Mutex::new(written) };
    // Without the integrity check, which fails because some pages are damaged.
    Ok(Builder::new().set_cache_size(CACHE).create_with_backend(overlay)?)
}

fn read_epoch(
    transaction: &ReadTransaction,
    salvaged: &mut SalvagedContents,
) -> Result<(), redb::Error> {
    if let Some(row) = checksum::read_state(&transaction.open_table(META)?)?
        && row.has_checksum
    {
        salvaged.epoch = from_json::<OutboxState>(&row.json).map(|state| state.epoch);
    }
    Ok(())
}

fn read_started(
    transaction: &ReadTransaction,
    salvaged: &mut SalvagedContents,
) -> Result<(), redb::Error> {
    let started_at = Instant::now();
    for row in transaction.open_table(CHECKPOINTS)?.iter()? {
        let (key, row) = row?;
        let (source, generation) = key.value();
        let row = open_checkpoint(key.value(), row.value());
        if let Some(row) = row.ok().and_then(|row| tail::starting_row(&row)) {
            let key = (source.to_owned(), GenerationId(generation.to_owned()));
            salvaged.started.insert(key, row);
        }
        if started_at.elapsed() > MAX_TIME {
            break;
        }
    }
    Ok(())
}

/// Reads dead letters; returns the number of those that cannot be read.
fn read_letters(
    transaction: &ReadTransaction,
    salvaged: &mut SalvagedContents,
) -> Result<u64, redb::Error> {
    let is_reported = attempt(|| reported(&transaction.open_table(CURSORS)?));
    let (started_at, mut lost) = (Instant::now(), 0);
    for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
        let (key, row) = row?;
        let Ok(letter) = open_letter(key.value(), row.value()) else {
            lost += 1;
            continue;
        };
        let id = to_id(key.value());
        if is_reported.as_ref().is_none_or(|is_reported| is_reported(&id)) {
            salvaged.letters.push((id, letter));
        }
        if started_at.elapsed() > MAX_TIME {
            return Err(redb::Error::Corrupted("reading dead letters took too long".to_owned()));
        }
    }
    Ok(lost)
}

/// Backend that reads a file and keeps writes in memory.
#[derive(Debug)]
struct ReadOnlyOverlay {
    file: File,
    written: Mutex<OverlayBlocks>,
}

#[derive(Debug, Default)]
struct OverlayBlocks {
    length: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

/// Size of the units that writes are kept in.
const BLOCK: usize = 4096;

impl ReadOnlyOverlay {
    fn written(&self) -> MutexGuard<'_, OverlayBlocks> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a block from the file; zeroes behind its end.
    fn block(&self, number: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK];
        self.file.fill_at(&mut block, number * BLOCK as u64)?;
        Ok(block)
    }
}

/// Splits `length` bytes at `offset` into blocks: block number, offset in the block, and range in
/// the bytes.
fn blocks(
    offset: u64,
    length: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = usize::try_from(at % BLOCK as u64).expect("less than a block");
        let count = (BLOCK - within).min(length - done);
        let range = done..done + count;
        done += count;
        (count > 0).then_some((at / BLOCK as u64, within, range))
    })
}

impl StorageBackend for ReadOnlyOverlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > written.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if written.blocks.is_empty() {
            return if self.file.fill_at(out, offset)? == out.len() {
                Ok(())
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        for (number, within, range) in blocks(offset, out.len()) {
            let out = &mut out[range];
            match written.blocks.get(&number) {
                Some(block) => out.copy_from_slice(&block[within..within + out.len()]),
                None => out.copy_from_slice(&self.block(number)?[within..within + out.len()]),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.written().length = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        for (number, within, range) in blocks(offset, data.len()) {
            if (written.blocks.len() + 1) * BLOCK > MAX_WRITTEN {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let block = match written.blocks.remove(&number) {
                Some(block) => block,
                None => self.block(number)?,
            };
            let block = written.blocks.entry(number).or_insert(block);
            block[within..within + range.len()].copy_from_slice(&data[range]);
        }
        Ok(())
    }
}
