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
    Chain, Digest,
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
        batch.seal = BatchSeal::verify(&batch.header, &self.registry);
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

/// A jump or another chain by a stranger used to be stored, which let one request silence a machine.
#[test]
fn keyless_epoch_refuses_what_does_not_continue_it() {
    let other = Digest::of(b"other");
    let mut receiver = Receiver::new(TrustLevel::Shared);
    receiver.take(&BatchText::new(1, 5)).unwrap();
    let before = receiver.epoch();
    let chained = |first, before, after| {
        BatchText::new(first, first).with(|header| header.chain = Some(Chain { before, after }))
    };
    let forged = [
        BatchText::new(7, 8),
        BatchText::new(1000, 1000),
        chained(6, other, other),
        chained(6, chain(5), other),
        BatchText::new(5, 6).line(5, r#"{"seq":5,"kind":"event","x":1}"#),
    ];
    for text in &forged {
        assert_eq!(conflict(receiver.take(text)), 6);
    }
    // An unknown epoch is refused without a trace in the files.
    assert_eq!(conflict(receiver.take(&of("epoch-2", 2, 3))), 1);
    let after = receiver.epoch();
    assert_eq!((after.conflicts, after.next_seq, &after.gaps), (5, 6, &vec![]));
    assert_eq!((after.entries, after.breaks), (before.entries, before.breaks));
    assert_eq!(receiver.machine().epochs.len(), 1);
    assert_eq!(receiver.events().chain_mismatch, 6);
    let receipt = receiver.take(&BatchText::new(6, 7)).unwrap().receipt;
    assert_eq!((receipt.accepted, receipt.duplicates), (2, 0));
}

#[test]
fn gaps_and_breaks_are_stored_in_an_epoch_with_a_device() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    receiver.take(&BatchText::new(3, 6).dead(&[4, 5]).seal(&device)).unwrap();
    receiver.take(&BatchText::new(9, 12).seal(&device)).unwrap();
    receiver.take(&BatchText::new(8, 10).seal(&device)).unwrap();
    let other = Digest::of(b"other");
    let broken = BatchText::new(13, 13)
        .with(|header| header.chain = Some(Chain { before: other, after: other }));
    receiver.take(&broken.seal(&device)).unwrap();
    let redelivery = BatchText::redelivery(&[4]).seal_at(&device, Some((12, chain(12))));
    let taken = receiver.take(&redelivery).unwrap();
    assert_eq!(taken.receipt.accepted_seqs, Some(vec![4]));
    assert_eq!(taken.point.map(|point| (point.last_seq, point.chain)), Some((12, chain(12))));
    let before = receiver.machine();
    let epoch = &before.epochs[0];
    assert_eq!(epoch.gaps, [Range { first: 1, last: 2 }, Range { first: 7, last: 7 }]);
    assert_eq!(epoch.holes, [Range { first: 5, last: 5 }]);
    assert_eq!((epoch.breaks.len(), epoch.duplicates), (2, 2));
    let device = epoch.device.as_ref().unwrap();
    assert_eq!((device.state, device.adopted_at), (DeviceState::Confirmed, None));
    assert_eq!(device.sealed, Some(13));
    assert_eq!(receiver.killed().machine(), before);
    assert_eq!(receiver.restart().machine(), before);
}

#[test]
fn redelivery_whose_seal_names_another_chain_is_refused() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    receiver.take(&BatchText::new(1, 3).dead(&[2]).seal(&device)).unwrap();
    let wrong = BatchText::redelivery(&[2]).seal_at(&device, Some((3, chain(2))));
    assert_eq!(denied(receiver.take(&wrong)), Denial::Seal);
    assert_eq!(receiver.epoch().holes.len(), 1);
}

