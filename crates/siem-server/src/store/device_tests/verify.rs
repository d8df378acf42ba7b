//! Verification of what is stored.

use super::*;
use crate::store::{
    EntryProblem, EpochKey, LineToErase,
    files::tests::take,
    verify::{VerifiedEpoch, verify_epochs},
};

/// Damaged entries by range, and the number of damaged files.
type Found = (Vec<(u64, u64, EntryProblem)>, usize);

fn found(verified: &VerifiedEpoch) -> Found {
    let entries = verified.named.iter().map(|(range, problem)| (range.first, range.last, *problem));
    (entries.collect(), verified.files.len())
}

/// Verifies the only epoch.
fn verify(root: &Path) -> VerifiedEpoch {
    let mut epochs = Vec::new();
    verify_epochs(root, |epoch| epochs.push(epoch)).unwrap();
    assert_eq!(epochs.len(), 1);
    epochs.remove(0)
}

/// Path of a file of the only epoch.
fn path(root: &Path, ending: &str) -> std::path::PathBuf {
    let is_it = |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == ending);
    files(root).into_keys().find(is_it).unwrap()
}

fn erase(store: &FileStore, seq: u64) {
    let key = EpochKey { machine: "m-1".into(), epoch: "e-1".into() };
    let handle = store.handle();
    let epoch = handle.epochs(Some(std::slice::from_ref(&key))).unwrap().next().unwrap().unwrap();
    let mut lines = Vec::new();
    epoch
        .each_line(|line| {
            if line.seq == seq {
                lines.push(LineToErase::new(seq, line.at, line.text));
            }
            Ok::<_, std::io::Error>(())
        })
        .unwrap();
    handle.erase(key, "00ff".into(), "2026-11-21T20:00:02.000Z".into(), lines).unwrap();
    stats(store);
}

/// Two sealed batches, of which one entry was erased.
fn sealed() -> TempDir {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    receiver.take(&BatchText::new(1, 2).seal(&device)).unwrap();
    receiver.take(&BatchText::new(3, 4).seal(&device)).unwrap();
    stats(receiver.store());
    erase(receiver.store(), 3);
    drop(receiver.store);
    receiver.root
}

/// An epoch with a dead letter that was redelivered, a gap that was filled, an erased line, and lines that were
/// lost and arrived again, with and without what was lost for good.
fn eventful() -> Receiver {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    receiver.take(&BatchText::new(1, 6).dead(&[3]).seal(&device)).unwrap();
    receiver.take(&BatchText::new(9, 12).seal(&device)).unwrap();
    receiver.take(&BatchText::new(7, 8).seal(&device)).unwrap();
    let point = Some((12, chain(12)));
    receiver.take(&BatchText::redelivery(&[3]).seal_at(&device, point)).unwrap();
    stats(receiver.store());
    erase(receiver.store(), 2);
    drop(receiver.store.take());
    // Without the lines of 7, 8 and 3.
    let lines = path(receiver.root.path(), "ndjson");
    let text = fs::read(&lines).unwrap();
    let kept = text.split_inclusive(|byte| *byte == b'\n').take(9).map(<[u8]>::len).sum();
    fs::write(&lines, &text[..kept]).unwrap();
    let mut receiver = receiver.restart();
    receiver.take(&BatchText::new(7, 14).seal(&device)).unwrap();
    stats(receiver.store());
    drop(receiver.store.take());
    receiver
}

#[test]
fn sealed_entries_are_verified_and_counted() {
    let verified = verify(sealed().path());
    assert_eq!(found(&verified), (Vec::new(), 0), "{verified:?}");
    let VerifiedEpoch { entries, erased, sealed, gaps, .. } = verified;
    assert_eq!((entries, erased, sealed, gaps), (4, 1, 4, 0));
}

