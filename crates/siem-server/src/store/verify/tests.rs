use std::fs::File;

use super::*;
use crate::{
    store::{
        FileStore,
        files::tests::{directory, stats, take},
    },
    testing::BatchText,
};

/// Checks an epoch whose last record is not written yet, and lets `meanwhile` change the files, of which it
/// gets the path and the whole content of the index, before each check ends. Returns the number of checks.
fn check_with(meanwhile: impl Fn(&Path, &[u8])) -> (VerifiedEpoch, usize) {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    for first in [1, 3] {
        take(&store, &BatchText::new(first, first + 1)).unwrap();
    }
    stats(&store);
    drop(store);
    let machines = root.path().join("machines");
    let stem = epochs_with(&machines, "index").unwrap().pop_first().unwrap();
    let index = stem.index(&machines);
    let whole = fs::read(&index).unwrap();
    let last = memchr::memmem::rfind(&whole, b"six3").unwrap();
    fs::write(&index, &whole[..last]).unwrap();
    let mut checks = 0;
    let check = || {
        checks += 1;
        let found = Check::run(&machines, &stem).unwrap();
        meanwhile(&index, &whole);
        found
    };
    let verified = until_unchanged(|| state(&machines, &stem), check, || {});
    (verified, checks)
}

/// A receiver writes the lines of a batch first.
#[test]
fn epoch_that_changed_meanwhile_is_verified_again() {
    let (verified, checks) = check_with(|index, whole| fs::write(index, whole).unwrap());
    assert_eq!((verified.damaged, verified.files.len(), verified.entries), (0, 0, 4));
    assert_eq!(checks, 2);
}

#[test]
fn damage_of_an_unchanged_epoch_is_reported_at_once() {
    let (verified, checks) = check_with(|_, _| ());
    assert_eq!((verified.files.len(), verified.entries, checks), (1, 2, 1), "{verified:?}");
}

#[test]
fn epoch_that_changes_forever_is_verified_a_few_times() {
    let (_, checks) = check_with(|index, _| {
        let index = File::options().append(true).open(index).unwrap();
        io::Write::write_all(&mut &index, b"six3").unwrap();
    });
    assert_eq!(checks, usize::try_from(ATTEMPTS).unwrap());
}
