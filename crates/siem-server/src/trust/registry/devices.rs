//! Devices: what the receiver knows of each key, and changes by operators and by batches.

use siem_protocol::statement::Confirmation;
use tracing::error;

use super::{
    super::{
        damage::EpochOwner,
        devices::{DeviceKey, DeviceLine, DeviceStanding, DeviceView, Devices},
        instances::CloneFinding,
        journal::{Durability, JournalError, JournalVersion},
    },
    Registry, RegistryError, lock,
};

/// Lookup of a device by its key, and the machine and user of an epoch.
pub(crate) type Standings<'a> = dyn Fn(&DeviceKey, (&str, &str)) -> Option<DeviceStanding> + 'a;

/// State of the registry's devices. While it is equal, each lookup has the same result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StandingsVersion(JournalVersion);

#[cfg(test)]
impl StandingsVersion {
    /// The state after a number of changes.
    pub(crate) fn of(changes: u64) -> Self {
        Self(JournalVersion::of(changes))
    }
}

/// What the registry knows of the sender of a batch.
#[derive(Debug, Default)]
pub(crate) struct SenderFacts {
    /// The device that sealed it.
    pub(crate) device: Option<DeviceView>,
    /// The machine and user ever had a confirmed key.
    pub(crate) has_confirmed: bool,
    /// Batches without a key are allowed, see [`Registry::is_shared_allowed`].
    pub(crate) is_shared_allowed: bool,
}

/// Devices.
impl Registry {
    /// Returns a device.
    #[must_use]
    pub fn device(&self, key: &DeviceKey) -> Option<DeviceView> {
        self.devices.read(|devices| devices.view(key, self.level))
    }

    /// Calls `read` with a lookup of what counts for an epoch of a machine and user that a key owns, and
    /// with the state of the registry. Faster than one [`Registry::device`] after the other.
    pub(crate) fn read_standings<R>(
        &self,
        read: impl FnOnce(&Standings<'_>, StandingsVersion) -> R,
    ) -> R {
        self.devices.read_version(|devices, version| {
            let standing =
                |key: &DeviceKey, of: (&str, &str)| devices.standing(key, of, self.level);
            read(&standing, StandingsVersion(version))
        })
    }

    /// Returns what admits batches of a machine and user, sealed by `key` if there is one: all from one look at
    /// the file.
    pub(crate) fn sender_facts(
        &self,
        (machine, user): (&str, &str),
        key: Option<&DeviceKey>,
    ) -> SenderFacts {
        self.devices.read(|devices| SenderFacts {
            device: key.and_then(|key| devices.view(key, self.level)),
            has_confirmed: devices.confirmed_for(machine, user),
            is_shared_allowed: devices.is_shared_allowed(machine),
        })
    }

    /// Returns all devices, ordered by key.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceView> {
        self.devices.read(|devices| devices.views(self.level))
    }

    /// Returns the devices whose key may have made a signature line with this id
    /// ([`VerifierKey::id`](siem_protocol::note::VerifierKey::id)).
    #[must_use]
    pub fn devices_by_key_id(&self, id: [u8; 4]) -> Vec<DeviceView> {
        self.devices.read(|devices| devices.by_key_id(id, self.level))
    }

    /// Reports whether two keys are of one device: equal, or connected by rotations.
    #[must_use]
    pub fn same_lineage(&self, a: &DeviceKey, b: &DeviceKey) -> bool {
        a == b || self.devices.read(|devices| devices.same_lineage(a, b))
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
    /// [`DeviceError`](crate::trust::DeviceError) if the key is unknown or revoked.
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
    /// [`DeviceError::Unknown`](crate::trust::DeviceError::Unknown) if there is no such key.
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
        let found = lock(&self.instances).observe(*key, instance)?;
        if self.devices.read(|devices| devices.is_cloned(key)) {
            return None;
        }
        self.note_clone(key, Some(found.instances.clone()));
        Some(found)
    }

    /// Marks a replaced key that was used although the key that replaced it is in use.
    pub(crate) fn note_copy(&self, key: &DeviceKey) {
        if !self.devices.read(|devices| devices.is_copied(key)) {
            self.note_clone(key, None);
        }
    }

    fn note_clone(&self, key: &DeviceKey, instances: Option<[String; 2]>) {
        let line = DeviceLine::Clone { at: self.now(), key: *key, instances };
        let append = |_: &Devices| Ok::<_, JournalError>((Some(line), ()));
        if let Err(error) = self.devices.transact(Durability::Synced, append) {
            error!(code = "trust_journal_failed", %error, "cannot note that a device was cloned");
        }
    }

    /// Returns a key that replaced `key`, directly or through others, and has stored entries.
    pub(crate) fn successor_in_use(&self, key: &DeviceKey) -> Option<DeviceKey> {
        let successors = self.devices.read(|devices| devices.successors(key));
        let owners = lock(&self.owners);
        successors.into_iter().find(|successor| owners.contains(successor))
    }

    /// Returns the number of devices that sent entries, and that are missing.
    pub(crate) fn missing_devices(&self, owners: &[EpochOwner]) -> u64 {
        self.devices.read(|devices| devices.missing(owners))
    }

    /// Notes that a key owns an epoch, so that keys without one are evicted before it.
    pub(crate) fn note_owner(&self, key: DeviceKey) {
        lock(&self.owners).insert(key);
    }
}
