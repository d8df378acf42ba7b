use proptest::prelude::*;
use siem_protocol::{
    note::{NoteSigner as _, SigningKey},
    statement::Durability,
};

use super::*;

const BODY: &[u8] = b"the body as sent";

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed("siem.test", [seed; 32]).unwrap()
}

fn pinned() -> Vec<VerifierKey> {
    vec![key(1).key().clone(), key(2).key().clone()]
}

fn point() -> ChainPoint {
    ChainPoint { seq: 10, hash: Digest::of(b"chain") }
}

fn seal() -> Digest {
    Digest::of(b"seal")
}

fn subject(keys: &[VerifierKey], entries: u64) -> Subject<'_> {
    Subject {
        receiver: "siem.test",
        keys,
        machine: "m",
        user: "u",
        epoch: "e",
        point: Some(point()),
        seal: Some(seal()),
        body: BODY,
        entries,
    }
}

fn receipt() -> StoredReceipt {
    StoredReceipt {
        receiver: "siem.test".into(),
        machine: "m".into(),
        user: "u".into(),
        epoch: "e".into(),
        last_seq: 10,
        chain: point().hash,
        seal: Some(seal()),
        received_at: "2026-11-21T20:00:00Z".into(),
        durability: Durability::Synced,
    }
}

fn verdict(status: u16, kind: &str) -> Verdict {
    Verdict {
        receiver: "siem.test".into(),
        status,
        kind: kind.into(),
        machine: "m".into(),
        epoch: Some("e".into()),
        body: Digest::of(BODY),
        at: "2026-11-21T20:00:00Z".into(),
        detail: None,
    }
}

fn signed(statement: &impl Statement, seed: u8) -> String {
    statement.sign(&[&key(seed)]).unwrap()
}

fn ok(receipt: Option<String>) -> String {
    serde_json::to_string(&Receipt { last_seq: Some(10), receipt, ..Receipt::default() }).unwrap()
}

fn refusal(status: u16, kind: &str, verdict: Option<String>) -> String {
    let problem = Problem {
        kind: kind.into(),
        title: "t".into(),
        status,
        detail: None,
        expected_seq: Some(7),
        verdict,
        enroll: false,
    };
    serde_json::to_string(&problem).unwrap()
}

fn believed(status: u16, body: &str, entries: u64) -> Belief {
    Belief::of(status, body.as_bytes(), &subject(&pinned(), entries))
}

/// Returns whether a belief makes the agent give something up.
fn gives_up(belief: &Belief) -> bool {
    match belief {
        Belief::Stored { .. } | Belief::Conflict | Belief::Refused { .. } => true,
        Belief::Device(verdict) => {
            matches!(verdict, DeviceVerdict::Revoked | DeviceVerdict::Cloned)
        }
        Belief::Split | Belief::Later | Belief::Denied | Belief::Untrusted(_) => false,
    }
}

#[test]
fn only_a_signed_receipt_for_the_batch_is_believed() {
    for seed in [1, 2] {
        let note = signed(&receipt(), seed);
        assert_eq!(believed(200, &ok(Some(note.clone())), 3), Belief::Stored { receipt: note });
    }
    let r = receipt;
    let d = Digest::of(b"another");
    let others = [
        (UntrustedAnswer::Unsigned, None),
        (UntrustedAnswer::Malformed, Some("made up".to_owned())),
        (UntrustedAnswer::WrongKey, Some(signed(&r(), 3))),
        (UntrustedAnswer::WrongSignature, Some(signed(&r(), 1).replace("epoch=e", "epoch=f"))),
        (
            UntrustedAnswer::OtherSubject,
            Some(signed(&StoredReceipt { receiver: "x".into(), ..r() }, 1)),
        ),
        (
            UntrustedAnswer::OtherSubject,
            Some(signed(&StoredReceipt { machine: "x".into(), ..r() }, 1)),
        ),
        (
            UntrustedAnswer::OtherSubject,
            Some(signed(&StoredReceipt { user: "x".into(), ..r() }, 1)),
        ),
        (
            UntrustedAnswer::OtherSubject,
            Some(signed(&StoredReceipt { epoch: "x".into(), ..r() }, 1)),
        ),
        (UntrustedAnswer::OtherSubject, Some(signed(&StoredReceipt { last_seq: 11, ..r() }, 1))),
        (UntrustedAnswer::OtherSubject, Some(signed(&StoredReceipt { chain: d, ..r() }, 1))),
        (UntrustedAnswer::OtherSubject, Some(signed(&verdict(409, problem::CONFLICT), 1))),
    ];
    for (problem, note) in others {
        assert_eq!(believed(200, &ok(note.clone()), 3), Belief::Untrusted(problem), "{note:?}");
    }
    for body in ["", "{}", "[1]", "<html>", "{\"last_seq\":10}"] {
        let unsigned = Belief::Untrusted(UntrustedAnswer::Unsigned);
        assert_eq!(believed(200, body, 1), unsigned, "{body}");
    }
}

