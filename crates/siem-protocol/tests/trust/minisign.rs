//! Signatures of the organisation. The vectors are those of the crate `minisign-verify`, made by
//! minisign.

use proptest::prelude::*;
use siem_protocol::minisign::{MinisignError, OrganisationKey};
use test_support::minisign::Minisign;

const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
const COMMENT: &str = "timestamp:1556193335\tfile:test";
const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\n\
    RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8K\
    LzZwo=\n\
    trusted comment: timestamp:1556193335\tfile:test\n\
    y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n";
const LEGACY: &str = "untrusted comment: signature from minisign secret key\n\
    RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSb\
    XxwA=\n\
    trusted comment: timestamp:1555779966\tfile:test\n\
    QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n";

fn verify(body: &[u8], minisig: &str) -> Result<String, MinisignError> {
    let key: OrganisationKey = KEY.parse().unwrap();
    Ok(key.verify(body, minisig)?.trusted_comment().to_owned())
}

#[test]
fn vector_verifies_and_reveals_its_comment() {
    assert_eq!(verify(b"test", SIGNATURE), Ok(COMMENT.to_owned()));
    assert_eq!(verify(b"test", SIGNATURE.trim_end()), Ok(COMMENT.to_owned()));
    assert_eq!(verify(b"Test", SIGNATURE), Err(MinisignError::WrongSignature));
}

#[test]
fn changed_trusted_comment_is_refused() {
    let changed = SIGNATURE.replace("file:test", "file:tests");
    assert_eq!(verify(b"test", &changed), Err(MinisignError::WrongSignature));
}

#[test]
fn legacy_signature_is_refused() {
    assert_eq!(verify(b"test", LEGACY), Err(MinisignError::Legacy));
}

#[test]
fn signature_by_another_key_is_refused() {
    let other = Minisign::new(7);
    assert_eq!(verify(b"test", &other.sign(b"test", "")), Err(MinisignError::UnknownKey));
}

#[test]
fn signatures_must_have_four_lines() {
    let lines: Vec<_> = SIGNATURE.lines().collect();
    for wrong in [
        String::new(),
        lines[..3].join("\n"),
        format!("{SIGNATURE}more\n"),
        SIGNATURE.replace("trusted comment: timestamp", "comment: timestamp"),
        SIGNATURE.replace("RUQf", "RUQ"),
        format!("{SIGNATURE}{}", " ".repeat(5000)),
    ] {
        assert_eq!(verify(b"test", &wrong), Err(MinisignError::Signature), "{wrong}");
    }
}

#[test]
fn key_is_read_from_a_line_or_a_file() {
    let key: OrganisationKey = KEY.parse().unwrap();
    let file = format!("untrusted comment: minisign public key E7620F1842B4E81F\n{KEY}\n");
    assert_eq!(file.parse(), Ok(key.clone()));
    assert_eq!(file.replace('\n', "\r\n").parse(), Ok(key.clone()));
    assert_eq!(key.to_string(), KEY);
}

#[test]
fn malformed_keys_are_refused() {
    let file = format!("untrusted comment: k\n{KEY}\n{KEY}\n");
    let no_algorithm = KEY.replace("RWQ", "AAQ");
    for wrong in ["", "untrusted comment: k", &file, &KEY[1..], &KEY[..52], &no_algorithm] {
        assert_eq!(wrong.parse::<OrganisationKey>(), Err(MinisignError::Key), "{wrong}");
    }
}

#[test]
fn weak_keys_are_refused() {
    for public in [[0; 32], [0xff; 32]] {
        let text = data_encoding::BASE64.encode(&[b"Ed12345678".as_slice(), &public].concat());
        assert_eq!(text.parse::<OrganisationKey>(), Err(MinisignError::WeakKey));
    }
}

proptest! {
    #[test]
    fn signed_body_verifies(body in prop::collection::vec(any::<u8>(), 0..300), comment in "[^\r\n]{0,40}") {
        let signer = Minisign::new(1);
        let key: OrganisationKey = signer.public().parse().unwrap();
        let verified = key.verify(&body, &signer.sign(&body, &comment)).unwrap();
        prop_assert_eq!(verified.trusted_comment(), comment);
    }

    /// The first line is not covered by the signature: it is shown nowhere.
    #[test]
    fn changed_signature_does_not_verify(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let signed = SIGNATURE.find('\n').unwrap() + 1;
        let mut bytes = SIGNATURE.trim_end().as_bytes().to_vec();
        let at = signed + at.index(bytes.len() - signed);
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        let verified = String::from_utf8(bytes).is_ok_and(|text| verify(b"test", &text).is_ok());
        prop_assert!(!verified);
    }

    #[test]
    fn no_signature_panics(text in any::<String>(), lines in prop::collection::vec("(trusted comment: )?[A-Za-z0-9+/=]{0,100}", 4)) {
        prop_assert!(verify(b"test", &text).is_err());
        prop_assert!(verify(b"test", &lines.join("\n")).is_err());
        prop_assert!(text.parse::<OrganisationKey>().is_err());
    }
}