#[test]
fn entry_that_did_not_arrive_again_is_lost() {
    let mut receiver = eventful().restart();
    let verified = verify(receiver.root.path());
    assert_eq!(found(&verified), (vec![(3, 3, EntryProblem::Lost)], 0), "{verified:?}");
    assert_eq!((verified.entries, verified.erased, verified.gaps), (13, 1, 1));
    receiver.take(&BatchText::new(1, 6).seal(&TestDevice::new(1))).unwrap();
    stats(receiver.store());
    let verified = verify(receiver.root.path());
    assert_eq!(found(&verified), (Vec::new(), 0), "{verified:?}");
    assert_eq!((verified.entries, verified.sealed, verified.gaps), (14, 14, 0));
}

/// What the next batch builds upon cannot be read from the index.
#[test]
fn lines_lost_beside_a_damaged_index_are_a_gap() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    receiver.take(&BatchText::new(1, 4).seal(&device)).unwrap();
    receiver.take(&BatchText::new(5, 8).seal(&device)).unwrap();
    drop(receiver.store.take());
    let index = path(receiver.root.path(), "index");
    let mut bytes = fs::read(&index).unwrap();
    let value = memchr::memmem::rfind(&bytes, chain(8).as_bytes()).unwrap();
    bytes[value] ^= 1;
    fs::write(&index, bytes).unwrap();
    let lines: String = (1..=5).map(|seq| line(seq) + "\n").collect();
    fs::write(path(receiver.root.path(), "ndjson"), lines).unwrap();
    let mut receiver = receiver.restart();
    let epoch = &stats(receiver.store()).machines[0].epochs[0];
    assert_eq!((&epoch.gaps[..], epoch.next_seq), (&[Range { first: 6, last: 8 }][..], 9));
    let next = receiver.take(&BatchText::new(9, 10).seal(&device)).unwrap().receipt;
    assert_eq!((next.accepted, next.duplicates), (2, 0));
    stats(receiver.store());
    drop(receiver.store.take());
    let verified = verify(receiver.root.path());
    let damaged = vec![(5, 8, EntryProblem::Unverifiable), (6, 8, EntryProblem::Lost)];
    assert_eq!((found(&verified), verified.gaps), ((damaged, 1), 3), "{verified:?}");
}

/// Changes each byte of the files of an epoch.
fn each_change(root: &TempDir, step: usize, mut check: impl FnMut(&str, usize, &VerifiedEpoch)) {
    for ending in ["ndjson", "index"] {
        let path = path(root.path(), ending);
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(step) {
            let mut changed = whole.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&path, changed).unwrap();
            check(ending, at, &verify(root.path()));
        }
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn any_changed_byte_of_an_epoch_is_reported() {
    for (root, step, lost) in [(sealed(), 3, 0), (eventful().root, 7, 1)] {
        each_change(&root, step, |ending, at, verified| {
            let is_found = verified.damaged > lost || !verified.files.is_empty();
            assert!(is_found, "{ending} {at}: {verified:?}");
        });
    }
}

#[test]
fn changed_line_is_named_by_its_number() {
    let root = sealed();
    let path = path(root.path(), "ndjson");
    let whole = fs::read(&path).unwrap();
    let end = |last: u64| (1..=last).map(|seq| line(seq).len() + 1).sum::<usize>();
    // The last line, also at its number.
    for at in [end(3) + 7, end(4) - 2] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        assert_eq!(found(&verify(root.path())), (vec![(4, 4, EntryProblem::Changed)], 0));
    }
    // The erased one, with another tombstone and with its text.
    let restored = [&whole[..end(2)], line(3).as_bytes(), &whole[end(3) - 1..]].concat();
    fs::write(&path, restored).unwrap();
    assert_eq!(found(&verify(root.path())), (vec![(3, 3, EntryProblem::NotErased)], 0));
    fs::write(&path, &whole[..end(3)]).unwrap();
    assert_eq!(found(&verify(root.path())), (vec![(4, 4, EntryProblem::Missing)], 0));
    fs::write(&path, [&whole, line(5).as_bytes()].concat()).unwrap();
    assert_eq!(found(&verify(root.path())), (Vec::new(), 1));
    fs::remove_file(&path).unwrap();
    assert_eq!(found(&verify(root.path())), (vec![(1, 4, EntryProblem::Missing)], 0));
}

