//! Texts of signed notes, statements, keys and minisign signatures.
//!
//! One target for all of their parsers: the texts share most of their grammar, and a mutation that
//! is nothing to one parser is input for another.

use ai_agent::internals::protocol::{
    minisign::OrganisationKey,
    note::{self, Note, NoteSigner, SigningKey},
    statement::{Device, Enroll, KeyList, Seal, Statement, StoredReceipt, Verdict},
};

/// The key that verifies the minisign signature in the corpus, over `test`.
const ORGANISATION: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
const MINISIG: &str = include_str!("../corpus/trust/minisig");

/// Fails if a text that no key signed verifies, or if a text is read that is not written the same.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    notes(text);
    statements(text);
    keys(text);
    minisign(text);
}

fn notes(text: &str) {
    let Ok(note) = Note::parse(text) else { return };
    assert!(text.starts_with(note.unverified_text()));
    statements(note.unverified_text());
    let signers = [("device/m-1", 1), ("siem.company.com", 2)]
        .map(|(name, seed)| SigningKey::from_seed(name, [seed; 32]).unwrap());
    let keys = signers.each_ref().map(|signer| signer.key().clone());
    let Ok(verified) = note.verify(&keys) else { return };
    // Ed25519 has one signature for a text and a key, so the note has what we would write.
    for key in verified.signers() {
        let signer = signers.iter().find(|signer| signer.key() == *key).unwrap();
        let signed = note::sign(verified.text(), &[signer]).unwrap();
        let line = signed.lines().last().unwrap();
        assert!(text.lines().any(|other| other == line), "{line}");
    }
}

fn statements(text: &str) {
    fn check<T: Statement>(text: &str) {
        if let Ok(statement) = T::parse(text) {
            assert_eq!(statement.encode(), text);
        }
    }
    check::<Seal>(text);
    check::<Enroll>(text);
    check::<Device>(text);
    check::<StoredReceipt>(text);
    check::<Verdict>(text);
    check::<KeyList>(text);
    drop(Enroll::open_self_signed(text));
}

fn keys(text: &str) {
    if let Ok(key) = text.parse::<note::VerifierKey>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(key) = text.parse::<SigningKey>() {
        assert_eq!(key.to_text().as_str(), text);
    }
    if let Ok(key) = text.parse::<OrganisationKey>() {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
}

fn minisign(text: &str) {
    let key: OrganisationKey = ORGANISATION.parse().unwrap();
    if let Ok(verified) = key.verify(b"test", text) {
        // The first line is not signed.
        assert!(text.lines().skip(1).eq(MINISIG.lines().skip(1)), "{text}");
        assert!(MINISIG.contains(verified.trusted_comment()));
    }
}
