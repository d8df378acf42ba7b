//! Users and devices that send into the epochs of a machine.

use super::*;

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

/// A device is rotated because its key may have been copied.
#[test]
fn replaced_key_adds_nothing_once_its_successor_does() {
    let (old, new) = (TestDevice::new(1), TestDevice::new(2));
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&old);
    receiver.take(&BatchText::new(1, 3).seal(&old)).unwrap();
    receiver.enroll_after(&new, Some(&old));
    // The response to the enrollment may be lost.
    receiver.take(&BatchText::new(4, 4).seal(&old)).unwrap();
    receiver.take(&BatchText::new(5, 5).seal(&new)).unwrap();
    let mut receiver = receiver.restart();
    let copied = |receiver: &Receiver| {
        let devices = receiver.registry.devices().into_iter().filter(|device| device.copied);
        devices.map(|device| device.next.is_some()).collect::<Vec<_>>()
    };
    // A request from before the rotation may come late.
    let late = BatchText::new(5, 6).seal(&old);
    assert_eq!(denied(receiver.take(&late)), Denial::DeviceCloned);
    assert!(copied(&receiver).is_empty());
    for text in [BatchText::new(6, 6), of("epoch-2", 1, 1)] {
        assert_eq!(denied(receiver.take(&text.seal(&old))), Denial::DeviceCloned);
    }
    assert_eq!((receiver.events().clone, receiver.machine().entries), (3, 5));
    assert_eq!(copied(&receiver), [true]);
    let again = receiver.take(&BatchText::new(1, 3).seal(&old)).unwrap();
    assert_eq!(again.receipt.duplicates, 3);
    receiver.take(&BatchText::new(6, 6).seal(&new)).unwrap();
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

/// Someone on the way can hold back the batches of two runs of the agent, and let them pass by turns,
/// each one longer than the one before. The device lost its key that way.
#[test]
fn held_back_batches_of_an_earlier_run_are_no_clone() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    for last in 1..9 {
        let instance = if last % 2 == 0 { "new" } else { "old" };
        let text = BatchText::new(1, last).with(|header| header.instance = Some(instance.into()));
        receiver.take(&text.seal(&device)).unwrap();
    }
    assert_eq!((receiver.events().clone, receiver.machine().entries), (0, 8));
}

/// Anyone with a token who sees the first batch of an epoch on its way can begin the epoch before its
/// device does. The device was silent for good then, also once an operator had approved it.
#[test]
fn epoch_begun_by_a_stranger_makes_a_confirmed_device_renumber() {
    let (stranger, device) = (TestDevice::new(1), TestDevice::new(2));
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.enroll(&stranger);
    let key = receiver.enroll(&device);
    receiver.take(&BatchText::new(1, 2).seal(&stranger)).unwrap();
    let first = || BatchText::new(1, 3).seal(&device);
    assert_eq!(denied(receiver.take(&first())), Denial::EpochOwned);
    receiver.registry.confirm(&key, Confirmation::Operator).unwrap();
    assert_eq!(conflict(receiver.take(&first())), 3);
    receiver.take(&of("epoch-2", 1, 3).seal(&device)).unwrap();
    let machine = receiver.machine();
    assert_eq!((machine.entries, machine.unconfirmed[0].entries), (3, 2));
    assert_eq!(denied(receiver.take(&BatchText::new(3, 3))), Denial::EpochOwned);
}

/// The receiver was restored from a backup that is older than the rotation of a key. The machine was silent
/// for good, also once an operator had approved the key.
#[test]
fn confirmed_device_renumbers_if_its_rotation_is_unknown() {
    let (old, new) = (TestDevice::new(1), TestDevice::new(2));
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&old);
    receiver.take(&BatchText::new(1, 3).seal(&old)).unwrap();
    let key = receiver.enroll(&new);
    let next = || BatchText::new(6, 7).seal(&new);
    assert_eq!(denied(receiver.take(&next())), Denial::EpochOwned);
    receiver.registry.confirm(&key, Confirmation::Operator).unwrap();
    assert_eq!(conflict(receiver.take(&next())), 4);
    assert_eq!(receiver.events().impersonation, 2);
    let mut receiver = receiver.restart();
    receiver.take(&of("epoch-2", 1, 3).seal(&new)).unwrap();
    assert_eq!(receiver.machine().entries, 6);
}
