//! Signed notes. The vectors are those of Go's `sumdb/note`, from which C2SP signed-note was made,
//! and the example of the specification.

use data_encoding::BASE64;
use proptest::prelude::*;
use siem_protocol::note::{
    self, KeyError, MAX_NOTE_BYTES, MAX_SIGNATURES, Note, NoteError, NoteSigner, SignError,
    SigningKey, VerifierKey,
};

use crate::{key, public};

const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const PETER_PRIVATE: &str =
    "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const ENOCH: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const TEXT: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n";
const PETER_SIGNATURE: &str = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN\
    1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
const ENOCH_SIGNATURE: &str = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF\
    1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";
/// The note at the top of the specification; its key is not published.
const SPECIFICATION: &str = "Ognuno sta solo sul cuor della terra\n\
    trafitto da un raggio di sole:\n\ned è subito sera.\n\n\
    — quasimodo.example/salvatore NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQ\
    U0xMcXxj99ihAQwaqP3ZekRwNtIc=\n";

fn verify(note: &str, keys: &[&str]) -> Result<(String, Vec<String>), NoteError> {
    let keys: Vec<VerifierKey> = keys.iter().map(|key| key.parse().unwrap()).collect();
    let note = Note::parse(note)?;
    let verified = note.verify(&keys)?;
    let signers = verified.signers().iter().map(|key| key.name().to_owned()).collect();
    Ok((verified.text().to_owned(), signers))
}