#[test]
fn epoch_of_a_device_takes_only_batches_with_its_seal() {
    let (device, other) = (TestDevice::new(1), TestDevice::new(2));
    for level in [TrustLevel::Shared, TrustLevel::FirstUse] {
        let mut receiver = Receiver::new(level);
        receiver.enroll(&device);
        receiver.enroll(&other);
        receiver.take(&BatchText::new(1, 5).seal(&device)).unwrap();
        let before = receiver.machine();
        let unknown = TestDevice::new(3);
        for text in [
            BatchText::new(6, 6),
            BatchText::new(6, 6).seal(&unknown),
            BatchText::new(6, 6).seal(&other),
            BatchText::new(1, 5),
            BatchText::redelivery(&[2]),
        ] {
            assert_eq!(denied(receiver.take(&text)), Denial::EpochOwned);
        }
        let stolen = BatchText::new(6, 6).seal_with(&device, None, |seal| seal.last_seq = 7);
        assert_eq!(denied(receiver.take(&stolen)), Denial::Seal);
        assert_eq!(receiver.machine(), before);
        assert_eq!(receiver.events().impersonation, 6);
        let mut receiver = receiver.restart();
        assert_eq!(denied(receiver.take(&BatchText::new(6, 6))), Denial::EpochOwned);
        receiver.take(&BatchText::new(6, 6).seal(&device)).unwrap();
    }
}

#[test]
fn store_without_registry_keeps_the_epochs_of_devices_closed() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.enroll(&device);
    receiver.take(&BatchText::new(1, 5).seal(&device)).unwrap();
    drop(receiver.store.take());
    receiver.store = Some(FileStore::open(receiver.root.path()).unwrap());
    assert_eq!(denied(receiver.take(&BatchText::new(6, 6))), Denial::EpochOwned);
}

/// An updated agent resends what it does not know to be stored, now with its seal.
#[test]
fn sealed_batch_adopts_the_epoch_that_it_continues() {
    for (first, last, adopted_at) in [(6, 9, 6), (4, 9, 6), (1, 5, 6), (5, 5, 6)] {
        let device = TestDevice::new(1);
        let mut receiver = Receiver::new(TrustLevel::FirstUse);
        receiver.take(&BatchText::new(1, 5)).unwrap();
        let key = receiver.enroll(&device);
        receiver.take(&BatchText::new(first, last).seal(&device)).unwrap();
        assert_eq!(receiver.state(&device), DeviceState::Confirmed);
        let by = receiver.registry.device(&key).unwrap().confirmed_by;
        assert_eq!(by, Some(Confirmation::Continuity));
        let before = receiver.machine();
        let owner = before.epochs[0].device.as_ref().unwrap();
        assert_eq!(owner.adopted_at, Some(adopted_at));
        for mut again in [receiver.killed(), receiver.restart()] {
            assert_eq!(again.machine(), before);
            assert_eq!(denied(again.take(&BatchText::new(last + 1, last + 1))), Denial::EpochOwned);
            // The ratchet.
            assert_eq!(denied(again.take(&of("epoch-2", 1, 1))), Denial::Impersonation);
            again.take(&BatchText::new(last + 1, last + 1).seal(&device)).unwrap();
        }
    }
}

#[test]
fn duplicates_below_the_head_adopt_nothing() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.take(&BatchText::new(1, 5)).unwrap();
    receiver.enroll(&device);
    let receipt = receiver.take(&BatchText::new(1, 4).seal(&device)).unwrap().receipt;
    assert_eq!((receipt.accepted, receipt.duplicates), (0, 4));
    assert_eq!(receiver.epoch().device, None);
    assert_eq!(receiver.state(&device), DeviceState::Unconfirmed);
}

#[test]
fn sealed_batch_with_an_unknown_chain_adopts_nothing() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.take(&BatchText::new(1, 5)).unwrap();
    receiver.enroll(&device);
    let other = Digest::of(b"other");
    for text in [
        BatchText::new(8, 9),
        BatchText::new(6, 6)
            .with(|header| header.chain = Some(Chain { before: other, after: other })),
    ] {
        assert_eq!(conflict(receiver.take(&text.seal(&device))), 6);
    }
    assert_eq!(receiver.epoch().device, None);
    assert_eq!(receiver.events().chain_mismatch, 2);
    // The agent starts a new epoch, which it owns.
    receiver.take(&of("epoch-2", 1, 2).seal(&device)).unwrap();
    assert_eq!(receiver.state(&device), DeviceState::Unconfirmed);
}

