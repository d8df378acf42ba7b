//! Disk in memory for tests that can lose power or return errors.
//!
//! Unsynced writes may survive a power cut completely, partly, in any order, or not at all, each
//! sector independently.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

/// Size of the unit that a disk writes atomically.
const SECTOR: usize = 512;

/// Disk that is shared by its clones.
#[derive(Clone, Debug)]
pub(crate) struct SimulatedDisk(Arc<Mutex<DiskState>>);

#[derive(Debug)]
struct DiskState {
    live: Vec<u8>,
    /// Content as of the last sync.
    durable: Vec<u8>,
    /// Changes since the last sync.
    pending: Vec<DiskChange>,
    random: fastrand::Rng,
    /// Number of changes and syncs until the power cut.
    power: Option<u64>,
    is_off: bool,
    /// Number of calls that will fail.
    errors: u64,
    /// True if syncs do nothing, as on some real disks; tests must detect it.
    ignores_syncs: bool,
    counts: DiskCounts,
}

#[derive(Clone, Debug)]
enum DiskChange {
    Write { offset: usize, bytes: Vec<u8> },
    Resize(usize),
}

/// Number of events on a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskCounts {
    /// Power cuts during a write.
    pub(crate) cut_in_write: u64,
    /// Power cuts during a sync.
    pub(crate) cut_in_sync: u64,
    /// Power cuts during a change of the file length.
    pub(crate) cut_in_resize: u64,
    /// Writes that survived a cut partly.
    pub(crate) torn: u64,
    /// Writes that did not survive a cut although a later one did.
    pub(crate) reordered: u64,
    /// Calls that failed with the power on.
    pub(crate) errors: u64,
}

impl SimulatedDisk {
    /// Creates an empty disk.
    pub(crate) fn new(seed: u64) -> Self {
        Self::of(Vec::new(), seed)
    }

    /// Creates a disk with content `bytes`.
    pub(crate) fn of(bytes: Vec<u8>, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(DiskState {
            live: bytes.clone(),
            durable: bytes,
            pending: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            power: None,
            is_off: false,
            errors: 0,
            ignores_syncs: false,
            counts: DiskCounts::default(),
        })))
    }

    /// Cuts the power within `changes` changes or syncs.
    pub(crate) fn cut_after(&self, changes: u64) {
        self.inner().power = Some(changes);
    }

    /// Returns true if the power is off.
    pub(crate) fn is_off(&self) -> bool {
        self.inner().is_off
    }

    /// Cuts the power unless it is off, and restores it with the content that survived.
    pub(crate) fn reboot(&self) {
        let mut inner = self.inner();
        if !inner.is_off {
            inner.lose_power();
        }
        inner.live = inner.durable.clone();
        (inner.is_off, inner.power, inner.errors) = (false, None, 0);
    }

    /// Deletes the content.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner();
        (inner.live, inner.durable, inner.pending) = (Vec::new(), Vec::new(), Vec::new());
    }

    /// Makes the next `calls` reads, changes or syncs fail.
    pub(crate) fn fail(&self, calls: u64) {
        self.inner().errors = calls;
    }

    /// Makes syncs do nothing from now on.
    pub(crate) fn ignore_syncs(&self) {
        self.inner().ignores_syncs = true;
    }

    /// Returns the current content.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.inner().live.clone()
    }

    /// Returns the number of events so far.
    pub(crate) fn counts(&self) -> DiskCounts {
        self.inner().counts
    }

    fn inner(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().unwrap()
    }

    fn change(&self, change: DiskChange) -> io::Result<()> {
        let mut inner = self.inner();
        let is_write = matches!(change, DiskChange::Write { .. });
        // The current change may survive too.
        inner.pending.push(change.clone());
        if inner.step()? {
            let counts = &mut inner.counts;
            *(if is_write { &mut counts.cut_in_write } else { &mut counts.cut_in_resize }) += 1;
            return Err(inner.lose_power());
        }
        apply(&mut inner.live, &change, |_| true);
        Ok(())
    }
}

impl DiskState {
    /// Counts a call; returns whether the power is cut during it.
    fn step(&mut self) -> io::Result<bool> {
        if self.is_off {
            return Err(io::Error::other("the power is off"));
        }
        if self.errors > 0 {
            self.errors -= 1;
            self.counts.errors += 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        let Some(left) = &mut self.power else { return Ok(false) };
        *left = left.saturating_sub(1);
        Ok(*left == 0)
    }

    fn lose_power(&mut self) -> io::Error {
        let mut pending: Vec<_> =
            std::mem::take(&mut self.pending).into_iter().enumerate().collect();
        // Sometimes nothing has reached the disk, sometimes everything.
        let share = [0.0, 0.1, 0.5, 0.9, 1.0][self.random.usize(..5)];
        let is_all = share >= 1.0;
        if !is_all {
            self.random.shuffle(&mut pending);
        }
        let mut kept = Vec::new();
        let mut lost = Vec::new();
        for (number, change) in pending {
            if self.random.f64() >= share {
                lost.push(number);
                continue;
            }
            let is_whole = is_all || self.random.bool();
            let random = &mut self.random;
            let mut is_torn = false;
            apply(&mut self.durable, &change, |_| {
                let survives = is_whole || random.bool();
                is_torn |= !survives;
                survives
            });
            self.counts.torn += u64::from(is_torn);
            kept.push(number);
        }
        let last = kept.iter().max();
        self.counts.reordered += u64::from(lost.iter().min() < last && !lost.is_empty());
        self.is_off = true;
        io::Error::other("the power was cut")
    }
}

/// Applies a change to the sectors that survive.
fn apply(bytes: &mut Vec<u8>, change: &DiskChange, mut survives: impl FnMut(usize) -> bool) {
    match change {
        DiskChange::Resize(length) => bytes.resize(*length, 0),
        DiskChange::Write { offset, bytes: new } => {
            let end = offset + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            let mut at = *offset;
            while at < end {
                let next = ((at / SECTOR + 1) * SECTOR).min(end);
                if survives(at / SECTOR) {
                    bytes[at..next].copy_from_slice(&new[at - offset..next - offset]);
                }
                at = next;
            }
        }
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

impl redb::StorageBackend for SimulatedDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.is_off {
            return Err(io::Error::other("the power is off"));
        }
        if inner.errors > 0 {
            inner.errors -= 1;
            inner.counts.errors += 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        let found = inner.live.get(size(offset)..size(offset) + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(DiskChange::Resize(size(len)))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.step()? {
            inner.counts.cut_in_sync += 1;
            return Err(inner.lose_power());
        }
        if !inner.ignores_syncs {
            inner.durable = inner.live.clone();
            inner.pending.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(DiskChange::Write { offset: size(offset), bytes: data.to_vec() })
    }
}

/// Reads a number from an environment variable, such as a seed or a number of runs.
pub(crate) fn env_number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is `{value}`: expected a number")))
}
