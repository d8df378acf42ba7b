//! Registry of devices, tokens, keys and events: the interface of the HTTP layer, the store and the
//! commands.

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use siem_protocol::{
    Digest, Identity, KeysAnswer,
    managed::Audience,
    note::{SignError, SigningKey, VerifierKey},
    statement::{Confirmation, Device as DeviceStatement, Enroll, Statement as _, TrustLevel},
};
use tracing::{error, warn};

use super::{
    devices::{
        DEVICE_KEY_NAME, DeviceError, DeviceKey, DeviceLine, DeviceView, Devices, EnrollDecision,
        EnrollRefusal, Moment,
    },
    events::{Event, EventCounts, EventKind, EventLimiter, EventLine, Standing},
    instances::{CloneFinding, Instances},
    journal::{DirectoryLock, Durability, Journal, JournalError},
    keys::{KeyStore, ReceiverKeyError, ReceiverKeys, ReceiverKeysView, Rotation},
    offered::{OfferedConfigs, OfferedLine},
    tokens::{Grant, NewToken, TokenError, TokenId, TokenText, TokenView, Tokens},
};
use crate::clock::{self, Clock, SystemClock};

const HOUR: Duration = Duration::from_secs(3600);
/// Number of keys that are evicted in an hour.
const EVICTIONS_IN_HOUR: u64 = 1000;

/// Options of a [`Registry`].
#[derive(Clone)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// Lowest level of trust that the receiver accepts.
    pub level: TrustLevel,
    /// Source of the current time.
    pub clock: Arc<dyn Clock>,
}

impl RegistryOptions {
    /// Options for a receiver that accepts `level` and above.
    #[must_use]
    pub fn new(level: TrustLevel) -> Self {
        Self { level, clock: Arc::new(SystemClock) }
    }

    /// Replaces the clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self::new(TrustLevel::Shared)
    }
}

impl fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryOptions").field("level", &self.level).finish_non_exhaustive()
    }
}