/// The adoption is stored before the key is confirmed, so that a crash between leaves an
/// unconfirmed owner.
#[test]
fn adoption_confirms_its_key_after_a_crash() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.take(&BatchText::new(1, 5)).unwrap();
    receiver.enroll(&device);
    let before = files(&receiver.root.path().join("trust"));
    receiver.take(&BatchText::new(6, 7).seal(&device)).unwrap();
    let mut left = files(receiver.root.path());
    left.extend(before);
    let crashed = Receiver::over(copy(receiver.root.path(), &left), TrustLevel::FirstUse);
    assert_eq!(crashed.state(&device), DeviceState::Confirmed);
}

/// Anyone with the secrets of the fleet can begin an epoch under a machine's name and adopt it.
#[test]
fn adoption_of_a_later_epoch_confirms_nothing() {
    let (stranger, device) = (TestDevice::new(1), TestDevice::new(2));
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.take(&BatchText::new(1, 5)).unwrap();
    receiver.take(&of("epoch-2", 1, 1)).unwrap();
    receiver.enroll(&stranger);
    receiver.take(&of("epoch-2", 2, 2).seal(&stranger)).unwrap();
    assert_eq!(receiver.state(&stranger), DeviceState::Unconfirmed);
    receiver.take(&BatchText::new(6, 7)).unwrap();
    receiver.enroll(&device);
    receiver.take(&BatchText::new(8, 9).seal(&device)).unwrap();
    assert_eq!(receiver.state(&device), DeviceState::Confirmed);
    let machine = receiver.machine();
    assert_eq!((machine.entries, machine.epochs.len()), (9, 1));
    assert_eq!((machine.unconfirmed.len(), machine.unconfirmed[0].entries), (1, 2));
}

