//! Statements: stored notes of version 1, strictness, and round trips.

use std::{fmt::Debug, fs, path::PathBuf};

use proptest::prelude::*;
use siem_protocol::{
    Digest,
    minisign::MinisignError,
    note::{Note, NoteError, SigningKey},
    statement::{
        Confirmation, Device, DeviceState, Durability, Enroll, KeyList, Seal, Statement,
        StatementError, StoredReceipt, TrustLevel, Verdict, digest,
    },
};
use test_support::minisign::Minisign;

use crate::{key, public};

fn device() -> SigningKey {
    key("device/m-1", 1)
}

fn receiver() -> SigningKey {
    key("siem.company.com", 2)
}

fn seal() -> Seal {
    Seal {
        receiver: Some("siem.company.com".into()),
        machine: "m-1".into(),
        user: "DOMAIN\\Jörg Müller".into(),
        epoch: "01932c1e".into(),
        first_seq: Some(101),
        last_seq: 103,
        chain: Digest::of(b"chain"),
        dead_lettered: None,
        config: Digest::of(b"config"),
        receipt: None,
        instance: Some("3f0c".into()),
    }
}

fn enroll() -> Enroll {
    Enroll {
        receiver: "siem.company.com".into(),
        machine: "m-1".into(),
        user: "u".into(),
        host: "build host".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        version: "0.2.0+a".into(),
        key: public(&device()),
        previous: Some(public(&key("device/m-1", 3))),
    }
}

fn device_state() -> Device {
    Device {
        receiver: "siem.company.com".into(),
        key: public(&device()),
        state: DeviceState::Confirmed,
        level: TrustLevel::FirstUse,
        confirmed_by: Some(Confirmation::Continuity),
    }
}

fn receipt() -> StoredReceipt {
    StoredReceipt {
        receiver: "siem.company.com".into(),
        machine: "m-1".into(),
        user: "u".into(),
        epoch: "01932c1e".into(),
        last_seq: u64::MAX,
        chain: Digest::of(b"chain"),
        seal: Some(Digest::of(b"seal")),
        received_at: "2026-11-21T20:00:00.000Z".into(),
        durability: Durability::Synced,
    }
}

fn verdict() -> Verdict {
    Verdict {
        receiver: "siem.company.com".into(),
        status: 409,
        kind: siem_protocol::names::problem::CONFLICT.into(),
        machine: "m-1".into(),
        epoch: Some("01932c1e".into()),
        body: Digest::of(b"body"),
        at: "2026-11-21T20:00:00.000Z".into(),
        detail: Some("-".into()),
    }
}

fn keys() -> KeyList {
    KeyList { receiver: "siem.company.com".into(), current: public(&receiver()), next: None }
}

/// Compares the note of a statement with the stored one, which every later version must read.
fn check_stored<T: Statement + Debug + PartialEq>(name: &str, statement: &T, signer: &SigningKey) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/trust/v1").join(name);
    let note = statement.sign(&[signer]).unwrap();
    let stored = fs::read_to_string(path).unwrap();
    assert_eq!(note, stored, "{name}");
    let opened = T::open(&stored, &[public(signer)]).unwrap();
    assert_eq!((&opened.statement, opened.signers), (statement, vec![public(signer)]));
}

