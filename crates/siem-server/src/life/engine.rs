//! Execution of requests by the process that has the store open.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use memchr::memmem;
use siem_protocol::note::NoteSigner;
use tracing::{error, info, warn};

use super::{
    AccessAction, AccessLog, ErasedEpoch, Erasure, Hold, Holds, LifeRequest, LifeResponse, Reason,
    Removal, RetainedEpoch, RetentionPolicy, Selector, erasures, lock_removals, mailbox, retention,
};
use crate::{
    Clock as _, EpochKey, SystemClock, clock,
    fleet::StatsQuery,
    store::{EpochLines, LineToErase, StoreHandle},
    trust::Registry,
};

/// Number of lines, and their size in bytes, that one durable step erases.
const CHUNK: (usize, u64) = (4096, 8 << 20);

/// Executes the requests of a data directory with its open store.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) data: PathBuf,
    pub(crate) store: StoreHandle,
    pub(crate) registry: Option<Arc<Registry>>,
}

/// Reason why a request is not executed.
enum Stop {
    /// The answer for the command.
    Refuse(String),
    /// To try again later.
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Engine {
    /// Executes all requests that are there.
    pub(crate) fn poll(&self) {
        let waiting = mailbox::waiting(&self.data);
        for id in waiting.unwrap_or_default() {
            if let Err(error) = self.execute(&id) {
                error!(code = "life_request_failed", request = id, %error, "cannot execute a request");
            }
        }
    }

    /// Removes what the configuration no longer keeps.
    pub(crate) fn apply_retention(&self, policy: &RetentionPolicy) {
        let reason = Reason { who: "siem-server".into(), why: "configuration".into() };
        if let Err(Stop::Io(error)) = self.retain(policy, &reason, SystemClock.now()) {
            error!(code = "retention_failed", %error, "cannot remove epochs by the retention, trying again in an hour");
        }
    }

    fn execute(&self, id: &str) -> io::Result<()> {
        let response = match mailbox::read(&self.data, id) {
            Ok(letter) => {
                let (reason, now) = (&letter.reason, SystemClock.now());
                match letter.request {
                    LifeRequest::Erase(selector) => self.erase(id, selector, reason, now),
                    LifeRequest::PlanRetention(policy) => {
                        self.plan(&policy, now).map(LifeResponse::Removals)
                    }
                    LifeRequest::ApplyRetention(policy) => self.retain(&policy, reason, now),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(Stop::Refuse(format!("cannot read the request: {error}"))),
        };
        let response = match response {
            Ok(response) => response,
            Err(Stop::Refuse(why)) => LifeResponse::Refused(why),
            Err(Stop::Io(error)) => {
                // A part may be done: the command must know, and may be run again.
                error!(code = "life_request_failed", request = id, %error, "cannot execute a request");
                LifeResponse::Refused(format!("the server failed: {error}; run the command again"))
            }
        };
        mailbox::respond(&self.data, id, &response)
    }

    fn log(
        &self,
        reason: &Reason,
        now: SystemTime,
        action: AccessAction,
        what: &str,
    ) -> io::Result<()> {
        let log = AccessLog::new(&self.data);
        log.append(now, &reason.who, action, what, &reason.why).map_err(io::Error::other)
    }

    fn erase(
        &self,
        id: &str,
        selector: Selector,
        reason: &Reason,
        now: SystemTime,
    ) -> Result<LifeResponse, Stop> {
        let key = self.registry.as_ref().and_then(|registry| registry.receiver_key());
        let key = key.ok_or_else(|| {
            Stop::Refuse("the receiver has no key to sign the erasure; make one with `siem-server keys new --name NAME`".into())
        })?;
        self.store.settle()?;
        let _removals = lock_removals(&self.data)?;
        let holds = Holds::read(&self.data)?;
        let mut found = Vec::new();
        for epoch in self.store.epochs()? {
            found.extend(select(&epoch?, &selector, &holds)?);
        }
        let entries: usize = found.iter().map(|(_, lines)| lines.len()).sum();
        self.log(reason, now, AccessAction::Erase, &format!("{selector}: {entries} entries"))?;
        let at = clock::text(now);
        let replaced = self.replace(id, &at, found).and(self.store.settle());
        let erased = self.erased(id)?;
        let completed = match replaced.and_then(|()| self.remove_remains(&selector, &erased)) {
            Err(error) if erased.is_empty() => return Err(error.into()),
            // The part that was erased is listed: another attempt has another id.
            completed => completed,
        };
        let epochs: Vec<_> = erased.into_iter().map(|(_, epoch)| epoch).collect();
        let entries = epochs.iter().flat_map(|epoch| &epoch.seqs).map(|seqs| seqs.count()).sum();
        let (count, who, why) = (epochs.len(), reason.who.clone(), reason.why.clone());
        let erasure =
            Erasure { id: id.to_owned(), at, selector, reason: why, who, entries, epochs };
        let key: &dyn NoteSigner = &*key;
        erasures::append(&self.data, &erasure, key)?;
        completed?;
        info!(erasure = id, entries, "erased entries");
        Ok(LifeResponse::Erased { id: id.to_owned(), entries, epochs: count })
    }

    /// Replaces lines by tombstones, and deletes the journals that hold the lines.
    fn replace(
        &self,
        id: &str,
        at: &str,
        found: Vec<(EpochKey, Vec<LineToErase>)>,
    ) -> io::Result<()> {
        // After a failed sync a journal is copied to the files again. None may be left that holds the
        // lines: that could overwrite tombstones.
        self.store.rotate()?;
        for (epoch, lines) in found {
            for chunk in chunks(lines) {
                self.store.erase(epoch.clone(), id.to_owned(), at.to_owned(), chunk)?;
            }
        }
        // Lines that arrived meanwhile, and the erasure itself, are in the files then.
        self.store.rotate()
    }

    /// Removes what a repair moved aside, if it may hold selected lines: that of epochs whose lines are
    /// in `erased`, and files in which a selected line is found.
    fn remove_remains(
        &self,
        selector: &Selector,
        erased: &[(PathBuf, ErasedEpoch)],
    ) -> io::Result<()> {
        for epoch in self.store.epochs()? {
            let epoch = epoch?;
            let (path, machine) = (epoch.path(), epoch.key().map(|key| key.machine));
            let machine = machine.unwrap_or_default();
            let selects = |line: &[u8]| {
                let mut users = std::iter::once("").chain(epoch.users());
                users.any(|user| selector.selects(&machine, user, line))
            };
            let aside = path.with_extension("surplus");
            let is_erased = || erased.iter().any(|(of, _)| *of == path);
            if aside.try_exists()? && (is_erased() || has_line(&aside, selects)?) {
                remove(&aside)?;
            }
        }
        for entry in fs::read_dir(self.data.join("journal"))? {
            let path = entry?.path();
            let is_damaged = path.extension().is_some_and(|ending| ending == "damaged");
            let text = selector.text().as_bytes();
            let names = |line: &[u8]| memmem::find(line, text).is_some();
            if is_damaged && (!erased.is_empty() || has_line(&path, names)?) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Returns what was erased under an id, also before an interruption, with the path of the lines.
    fn erased(&self, id: &str) -> io::Result<Vec<(PathBuf, ErasedEpoch)>> {
        let mut erased = Vec::new();
        for epoch in self.store.epochs()? {
            let epoch = epoch?;
            let seqs: BTreeSet<u64> = epoch.erased_under(id).collect();
            if let Some(key) = epoch.key().filter(|_| !seqs.is_empty()) {
                let seqs = erasures::ranges(seqs);
                let (machine, of) = (key.machine, key.epoch);
                erased.push((epoch.path(), ErasedEpoch { machine, epoch: of, seqs }));
            }
        }
        Ok(erased)
    }

    /// Returns what the retention removes now.
    fn plan(&self, policy: &RetentionPolicy, now: SystemTime) -> Result<Vec<Removal>, Stop> {
        self.store.settle()?;
        Ok(retention::plan(policy, now, &self.facts(now)?))
    }

    fn retain(
        &self,
        policy: &RetentionPolicy,
        reason: &Reason,
        now: SystemTime,
    ) -> Result<LifeResponse, Stop> {
        let _removals = lock_removals(&self.data)?;
        let mut removals = self.plan(policy, now)?;
        if removals.is_empty() {
            return Ok(LifeResponse::Removals(removals));
        }
        let bytes: u64 = removals.iter().map(|removal| removal.bytes).sum();
        let what = format!("{} epochs, {bytes} bytes", removals.len());
        self.log(reason, now, AccessAction::Retention, &what)?;
        let key = |removal: &Removal| EpochKey {
            machine: removal.machine.clone(),
            epoch: removal.epoch.clone(),
        };
        let epochs = removals.iter().map(|removal| (key(removal), removal.bytes)).collect();
        let removed = self.store.remove(epochs, clock::text(now))?;
        self.store.rotate()?;
        // An epoch to which a batch was added meanwhile stays.
        let removed: BTreeSet<EpochKey> = removed.into_iter().collect();
        removals.retain(|removal| removed.contains(&key(removal)));
        let bytes: u64 = removals.iter().map(|removal| removal.bytes).sum();
        info!(epochs = removals.len(), bytes, "the retention removed epochs");
        Ok(LifeResponse::Removals(removals))
    }

    fn facts(&self, now: SystemTime) -> Result<Vec<RetainedEpoch>, Stop> {
        let holds = Holds::read(&self.data)?;
        let stats = self.store.stats(StatsQuery::all(now))?;
        let mut held: BTreeMap<EpochKey, u64> = BTreeMap::new();
        if !holds.list().is_empty() {
            for epoch in self.store.epochs()? {
                let epoch = epoch?;
                let hold = hold_of(&epoch, &holds)?;
                held.extend(epoch.key().zip(hold));
            }
        }
        let mut facts = Vec::new();
        for machine in &stats.machines {
            let id = &machine.identity.machine_id;
            let epochs: Vec<_> = machine.all_epochs().collect();
            for epoch in &epochs {
                let of_user = epochs.iter().filter(|other| other.user == epoch.user);
                let last = of_user.map(|other| &other.last_seen).max();
                let key = EpochKey { machine: id.clone(), epoch: epoch.epoch.clone() };
                let last_seen = humantime::parse_rfc3339(&epoch.last_seen)
                    .map_err(|error| Stop::Io(io::Error::other(error)))?;
                facts.push(RetainedEpoch {
                    hold: held.get(&key).copied(),
                    key,
                    last_seen,
                    bytes: epoch.bytes,
                    is_current: last == Some(&epoch.last_seen),
                });
            }
        }
        Ok(facts)
    }
}

/// Returns the lines of an epoch to erase, unless a hold covers one of them.
fn select(
    epoch: &EpochLines,
    selector: &Selector,
    holds: &Holds,
) -> Result<Option<(EpochKey, Vec<LineToErase>)>, Stop> {
    let Some(key) = epoch.key() else { return Ok(None) };
    let mut lines = Vec::new();
    let mut held: Option<(u64, u64)> = None;
    epoch.each_line(|user, at, seq, line| {
        if selector.selects(&key.machine, user, line) {
            let hold: Option<&Hold> = holds.covers(&key.machine, user, line);
            held = held.or(hold.map(|hold| (hold.id, seq)));
            lines.push(LineToErase::new(seq, at, line));
        }
    })?;
    if let Some((hold, seq)) = held {
        return Err(Stop::Refuse(format!(
            "hold {hold} covers entry {seq} of epoch `{}`: nothing was erased",
            key.epoch
        )));
    }
    Ok((!lines.is_empty()).then_some((key, lines)))
}

/// Returns the hold that covers a part of an epoch.
fn hold_of(epoch: &EpochLines, holds: &Holds) -> io::Result<Option<u64>> {
    let Some(key) = epoch.key() else { return Ok(None) };
    let mut found = None;
    epoch.each_line(|user, _, _, line| {
        if found.is_none() {
            found = holds.covers(&key.machine, user, line).map(|hold| hold.id);
        }
    })?;
    Ok(found)
}

fn chunks(lines: Vec<LineToErase>) -> Vec<Vec<LineToErase>> {
    let mut chunks: Vec<Vec<LineToErase>> = Vec::new();
    let mut bytes = 0;
    for line in lines {
        let is_full = chunks.last().is_none_or(|it| it.len() >= CHUNK.0 || bytes >= CHUNK.1);
        if is_full {
            chunks.push(Vec::new());
            bytes = 0;
        }
        bytes += line.bytes();
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(line);
        }
    }
    chunks
}

/// Reports whether a line of a file meets the condition.
fn has_line(path: &Path, condition: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
    let mut reader = BufReader::new(fs::File::open(path)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if condition(&line) {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    warn!(code = "erasure_removed_remains", file = %path.display(), "removed a file of a repair, which may hold erased lines");
    Ok(())
}