#[test]
fn redelivery_without_a_known_point_is_never_acknowledged() {
    let (keys, note) = (pinned(), signed(&receipt(), 1));
    let subject = Subject { point: None, ..subject(&keys, 1) };
    let belief = Belief::of(200, ok(Some(note)).as_bytes(), &subject);
    assert_eq!(belief, Belief::Untrusted(UntrustedAnswer::OtherSubject));
}

/// The receipt for a redelivery is the one of the epoch's head, which anyone between agent and
/// receiver has seen before: with it alone, dead letters were deleted that the receiver never got.
#[test]
fn redelivery_needs_a_statement_about_its_body() {
    let keys = pinned();
    let check = |verdict: Option<Verdict>, seed| {
        let verdict = verdict.map(|verdict| signed(&verdict, seed));
        let answer =
            Receipt { verdict, receipt: Some(signed(&receipt(), 1)), ..Receipt::default() };
        check_redelivery(&serde_json::to_vec(&answer).unwrap(), &subject(&keys, 1))
    };
    let stored = || verdict(200, names::verdict::STORED);
    assert_eq!(check(Some(stored()), 1), Ok(()));
    assert_eq!(check(None, 1), Err(UntrustedAnswer::Unsigned));
    assert_eq!(check(Some(stored()), 3), Err(UntrustedAnswer::WrongKey));
    let other = [
        Verdict { body: Digest::of(b"other"), ..stored() },
        Verdict { epoch: Some("other".into()), ..stored() },
        verdict(200, problem::CONFLICT),
        verdict(409, names::verdict::STORED),
    ];
    for other in other {
        assert_eq!(check(Some(other), 1), Err(UntrustedAnswer::OtherSubject));
    }
}

#[test]
fn signed_verdict_decides_whatever_the_status_line_says() {
    let cases = [
        (409, problem::CONFLICT, Belief::Conflict),
        (413, problem::TOO_LARGE, Belief::Refused { status: 413 }),
        (422, problem::ENTRY, Belief::Refused { status: 422 }),
        (403, problem::DEVICE_REVOKED, Belief::Device(DeviceVerdict::Revoked)),
        (403, problem::DEVICE_CLONED, Belief::Device(DeviceVerdict::Cloned)),
        (403, problem::NOT_ENROLLED, Belief::Device(DeviceVerdict::NotEnrolled)),
        (403, problem::EPOCH_OWNED, Belief::Device(DeviceVerdict::EpochOwned)),
        (403, problem::IMPERSONATION, Belief::Device(DeviceVerdict::Impersonation)),
        (403, problem::SEAL, Belief::Denied),
    ];
    for (status, kind, belief) in cases {
        for sent_status in [400, 403, 409, 413, 422] {
            for entries in [0, 1, 2] {
                let note = signed(&verdict(status, kind), 1);
                // The type beside the verdict is not signed.
                let body = refusal(sent_status, problem::ENTRY, Some(note));
                assert_eq!(believed(sent_status, &body, entries), belief, "{sent_status}");
            }
        }
    }
}

#[test]
fn unsigned_refusal_gives_nothing_up() {
    let unsigned = Belief::Untrusted(UntrustedAnswer::Unsigned);
    for (status, kind, entries, belief) in [
        (409, problem::CONFLICT, 3, unsigned.clone()),
        (422, problem::ENTRY, 1, unsigned.clone()),
        (422, problem::ENTRY, 3, unsigned.clone()),
        (413, problem::TOO_LARGE, 0, unsigned.clone()),
        (413, problem::TOO_LARGE, 1, unsigned.clone()),
        (413, problem::TOO_LARGE, 2, Belief::Split),
        (403, problem::DEVICE_REVOKED, 1, unsigned.clone()),
        (403, problem::DEVICE_CLONED, 1, unsigned.clone()),
        (403, problem::NOT_ENROLLED, 1, Belief::Denied),
        (403, problem::SIGNATURE, 1, Belief::Denied),
        (401, problem::TOKEN, 1, Belief::Denied),
        (302, "", 1, Belief::Denied),
        (503, problem::FULL, 1, Belief::Later),
        (429, "", 1, Belief::Later),
    ] {
        assert_eq!(believed(status, &refusal(status, kind, None), entries), belief, "{status}");
    }
}

#[test]
fn verdict_about_another_request_is_not_believed() {
    let v = || verdict(409, problem::CONFLICT);
    for note in [
        signed(&Verdict { body: Digest::of(b"another"), ..v() }, 1),
        signed(&Verdict { machine: "x".into(), ..v() }, 1),
        signed(&Verdict { epoch: Some("x".into()), ..v() }, 1),
        signed(&Verdict { epoch: None, ..v() }, 1),
        signed(&Verdict { receiver: "x".into(), ..v() }, 1),
        signed(&receipt(), 1),
    ] {
        let body = refusal(409, problem::CONFLICT, Some(note));
        assert_eq!(believed(409, &body, 3), Belief::Untrusted(UntrustedAnswer::OtherSubject));
    }
    let stranger = refusal(409, problem::CONFLICT, Some(signed(&v(), 3)));
    assert_eq!(believed(409, &stranger, 3), Belief::Untrusted(UntrustedAnswer::WrongKey));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just(String::new()), 1 => "[a-z]{1,3}"]
}