/// A redelivery needs no knowledge of the chain, so it must not make an epoch that of another user:
/// the next epoch of a stranger would be the first one of the machine and user.
#[test]
fn redelivery_that_brings_no_letter_changes_no_sender() {
    let stranger = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.take(&BatchText::new(1, 5).dead(&[4])).unwrap();
    let before = receiver.machine();
    let as_other = |text: BatchText| text.with(|header| header.user = "x".into());
    for seqs in [&[99][..], &[1]] {
        let line = format!(r#"{{"seq":{},"kind":"event","random":1}}"#, seqs[0]);
        let random = as_other(BatchText::redelivery(seqs)).line(seqs[0], &line);
        let taken = receiver.take(&random.with(|header| header.hostname = "y".into())).unwrap();
        assert_eq!(taken.receipt.accepted_seqs, Some(vec![]));
    }
    assert_eq!(receiver.machine(), before);
    // With the right line the letter is stored, and the epoch keeps its sender.
    let letter = as_other(BatchText::redelivery(&[4]));
    assert_eq!(receiver.take(&letter).unwrap().receipt.accepted_seqs, Some(vec![4]));
    assert_eq!(receiver.epoch().user, "u");
    receiver.take(&of("epoch-2", 1, 1)).unwrap();
    receiver.enroll(&stranger);
    receiver.take(&of("epoch-2", 2, 2).seal(&stranger)).unwrap();
    assert_eq!(receiver.state(&stranger), DeviceState::Unconfirmed);
    receiver.take(&BatchText::new(6, 7)).unwrap();
}

#[test]
fn keyless_epoch_keeps_its_user() {
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.take(&BatchText::new(1, 5)).unwrap();
    for (first, last) in [(1, 5), (3, 4), (4, 6), (6, 6)] {
        let other = BatchText::new(first, last).with(|header| header.user = "v".into());
        assert_eq!(conflict(receiver.take(&other)), 6);
    }
    let epoch = receiver.epoch();
    assert_eq!((epoch.user.as_str(), epoch.next_seq), ("u", 6));
    receiver.take(&BatchText::new(6, 6)).unwrap();
}

/// The user of an epoch that a device owns may change, but the epoch was not the first of that user.
#[test]
fn epoch_that_changed_its_user_is_not_the_first_one() {
    let (stranger, device) = (TestDevice::new(1), TestDevice::new(2));
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.enroll(&stranger);
    let as_other = |text: BatchText| text.with(|header| header.user = "x".into());
    receiver.take(&as_other(of("epoch-x", 1, 1)).seal(&stranger)).unwrap();
    receiver.take(&BatchText::new(1, 5)).unwrap();
    receiver.take(&of("epoch-x", 2, 2).seal(&stranger)).unwrap();
    let mut receiver = receiver.restart();
    receiver.enroll(&device);
    receiver.take(&BatchText::new(6, 6).seal(&device)).unwrap();
    assert_eq!(receiver.state(&device), DeviceState::Confirmed);
}

#[test]
fn clock_that_was_set_back_makes_no_epoch_the_first() {
    let (stranger, device) = (TestDevice::new(1), TestDevice::new(2));
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.now = 1000;
    receiver.take(&BatchText::new(1, 5)).unwrap();
    receiver.now = 10;
    receiver.take(&of("epoch-2", 1, 1)).unwrap();
    let mut receiver = receiver.restart();
    receiver.enroll(&stranger);
    receiver.take(&of("epoch-2", 2, 2).seal(&stranger)).unwrap();
    assert_eq!(receiver.state(&stranger), DeviceState::Unconfirmed);
    receiver.enroll(&device);
    receiver.take(&BatchText::new(6, 6).seal(&device)).unwrap();
    assert_eq!(receiver.state(&device), DeviceState::Confirmed);
}

/// An agent that lost its key has the dead letters of its earlier epochs still.
#[test]
fn any_device_of_the_machine_and_user_redelivers_letters() {
    let (lost, new, other) = (TestDevice::new(1), TestDevice::new(2), TestDevice::new(3));
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&lost);
    receiver.take(&BatchText::new(1, 5).dead(&[2, 4]).seal(&lost)).unwrap();
    receiver.enroll(&new);
    let taken = receiver.take(&BatchText::redelivery(&[2]).seal_at(&new, Some((5, chain(5)))));
    let taken = taken.unwrap();
    assert_eq!(taken.receipt.accepted_seqs, Some(vec![2]));
    assert_eq!(taken.point.map(|point| (point.last_seq, point.chain)), Some((5, chain(5))));
    // Without the chain, or in the name of another user.
    let from_zero = BatchText::redelivery(&[4]).seal_at(&new, Some((0, Digest::ZERO)));
    let wrong = BatchText::redelivery(&[4]).seal_at(&new, Some((5, chain(4))));
    assert_eq!(denied(receiver.take(&wrong)), Denial::Seal);
    let note = other.enrollment(&siem_protocol::Identity { user: "v".into(), ..identity() }, None);
    let enroll = Enroll::open_self_signed(&note).unwrap();
    receiver.registry.enroll(&enroll, &Grant::all()).unwrap();
    let as_other = BatchText::redelivery(&[4]).seal_at(&other, Some((5, chain(5))));
    assert_eq!(denied(receiver.take(&as_other)), Denial::EpochOwned);
    for _ in 0..2 {
        let taken = receiver.take(&from_zero).unwrap();
        assert_eq!((taken.receipt.accepted_seqs, taken.point), (Some(vec![4]), None));
    }
    assert_eq!(denied(receiver.take(&BatchText::new(6, 6).seal(&new))), Denial::EpochOwned);
    let epoch = receiver.machine().all_epochs().next().unwrap().clone();
    assert!(epoch.holes.is_empty() && epoch.next_seq == 6, "{epoch:?}");
}

/// Release 0.1 starts another epoch after a damaged outbox, and names the one before. So can a
/// stranger who has read the name, to have a key confirmed.
#[test]
fn epoch_naming_the_first_confirms_if_older_than_the_key() {
    for (is_older, state) in [(true, DeviceState::Confirmed), (false, DeviceState::Unconfirmed)] {
        let device = TestDevice::new(1);
        let mut receiver = Receiver::over(directory(), TrustLevel::FirstUse);
        receiver.take(&BatchText::new(1, 5)).unwrap();
        if !is_older {
            receiver.registry.create_receiver_key(RECEIVER, [9; 32]).unwrap();
        }
        let next = of("epoch-2", 1, 1).with(|header| header.previous_epoch = Some("e-1".into()));
        receiver.take(&next).unwrap();
        if is_older {
            receiver.registry.create_receiver_key(RECEIVER, [9; 32]).unwrap();
        }
        let mut receiver = receiver.restart();
        receiver.enroll(&device);
        receiver.take(&of("epoch-2", 2, 2).seal(&device)).unwrap();
        assert_eq!(receiver.state(&device), state);
    }
}

