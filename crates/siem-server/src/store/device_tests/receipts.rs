//! Receipts and the values that repeats are compared with.

use super::*;

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
        conflict(receiver.take(&other.chained().seal(&device)));
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
