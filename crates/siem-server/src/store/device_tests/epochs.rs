//! What an epoch takes, and who adopts it.

use super::*;

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
    receiver.take(&broken.chained().seal(&device)).unwrap();
    let redelivery = BatchText::redelivery(&[4]).seal_at(&device, Some((12, chain(12))));
    let taken = receiver.take(&redelivery).unwrap();
    assert_eq!(taken.receipt.accepted_seqs, Some(vec![4]));
    assert_eq!(taken.point.map(|point| (point.last_seq, point.chain)), Some((12, chain(12))));
    let before = receiver.machine();
    let epoch = &before.epochs[0];
    assert_eq!(epoch.gaps, [Range { first: 1, last: 2 }, Range { first: 7, last: 7 }]);
    assert_eq!(epoch.holes, [Range { first: 5, last: 5 }]);
    assert_eq!((epoch.breaks.len(), epoch.duplicates), (1, 2));
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
        let (mut receiver, device) = enrolled_after(5);
        receiver.take(&BatchText::new(first, last).seal(&device)).unwrap();
        assert_eq!(receiver.state(&device), DeviceState::Confirmed);
        let by = receiver.registry.device(&key_of(&device)).unwrap().confirmed_by;
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
    let (mut receiver, device) = enrolled_after(5);
    let receipt = receiver.take(&BatchText::new(1, 4).seal(&device)).unwrap().receipt;
    assert_eq!((receipt.accepted, receipt.duplicates), (0, 4));
    assert_eq!(receiver.epoch().device, None);
    assert_eq!(receiver.state(&device), DeviceState::Unconfirmed);
}

#[test]
fn sealed_batch_with_an_unknown_chain_adopts_nothing() {
    let (mut receiver, device) = enrolled_after(5);
    let other = Digest::of(b"other");
    for text in [
        BatchText::new(8, 9),
        BatchText::new(6, 6)
            .with(|header| header.chain = Some(Chain { before: other, after: other }))
            .chained(),
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
    let (mut receiver, device) = enrolled_after(5);
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

/// A key is confirmed for the machine and user that it is enrolled for, and a stranger can begin an
/// epoch of a made-up machine.
#[test]
fn adoption_of_an_epoch_of_others_confirms_nothing() {
    let (stranger, device) = (TestDevice::new(1), TestDevice::new(2));
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.enroll(&stranger);
    let made_up: [fn(&mut BatchHeader); 2] =
        [|header| header.machine_id = "m-2".into(), |header| header.user = "v".into()];
    for (edit, epoch) in made_up.into_iter().zip(["epoch-2", "epoch-3"]) {
        receiver.take(&of(epoch, 1, 1).with(edit)).unwrap();
        receiver.take(&of(epoch, 2, 2).with(edit).seal(&stranger)).unwrap();
        assert_eq!(receiver.state(&stranger), DeviceState::Unconfirmed, "{epoch}");
    }
    // The machine itself is not locked out, and its own first epoch confirms its key.
    receiver.take(&BatchText::new(1, 5)).unwrap();
    receiver.enroll(&device);
    receiver.take(&BatchText::new(6, 6).seal(&device)).unwrap();
    assert_eq!(receiver.state(&device), DeviceState::Confirmed);
}