/// Checks that no other arrangement of the lines is read.
fn check_strict<T: Statement + Debug + PartialEq>(statement: &T) {
    let text = statement.encode();
    assert_eq!(T::parse(&text).as_ref(), Ok(statement));
    let lines: Vec<_> = text.lines().collect();
    let refuse = |lines: &[&str]| {
        let changed = format!("{}\n", lines.join("\n"));
        assert!(changed == text || T::parse(&changed).is_err(), "{changed}");
    };
    for index in 0..lines.len() {
        let mut removed = lines.clone();
        removed.remove(index);
        refuse(&removed);
        let mut repeated = lines.clone();
        repeated.insert(index, lines[index]);
        refuse(&repeated);
        for extra in ["", "extra=1", "receiver=-", "-"] {
            let mut added = lines.clone();
            added.insert(index, extra);
            refuse(&added);
        }
        for other in 0..index {
            let mut swapped = lines.clone();
            swapped.swap(index, other);
            refuse(&swapped);
        }
    }
    refuse(&[&lines[..], &["extra=1"]].concat());
    for wrong in [&text[..text.len() - 1], &format!("{text}\n"), &text.replace(" v1", " v2"), ""] {
        assert!(T::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn stored_notes_of_version_1_are_made_and_read() {
    check_stored("seal.note", &seal(), &device());
    check_stored("enroll.note", &enroll(), &device());
    check_stored("device.note", &device_state(), &receiver());
    check_stored("receipt.note", &receipt(), &receiver());
    check_stored("verdict.note", &verdict(), &receiver());
    check_stored("keys.note", &keys(), &receiver());
}

#[test]
fn lines_must_be_complete_and_in_order() {
    check_strict(&seal());
    check_strict(&enroll());
    check_strict(&device_state());
    check_strict(&receipt());
    check_strict(&verdict());
    check_strict(&keys());
}

#[test]
fn error_names_the_line() {
    let text = seal().encode();
    let parse = |from: &str, to: &str| Seal::parse(&text.replace(from, to)).unwrap_err();
    assert_eq!(parse("epoch=", "epok="), StatementError::Missing("epoch"));
    assert_eq!(parse("last_seq=103", "last_seq=x"), StatementError::Value("last_seq"));
    assert_eq!(parse("receipt=-\n", ""), StatementError::Missing("receipt"));
    assert_eq!(parse("instance=3f0c\n", "instance=3f0c\na=b\n"), StatementError::Extra);
    let expected = Seal::FIRST_LINE;
    assert_eq!(parse("seal", "receipt"), StatementError::Kind { expected });
    assert_eq!(
        StoredReceipt::parse(&text),
        Err(StatementError::Kind { expected: StoredReceipt::FIRST_LINE })
    );
}

/// A statement is named by a hash, so a value has one spelling only.
#[test]
fn other_spellings_of_a_value_are_refused() {
    let text = seal().encode();
    for (from, to) in [
        ("machine=m-1", "machine=m%2D1"),
        ("machine=m-1", "machine=%6D-1"),
        ("machine=m-1", "machine=m 1"),
        ("machine=m-1", "machine=m%2"),
        ("machine=m-1", "machine=m%ff"),
        ("machine=m-1", "machine=-"),
        ("J%C3%B6rg", "J%c3%b6rg"),
        ("J%C3%B6rg", "Jörg"),
        ("last_seq=103", "last_seq=0103"),
        ("last_seq=103", "last_seq=+103"),
        ("last_seq=103", "last_seq=18446744073709551616"),
        ("last_seq=103", "last_seq=-"),
        ("last_seq=103", "last_seq="),
        ("receipt=-", "receipt="),
        ("receiver=siem", " receiver=siem"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        assert!(Seal::parse(&changed).is_err(), "{to}");
    }
    let upper = seal().chain.to_string().to_uppercase();
    assert_eq!(
        Seal::parse(&text.replace(&seal().chain.to_string(), &upper)),
        Err(StatementError::Value("chain"))
    );
}

#[test]
fn dash_and_none_differ() {
    assert!(verdict().encode().ends_with("detail=%2D\n"));
    let none = Verdict { detail: None, ..verdict() };
    assert!(none.encode().ends_with("detail=-\n"));
    assert_eq!(Verdict::parse(&none.encode()), Ok(none));
}

#[test]
fn statement_of_another_kind_is_not_opened() {
    let note = seal().sign(&[&receiver()]).unwrap();
    assert!(matches!(
        StoredReceipt::open(&note, &[public(&receiver())]),
        Err(StatementError::Kind { .. })
    ));
    assert_eq!(
        Seal::open(&note, &[public(&device())]),
        Err(StatementError::Note(NoteError::UnknownKey))
    );
}

#[test]
fn enrollment_needs_every_key_that_it_names() {
    let (new, old) = (device(), key("device/m-1", 3));
    let open = |note: String| Enroll::open_self_signed(&note);
    assert_eq!(open(enroll().sign(&[&new, &old]).unwrap()), Ok(enroll()));
    assert_eq!(open(enroll().sign(&[&new]).unwrap()), Err(StatementError::NotOwned("previous")));
    assert_eq!(open(enroll().sign(&[&old]).unwrap()), Err(StatementError::NotOwned("key")));
    let unknown = Err(StatementError::Note(NoteError::UnknownKey));
    assert_eq!(open(enroll().sign(&[&receiver()]).unwrap()), unknown);
    let first = Enroll { previous: None, ..enroll() };
    assert_eq!(open(first.sign(&[&new]).unwrap()), Ok(first));
}

#[test]
fn verdict_is_about_one_request() {
    let body = Digest::of(b"body");
    let about = |receiver, machine, epoch, body| verdict().is_about(receiver, machine, epoch, body);
    assert!(about("siem.company.com", "m-1", Some("01932c1e"), body));
    assert!(!about("other", "m-1", Some("01932c1e"), body));
    assert!(!about("siem.company.com", "m-2", Some("01932c1e"), body));
    assert!(!about("siem.company.com", "m-1", Some("01932c1f"), body));
    assert!(!about("siem.company.com", "m-1", None, body));
    assert!(!about("siem.company.com", "m-1", Some("01932c1e"), Digest::ZERO));
}

#[test]
fn key_list_is_recovered_by_the_organisation() {
    let organisation = Minisign::new(9);
    let trusted = [Minisign::new(8), Minisign::new(9)].map(|it| it.public().parse().unwrap());
    let list = keys();
    let note = list.sign(&[&receiver()]).unwrap();
    let minisig = organisation.sign(list.encode().as_bytes(), "recovery");
    let opened = KeyList::open_recovery(&note, &minisig, &trusted).unwrap();
    assert_eq!((opened.statement, opened.signers), (list.clone(), vec![public(&receiver())]));

    let error = |note: &str, minisig: &str, trusted: &[_]| {
        KeyList::open_recovery(note, minisig, trusted).unwrap_err()
    };
    let unknown = StatementError::Organisation(MinisignError::UnknownKey);
    assert_eq!(error(&note, &minisig, &trusted[..1]), unknown);
    assert_eq!(error(&note, &minisig, &[]), unknown);
    let other = KeyList { receiver: "other".into(), ..list.clone() };
    let wrong = StatementError::Organisation(MinisignError::WrongSignature);
    assert_eq!(error(&other.sign(&[&receiver()]).unwrap(), &minisig, &trusted), wrong);
    // A list that the holder of the current key did not sign.
    let foreign = list.sign(&[&device()]).unwrap();
    assert_eq!(error(&foreign, &minisig, &trusted), StatementError::Note(NoteError::UnknownKey));
}

#[test]
fn levels_are_ordered() {
    assert!(TrustLevel::Shared < TrustLevel::FirstUse);
    assert!(TrustLevel::FirstUse < TrustLevel::Enrolled);
    assert!(Durability::Synced < Durability::Replicated);
}

#[test]
fn digest_covers_text_and_signatures() {
    let note = seal().sign(&[&device()]).unwrap();
    assert_eq!(digest(&note), Digest::of(note.as_bytes()));
    assert_ne!(digest(&note), digest(&seal().sign(&[&device(), &receiver()]).unwrap()));
}

fn digests() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}

fn optional<T: Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::of(value)
}

fn public_keys() -> impl Strategy<Value = siem_protocol::note::VerifierKey> {
    ("[^ \0-\x1f+\\s]{1,8}", any::<u8>()).prop_map(|(name, seed)| public(&key(&name, seed)))
}

fn word<T: Copy + Debug>(words: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(words)
}

fn check_round_trip<T: Statement + Debug + PartialEq>(
    statement: &T,
    signer: &SigningKey,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(&T::parse(&statement.encode()).unwrap(), statement);
    let note = statement.sign(&[signer]).unwrap();
    prop_assert_eq!(&T::open(&note, &[public(signer)]).unwrap().statement, statement);
    prop_assert!(Note::parse(&note).is_ok());
    Ok(())
}

proptest! {
    #[test]
    fn seal_round_trips(
        (receiver, instance) in (optional(any::<String>()), optional(any::<String>())),
        (machine, user, epoch) in any::<(String, String, String)>(),
        (first_seq, last_seq) in any::<(Option<u64>, u64)>(),
        (chain, config) in (digests(), digests()),
        (dead_lettered, receipt) in (optional(digests()), optional(digests())),
    ) {
        let seal = Seal {
            receiver,
            machine,
            user,
            epoch,
            first_seq,
            last_seq,
            chain,
            dead_lettered,
            config,
            receipt,
            instance,
        };
        check_round_trip(&seal, &device())?;
    }

    #[test]
    fn enrollment_round_trips(
        (receiver, machine, user, host) in any::<(String, String, String, String)>(),
        (os, arch, version) in any::<(String, String, String)>(),
        (key, previous) in (public_keys(), optional(public_keys())),
    ) {
        let enroll = Enroll { receiver, machine, user, host, os, arch, version, key, previous };
        check_round_trip(&enroll, &device())?;
    }

    #[test]
    fn device_state_round_trips(
        (receiver, key) in (any::<String>(), public_keys()),
        (state, level) in (word(DeviceState::ALL), word(TrustLevel::ALL)),
        confirmed_by in optional(word(Confirmation::ALL)),
    ) {
        check_round_trip(&Device { receiver, key, state, level, confirmed_by }, &receiver_key())?;
    }

    #[test]
    fn receipt_round_trips(
        (receiver, machine, user, epoch) in any::<(String, String, String, String)>(),
        (last_seq, received_at) in any::<(u64, String)>(),
        (chain, seal, durability) in (digests(), optional(digests()), word(Durability::ALL)),
    ) {
        let receipt = StoredReceipt {
            receiver, machine, user, epoch, last_seq, chain, seal, received_at, durability,
        };
        check_round_trip(&receipt, &receiver_key())?;
    }

    #[test]
    fn verdict_round_trips(
        (receiver, status, kind, machine) in any::<(String, u16, String, String)>(),
        (epoch, detail, at) in any::<(Option<String>, Option<String>, String)>(),
        body in digests(),
    ) {
        let verdict = Verdict { receiver, status, kind, machine, epoch, body, at, detail };
        check_round_trip(&verdict, &receiver_key())?;
    }

    #[test]
    fn key_list_round_trips(
        (receiver, current, next) in (any::<String>(), public_keys(), optional(public_keys())),
    ) {
        check_round_trip(&KeyList { receiver, current, next }, &receiver_key())?;
    }

    #[test]
    fn no_changed_statement_panics(at in any::<prop::sample::Index>(), inserted in any::<String>()) {
        let text = seal().encode();
        let at = at.index(text.len());
        prop_assume!(text.is_char_boundary(at));
        let changed = format!("{}{inserted}{}", &text[..at], &text[at..]);
        // What is read is written in the same way.
        if let Ok(read) = Seal::parse(&changed) {
            prop_assert_eq!(read.encode(), changed);
        }
        prop_assert!(Verdict::parse(&inserted).is_err());
    }
}

fn receiver_key() -> SigningKey {
    receiver()
}