/// The name of the user can change, but the confirmation was for the old one.
#[test]
fn device_that_sends_for_another_user_is_unconfirmed_there() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    receiver.take(&BatchText::new(1, 3).seal(&device)).unwrap();
    let other = BatchText::new(4, 5).with(|header| header.user = "v".into());
    receiver.take(&other.seal(&device)).unwrap();
    let machine = receiver.machine();
    assert_eq!((machine.epochs.len(), machine.unconfirmed[0].entries), (0, 5));
}

#[test]
fn stranger_who_is_first_neither_mixes_nor_locks_out() {
    let (stranger, device) = (TestDevice::new(1), TestDevice::new(2));
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.enroll(&stranger);
    receiver.take(&of("epoch-x", 1, 3).seal(&stranger)).unwrap();
    assert_eq!(receiver.events().second_key, 0);
    // A keyless agent of the same name still gets in.
    receiver.take(&of("epoch-0", 1, 2)).unwrap();
    receiver.enroll(&device);
    for (first, last) in [(1, 4), (5, 6)] {
        receiver.take(&of("epoch-1", first, last).seal(&device)).unwrap();
        receiver.take(&of("epoch-x", first + 3, last + 3).seal(&stranger)).unwrap();
    }
    assert_eq!(receiver.events().second_key, 1);
    assert_eq!(receiver.events().clone, 0);
    let machine = receiver.machine();
    assert_eq!((machine.entries, machine.epochs.len()), (2, 1));
    let mut apart: Vec<_> = machine
        .unconfirmed
        .iter()
        .map(|device| (device.epochs[0].epoch.as_str(), device.entries))
        .collect();
    apart.sort_unstable();
    assert_eq!(apart, [("epoch-1", 6), ("epoch-x", 9)]);
    // Once an operator approves one, it is the machine's.
    receiver.registry.confirm(&key_of(&device), Confirmation::Operator).unwrap();
    let machine = receiver.machine();
    assert_eq!((machine.entries, machine.epochs.len(), machine.unconfirmed.len()), (8, 2, 1));
    assert_eq!(denied(receiver.take(&of("epoch-0", 3, 3))), Denial::Impersonation);
    receiver.take(&of("epoch-x", 10, 10).seal(&stranger)).unwrap();
}

#[test]
fn level_enrolled_takes_confirmed_devices_only() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::Enrolled);
    let keyless = BatchText::new(1, 2);
    assert_eq!(denied(receiver.take(&keyless)), Denial::NotEnrolled);
    let key = receiver.enroll(&device);
    let sealed = || BatchText::new(1, 2).seal(&device);
    assert_eq!(denied(receiver.take(&sealed())), Denial::NotEnrolled);
    receiver.registry.confirm(&key, Confirmation::Operator).unwrap();
    receiver.take(&sealed()).unwrap();
    assert_eq!(receiver.events().impersonation, 0);
}

/// The agent is rolled back to a release without keys: it starts a new epoch after a 409.
#[test]
fn allow_shared_lets_a_rolled_back_agent_in() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::Enrolled);
    receiver.confirm(&device);
    receiver.take(&BatchText::new(1, 5).seal(&device)).unwrap();
    assert_eq!(denied(receiver.take(&BatchText::new(6, 6))), Denial::EpochOwned);
    receiver.registry.allow_shared("m-1", true).unwrap();
    assert_eq!(conflict(receiver.take(&BatchText::new(6, 6))), 6);
    let next = |first, last| {
        of("epoch-2", first, last).with(|header| header.previous_epoch = Some("e-1".into()))
    };
    receiver.take(&next(1, 1)).unwrap();
    // And updated again.
    receiver.take(&next(2, 3).seal(&device)).unwrap();
    receiver.registry.allow_shared("m-1", false).unwrap();
    receiver.take(&next(4, 4).seal(&device)).unwrap();
    assert_eq!(denied(receiver.take(&next(5, 5))), Denial::EpochOwned);
    let machine = receiver.machine();
    assert_eq!((machine.entries, machine.epochs.len(), machine.unconfirmed.len()), (9, 2, 0));
}

