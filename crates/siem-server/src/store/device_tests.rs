//! The store with devices: owners of epochs, continuity, receipts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use proptest::prelude::*;
use siem_protocol::{
    BatchHeader, Chain, Digest,
    statement::{self, Confirmation, DeviceState, Enroll, TrustLevel},
};
use tempfile::TempDir;

use super::{
    FileStore, FileStoreOptions, HeldPoint, Storage as _, StoreError, StoredBatch,
    files::tests::{copy, directory, files, stats},
    migrate,
};
use crate::{
    batch::Batch,
    ledger::Range,
    stats::{EpochStats, MachineStats},
    testing::{BatchText, RECEIVER, TestDevice, chain, identity, line},
    trust::{BatchSeal, DeviceKey, EventCounts, Grant, Registry, RegistryOptions, policy::Denial},
};

type Taken = Result<StoredBatch, StoreError>;

mod epochs;
mod files;
mod receipts;
mod senders;
mod verify;

/// A store, and a registry with a key of the receiver.
struct Receiver {
    root: TempDir,
    level: TrustLevel,
    registry: Arc<Registry>,
    store: Option<FileStore>,
    /// Seconds since 1970.
    now: u64,
}

impl Receiver {
    fn new(level: TrustLevel) -> Self {
        let receiver = Self::over(directory(), level);
        receiver.registry.create_receiver_key(RECEIVER, [9; 32]).unwrap();
        receiver
    }

    fn over(root: TempDir, level: TrustLevel) -> Self {
        #[cfg(unix)]
        if let Ok(key) = fs::File::open(root.path().join("trust/keys/receiver.json")) {
            // A copy of a directory lacks it.
            use std::os::unix::fs::PermissionsExt as _;
            key.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        }
        let options = RegistryOptions::new(level);
        let registry = Arc::new(Registry::open(&root.path().join("trust"), options).unwrap());
        let store = Some(open(&root, &registry));
        Self { root, level, registry, store, now: 0 }
    }

    fn store(&self) -> &FileStore {
        self.store.as_ref().unwrap()
    }

    fn restart(mut self) -> Self {
        drop(self.store.take());
        Self { now: self.now, ..Self::over(self.root, self.level) }
    }

    /// The state after a kill at this moment.
    fn killed(&self) -> Self {
        let copied = copy(self.root.path(), &files(self.root.path()));
        Self { now: self.now, ..Self::over(copied, self.level) }
    }

    fn enroll(&self, device: &TestDevice) -> DeviceKey {
        self.enroll_after(device, None)
    }

    fn enroll_after(&self, device: &TestDevice, previous: Option<&TestDevice>) -> DeviceKey {
        let note = device.enrollment(&identity(), previous);
        let enroll = Enroll::open_self_signed(&note).unwrap();
        self.registry.enroll(&enroll, &Grant::all()).unwrap().device.key
    }

    fn confirm(&self, device: &TestDevice) -> DeviceKey {
        let key = self.enroll(device);
        self.registry.confirm(&key, Confirmation::Operator).unwrap();
        key
    }

    fn take(&mut self, text: &BatchText) -> Taken {
        self.now += 1;
        let at = UNIX_EPOCH + Duration::from_secs(self.now);
        let mut batch = Batch::parse(text.text().into_bytes(), at).unwrap();
        batch.seal = BatchSeal::verify(&batch, &self.registry);
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(self.store().store(batch))
    }

    fn point(&mut self, text: &BatchText) -> HeldPoint {
        self.take(text).unwrap().point.unwrap()
    }

    fn machine(&self) -> MachineStats {
        stats(self.store()).machines.remove(0)
    }

    fn epoch(&self) -> EpochStats {
        self.machine().all_epochs().next().unwrap().clone()
    }

    fn events(&self) -> EventCounts {
        self.registry.event_counts()
    }

    fn state(&self, device: &TestDevice) -> DeviceState {
        self.registry.device(&key_of(device)).unwrap().state
    }
}

/// A receiver that has entries 1 to `last` without a seal, and a device that was enrolled after them.
fn enrolled_after(last: u64) -> (Receiver, TestDevice) {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.take(&BatchText::new(1, last)).unwrap();
    receiver.enroll(&device);
    (receiver, device)
}

fn open(root: &TempDir, registry: &Arc<Registry>) -> FileStore {
    let options = FileStoreOptions::default();
    FileStore::open_with_registry(root.path(), options, registry.clone()).unwrap()
}

fn key_of(device: &TestDevice) -> DeviceKey {
    use siem_protocol::note::NoteSigner as _;
    DeviceKey::from(device.key.key())
}

fn of(epoch: &str, first: u64, last: u64) -> BatchText {
    BatchText::new(first, last).with(|header| header.epoch = epoch.into())
}

fn denied(taken: Taken) -> Denial {
    match taken {
        Err(StoreError::Denied(denial)) => denial,
        other => panic!("{other:?}"),
    }
}

fn conflict(taken: Taken) -> u64 {
    match taken {
        Err(StoreError::Conflict { expected_seq }) => expected_seq,
        other => panic!("{other:?}"),
    }
}