/// Error of the registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The keys of the receiver cannot be read or changed.
    #[error(transparent)]
    Key(#[from] ReceiverKeyError),
    /// The device cannot be changed in this way.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The token cannot be made or changed in this way.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Reason why a device key was not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The receiver has no key, so it enrolls no devices.
    #[error("this receiver has no key and enrolls no devices")]
    NoReceiverKey,
    /// The enrollment names another receiver.
    #[error("the enrollment is for the receiver `{named}`, this one is `{own}`")]
    OtherReceiver {
        /// Name in the enrollment.
        named: String,
        /// Name of this receiver.
        own: String,
    },
    /// The name of a device key is not the one of all device keys.
    #[error("the name of the device key is not `{DEVICE_KEY_NAME}`")]
    KeyName,
    /// The token is bound to another machine.
    #[error("the token is bound to another machine")]
    OtherMachine,
    /// The token enrolled another device or is no longer valid.
    #[error(transparent)]
    Token(TokenError),
    /// The key is not accepted.
    #[error(transparent)]
    Refused(#[from] EnrollRefusal),
    /// The enrollment could not be stored.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The statement about the device could not be signed.
    #[error("cannot sign the statement about the device")]
    Sign(#[from] SignError),
}

/// An enrolled device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrollment {
    /// The device.
    pub device: DeviceView,
    /// Note of the statement about the device.
    pub statement: String,
    /// The receiver's keys.
    pub keys: KeysAnswer,
    /// True if the previous key of the device was already replaced or is cloned: two agents hold
    /// it, and the new key does not continue it.
    pub forked: bool,
}

/// State of trust of a receiver, in files that the server and the commands share.
///
/// Reads include what other processes appended. If that cannot be read, the error is logged and
/// the state known before is used. Changes return after they are on stable storage, except those
/// by [`Registry::record`].
pub struct Registry {
    level: TrustLevel,
    clock: Arc<dyn Clock>,
    lock: Arc<DirectoryLock>,
    keys: KeyStore,
    devices: Journal<Devices>,
    tokens: Journal<Tokens>,
    events: Journal<EventCounts>,
    offered: Journal<OfferedConfigs>,
    limiter: Mutex<EventLimiter>,
    instances: Mutex<Instances>,
    /// Keys that own epochs, as far as this process knows.
    owners: Mutex<HashSet<DeviceKey>>,
    evictions: Mutex<Evictions>,
}

/// Keys that were evicted in the current hour.
#[derive(Debug, Default)]
struct Evictions {
    window_start: Option<SystemTime>,
    number: u64,
}

impl Evictions {
    fn has_room(&mut self, now: SystemTime) -> bool {
        let start = *self.window_start.get_or_insert(now);
        // A clock that was set back starts another hour, too.
        if now.duration_since(start).map_or(true, |since| since >= HOUR) {
            (self.window_start, self.number) = (Some(now), 0);
        }
        self.number < EVICTIONS_IN_HOUR
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Registry {
    /// Opens the registry in `directory`, and creates it if missing. Any number of processes may
    /// have it open.
    ///
    /// # Errors
    /// [`RegistryError`] if a file cannot be read or is damaged.
    pub fn open(directory: &Path, options: RegistryOptions) -> Result<Self, RegistryError> {
        let lock = DirectoryLock::open(directory)?;
        Ok(Self {
            level: options.level,
            clock: options.clock,
            keys: KeyStore::open(directory.join("keys"))?,
            devices: Journal::open(directory, "devices.ndjson", lock.clone())?,
            tokens: Journal::open(directory, "tokens.ndjson", lock.clone())?,
            events: Journal::open(directory, "events.ndjson", lock.clone())?,
            offered: Journal::open(directory, "offered.ndjson", lock.clone())?,
            limiter: Mutex::default(),
            instances: Mutex::default(),
            owners: Mutex::default(),
            evictions: Mutex::default(),
            lock,
        })
    }

    /// Returns the lowest level of trust that the receiver accepts.
    #[must_use]
    pub fn level(&self) -> TrustLevel {
        self.level
    }

    fn now(&self) -> String {
        clock::text(self.clock.now())
    }
}

/// Keys of the receiver.
impl Registry {
    fn receiver_keys(&self) -> Option<Arc<ReceiverKeys>> {
        self.keys.keys()
    }

    /// Returns the name of the receiver; none without a key.
    #[must_use]
    pub fn receiver_name(&self) -> Option<String> {
        self.receiver_keys().map(|keys| keys.name.clone())
    }

    /// Returns the current key of the receiver; none if no key was made.
    #[must_use]
    pub fn receiver_key(&self) -> Option<Arc<SigningKey>> {
        self.receiver_keys().map(|keys| keys.current.clone())
    }

    /// Returns the response to `GET /keys`; none if no key was made.
    #[must_use]
    pub fn keys_answer(&self) -> Option<KeysAnswer> {
        self.receiver_keys().map(|keys| keys.answer.clone())
    }

    /// Returns the public keys of the receiver; none if no key was made.
    #[must_use]
    pub fn receiver_keys_view(&self) -> Option<ReceiverKeysView> {
        self.receiver_keys().map(|keys| keys.view())
    }

    /// Returns the path of the list of keys as a text, which the organisation signs with minisign
    /// after the loss of a key.
    #[must_use]
    pub fn key_list_path(&self) -> PathBuf {
        self.keys.list_path()
    }

    /// Makes the first key of the receiver `name` from 32 random bytes.
    ///
    /// # Errors
    /// [`ReceiverKeyError::Exists`] if there is a key; [`ReceiverKeyError::Name`] for an unusable
    /// name.
    pub fn create_receiver_key(&self, name: &str, seed: [u8; 32]) -> Result<(), RegistryError> {
        let _held = self.lock.lock()?;
        Ok(self.keys.create(name, seed)?)
    }

    /// Makes a next key from 32 random bytes, or if there is one, makes it the current key. With
    /// `discard` the keys before it no longer sign the list of keys.
    ///
    /// # Errors
    /// [`ReceiverKeyError::Missing`] if there is no key.
    pub fn rotate_receiver_key(
        &self,
        seed: [u8; 32],
        discard: bool,
    ) -> Result<Rotation, RegistryError> {
        let _held = self.lock.lock()?;
        Ok(self.keys.rotate(seed, discard)?)
    }
}

/// Managed configurations.
impl Registry {
    /// Notes that the managed configuration with this hash is offered to the agents of `audience`,
    /// or to all. Returns after that is on stable storage.
    ///
    /// # Errors
    /// [`RegistryError::Journal`].
    pub fn offer_config(
        &self,
        hash: &Digest,
        audience: Option<Audience>,
    ) -> Result<(), RegistryError> {
        if self.was_offered(hash) {
            return Ok(());
        }
        let line = OfferedLine { at: self.now(), hash: *hash, audience };
        let offer = |offered: &OfferedConfigs| {
            Ok::<_, JournalError>(((!offered.contains(hash)).then_some(line), ()))
        };
        Ok(self.offered.transact(Durability::Synced, offer)?)
    }

    /// Reports whether the managed configuration with this hash was ever offered.
    #[must_use]
    pub fn was_offered(&self, hash: &Digest) -> bool {
        self.offered.read(|offered| offered.contains(hash))
    }

    /// Reports whether the managed configuration with this hash was ever offered to a device. The
    /// groups of its audience do not count, since the receiver does not know them.
    #[must_use]
    pub fn was_offered_to(&self, hash: &Digest, identity: &Identity) -> bool {
        self.offered.read(|offered| offered.contains_for(hash, identity))
    }
}

/// Devices.
impl Registry {
    /// Returns a device.
    #[must_use]
    pub fn device(&self, key: &DeviceKey) -> Option<DeviceView> {
        self.devices.read(|devices| devices.view(key, self.level))
    }

    /// Returns all devices, ordered by key.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceView> {
        self.devices.read(|devices| devices.views(self.level))
    }

    /// Returns the devices whose key may have made a signature line with this id
    /// ([`VerifierKey::id`]).
    #[must_use]
    pub fn devices_by_key_id(&self, id: [u8; 4]) -> Vec<DeviceView> {
        self.devices.read(|devices| devices.by_key_id(id, self.level))
    }

    /// Reports whether two keys are of one device: equal, or connected by rotations.
    #[must_use]
    pub fn same_lineage(&self, a: &DeviceKey, b: &DeviceKey) -> bool {
        self.devices.read(|devices| devices.same_lineage(a, b))
    }

    /// Reports whether the machine and user ever had a confirmed key.
    #[must_use]
    pub fn confirmed_for(&self, machine: &str, user: &str) -> bool {
        self.devices.read(|devices| devices.confirmed_for(machine, user))
    }

    /// Reports whether any key was enrolled for the machine and user.
    #[must_use]
    pub fn known_machine_user(&self, machine: &str, user: &str) -> bool {
        self.devices.read(|devices| devices.knows(machine, user))
    }

    /// Reports whether any key was enrolled for the machine.
    #[must_use]
    pub fn known_machine(&self, machine: &str) -> bool {
        self.devices.read(|devices| devices.knows_machine(machine))
    }

    /// Reports whether an operator allows batches without a key from the machine, although it has
    /// a confirmed key.
    #[must_use]
    pub fn is_shared_allowed(&self, machine: &str) -> bool {
        self.devices.read(|devices| devices.is_shared_allowed(machine))
    }

    /// Confirms a key for its machine and user. Confirming it again changes nothing, and returns
    /// false.
    ///
    /// # Errors
    /// [`DeviceError`] if the key is unknown or revoked.
    pub fn confirm(&self, key: &DeviceKey, by: Confirmation) -> Result<bool, RegistryError> {
        let at = self.now();
        self.devices.transact(Durability::Synced, |devices| {
            let line = devices.decide_confirm(key, by, at)?;
            let changed = line.is_some();
            Ok((line, changed))
        })
    }

    /// Revokes a key and all keys of its lineage, for good. Returns false if it was revoked.
    ///
    /// # Errors
    /// [`DeviceError::Unknown`] if there is no such key.
    pub fn revoke(&self, key: &DeviceKey) -> Result<bool, RegistryError> {
        let at = self.now();
        self.devices.transact(Durability::Synced, |devices| {
            let line = devices.decide_revoke(key, at)?;
            let changed = line.is_some();
            Ok((line, changed))
        })
    }

    /// Allows batches without a key from a machine that has one, so that its agent can be rolled
    /// back; or forbids them again. Returns false if nothing changed.
    ///
    /// # Errors
    /// [`RegistryError::Journal`].
    pub fn allow_shared(&self, machine: &str, allowed: bool) -> Result<bool, RegistryError> {
        let at = self.now();
        self.devices.transact(Durability::Synced, |devices| {
            let changed = devices.is_shared_allowed(machine) != allowed;
            let machine = machine.to_owned();
            Ok((changed.then_some(DeviceLine::AllowShared { at, machine, allowed }), changed))
        })
    }

    /// Takes the instance of a batch that was sealed by `key` and stores new entries. Returns a
    /// finding once, when two instances alternate; the key is marked as cloned then.
    #[must_use]
    pub fn observe_instance(&self, key: &DeviceKey, instance: &str) -> Option<CloneFinding> {
        if self.devices.read(|devices| devices.is_cloned(key)) {
            return None;
        }
        let found = lock(&self.instances).observe(*key, instance)?;
        let line =
            DeviceLine::Clone { at: self.now(), key: *key, instances: found.instances.clone() };
        let append = |_: &Devices| Ok::<_, JournalError>((Some(line), ()));
        if let Err(error) = self.devices.transact(Durability::Synced, append) {
            error!(code = "trust_journal_failed", %error, "cannot note that a device was cloned");
        }
        Some(found)
    }

    /// Notes that a key owns an epoch, so that keys without one are evicted before it.
    pub(crate) fn note_owner(&self, key: DeviceKey) {
        lock(&self.owners).insert(key);
    }

    /// Enrolls a key that `enroll` presents. `enroll` must have been opened by
    /// [`Enroll::open_self_signed`]. The same key again changes nothing, except that a token that
    /// confirms does so.
    ///
    /// # Errors
    /// [`EnrollError`].
    pub fn enroll(&self, enroll: &Enroll, grant: &Grant) -> Result<Enrollment, EnrollError> {
        let receiver = self.receiver_keys().ok_or(EnrollError::NoReceiverKey)?;
        if enroll.receiver != receiver.name {
            let (named, own) = (enroll.receiver.clone(), receiver.name.clone());
            return Err(EnrollError::OtherReceiver { named, own });
        }
        let names_device = |key: &VerifierKey| key.name() == DEVICE_KEY_NAME;
        if !names_device(&enroll.key) || !enroll.previous.as_ref().is_none_or(names_device) {
            return Err(EnrollError::KeyName);
        }
        if grant.machine().is_some_and(|machine| machine != enroll.machine) {
            return Err(EnrollError::OtherMachine);
        }
        let (key, confirms) = (DeviceKey::from(&enroll.key), grant.confirms());
        let now = self.clock.now();
        let moment = Moment {
            at: clock::text(now),
            hour_ago: clock::text(now.checked_sub(HOUR).unwrap_or(SystemTime::UNIX_EPOCH)),
            may_evict: lock(&self.evictions).has_room(now),
        };
        let owns = |key: &DeviceKey| lock(&self.owners).contains(key);
        let decide = |devices: &Devices| devices.enroll(enroll, confirms, &moment, &owns);
        if let Some(token) = grant.single_use() {
            // A refusal must not use up the token.
            self.devices.read(decide)?;
            self.use_token(token, key)?;
        }
        let (forked, evicted) = self.devices.transact(Durability::Synced, |devices| {
            let EnrollDecision { line, forked } = decide(devices)?;
            let evicted = matches!(&line, Some(DeviceLine::Enroll(it)) if it.evicts.is_some());
            Ok::<_, EnrollError>((line, (forked, evicted)))
        })?;
        if evicted {
            lock(&self.evictions).number += 1;
        }
        let device = self.device(&key).ok_or(EnrollRefusal::Revoked)?;
        let statement = self.statement(&receiver, &enroll.key, &device)?;
        Ok(Enrollment { device, statement, keys: receiver.answer.clone(), forked })
    }

    fn statement(
        &self,
        receiver: &ReceiverKeys,
        key: &VerifierKey,
        device: &DeviceView,
    ) -> Result<String, SignError> {
        let statement = DeviceStatement {
            receiver: receiver.name.clone(),
            key: key.clone(),
            state: device.state,
            level: self.level,
            confirmed_by: device.confirmed_by,
        };
        statement.sign(&[&*receiver.current])
    }
}

/// Tokens.
impl Registry {
    /// Returns the rights of a token; none if it is unknown, expired or revoked.
    #[must_use]
    pub fn grant(&self, presented: &[u8]) -> Option<Grant> {
        let now = self.clock.now();
        self.tokens.read(|tokens| tokens.grant(presented, now))
    }

    /// Uses up a single-use token for a key. It stays valid for that key.
    fn use_token(&self, token: &TokenId, key: DeviceKey) -> Result<(), EnrollError> {
        let now = self.clock.now();
        self.tokens.transact(Durability::Synced, |tokens| {
            let line = tokens.decide_use(token, key, now).map_err(EnrollError::Token)?;
            Ok((line, ()))
        })
    }

    /// Returns all tokens in the order in which they were made.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenView> {
        let now = self.clock.now();
        self.tokens.read(|tokens| tokens.views(now))
    }

    /// Stores the hash of a new token, which was made with [`TokenText::from_random`].
    ///
    /// # Errors
    /// [`TokenError`] for a combination of properties that makes no sense, or if two tokens with
    /// the name are valid.
    pub fn add_token(&self, new: NewToken, text: &TokenText) -> Result<TokenId, RegistryError> {
        let now = self.clock.now();
        let hash = text.hash();
        self.tokens.transact(Durability::Synced, |tokens| {
            let line = tokens.decide_new(new, hash, now)?;
            Ok::<_, RegistryError>((Some(line), ()))
        })?;
        Ok(text.id())
    }

    /// Revokes a token. Returns false if it was revoked.
    ///
    /// # Errors
    /// [`TokenError::Unknown`] if there is no such token.
    pub fn revoke_token(&self, id: &TokenId) -> Result<bool, RegistryError> {
        let now = self.clock.now();
        self.tokens.transact(Durability::Synced, |tokens| {
            let line = tokens.decide_revoke(id, now)?;
            let changed = line.is_some();
            Ok((line, changed))
        })
    }
}

/// Events.
impl Registry {
    /// Records an event in the log of events. Repeats are counted instead of written. A failure is
    /// logged.
    pub fn record(&self, event: Event) {
        let standing = match self.devices.read(|devices| devices.has_confirmed(&event.machine)) {
            true => Standing::Confirmed,
            false => Standing::Claimed,
        };
        let lines = lock(&self.limiter).accept(event, standing, self.clock.now());
        self.write_events(lines);
    }

    /// Returns the number of events since the directory was created.
    #[must_use]
    pub fn event_counts(&self) -> EventCounts {
        let mut counts = self.events.read(|counts| *counts);
        lock(&self.limiter).add_suppressed(&mut counts);
        counts
    }

    fn write_events(&self, lines: Vec<EventLine>) {
        for line in lines {
            log_event(&line);
            let append = |_: &EventCounts| Ok::<_, JournalError>((Some(line), ()));
            if let Err(error) = self.events.transact(Durability::Written, append) {
                error!(code = "trust_journal_failed", %error, "cannot write the log of events");
            }
        }
    }
}

fn log_event(line: &EventLine) {
    let Event { kind, peer, machine, user, host, device, epoch, detail } = &line.event;
    let (peer, device) = (peer.map(tracing::field::display), device.map(tracing::field::display));
    let repeated = line.repeated;
    match kind {
        EventKind::Impersonation => {
            warn!(
                code = "impersonation",
                peer,
                machine,
                user,
                host,
                device,
                epoch,
                detail,
                repeated,
                "a batch lacks the seal of the device that it names"
            );
        }
        EventKind::SecondKey => {
            warn!(
                code = "second_key",
                peer,
                machine,
                user,
                host,
                device,
                epoch,
                detail,
                repeated,
                "an unconfirmed device key sends for a machine and user that have a key"
            );
        }
        EventKind::ChainMismatch => {
            warn!(
                code = "chain_mismatch",
                peer,
                machine,
                user,
                host,
                device,
                epoch,
                detail,
                repeated,
                "a batch without a device key does not continue its epoch"
            );
        }
        EventKind::Clone => {
            warn!(
                code = "device_cloned",
                peer,
                machine,
                user,
                host,
                device,
                epoch,
                detail,
                repeated,
                "two agents use one device key"
            );
        }
        EventKind::ConfigUnknown => {
            warn!(
                code = "config_unknown",
                peer,
                machine,
                user,
                host,
                device,
                epoch,
                detail,
                repeated,
                "a batch names a managed configuration that was never offered"
            );
        }
    }
}

impl Drop for Registry {
    /// Writes the number of events that were counted only.
    fn drop(&mut self) {
        let lines = lock(&self.limiter).flush(self.clock.now());
        self.write_events(lines);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