#[test]
fn rotated_key_owns_the_epochs_of_its_lineage() {
    let (old, new, stranger) = (TestDevice::new(1), TestDevice::new(2), TestDevice::new(3));
    let mut receiver = Receiver::new(TrustLevel::Enrolled);
    receiver.confirm(&old);
    receiver.take(&BatchText::new(1, 3).seal(&old)).unwrap();
    receiver.enroll_after(&new, Some(&old));
    receiver.enroll(&stranger);
    receiver.take(&BatchText::new(4, 5).seal(&new)).unwrap();
    let mut receiver = receiver.restart();
    receiver.take(&BatchText::new(6, 7).seal(&new)).unwrap();
    assert_eq!(denied(receiver.take(&BatchText::new(8, 8).seal(&stranger))), Denial::EpochOwned);
    assert_eq!(receiver.machine().entries, 7);
}

#[test]
fn revoked_device_is_refused_and_its_ratchet_stays() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    let key = receiver.confirm(&device);
    receiver.take(&BatchText::new(1, 3).seal(&device)).unwrap();
    receiver.registry.revoke(&key).unwrap();
    let again = BatchText::new(4, 4).seal(&device);
    assert_eq!(denied(receiver.take(&again)), Denial::DeviceRevoked);
    assert_eq!(denied(receiver.take(&of("epoch-2", 1, 1))), Denial::Impersonation);
}

#[test]
fn alternating_instances_of_one_key_are_a_clone() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    let by = |epoch: &str, seq, instance: &str| {
        let text = of(epoch, seq, seq).with(|header| header.instance = Some(instance.into()));
        text.seal(&device)
    };
    let mut refused = None;
    for seq in 1..5 {
        for (epoch, instance) in [("epoch-a", "one"), ("epoch-b", "two")] {
            let taken = receiver.take(&by(epoch, seq, instance));
            refused = refused.or(taken.err());
        }
    }
    assert!(matches!(refused, Some(StoreError::Denied(Denial::DeviceCloned))), "{refused:?}");
    assert!(receiver.events().clone >= 1);
    assert_eq!(denied(receiver.take(&by("epoch-a", 9, "three"))), Denial::DeviceCloned);
}

/// A stranger can send an old batch again, with the instance that its seal names.
#[test]
fn repeated_batch_of_an_earlier_run_is_no_clone() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    let by = |seq, instance: &str| {
        let text = BatchText::new(seq, seq).with(|header| header.instance = Some(instance.into()));
        text.seal(&device)
    };
    for seq in 1..8 {
        receiver.take(&by(seq, if seq < 4 { "old" } else { "new" })).unwrap();
        receiver.take(&by(seq.min(2), "old")).unwrap();
        let forged = by(seq + 1, "own").with(|header| header.instance = Some("forged".into()));
        assert_eq!(denied(receiver.take(&forged)), Denial::Seal);
    }
    assert_eq!(receiver.events().clone, 0);
}

#[test]
fn receipts_of_old_batches_are_found_in_the_notes() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    let mut points = Vec::new();
    for seq in 1..=600 {
        points.push(receiver.point(&BatchText::new(seq, seq).seal(&device)));
    }
    let mut receiver = receiver.restart();
    for seq in [1, 2, 255, 256, 257, 400, 599, 600] {
        let again = BatchText::new(seq, seq).seal(&device);
        assert_eq!(receiver.point(&again), points[seq as usize - 1], "{seq}");
    }
}

#[test]
fn receipt_of_a_keyless_entry_names_the_seal_that_adopted_it() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    let first = receiver.point(&BatchText::new(1, 3));
    assert_eq!((first.seal, first.chain), (None, chain(3)));
    receiver.enroll(&device);
    let sealed = BatchText::new(4, 6).seal(&device);
    let second = receiver.point(&sealed);
    let digest = statement::digest(sealed.header.seal.as_ref().unwrap());
    assert_eq!(second.seal, Some(digest));
    let again = receiver.point(&BatchText::new(1, 3).seal(&device));
    assert_eq!(again, HeldPoint { seal: Some(digest), ..first });
}

