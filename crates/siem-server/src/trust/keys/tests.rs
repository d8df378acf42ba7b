use siem_protocol::statement::Opened;

use super::*;

const NAME: &str = "siem.example.com";

fn store(directory: &Path) -> KeyStore {
    KeyStore::open(directory.join("keys")).unwrap()
}

fn list(keys: &ReceiverKeys, trusted: &VerifierKey) -> Option<Opened<KeyList>> {
    KeyList::open(&keys.answer.keys, std::slice::from_ref(trusted)).ok()
}

#[test]
fn first_key_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    assert!(store.keys().is_none());
    assert!(matches!(store.rotate([9; 32], false), Err(ReceiverKeyError::Missing)));
    store.create(NAME, [1; 32]).unwrap();
    let keys = store.keys().unwrap();
    assert_eq!((keys.name.as_str(), keys.current.key().name()), (NAME, NAME));
    assert_eq!(list(&keys, keys.current.key()).unwrap().statement.next, None);
    assert!(matches!(store.create(NAME, [2; 32]), Err(ReceiverKeyError::Exists)));
}

#[test]
fn unusable_names_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    for name in ["", "a b", "a+b", "a\nb"] {
        let refused = store.create(name, [1; 32]).unwrap_err();
        assert!(matches!(refused, ReceiverKeyError::Name { .. }), "{name}");
    }
    assert!(store.keys().is_none());
}

#[test]
fn rotation_announces_then_replaces() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.create(NAME, [1; 32]).unwrap();
    let first = store.keys().unwrap().current.key().clone();
    assert_eq!(store.rotate([2; 32], false).unwrap(), Rotation::Announced);
    let keys = store.keys().unwrap();
    let announced = list(&keys, &first).unwrap().statement;
    assert_eq!(announced.current, first);
    let second = announced.next.unwrap();
    assert_eq!(store.rotate([3; 32], false).unwrap(), Rotation::Replaced);
    let keys = store.keys().unwrap();
    assert_eq!(keys.current.key(), &second);
    // An agent that was offline since before the announcement trusts only the first key.
    for trusted in [&first, &second] {
        let replaced = list(&keys, trusted).unwrap().statement;
        assert_eq!((replaced.current, replaced.next), (second.clone(), None));
    }
}

#[test]
fn discarded_key_signs_no_longer() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.create(NAME, [1; 32]).unwrap();
    let first = store.keys().unwrap().current.key().clone();
    store.rotate([2; 32], true).unwrap();
    store.rotate([3; 32], true).unwrap();
    let keys = store.keys().unwrap();
    assert!(list(&keys, &first).is_none());
    assert_eq!(keys.view().retired, []);
}

#[test]
fn many_rotations_keep_a_readable_list() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.create(NAME, [1; 32]).unwrap();
    for seed in 2..60 {
        store.rotate([seed; 32], false).unwrap();
    }
    let keys = store.keys().unwrap();
    assert_eq!(keys.view().retired.len(), RETIRED);
    assert!(list(&keys, keys.current.key()).is_some());
}

#[test]
fn rotation_by_another_process_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (server, command) = (store(directory.path()), store(directory.path()));
    command.create(NAME, [1; 32]).unwrap();
    let first = server.keys().unwrap();
    command.rotate([2; 32], false).unwrap();
    command.rotate([2; 32], false).unwrap();
    let second = server.keys().unwrap();
    assert_ne!(second.current.key(), first.current.key());
}

#[test]
fn key_that_becomes_unreadable_stays_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let server = store(directory.path());
    server.create(NAME, [1; 32]).unwrap();
    let key = server.keys().unwrap().current.key().clone();
    for content in [Some("{"), None] {
        match content {
            Some(content) => fs::write(server.path(), content).unwrap(),
            None => fs::remove_file(server.path()).unwrap(),
        }
        assert_eq!(server.keys().unwrap().current.key(), &key);
    }
}

#[test]
fn organisation_signature_is_served_until_the_list_changes() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.create(NAME, [1; 32]).unwrap();
    let keys = store.keys().unwrap();
    let text = fs::read_to_string(store.list_path()).unwrap();
    assert_eq!(list(&keys, keys.current.key()).unwrap().statement.encode(), text);
    assert!(keys.answer.keys.starts_with(&text));
    fs::write(store.signature_path(), "untrusted comment: …\n").unwrap();
    let keys = store.keys().unwrap();
    assert_eq!(keys.answer.organisation.as_deref(), Some("untrusted comment: …\n"));
    store.rotate([2; 32], false).unwrap();
    assert_eq!(store.keys().unwrap().answer.organisation, None);
}

#[test]
fn damaged_file_is_an_error_that_quotes_no_key() {
    let directory = tempfile::tempdir().unwrap();
    let keys = store(directory.path());
    keys.create(NAME, [1; 32]).unwrap();
    let text = fs::read_to_string(keys.path()).unwrap();
    let secret = keys.keys().unwrap().current.to_text();
    assert!(text.contains(secret.as_str()));
    let other = "PRIVATE+KEY+other+00000000+AAAA";
    for damaged in [
        &text[..text.len() / 2],
        &text.replace("\"version\": 1", "\"version\": 2"),
        &text.replace(secret.as_str(), other),
        &text.replace(NAME, "other"),
    ] {
        fs::write(keys.path(), damaged).unwrap();
        let refused = KeyStore::open(directory.path().join("keys")).unwrap_err();
        assert!(matches!(refused, ReceiverKeyError::Damaged { .. }), "{refused:?}");
        assert!(!format!("{refused:?} {refused}").contains("PRIVATE"), "{refused:?}");
    }
}

#[test]
fn debug_output_has_no_private_key() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    store.create(NAME, [1; 32]).unwrap();
    store.rotate([2; 32], false).unwrap();
    let keys = store.keys().unwrap();
    let shown = format!("{store:?} {keys:?} {:?}", keys.view());
    assert!(!shown.contains("PRIVATE"), "{shown}");
    for key in [&keys.current, keys.next.as_ref().unwrap()] {
        let text = key.to_text();
        let secret = text.rsplit('+').next().unwrap();
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[cfg(unix)]
#[test]
fn readable_and_special_files_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let keys = store(directory.path());
    keys.create(NAME, [1; 32]).unwrap();
    let mode = fs::metadata(keys.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::set_permissions(keys.path(), fs::Permissions::from_mode(0o604)).unwrap();
    let refused = KeyStore::open(directory.path().join("keys")).unwrap_err();
    assert!(matches!(refused, ReceiverKeyError::Open { .. }), "{refused:?}");
    fs::remove_file(keys.path()).unwrap();
    fs::create_dir(keys.path()).unwrap();
    fs::set_permissions(keys.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(KeyStore::open(directory.path().join("keys")).is_err());
}