/// Adds the order of the group to `S`: the signature then satisfies the equation as before.
fn with_unreduced_s(signature: &[u8; 64]) -> [u8; 64] {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut changed = *signature;
    let mut carry = 0;
    for (byte, order) in changed[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    changed
}

fn note_with(signer: &SigningKey, text: &str, signature: &[u8]) -> String {
    let bytes = [signer.key().id().as_slice(), signature].concat();
    format!("{text}\n— {} {}\n", signer.key().name(), BASE64.encode(&bytes))
}

#[test]
fn vector_is_signed_byte_for_byte() {
    let key: SigningKey = PETER_PRIVATE.parse().unwrap();
    assert_eq!(key.key().to_string(), PETER);
    assert_eq!(key.to_text().as_str(), PETER_PRIVATE);
    assert_eq!(note::sign(TEXT, &[&key]).unwrap(), format!("{TEXT}\n{PETER_SIGNATURE}"));
}

#[test]
fn vector_verifies_with_the_known_keys() {
    let note = format!("{TEXT}\n{PETER_SIGNATURE}{ENOCH_SIGNATURE}");
    let signed = |names: &[&str]| {
        Ok((TEXT.to_owned(), names.iter().map(|name| (*name).to_owned()).collect()))
    };
    assert_eq!(verify(&note, &[PETER]), signed(&["PeterNeumann"]));
    assert_eq!(verify(&note, &[ENOCH]), signed(&["EnochRoot"]));
    assert_eq!(verify(&note, &[ENOCH, PETER]), signed(&["PeterNeumann", "EnochRoot"]));
    assert_eq!(verify(&note, &[]), Err(NoteError::UnknownKey));
    let twice = format!("{TEXT}\n{PETER_SIGNATURE}{PETER_SIGNATURE}");
    assert_eq!(verify(&twice, &[PETER, PETER]), signed(&["PeterNeumann"]));
}

#[test]
fn example_of_the_specification_parses() {
    let note = Note::parse(SPECIFICATION).unwrap();
    assert!(note.unverified_text().ends_with("sole:\n\ned è subito sera.\n"));
    assert_eq!(note.signatures()[0].name(), "quasimodo.example/salvatore");
    assert_eq!(note.signatures()[0].key_id(), [0x36, 0x7b, 0xa0, 0x4b]);
    assert_eq!(verify(SPECIFICATION, &[PETER]), Err(NoteError::UnknownKey));
}

#[test]
fn malformed_notes_of_the_vectors_are_refused() {
    let unterminated = PETER_SIGNATURE.trim_end();
    for (note, error) in [
        (TEXT.to_owned(), NoteError::NoSignature),
        (format!("{TEXT}\n"), NoteError::NoSignature),
        (format!("{TEXT}\n{unterminated}"), NoteError::NoSignature),
        (format!("\u{1}{TEXT}\n{PETER_SIGNATURE}"), NoteError::ControlCharacter),
        (format!("{TEXT}\r\n\n{PETER_SIGNATURE}"), NoteError::ControlCharacter),
        (format!("{TEXT}\n— Bad Name x08go/ZJkuBS9UG/SffcvIAQ\n"), NoteError::SignatureLine(0)),
        (format!("{TEXT}\n{PETER_SIGNATURE}Unexpected line.\n"), NoteError::SignatureLine(1)),
        (format!("{TEXT}\n— a+b x08go/ZJkg==\n"), NoteError::SignatureLine(0)),
        (format!("{TEXT}\n—  x08go/ZJkg==\n"), NoteError::SignatureLine(0)),
        (format!("{TEXT}\n— a\u{a0}b x08go/ZJkg==\n"), NoteError::SignatureLine(0)),
        // Four bytes are a key id without a signature.
        (format!("{TEXT}\n— a x08gow==\n"), NoteError::SignatureLine(0)),
        // Bits behind the end, no padding, white space: other spellings of the same bytes.
        (format!("{TEXT}\n— a x08go/ZJkh==\n"), NoteError::SignatureLine(0)),
        (format!("{TEXT}\n— a x08go/ZJkg\n"), NoteError::SignatureLine(0)),
        (format!("{TEXT}\n— a x08go/ZJkg== \n"), NoteError::SignatureLine(0)),
    ] {
        assert_eq!(Note::parse(&note), Err(error), "{note}");
    }
}

#[test]
fn unknown_signatures_are_ignored() {
    let unknown = "— someone x08go/ZJkg==\n— PeterNeumann AAAAAP9J\n";
    let note = format!("{TEXT}\n{unknown}{PETER_SIGNATURE}");
    assert!(verify(&note, &[PETER]).is_ok());
    // Another name with the same id, and the same name with another id, are other keys.
    let renamed = note.replace("PeterNeumann x08g", "CarmenSandiego x08g");
    assert_eq!(verify(&renamed, &[PETER]), Err(NoteError::UnknownKey));
    let other_id = note.replace("PeterNeumann x08g", "PeterNeumann xxxx");
    assert_eq!(verify(&other_id, &[PETER]), Err(NoteError::UnknownKey));
}

#[test]
fn one_wrong_signature_of_a_known_key_spoils_the_note() {
    let wrong = NoteError::WrongSignature { name: "PeterNeumann".to_owned() };
    let short = "— PeterNeumann x08go/ZJkg==\n";
    for signatures in [short.to_owned(), format!("{PETER_SIGNATURE}{short}")] {
        let note = format!("{TEXT}\n{signatures}{ENOCH_SIGNATURE}");
        assert_eq!(verify(&note, &[ENOCH, PETER]), Err(wrong.clone()));
        assert!(verify(&note, &[ENOCH]).is_ok());
    }
}

#[test]
fn signatures_are_limited_to_sixteen() {
    let note = |count| format!("{TEXT}\n{}", PETER_SIGNATURE.repeat(count));
    assert!(verify(&note(MAX_SIGNATURES), &[PETER]).is_ok());
    assert_eq!(Note::parse(&note(MAX_SIGNATURES + 1)), Err(NoteError::TooManySignatures));
    let peter: SigningKey = PETER_PRIVATE.parse().unwrap();
    let signers: Vec<&dyn NoteSigner> = vec![&peter; MAX_SIGNATURES + 1];
    assert!(matches!(
        note::sign(TEXT, &signers),
        Err(SignError::Note(NoteError::TooManySignatures))
    ));
}

#[test]
fn no_note_is_made_that_would_not_be_read() {
    let key = key("k", 1);
    let long = format!("{}\n", "x".repeat(MAX_NOTE_BYTES));
    for (text, error) in [
        ("", NoteError::Unterminated),
        ("abc", NoteError::Unterminated),
        ("a\tb\n", NoteError::ControlCharacter),
        (long.as_str(), NoteError::TooLarge),
    ] {
        match note::sign(text, &[&key]) {
            Err(SignError::Note(found)) => assert_eq!(found, error),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(note::sign("a\n", &[]), Err(SignError::Note(NoteError::NoSignature))));
}

#[test]
fn mangled_keys_of_the_vectors_are_refused() {
    for (key, private) in [(PETER, false), (PETER_PRIVATE, true)] {
        let parses = |text: &str| {
            if private {
                text.parse::<SigningKey>().is_ok()
            } else {
                text.parse::<VerifierKey>().is_ok()
            }
        };
        assert!(parses(key));
        for start in 0..key.len() {
            for end in start..=key.len() {
                assert!(end - start == key.len() || !parses(&key[start..end]));
            }
            let mut bytes = key.as_bytes().to_vec();
            bytes[start] += 1;
            assert!(!parses(std::str::from_utf8(&bytes).unwrap()));
        }
    }
    let long = "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==";
    assert_eq!(long.parse::<VerifierKey>(), Err(KeyError::Form));
    let other_type = "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    assert_eq!(other_type.parse::<VerifierKey>(), Err(KeyError::Type));
    let upper = PETER.replace("c74f", "C74F");
    assert_eq!(upper.parse::<VerifierKey>(), Err(KeyError::Hash));
}

#[test]
fn names_that_notes_cannot_carry_are_refused() {
    for name in ["", "a b", "a+b", "a\nb", "a\u{2003}b", "a\u{1}"] {
        assert_eq!(SigningKey::from_seed(name, [1; 32]).unwrap_err(), KeyError::Name, "{name:?}");
    }
    assert!(VerifierKey::new("ä/%20:~", *key("k", 1).key().public()).is_ok());
}

#[test]
fn weak_public_keys_are_refused() {
    let mut identity = [0; 32];
    identity[0] = 1;
    assert_eq!(VerifierKey::new("k", identity), Err(KeyError::SmallOrder));
    assert_eq!(VerifierKey::new("k", [0; 32]), Err(KeyError::SmallOrder));
    assert_eq!(VerifierKey::new("k", [0xff; 32]), Err(KeyError::NotCanonical));
}

#[test]
fn unreduced_s_is_refused() {
    let key = key("k", 1);
    let signature = key.sign(b"text\n").unwrap();
    let keys = [public(&key)];
    let verify = |signature: &[u8]| {
        let note = Note::parse(&note_with(&key, "text\n", signature)).unwrap();
        note.verify(&keys).map(|_| ())
    };
    assert_eq!(verify(&signature), Ok(()));
    let wrong = Err(NoteError::WrongSignature { name: "k".to_owned() });
    assert_eq!(verify(&with_unreduced_s(&signature)), wrong);
    // Twice the order is still below 2^255.
    assert_eq!(verify(&with_unreduced_s(&with_unreduced_s(&signature))), wrong);
    for length in [0, 1, 63, 65] {
        if length > 0 {
            assert_eq!(verify(&[signature.as_slice(), &[0]].concat()[..length]), wrong);
        }
    }
}

/// With `R` of small order and `S` 0, this would hold for one text in eight if the key were of small
/// order, too.
#[test]
fn signature_of_small_order_is_refused() {
    let key = key("k", 1);
    let mut signature = [0; 64];
    signature[0] = 1;
    let keys = [public(&key)];
    for number in 0..32 {
        let note = note_with(&key, &format!("text {number}\n"), &signature);
        assert!(Note::parse(&note).unwrap().verify(&keys).is_err());
    }
}

#[test]
fn debug_hides_the_seed() {
    let key: SigningKey = PETER_PRIVATE.parse().unwrap();
    let shown = format!("{key:?}");
    assert!(shown.contains(PETER), "{shown}");
    let (_, seed) = PETER_PRIVATE.rsplit_once('+').unwrap();
    assert!(!shown.contains(&seed[2..10]), "{shown}");
}

#[test]
fn key_reads_back_from_json() {
    let key: VerifierKey = PETER.parse().unwrap();
    let json = serde_json::to_string(&key).unwrap();
    assert_eq!(json, format!("\"{PETER}\""));
    assert_eq!(serde_json::from_str::<VerifierKey>(&json).unwrap(), key);
    assert!(serde_json::from_str::<VerifierKey>("\"a+b+c\"").is_err());
}

proptest! {
    #[test]
    fn signed_text_reads_back(text in "([^\0-\x1f]|\n){0,200}", seeds in prop::collection::vec(any::<u8>(), 1..4)) {
        let text = format!("{text}\n");
        let keys: Vec<_> = seeds.iter().map(|seed| key("name", *seed)).collect();
        let signers: Vec<&dyn NoteSigner> = keys.iter().map(|key| key as _).collect();
        let note = note::sign(&text, &signers).unwrap();
        let note = Note::parse(&note).unwrap();
        let keys: Vec<_> = keys.iter().map(public).collect();
        prop_assert_eq!(note.verify(&keys).unwrap().text(), text);
    }

    #[test]
    fn changed_note_does_not_verify(
        text in "[ -~\n]{0,80}",
        at in any::<prop::sample::Index>(),
        removed in 0..3_usize,
        inserted in "[ -~\n—]{0,3}",
    ) {
        let key = key("name", 1);
        let original = note::sign(&format!("{text}\n"), &[&key]).unwrap();
        let mut chars: Vec<char> = original.chars().collect();
        let at = at.index(chars.len());
        let end = (at + removed).min(chars.len());
        chars.splice(at..end, inserted.chars());
        let changed: String = chars.into_iter().collect();
        prop_assume!(changed != original);
        let verified = Note::parse(&changed).map(|note| note.verify(&[public(&key)]).is_ok());
        prop_assert!(verified != Ok(true), "{}", changed);
    }

    #[test]
    fn changed_bit_does_not_verify(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let key = key("name", 1);
        let mut bytes = note::sign("a\n\nb\n", &[&key]).unwrap().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let verified = String::from_utf8(bytes)
            .is_ok_and(|note| Note::parse(&note).is_ok_and(|it| it.verify(&[public(&key)]).is_ok()));
        prop_assert!(!verified);
    }

    #[test]
    fn no_text_panics(text in any::<String>(), lines in "(— ?[a+ ]{0,3} ?[A-Za-z0-9+/=]{0,9}\n{0,3}){0,3}") {
        for note in [text.clone(), format!("{text}\n\n{lines}")] {
            if let Ok(note) = Note::parse(&note) {
                prop_assert!(note.verify(&[PETER.parse().unwrap()]).is_err());
            }
            prop_assert!(note.parse::<VerifierKey>().is_err());
            prop_assert!(note.parse::<SigningKey>().is_err());
        }
    }
}