/// A value that is read again is that of the batch which brought it, also after a restart.
#[test]
fn repeated_numbers_of_any_batch_are_compared_with_its_values() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    receiver.take(&BatchText::new(4, 9).dead(&[5, 7]).seal(&device)).unwrap();
    receiver.take(&BatchText::new(1, 6).dead(&[5]).seal(&device)).unwrap();
    let redelivery = BatchText::redelivery(&[7]).seal_at(&device, Some((9, chain(9))));
    receiver.take(&redelivery).unwrap();
    receiver.take(&BatchText::new(8, 12).seal(&device)).unwrap();
    let mut receiver = receiver.restart();
    for first in 1..=12 {
        for last in first..=12 {
            let taken = receiver.take(&BatchText::new(first, last).dead(&[5]).seal(&device));
            assert_eq!(taken.unwrap().receipt.accepted, 0, "{first} {last}");
        }
        let other = BatchText::new(first, first).line(first, &line(first).replace("agent", "b"));
        conflict(receiver.take(&other.seal(&device)));
    }
}

/// What a receipt says, computed from all batches that were stored.
#[derive(Default)]
struct Expected {
    received_at: BTreeMap<u64, u64>,
    seals: Vec<(u64, Digest)>,
}

impl Expected {
    fn add(&mut self, first: u64, last: u64, now: u64, seal: Digest) -> (u64, Option<Digest>) {
        let new = (first..=last).filter(|seq| !self.received_at.contains_key(seq));
        let new: BTreeSet<_> = new.collect();
        let sealed = self.seals.iter().any(|(covered, _)| *covered >= last);
        if !new.is_empty() || !sealed {
            self.seals.push((last, seal));
        }
        self.received_at.extend(new.into_iter().map(|seq| (seq, now)));
        let seal = self.seals.iter().find(|(covered, _)| *covered >= last);
        (self.received_at[&last], seal.map(|(_, seal)| *seal))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// For any borders, order and repetition of batches, and after restarts.
    #[test]
    fn receipt_is_a_function_of_what_is_stored(
        batches in prop::collection::vec((1u64..30, 0u64..8, 0u8..8), 1..30)
    ) {
        let device = TestDevice::new(1);
        let mut receiver = Receiver::new(TrustLevel::FirstUse);
        receiver.confirm(&device);
        let mut expected = Expected::default();
        for (first, more, restart) in batches {
            if restart == 0 {
                receiver = receiver.restart();
            }
            let text = BatchText::new(first, first + more).seal(&device);
            let seal = statement::digest(text.header.seal.as_ref().unwrap());
            let point = receiver.point(&text);
            let (at, seal) = expected.add(first, first + more, receiver.now, seal);
            let received_at = crate::clock::text(UNIX_EPOCH + Duration::from_secs(at));
            let last_seq = first + more;
            prop_assert_eq!(point, HeldPoint { last_seq, chain: chain(last_seq), seal, received_at });
        }
    }
}

/// A directory that release 0.1 left when it was killed.
fn release_0_1() -> TempDir {
    let made = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/release-0.1/data");
    copy(made.as_ref(), &files(made.as_ref()))
}

#[test]
fn data_directory_of_release_0_1_is_migrated() {
    let root = release_0_1();
    let mut receiver = Receiver::over(root, TrustLevel::Shared);
    let format = fs::read_to_string(receiver.root.path().join("format")).unwrap();
    assert_eq!(format, r#"{"format":3,"migrated_from":1}"#);
    let found = stats(receiver.store());
    let [machine, gap] = found.machines.as_slice() else { panic!("{found:?}") };
    assert_eq!((machine.entries, machine.epochs[0].next_seq), (10, 11));
    assert_eq!(found.unexplained, 0);
    assert_eq!((gap.entries, &gap.epochs[0].gaps), (4, &vec![Range { first: 3, last: 4 }]));
    assert_eq!((gap.epochs[0].conflicts, &gap.epochs[0].device), (0, &None));
    // A late batch fills the gap, and the epoch goes on.
    let text = |seq| {
        format!(
            r#"{{"seq":{seq},"kind":"event","source":"agent","event":"canary","data":{{"n":{seq}}}}}"#
        )
    };
    let value = |seq: u64| {
        (1..=seq).fold(Digest::ZERO, |value, seq| value.chain(Digest::of(text(seq).as_bytes())))
    };
    let batch = |first: u64, last: u64| {
        let mut batch = BatchText::new(first, last).with(|header| {
            header.machine_id = "machine-with-a-gap".into();
            header.user = "v".into();
            header.epoch = "01930000-0000-7000-8000-0000000000aa".into();
            header.chain = Some(Chain { before: value(first - 1), after: value(last) });
        });
        for seq in first..=last {
            batch = batch.line(seq, &text(seq));
        }
        batch
    };
    assert_eq!(receiver.take(&batch(2, 5)).unwrap().receipt.accepted, 2);
    assert_eq!(receiver.take(&batch(6, 8)).unwrap().receipt.accepted, 2);
    assert_eq!(conflict(receiver.take(&batch(10, 10))), 9);
    let before = stats(receiver.store());
    let receiver = receiver.restart();
    let after = stats(receiver.store());
    assert_eq!(after.machines, before.machines);
    assert!(after.machines[1].epochs[0].gaps.is_empty());
}

/// The chain and the starts of an earlier version are derived data, and a conversion may end at any
/// time.
#[test]
fn conversion_gives_the_same_index_from_damaged_files() {
    let converted = |damage: &dyn Fn(&Path)| {
        let root = release_0_1();
        damage(root.path());
        let before = files(root.path());
        drop(FileStore::open(root.path()).unwrap());
        let mut after = files(root.path());
        after.retain(|path, _| path.starts_with(root.path().join("machines")));
        let after: BTreeMap<_, _> = after
            .into_iter()
            .map(|(path, bytes)| (path.strip_prefix(root.path()).unwrap().to_owned(), bytes))
            .collect();
        (before.len(), after)
    };
    let edit = |root: &Path, ending: &str, edit: &dyn Fn(&Path)| {
        let files = files(root).into_keys();
        let found: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|it| it == ending)).collect();
        assert_eq!(found.len(), 2);
        found.iter().for_each(|path| edit(path));
    };
    let (files, expected) = converted(&|_| ());
    let endings: BTreeSet<_> =
        expected.keys().map(|path| path.extension().unwrap().to_str().unwrap()).collect();
    assert_eq!((files, expected.len()), (9, 4));
    assert_eq!(endings, ["index", "ndjson"].into());
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let cut = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    assert_eq!(converted(&|root| edit(root, "chain", &remove)).1, expected);
    assert_eq!(converted(&|root| edit(root, "chain", &cut)).1, expected);
    assert_eq!(converted(&|root| edit(root, "starts", &remove)).1, expected);
    assert_eq!(converted(&|root| edit(root, "starts", &cut)).1, expected);
    // A kill before the version was written, and after the journals were deleted.
    let again = converted(&|root| {
        migrate::convert(root).unwrap();
        edit(root, "index", &cut);
    });
    assert_eq!(again.1, expected);
    let made = expected.iter().filter(|(path, _)| path.extension() == Some("index".as_ref()));
    assert!(made.into_iter().all(|(_, bytes)| bytes.len() > 300));
}

