//! Erasures while a backup is made.

use super::*;
use crate::{
    SystemClock,
    backup::{BackupOptions, Step, copy_in_steps, damage, restore, verify},
    life::unlisted_erasures,
};

/// Restores a backup during which `during` runs, and returns the files with the erased text after the start
/// of the receiver.
fn left_after_restore(at: Step, during: impl Fn(&TempDir), is_open: bool) -> Vec<String> {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 5)).unwrap();
    take(&store, &lines("epoch-2", 1, 4)).unwrap();
    // An erasure before: lines up to here were compared with those in force.
    request(&root, "00", LifeRequest::Erase(Selector::session("another-session").unwrap()));
    repeat(&root, "000");
    take(&store, &lines("epoch-2", 5, 9)).unwrap();
    stats(&store);
    let store = is_open.then_some(store);
    let (to, restored) = (directory(), directory());
    let target = to.path().join("backup");
    let options = BackupOptions { with_keys: true };
    let mut step = |step| {
        if step == at {
            during(&root);
        }
    };
    copy_in_steps(root.path(), &target, options, &SystemClock, &mut step).unwrap();
    drop(store);
    restore(&target, restored.path()).unwrap();
    let store = open(&restored);
    repeat(&restored, "02");
    drop(store);
    assert!(unlisted_erasures(restored.path()).unwrap().is_empty());
    assert_eq!(damage(restored.path()), []);
    let verified = verify(restored.path());
    assert!(verified.is_whole(), "{verified:?}");
    with_text(restored.path(), SECRET)
}

/// The erased text was back after the restoration, and no erasure was in force for it.
#[test]
fn text_erased_during_a_backup_does_not_come_back() {
    for at in [Step::Begun(1), Step::EntriesCopied] {
        let erased = |root: &TempDir| {
            assert!(matches!(erase(root, "01"), LifeResponse::Erased { entries: 4, .. }));
        };
        assert_eq!(left_after_restore(at, erased, true), <[String; 0]>::default(), "{at:?}");
    }
}

#[test]
fn erasure_that_waits_during_a_backup_is_done_after_restore() {
    let waits = |root: &TempDir| {
        let request = serde_json::json!({
            "request": {"erase": {"session": SESSION}}, "reason": {"who": "w", "why": "y"}
        });
        fs::write(root.path().join("life/requests/01.json"), request.to_string()).unwrap();
    };
    let left = left_after_restore(Step::EntriesCopied, waits, false);
    assert_eq!(left, <[String; 0]>::default());
}
