//! What can still be read of a store that is damaged.
//!
//! The file stays as it is, for whoever wants to look into it: what redb would write, while it
//! opens it, is kept in memory. Nothing is taken whose checksum is wrong.

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
    CHECKPOINTS, CURSORS, DEAD_LETTERS, DeadLetter, DeadLetterId, META, State,
    backup::Key,
    checkpoints::open_checkpoint,
    checksum,
    database::CACHE,
    dead_letters::{open_letter, reported},
    from_json,
};
use crate::{
    platform::file::ReadAt as _,
    tail::{self, GenerationId},
};

/// How long is searched: pages that are no tree any more may lead in circles.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much may be written in memory.
const MOST_WRITTEN: usize = 64 << 20;

/// What could be read.
#[derive(Debug, Default)]
pub(super) struct SalvagedContents {
    /// The epoch.
    pub(super) epoch: Option<String>,
    /// The beginnings of generations.
    pub(super) begun: BTreeMap<Key, Vec<u8>>,
    /// Dead letters that a header has named, as far as that is known: the entries of others are
    /// read again.
    pub(super) letters: Vec<(DeadLetterId, DeadLetter)>,
    /// How many dead letters can't be read; `None` when nobody can tell.
    pub(super) lost_letters: Option<u64>,
}

/// Reads what can be read of the store at `path`.
pub(super) fn salvage(path: &Path) -> SalvagedContents {
    let mut salvaged = SalvagedContents::default();
    let is_open = attempt(|| {
        let database = open(path)?;
        // Each by itself: the pages of one may be whole and those of another not.
        attempt(|| epoch(&database.begin_read()?, &mut salvaged));
        attempt(|| beginnings(&database.begin_read()?, &mut salvaged));
        if let Some(lost) = attempt(|| letters(&database.begin_read()?, &mut salvaged)) {
            salvaged.lost_letters = Some(lost);
        }
        // To close it would write.
        std::mem::forget(database);
        Ok(())
    });
    if is_open.is_none() {
        tracing::warn!(
            code = "outbox_salvage_failed",
            "nothing could be read of the outbox that was moved aside"
        );
    }
    salvaged
}

fn attempt<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Some(done),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a part of the outbox could not be read");
            None
        }
        Err(_) => None,
    }
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    let file = File::open(path)?;
    let written = OverlayBlocks { length: file.metadata()?.len(), ..OverlayBlocks::default() };
    let overlay = ReadOnlyOverlay { file, written: Mutex::new(written) };
    // Without the check of every page: some are wrong.
    Ok(Builder::new().set_cache_size(CACHE).create_with_backend(overlay)?)
}

fn epoch(
    transaction: &ReadTransaction,
    salvaged: &mut SalvagedContents,
) -> Result<(), redb::Error> {
    if let Some((row, true)) = checksum::state(&transaction.open_table(META)?)? {
        salvaged.epoch = from_json::<State>(&row).map(|state| state.epoch);
    }
    Ok(())
}

fn beginnings(
    transaction: &ReadTransaction,
    salvaged: &mut SalvagedContents,
) -> Result<(), redb::Error> {
    let begun = Instant::now();
    for row in transaction.open_table(CHECKPOINTS)?.iter()? {
        let (key, row) = row?;
        let (source, generation) = key.value();
        let row = open_checkpoint(key.value(), row.value());
        if let Some(row) = row.ok().and_then(|row| tail::beginning(&row)) {
            let key = (source.to_owned(), GenerationId(generation.to_owned()));
            salvaged.begun.insert(key, row);
        }
        if begun.elapsed() > PATIENCE {
            break;
        }
    }
    Ok(())
}

/// Says how many letters can't be read.
fn letters(
    transaction: &ReadTransaction,
    salvaged: &mut SalvagedContents,
) -> Result<u64, redb::Error> {
    let is_reported = attempt(|| reported(&transaction.open_table(CURSORS)?));
    let (begun, mut lost) = (Instant::now(), 0);
    for row in transaction.open_table(DEAD_LETTERS)?.iter()? {
        let (key, row) = row?;
        let Ok(letter) = open_letter(key.value(), row.value()) else {
            lost += 1;
            continue;
        };
        let (sink, epoch, seq) = key.value();
        let id = DeadLetterId { sink: sink.to_owned(), epoch: epoch.to_owned(), seq };
        if is_reported.as_ref().is_none_or(|is_reported| is_reported(&id)) {
            salvaged.letters.push((id, letter));
        }
        if begun.elapsed() > PATIENCE {
            return Err(redb::Error::Corrupted("it takes too long".to_owned()));
        }
    }
    Ok(lost)
}

/// A file that is only read: what is written stays in memory.
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

const BLOCK: usize = 4096;

impl ReadOnlyOverlay {
    fn written(&self) -> MutexGuard<'_, OverlayBlocks> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block as it lies in the file, zeroes behind its end.
    fn block(&self, number: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK];
        self.file.fill_at(&mut block, number * BLOCK as u64)?;
        Ok(block)
    }
}

/// The blocks that so many bytes at `offset` lie in: number, place in the block, place in them.
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
            if (written.blocks.len() + 1) * BLOCK > MOST_WRITTEN {
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
