//! Devices that a receiver knows, with the state of their keys.
//!
//! [`Devices`] is a pure fold of the lines of `devices.ndjson`.

mod key;
mod line;
mod view;

use std::collections::{BTreeSet, HashMap};

pub use key::{DEVICE_KEY_NAME, DeviceKey, InvalidDeviceKey};
pub(super) use line::{DeviceLine, Enrolled};
use siem_protocol::{
    note::VerifierKey,
    statement::{Confirmation, DeviceState, Enroll, TrustLevel},
};
pub(crate) use view::DeviceStanding;
pub use view::DeviceView;

use super::{damage::EpochOwner, journal::Fold};
use crate::batch::MAX_NAME;

/// Number of unconfirmed keys for one machine and user. Another one replaces the oldest.
const UNCONFIRMED_OF_PAIR: usize = 64;
/// Number of unconfirmed keys in total.
const UNCONFIRMED: usize = 100_000;
/// Number of keys of one lineage that are enrolled in an hour.
const OF_LINEAGE_IN_HOUR: usize = 4;

/// A device, independent of the receiver's level.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    enrolled: Enrolled,
    confirmed_by: Option<Confirmation>,
    revoked: bool,
    next: Option<DeviceKey>,
    root: DeviceKey,
    /// Number of keys that were enrolled before.
    order: u64,
    cloned: bool,
    copied: bool,
}

/// Machine and user.
type Pair = (String, String);

/// Keys of a machine and user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PairKeys {
    keys: Vec<DeviceKey>,
    /// True once a key was confirmed, for good.
    confirmed: bool,
}

/// All devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Devices {
    devices: HashMap<DeviceKey, Device>,
    pairs: HashMap<Pair, PairKeys>,
    by_key_id: HashMap<[u8; 4], Vec<DeviceKey>>,
    /// Keys of each lineage with more than one.
    lineages: HashMap<DeviceKey, Vec<DeviceKey>>,
    unconfirmed: usize,
    /// Number of keys that were ever enrolled.
    enrolled: u64,
    /// Machines that ever had a confirmed key.
    confirmed_machines: BTreeSet<String>,
    shared_allowed: BTreeSet<String>,
    /// Time at which a confirmed key of a machine was last revoked.
    revoked_machines: HashMap<String, String>,
    /// Number of keys that were forgotten. Each has at least one line.
    forgotten: u64,
}

impl Fold for Devices {
    type Line = DeviceLine;

    fn apply(&mut self, line: DeviceLine) {
        match line {
            DeviceLine::Enroll(enrolled) => self.add(enrolled),
            DeviceLine::Confirm { key, by, .. } => self.confirm(key, by),
            DeviceLine::Revoke { at, key } => self.revoke(key, &at),
            DeviceLine::Clone { key, instances, .. } => {
                if let Some(device) = self.devices.get_mut(&key) {
                    device.cloned |= instances.is_some();
                    device.copied |= instances.is_none();
                }
            }
            DeviceLine::AllowShared { machine, allowed: true, .. } => {
                self.shared_allowed.insert(machine);
            }
            DeviceLine::AllowShared { machine, allowed: false, .. } => {
                self.shared_allowed.remove(&machine);
            }
        }
    }

    fn superfluous(&self) -> u64 {
        self.forgotten
    }

    /// Removes the lines of keys that were forgotten. All others stay: their times show what was done
    /// when.
    fn remainder(&self, line: DeviceLine) -> Option<DeviceLine> {
        match line {
            DeviceLine::Enroll(line) => {
                let known = &self.devices.get(&line.key)?.enrolled;
                // A key that was forgotten may have been enrolled again.
                let is_latest = line.at == known.at && line.evicts == known.evicts;
                is_latest.then(|| DeviceLine::Enroll(Enrolled { evicts: None, ..known.clone() }))
            }
            DeviceLine::Confirm { key, .. }
            | DeviceLine::Revoke { key, .. }
            | DeviceLine::Clone { key, .. } => self.devices.contains_key(&key).then_some(line),
            DeviceLine::AllowShared { .. } => Some(line),
        }
    }
}