/// Someone who can write computes the chain and the checks of the index again; only the seals show it.
#[test]
fn forged_line_with_a_right_index_breaks_the_seals() {
    let device = TestDevice::new(1);
    let mut receiver = Receiver::new(TrustLevel::FirstUse);
    receiver.confirm(&device);
    let sealed = BatchText::new(1, 2).seal(&device);
    let seal = sealed.header.seal.clone();
    let forged = r#"{"seq":1,"kind":"event","source":"agent","event":"heartbeat","data":{"n":8}}"#;
    receiver.take(&BatchText::new(1, 2).line(1, forged).chained().seal(&device)).unwrap();
    stats(receiver.store());
    drop(receiver.store.take());
    let index = path(receiver.root.path(), "index");
    let bytes = fs::read(&index).unwrap();
    assert_eq!(found(&verify(receiver.root.path())), (Vec::new(), 0));
    // With the seal of what was received in place of that of the forged lines.
    let forged = crate::store::index_record::tests::with_note(&bytes, |note| {
        note["device"]["seal"]["note"] = seal.clone().unwrap().into();
    });
    fs::write(&index, forged).unwrap();
    let verified = verify(receiver.root.path());
    assert_eq!(found(&verified), (vec![(2, 2, EntryProblem::SealBroken)], 0));
    assert_eq!(verified.sealed, 0);
}

/// Entries of one machine passed as those of another one, whose epoch was replaced.
#[test]
fn epoch_under_another_name_is_reported() {
    let root = sealed();
    let machine = path(root.path(), "index").parent().unwrap().to_owned();
    fs::rename(&machine, machine.with_file_name("another-machine")).unwrap();
    let verified = verify(root.path());
    assert_eq!(found(&verified), (Vec::new(), 1));
    assert!(verified.files[0].1.contains("belongs to epoch `e-1`"), "{verified:?}");
}

#[test]
fn epoch_that_is_written_to_is_not_damaged() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &BatchText::new(1, 2)).unwrap();
    stats(&store);
    let mut next = 3;
    for _ in 0..20 {
        let verified = std::thread::scope(|scope| {
            let verifying = scope.spawn(|| verify(root.path()));
            while !verifying.is_finished() {
                take(&store, &BatchText::new(next, next + 2)).unwrap();
                next += 3;
            }
            verifying.join().unwrap()
        });
        assert_eq!(found(&verified), (Vec::new(), 0), "{verified:?}");
    }
}

/// Numbers that only a forged record has overflowed sums.
#[test]
fn forged_numbers_are_reported_and_never_overflow() {
    let root = sealed();
    let index = path(root.path(), "index");
    let whole = fs::read(&index).unwrap();
    let most = u64::MAX;
    for (member, value) in [
        ("/lines_at", serde_json::json!(most)),
        ("/bytes", serde_json::json!(most)),
        ("/change/accepted", serde_json::json!(most)),
        ("/change/new", serde_json::json!([{ "first": 1, "last": most }])),
        ("/change/new", serde_json::json!([{ "first": 9, "last": 1 }])),
        ("/change/claims", serde_json::json!([{ "seq": most, "hash": Digest::ZERO }])),
        ("/change/begins_at", serde_json::json!({ "seq": most, "hash": Digest::ZERO })),
        ("/change/filled", serde_json::json!([most])),
    ] {
        let forged = crate::store::index_record::tests::with_note(&whole, |note| {
            let (object, name) = member.rsplit_once('/').unwrap();
            note.pointer_mut(object).unwrap()[name] = value.clone();
        });
        fs::write(&index, forged).unwrap();
        let verified = verify(root.path());
        assert!(!verified.files.is_empty(), "{member}: {verified:?}");
        drop(FileStore::open(root.path()).unwrap());
        fs::write(&index, &whole).unwrap();
    }
}