/// The chain of a batch is the same if its lines count as dead letters, so a receipt for it says
/// nothing about the lines: anyone with the secrets of the fleet could get one.
#[test]
fn receipt_with_another_seal_needs_a_verdict() {
    for seal in [None, Some(Digest::of(b"of another sender"))] {
        let note = signed(&StoredReceipt { seal, ..receipt() }, 1);
        let believed = |verdict: Option<String>| {
            let answer = Receipt { receipt: Some(note.clone()), verdict, ..Receipt::default() };
            believed(200, &serde_json::to_string(&answer).unwrap(), 3)
        };
        let stored = || verdict(200, names::verdict::STORED);
        let of_other = Verdict { body: Digest::of(b"another body"), ..stored() };
        for (verdict, problem) in [
            (None, UntrustedAnswer::OtherSubject),
            (Some(signed(&of_other, 1)), UntrustedAnswer::OtherSubject),
            (Some(signed(&verdict(200, problem::CONFLICT), 1)), UntrustedAnswer::OtherSubject),
            (Some(signed(&stored(), 3)), UntrustedAnswer::WrongKey),
        ] {
            assert_eq!(believed(verdict), Belief::Untrusted(problem));
        }
        assert_eq!(believed(Some(signed(&stored(), 2))), Belief::Stored { receipt: note.clone() });
    }
    let unsealed = Subject { seal: None, ..subject(&[], 3) };
    let keys = pinned();
    let subject = Subject { keys: &keys, ..unsealed };
    let note = signed(&StoredReceipt { seal: None, ..receipt() }, 1);
    let belief = Belief::of(200, ok(Some(note)).as_bytes(), &subject);
    assert_eq!(belief, Belief::Untrusted(UntrustedAnswer::OtherSubject));
}

proptest! {
    /// A statement is made from the expected one by random changes. It makes the agent give
    /// something up only if none was made.
    #[test]
    fn nothing_but_a_valid_statement_gives_anything_up(
        status in prop_oneof![Just(200_u16), Just(403), Just(409), Just(413), Just(422), 100..600_u16],
        verdict_status in prop_oneof![Just(409_u16), Just(413), Just(422), Just(403)],
        seed in 1..5_u8,
        (machine, user, epoch, receiver) in (text(), text(), text(), text()),
        seq in prop_oneof![3 => Just(10_u64), 1 => 0..20_u64],
        chain in prop_oneof![3 => Just(b"chain".to_vec()), 1 => any::<Vec<u8>>()],
        is_own_seal in prop::bool::weighted(0.75),
        body in prop_oneof![3 => Just(BODY.to_vec()), 1 => any::<Vec<u8>>()],
        cut in prop_oneof![3 => Just(usize::MAX), 1 => 0..400_usize],
        is_swapped in any::<bool>(),
        entries in 0..4_u64,
    ) {
        let changed = |base: &str, change: &str| format!("{base}{change}");
        let receipt = StoredReceipt {
            receiver: changed("siem.test", &receiver),
            machine: changed("m", &machine),
            user: changed("u", &user),
            epoch: changed("e", &epoch),
            last_seq: seq,
            chain: Digest::of(&chain),
            seal: is_own_seal.then(seal),
            ..receipt()
        };
        let kind = if verdict_status == 403 { problem::DEVICE_REVOKED } else { problem::CONFLICT };
        let verdict = Verdict {
            receiver: changed("siem.test", &receiver),
            machine: changed("m", &machine),
            epoch: Some(changed("e", &epoch)),
            body: Digest::of(&body),
            ..verdict(verdict_status, kind)
        };
        let (mut receipt_note, mut verdict_note) = (signed(&receipt, seed), signed(&verdict, seed));
        if is_swapped {
            std::mem::swap(&mut receipt_note, &mut verdict_note);
        }
        let is_cut = cut < receipt_note.len().min(verdict_note.len());
        if is_cut {
            for note in [&mut receipt_note, &mut verdict_note] {
                note.truncate(note.floor_char_boundary(cut));
            }
        }
        let mut response: serde_json::Value =
            serde_json::from_str(&refusal(status, kind, Some(verdict_note))).unwrap();
        response["receipt"] = receipt_note.into();
        response["last_seq"] = 10.into();
        let belief = believed(status, &response.to_string(), entries);
        let unchanged = [&machine, &epoch, &receiver].iter().all(|it| it.is_empty())
            && seed <= 2 && !is_swapped && !is_cut;
        let is_receipt =
            unchanged && user.is_empty() && seq == 10 && chain == b"chain" && is_own_seal;
        let is_verdict = unchanged && body == BODY;
        match &belief {
            Belief::Stored { .. } => prop_assert!(is_receipt && (200..300).contains(&status)),
            belief if gives_up(belief) => prop_assert!(is_verdict && status < 500),
            Belief::Split => prop_assert!(status == 413 && entries > 1 && is_verdict),
            _ => {}
        }
    }
}