/// State after a kill in the middle of a write: notes with seals are as whole as others.
#[test]
fn sealed_batches_survive_any_cut_of_the_index() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.take(&BatchText::new(1, 2)).unwrap();
    receiver.enroll(&device);
    let mut receiver = receiver.restart();
    let checkpointed = files(receiver.root.path());
    let points = [(2, 4), (5, 6)]
        .map(|(first, last)| receiver.point(&BatchText::new(first, last).seal(&device)));
    let expected = receiver.machine();
    let written = files(receiver.root.path());
    let path = written.keys().find(|path| path.extension().is_some_and(|it| it == "index"));
    let path = path.unwrap();
    let mut tried = 0;
    for length in (checkpointed[path].len()..=written[path].len()).step_by(7) {
        let mut left = written.clone();
        left.get_mut(path).unwrap().truncate(length);
        let mut copied = Receiver::over(copy(receiver.root.path(), &left), TrustLevel::FirstUse);
        assert_eq!(copied.machine(), expected, "{length}");
        assert_eq!(copied.state(&device), DeviceState::Confirmed);
        for (point, (first, last)) in points.iter().zip([(1, 4), (4, 6)]) {
            assert_eq!(copied.point(&BatchText::new(first, last).seal(&device)), *point);
        }
        tried += 1;
    }
    assert!(tried > 100, "{tried}");
    assert!(!line(1).is_empty());
}