impl Devices {
    fn add(&mut self, mut enrolled: Enrolled) {
        let key = enrolled.key;
        let Ok(verifier) = key.verifier() else { return };
        if self.devices.contains_key(&key) {
            return;
        }
        if let Some(evicted) = enrolled.evicts {
            self.evict(&evicted);
        }
        let previous = enrolled.previous.filter(|previous| self.can_continue(previous, &enrolled));
        enrolled.previous = previous;
        let mut device = Device {
            confirmed_by: None,
            revoked: false,
            next: None,
            root: key,
            order: self.enrolled,
            cloned: false,
            copied: false,
            enrolled,
        };
        self.enrolled += 1;
        let mut confirmed_by = device.enrolled.confirmed_by;
        if let Some(before) = previous.and_then(|previous| self.devices.get_mut(&previous)) {
            before.next = Some(key);
            device.root = before.root;
            confirmed_by = before.confirmed_by.or(confirmed_by);
            let lineage = self.lineages.entry(before.root).or_insert_with(|| vec![before.root]);
            lineage.push(key);
        }
        let pair = (device.enrolled.machine.clone(), device.enrolled.user.clone());
        self.pairs.entry(pair).or_default().keys.push(key);
        self.by_key_id.entry(verifier.id()).or_default().push(key);
        self.devices.insert(key, device);
        self.unconfirmed += 1;
        if let Some(by) = confirmed_by {
            self.confirm(key, by);
        }
    }

    fn confirm(&mut self, key: DeviceKey, by: Confirmation) {
        let Some(device) = self.devices.get_mut(&key) else { return };
        if device.revoked || device.confirmed_by.is_some() {
            return;
        }
        device.confirmed_by = Some(by);
        self.unconfirmed -= 1;
        let pair = (device.enrolled.machine.clone(), device.enrolled.user.clone());
        self.confirmed_machines.insert(pair.0.clone());
        self.pairs.entry(pair).or_default().confirmed = true;
    }

    fn revoke(&mut self, key: DeviceKey, at: &str) {
        for key in self.lineage(&key) {
            let Some(device) = self.devices.get_mut(&key) else { continue };
            if !device.revoked && device.confirmed_by.is_none() {
                self.unconfirmed -= 1;
            }
            if device.confirmed_by.is_some() {
                let machine = device.enrolled.machine.clone();
                let last = self.revoked_machines.entry(machine).or_default();
                *last = at.max(last).to_owned();
            }
            device.revoked = true;
        }
    }

    /// Forgets the lineage of a key, if it has only unconfirmed keys.
    fn evict(&mut self, key: &DeviceKey) {
        let lineage = self.lineage(key);
        if !lineage.iter().all(|key| self.is_unconfirmed(key)) {
            return;
        }
        for key in lineage {
            let Some(device) = self.devices.remove(&key) else { continue };
            self.unconfirmed -= 1;
            self.forgotten += 1;
            self.lineages.remove(&device.root);
            if let Ok(verifier) = key.verifier()
                && let Some(keys) = self.by_key_id.get_mut(&verifier.id())
            {
                keys.retain(|other| *other != key);
                if keys.is_empty() {
                    self.by_key_id.remove(&verifier.id());
                }
            }
            let pair = (device.enrolled.machine, device.enrolled.user);
            let Some(keys) = self.pairs.get_mut(&pair) else { continue };
            keys.keys.retain(|other| *other != key);
            if keys.keys.is_empty() && !keys.confirmed {
                self.pairs.remove(&pair);
            }
        }
    }

    /// Returns the key to evict for one of the machine and user: the oldest of those whose lineage
    /// is unconfirmed and owns no epoch, or if each owns one, the oldest. A device whose key was
    /// evicted enrolls it again.
    fn to_evict(
        &self,
        enrolled: &Enrolled,
        owns: &dyn Fn(&DeviceKey) -> bool,
    ) -> Option<DeviceKey> {
        let continued = enrolled.previous.and_then(|key| self.devices.get(&key)).map(|it| it.root);
        let candidates: Vec<_> = match self.unconfirmed >= UNCONFIRMED {
            true => self.devices.keys().collect(),
            false => self.pair(&enrolled.machine, &enrolled.user)?.keys.iter().collect(),
        };
        let candidates = candidates.into_iter().filter_map(|key| {
            let device = self.devices.get(key)?;
            let lineage = self.lineage(key);
            let evictable = Some(device.root) != continued
                && lineage.iter().all(|key| self.is_unconfirmed(key));
            evictable.then(|| (lineage.iter().any(owns), device.order, *key))
        });
        candidates.min_by_key(|(owns, order, _)| (*owns, *order)).map(|(.., key)| key)
    }

    /// Reports whether the lineage of a key got so many keys in the last hour that it gets no more.
    fn is_rotated_too_often(&self, key: &DeviceKey, now: &Moment) -> bool {
        let lineage = self.lineage(key);
        let times = lineage.iter().filter_map(|key| Some(&self.devices.get(key)?.enrolled.at));
        let recent = |at: &&String| **at > now.hour_ago && **at <= now.at;
        times.filter(recent).count() >= OF_LINEAGE_IN_HOUR
    }

