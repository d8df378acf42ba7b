//! Lists of keys. Requests are tested with receivers, in the integration tests.

use siem_protocol::{
    KeysAnswer,
    agent_event::UntrustedAnswer,
    minisign::OrganisationKey,
    note::{NoteSigner, SigningKey, VerifierKey},
    statement::{KeyList, Statement as _},
};
use test_support::minisign;

use super::{super::pins::Pins, key_list::check};

const NAME: &str = "siem.test";

fn named(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(name, [seed; 32]).unwrap()
}

fn key(seed: u8) -> SigningKey {
    named(NAME, seed)
}

fn public(seed: u8) -> VerifierKey {
    key(seed).key().clone()
}

/// List of keys by their seeds, with a signature by each of `signers`.
fn list(current: u8, next: Option<u8>, signers: &[u8]) -> KeysAnswer {
    let list = KeyList { receiver: NAME.into(), current: public(current), next: next.map(public) };
    let signers: Vec<SigningKey> = signers.iter().copied().map(key).collect();
    let signers: Vec<&dyn NoteSigner> = signers.iter().map(|key| key as &dyn NoteSigner).collect();
    KeysAnswer { keys: list.sign(&signers).unwrap(), organisation: None }
}

fn pinned(seeds: &[u8]) -> Pins {
    let mut pins = Pins::new("siem", "https://siem.test/");
    pins.replace_keys(NAME, seeds.iter().copied().map(public).collect(), false);
    pins
}

fn learned(answer: &KeysAnswer, pins: &Pins) -> Result<Vec<VerifierKey>, UntrustedAnswer> {
    check(answer, pins, &[]).map(|learned| learned.keys)
}

#[test]
fn first_list_is_pinned_if_its_key_has_signed_it() {
    let none = Pins::new("siem", "https://siem.test/");
    assert_eq!(learned(&list(1, Some(2), &[1]), &none), Ok(vec![public(1), public(2)]));
    assert_eq!(learned(&list(1, Some(2), &[2]), &none), Err(UntrustedAnswer::WrongKey));
    let made_up = KeysAnswer { keys: "made up".into(), organisation: None };
    assert_eq!(learned(&made_up, &none), Err(UntrustedAnswer::Malformed));
}

#[test]
fn later_list_needs_a_signature_by_a_pinned_key() {
    let pins = pinned(&[1]);
    assert_eq!(learned(&list(1, Some(2), &[1]), &pins), Ok(vec![public(1), public(2)]));
    assert_eq!(learned(&list(2, None, &[2, 1]), &pins), Ok(vec![public(2)]));
    assert_eq!(learned(&list(3, None, &[3]), &pins), Err(UntrustedAnswer::WrongKey));
    // The announced key may sign once it is pinned.
    assert_eq!(learned(&list(2, None, &[2]), &pinned(&[1, 2])), Ok(vec![public(2)]));
}

#[test]
fn replaced_key_does_not_return() {
    let mut pins = pinned(&[1]);
    pins.replace_keys(NAME, vec![public(2)], false);
    let replayed = list(1, Some(2), &[1, 2]);
    assert_eq!(learned(&replayed, &pins), Err(UntrustedAnswer::OtherSubject));
}

#[test]
fn list_of_another_receiver_is_refused() {
    let other = KeyList { receiver: "other".into(), current: public(1), next: None };
    let answer = KeysAnswer { keys: other.sign(&[&key(1)]).unwrap(), organisation: None };
    assert_eq!(learned(&answer, &pinned(&[1])), Err(UntrustedAnswer::OtherSubject));
    let key = named("other", 1);
    let renamed = KeyList { current: key.key().clone(), ..other };
    let answer = KeysAnswer { keys: renamed.sign(&[&key]).unwrap(), organisation: None };
    let mut pins = pinned(&[1]);
    pins.keys.push(key.key().clone());
    assert_eq!(learned(&answer, &pins), Err(UntrustedAnswer::OtherSubject));
}

#[test]
fn configured_key_vouches_for_a_list() {
    let pins = Pins::new("siem", "https://siem.test/").with_configured(&[public(1)]);
    assert_eq!(learned(&list(1, Some(2), &[1]), &pins), Ok(vec![public(1), public(2)]));
    assert_eq!(learned(&list(2, None, &[2]), &pins), Err(UntrustedAnswer::WrongKey));
}

#[test]
fn configured_key_that_was_replaced_vouches_for_nothing() {
    let mut pins = Pins::new("siem", "https://siem.test/").with_configured(&[public(1)]);
    pins.replace_keys(NAME, vec![public(2)], false);
    assert_eq!(learned(&list(9, None, &[9, 1]), &pins), Err(UntrustedAnswer::WrongKey));
    let mut pins = Pins::new("siem", "https://siem.test/").with_configured(&[public(1)]);
    pins.replace_keys(NAME, vec![public(3)], true);
    let pins = pins.with_configured(&[public(1)]);
    assert_eq!(learned(&list(9, None, &[9, 1]), &pins), Err(UntrustedAnswer::WrongKey));
    assert_eq!(learned(&list(4, None, &[4, 3]), &pins), Ok(vec![public(4)]));
}

#[test]
fn organisation_replaces_a_lost_key() {
    let organisation = minisign::Minisign::new(7);
    let keys: Vec<OrganisationKey> = vec![organisation.public().parse().unwrap()];
    let recover = |answer: &mut KeysAnswer, signer: &minisign::Minisign| {
        let text = answer.keys.split_inclusive("\n\n").next().unwrap();
        let text = text.strip_suffix('\n').unwrap();
        answer.organisation = Some(signer.sign(text.as_bytes(), "recovery"));
    };
    let mut pins = pinned(&[1]);
    pins.replace_keys(NAME, vec![public(2)], false);
    let recovery = |seed| {
        let mut answer = list(seed, None, &[seed]);
        recover(&mut answer, &organisation);
        answer
    };
    let learned = check(&recovery(3), &pins, &keys).unwrap();
    assert_eq!((learned.keys, learned.is_recovery), (vec![public(3)], true));
    check(&recovery(3), &pins, &[]).unwrap_err();
    // A key that was replaced does not return, however the list is signed.
    assert_eq!(check(&recovery(1), &pins, &keys), Err(UntrustedAnswer::OtherSubject));
    pins.replace_keys(NAME, vec![public(3)], true);
    pins.replace_keys(NAME, vec![public(4)], true);
    assert_eq!(check(&recovery(3), &pins, &keys), Err(UntrustedAnswer::OtherSubject));
    let mut forged = list(5, None, &[5]);
    recover(&mut forged, &minisign::Minisign::new(8));
    assert_eq!(check(&forged, &pins, &keys), Err(UntrustedAnswer::WrongKey));
}
