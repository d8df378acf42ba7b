//! A disk for tests, in memory: it can lose its power, and it can fail.
//!
//! What was written and not synced when the power goes may be there, in part, in any order, or not
//! at all: each sector by itself.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// A disk, shared by whoever holds a clone.
#[derive(Clone, Debug)]
pub(crate) struct SimulatedDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    live: Vec<u8>,
    /// What is safe.
    durable: Vec<u8>,
    /// What came after it.
    pending: Vec<Change>,
    random: fastrand::Rng,
    /// How many changes and syncs until the power goes.
    power: Option<u64>,
    is_off: bool,
    /// How many changes and syncs fail from now on.
    errors: u64,
    /// Whether a sync does nothing: what some disks do, and what tests must find out.
    lies: bool,
    hits: Hits,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Resize(usize),
}

/// What has happened to a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hits {
    /// The power went in a write.
    pub(crate) cut_in_write: u64,
    /// The power went in a sync.
    pub(crate) cut_in_sync: u64,
    /// The power went while the file changed its length.
    pub(crate) cut_in_resize: u64,
    /// A write was there in part after a cut.
    pub(crate) torn: u64,
    /// A write was not there after a cut, and a later one was.
    pub(crate) reordered: u64,
    /// A call failed, with the power on.
    pub(crate) errors: u64,
}

impl SimulatedDisk {
    /// An empty disk.
    pub(crate) fn new(seed: u64) -> Self {
        Self::of(Vec::new(), seed)
    }

    /// A disk that holds `bytes`.
    pub(crate) fn of(bytes: Vec<u8>, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            live: bytes.clone(),
            durable: bytes,
            pending: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            power: None,
            is_off: false,
            errors: 0,
            lies: false,
            hits: Hits::default(),
        })))
    }

    /// The power goes within `changes` changes or syncs.
    pub(crate) fn cut_after(&self, changes: u64) {
        self.inner().power = Some(changes);
    }

    /// Whether the power is off.
    pub(crate) fn is_off(&self) -> bool {
        self.inner().is_off
    }

    /// The power goes now, if it is on, and comes back: what has survived is what there is.
    pub(crate) fn reboot(&self) {
        let mut inner = self.inner();
        if !inner.is_off {
            inner.lose_power();
        }
        inner.live = inner.durable.clone();
        (inner.is_off, inner.power, inner.errors) = (false, None, 0);
    }

    /// An empty disk in its place.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner();
        (inner.live, inner.durable, inner.pending) = (Vec::new(), Vec::new(), Vec::new());
    }

    /// The next `calls` reads, changes or syncs fail, and then no more.
    pub(crate) fn fail(&self, calls: u64) {
        self.inner().errors = calls;
    }

    /// Lets syncs do nothing from now on.
    pub(crate) fn lie(&self) {
        self.inner().lies = true;
    }

    /// All that can be read.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.inner().live.clone()
    }

    /// What has happened to it.
    pub(crate) fn hits(&self) -> Hits {
        self.inner().hits
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut inner = self.inner();
        let is_write = matches!(change, Change::Write { .. });
        // Even the change that is under way may come through.
        inner.pending.push(change.clone());
        if inner.step()? {
            let hits = &mut inner.hits;
            *(if is_write { &mut hits.cut_in_write } else { &mut hits.cut_in_resize }) += 1;
            return Err(inner.lose_power());
        }
        apply(&mut inner.live, &change, |_| true);
        Ok(())
    }
}

impl Inner {
    /// Counts a call; whether the power goes in it.
    fn step(&mut self) -> io::Result<bool> {
        if self.is_off {
            return Err(io::Error::other("the power is off"));
        }
        if self.errors > 0 {
            self.errors -= 1;
            self.hits.errors += 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        let Some(left) = &mut self.power else { return Ok(false) };
        *left = left.saturating_sub(1);
        Ok(*left == 0)
    }

    fn lose_power(&mut self) -> io::Error {
        let mut pending: Vec<_> =
            std::mem::take(&mut self.pending).into_iter().enumerate().collect();
        // At times nothing of it has reached the disk, at times all of it.
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
            self.hits.torn += u64::from(is_torn);
            kept.push(number);
        }
        let last = kept.iter().max();
        self.hits.reordered += u64::from(lost.iter().min() < last && !lost.is_empty());
        self.is_off = true;
        io::Error::other("the power went")
    }
}

/// Makes a change, as far as the sectors that it touches survive.
fn apply(bytes: &mut Vec<u8>, change: &Change, mut survives: impl FnMut(usize) -> bool) {
    match change {
        Change::Resize(length) => bytes.resize(*length, 0),
        Change::Write { offset, bytes: new } => {
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
            inner.hits.errors += 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        let found = inner.live.get(size(offset)..size(offset) + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Resize(size(len)))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.step()? {
            inner.hits.cut_in_sync += 1;
            return Err(inner.lose_power());
        }
        if !inner.lies {
            inner.durable = inner.live.clone();
            inner.pending.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write { offset: size(offset), bytes: data.to_vec() })
    }
}

/// What the environment says of a run: how much of it, and with which seed.
pub(crate) fn env_number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is `{value}`: expected a number")))
}