    /// Returns all keys of the lineage of `key`.
    fn lineage(&self, key: &DeviceKey) -> Vec<DeviceKey> {
        let root = self.devices.get(key).map_or(*key, |device| device.root);
        self.lineages.get(&root).cloned().unwrap_or_else(|| vec![*key])
    }

    /// Returns the keys that replaced `key`, the next one first.
    pub(super) fn successors(&self, key: &DeviceKey) -> Vec<DeviceKey> {
        let next = |key: &DeviceKey| self.devices.get(key)?.next;
        std::iter::successors(next(key), next).collect()
    }

    /// Reports whether a new key may replace `previous`: one of the same machine and user that was
    /// neither replaced, revoked nor cloned.
    fn can_continue(&self, previous: &DeviceKey, enrolled: &Enrolled) -> bool {
        self.devices.get(previous).is_some_and(|device| {
            device.next.is_none()
                && !device.revoked
                && !device.cloned
                && device.enrolled.machine == enrolled.machine
                && device.enrolled.user == enrolled.user
        })
    }

    /// Returns the number of keys that own epochs and are missing, although they cannot have been forgotten.
    pub(super) fn missing(&self, owners: &[EpochOwner]) -> u64 {
        if self.unconfirmed > UNCONFIRMED / 2 {
            return 0;
        }
        let may_be_forgotten = |machine: &String, user: &String| {
            let pair = self.pairs.get(&(machine.clone(), user.clone()));
            pair.is_some_and(|pair| pair.keys.len() > UNCONFIRMED_OF_PAIR / 2)
        };
        let missing = owners.iter().filter(|(key, machine, user)| {
            !self.devices.contains_key(key) && !may_be_forgotten(machine, user)
        });
        missing.map(|(key, ..)| key).collect::<BTreeSet<_>>().len() as u64
    }

    pub(super) fn view(&self, key: &DeviceKey, level: TrustLevel) -> Option<DeviceView> {
        self.devices.get(key).map(|device| device.view(level))
    }

    /// Returns all devices, ordered by key.
    pub(super) fn views(&self, level: TrustLevel) -> Vec<DeviceView> {
        let mut views: Vec<_> = self.devices.values().map(|device| device.view(level)).collect();
        views.sort_by_key(|view| view.key);
        views
    }

    /// Returns what counts for an epoch of a machine and user that a key owns.
    pub(super) fn standing(
        &self,
        key: &DeviceKey,
        (machine, user): (&str, &str),
        level: TrustLevel,
    ) -> Option<DeviceStanding> {
        let device = self.devices.get(key)?;
        let is_its_own = device.enrolled.machine == machine && device.enrolled.user == user;
        let state = match device.state(level) {
            DeviceState::Confirmed if !is_its_own => DeviceState::Unconfirmed,
            state => state,
        };
        let lineage = self.lineages.get(&device.root);
        let others = lineage.into_iter().flatten().filter_map(|key| self.devices.get(key));
        let cloned = [device].into_iter().chain(others).any(|key| key.cloned || key.copied);
        Some(DeviceStanding { state, root: device.root, cloned })
    }

    pub(super) fn by_key_id(&self, id: [u8; 4], level: TrustLevel) -> Vec<DeviceView> {
        let keys = self.by_key_id.get(&id).into_iter().flatten();
        keys.filter_map(|key| self.view(key, level)).collect()
    }

    pub(super) fn same_lineage(&self, a: &DeviceKey, b: &DeviceKey) -> bool {
        let root = |key| self.devices.get(key).map(|device| device.root);
        a == b || root(a).is_some_and(|one| Some(one) == root(b))
    }

    pub(super) fn confirmed_for(&self, machine: &str, user: &str) -> bool {
        self.pair(machine, user).is_some_and(|pair| pair.confirmed)
    }

    /// Reports whether any user of the machine ever had a confirmed key.
    pub(super) fn has_confirmed(&self, machine: &str) -> bool {
        self.confirmed_machines.contains(machine)
    }

    pub(super) fn knows(&self, machine: &str, user: &str) -> bool {
        self.pair(machine, user).is_some()
    }

    fn pair(&self, machine: &str, user: &str) -> Option<&PairKeys> {
        self.pairs.get(&(machine.to_owned(), user.to_owned()))
    }

    pub(super) fn is_shared_allowed(&self, machine: &str) -> bool {
        self.shared_allowed.contains(machine)
    }

    pub(super) fn knows_machine(&self, machine: &str) -> bool {
        self.devices.values().any(|device| device.enrolled.machine == machine)
    }

    /// Reports whether there are so many unconfirmed keys for the machine and user, or in total,
    /// that another one is not stored.
    fn is_full_for(&self, machine: &str, user: &str) -> bool {
        if self.unconfirmed >= UNCONFIRMED {
            return true;
        }
        let keys = self.pair(machine, user).map_or(&[][..], |pair| &pair.keys);
        keys.len() >= UNCONFIRMED_OF_PAIR
            && keys.iter().filter(|key| self.is_unconfirmed(key)).count() >= UNCONFIRMED_OF_PAIR
    }

    fn is_unconfirmed(&self, key: &DeviceKey) -> bool {
        let device = self.devices.get(key);
        device.is_some_and(|device| !device.revoked && device.confirmed_by.is_none())
    }

    /// Reports whether a token that was made at `made_at` may confirm keys of a machine. One from before a
    /// confirmed key of it was revoked may not: it may be on the machine that was lost.
    fn may_confirm(&self, machine: &str, made_at: &str) -> bool {
        self.revoked_machines.get(machine).is_none_or(|revoked_at| made_at > revoked_at.as_str())
    }

    /// Decides an enrollment. `confirms` is the time at which the token was made, if it confirms keys;
    /// `owns` says which keys own epochs.
    pub(super) fn enroll(
        &self,
        enroll: &Enroll,
        confirms: Option<&str>,
        now: &Moment,
        owns: &dyn Fn(&DeviceKey) -> bool,
    ) -> Result<EnrollDecision, EnrollRefusal> {
        check_claims(enroll)?;
        let confirms = confirms.is_some_and(|made_at| self.may_confirm(&enroll.machine, made_at));
        let key = DeviceKey::from(&enroll.key);
        let at = now.at.clone();
        let confirmed_by = confirms.then_some(Confirmation::Token);
        if let Some(known) = self.devices.get(&key) {
            return known.enroll_again(enroll, confirmed_by, at);
        }
        let previous = enroll.previous.as_ref().map(DeviceKey::from);
        let before = previous.as_ref().and_then(|previous| self.devices.get(previous));
        if before.is_some_and(|before| before.revoked) {
            return Err(EnrollRefusal::Revoked);
        }
        let mut enrolled = Enrolled::new(enroll, confirmed_by, at);
        enrolled.previous = previous.filter(|previous| self.can_continue(previous, &enrolled));
        let continues_confirmed = enrolled.previous.is_some()
            && before.is_some_and(|before| before.confirmed_by.is_some());
        if enrolled.previous.is_some_and(|previous| self.is_rotated_too_often(&previous, now)) {
            return Err(EnrollRefusal::TooOften);
        }
        let confirmed = confirms || continues_confirmed;
        if !confirmed && self.is_full_for(&enroll.machine, &enroll.user) {
            let evicted = now.may_evict.then(|| self.to_evict(&enrolled, owns)).flatten();
            enrolled.evicts = Some(evicted.ok_or(EnrollRefusal::TooMany)?);
        }
        let forked = before.is_some_and(|before| before.next.is_some() || before.cloned);
        Ok(EnrollDecision { line: Some(DeviceLine::Enroll(enrolled)), forked })
    }

    /// Returns a confirmed key of the machine and user of an enrollment that belongs to another device.
    pub(super) fn confirmed_besides(&self, enroll: &Enroll) -> Option<DeviceKey> {
        let root =
            |key: &VerifierKey| self.devices.get(&DeviceKey::from(key)).map(|device| device.root);
        let own = root(&enroll.key).or_else(|| root(enroll.previous.as_ref()?));
        let is_other = |device: &Device| {
            device.confirmed_by.is_some() && !device.revoked && Some(device.root) != own
        };
        let mut keys = self.pair(&enroll.machine, &enroll.user)?.keys.iter().copied();
        keys.find(|key| self.devices.get(key).is_some_and(is_other))
    }

    /// Decides a confirmation.
    pub(super) fn decide_confirm(
        &self,
        key: &DeviceKey,
        by: Confirmation,
        at: String,
    ) -> Result<Option<DeviceLine>, DeviceError> {
        let device = self.devices.get(key).ok_or(DeviceError::Unknown)?;
        if device.revoked {
            return Err(DeviceError::Revoked);
        }
        let line = DeviceLine::Confirm { at, key: *key, by };
        Ok(device.confirmed_by.is_none().then_some(line))
    }

    /// Decides a revocation.
    pub(super) fn decide_revoke(
        &self,
        key: &DeviceKey,
        at: String,
    ) -> Result<Option<DeviceLine>, DeviceError> {
        let device = self.devices.get(key).ok_or(DeviceError::Unknown)?;
        Ok((!device.revoked).then_some(DeviceLine::Revoke { at, key: *key }))
    }

    pub(super) fn is_cloned(&self, key: &DeviceKey) -> bool {
        self.devices.get(key).is_some_and(|device| device.cloned)
    }

    pub(super) fn is_copied(&self, key: &DeviceKey) -> bool {
        self.devices.get(key).is_some_and(|device| device.copied)
    }
}

impl Device {
    fn view(&self, level: TrustLevel) -> DeviceView {
        let Enrolled { at, key, machine, user, host, os, arch, version, previous, .. } =
            self.enrolled.clone();
        DeviceView {
            key,
            machine,
            user,
            host,
            os,
            arch,
            version,
            first_seen: at,
            state: self.state(level),
            confirmed_by: self.confirmed_by,
            previous,
            next: self.next,
            root: self.root,
            cloned: self.cloned,
            copied: self.copied,
        }
    }

    fn state(&self, level: TrustLevel) -> DeviceState {
        if self.revoked {
            DeviceState::Revoked
        } else if self.confirmed_by.is_some() {
            DeviceState::Confirmed
        } else if level == TrustLevel::Enrolled {
            DeviceState::Pending
        } else {
            DeviceState::Unconfirmed
        }
    }

    /// Decides the enrollment of a known key, which can only confirm it.
    fn enroll_again(
        &self,
        enroll: &Enroll,
        confirmed_by: Option<Confirmation>,
        at: String,
    ) -> Result<EnrollDecision, EnrollRefusal> {
        if self.enrolled.machine != enroll.machine || self.enrolled.user != enroll.user {
            return Err(EnrollRefusal::OtherDevice);
        }
        let confirms = self.confirmed_by.is_none() && !self.revoked;
        let key = self.enrolled.key;
        let line = confirmed_by.filter(|_| confirms);
        let line = line.map(|by| DeviceLine::Confirm { at, key, by });
        Ok(EnrollDecision { line, forked: false })
    }
}

/// Checks the claims, which are stored, with the limits of those in a batch.
fn check_claims(enroll: &Enroll) -> Result<(), EnrollRefusal> {
    if enroll.machine.is_empty() {
        return Err(EnrollRefusal::Empty("machine"));
    }
    let claims = [
        ("machine", &enroll.machine),
        ("user", &enroll.user),
        ("host", &enroll.host),
        ("os", &enroll.os),
        ("arch", &enroll.arch),
        ("version", &enroll.version),
    ];
    let long = claims.into_iter().find(|(_, value)| value.len() > MAX_NAME);
    long.map_or(Ok(()), |(name, _)| Err(EnrollRefusal::TooLong(name)))
}

/// Time of an enrollment, in the form of the lines.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) at: String,
    pub(super) hour_ago: String,
    /// Not too many keys were evicted in the last hour: each adds a line to the file.
    pub(super) may_evict: bool,
}

/// Result of an enrollment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EnrollDecision {
    /// Line to append; none if nothing changes.
    pub(super) line: Option<DeviceLine>,
    /// True if the key before was already replaced or is cloned, so that the new key does not
    /// continue its lineage: two agents hold the key before.
    pub(super) forked: bool,
}

/// Reason why an enrollment is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrollRefusal {
    /// The key that this one replaces is revoked.
    #[error("the previous key of this device is revoked")]
    Revoked,
    /// The key is enrolled for another machine or user.
    #[error("the key is enrolled for another machine or user")]
    OtherDevice,
    /// A claim that a batch must have is empty.
    #[error("the value of `{0}` is empty")]
    Empty(&'static str),
    /// A claim is too long.
    #[error("the value of `{0}` is longer than {MAX_NAME} bytes")]
    TooLong(&'static str),
    /// The lineage got too many keys in the last hour.
    #[error("the device got {OF_LINEAGE_IN_HOUR} keys in the last hour")]
    TooOften,
    /// There are too many unconfirmed keys, and too many of them were replaced in the last hour.
    #[error(
        "there are too many unconfirmed keys of this machine and user; a single-use or machine-bound token enrolls one nevertheless"
    )]
    TooMany,
}

/// Error of a change to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such key.
    #[error("there is no device with this key")]
    Unknown,
    /// The key is revoked, which is final.
    #[error("the key is revoked, which is final: the device needs a new key")]
    Revoked,
}

#[cfg(test)]
mod tests;
