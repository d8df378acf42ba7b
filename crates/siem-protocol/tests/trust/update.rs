//! Artifacts of updates and their signatures.

use std::io::{self, Read};

use proptest::prelude::*;
use siem_protocol::{
    agent_event::UpdateReason,
    minisign::OrganisationKey,
    update::{ArtifactError, CatalogArtifact, CatalogRelease, Platform, Rollout, UpdateRelease},
};
use test_support::minisign::Minisign;

const PROGRAM: &[u8] = b"the program";
const COMMENT: &str = "ai-agent 0.3.0 linux x86_64";

fn platform() -> Platform {
    Platform::new("linux", "x86_64").unwrap()
}

fn key(seed: u8) -> OrganisationKey {
    Minisign::new(seed).public().parse().unwrap()
}

/// Makes a release of [`PROGRAM`] whose signature by the key 1 covers `comment`.
fn signed(comment: &str) -> UpdateRelease {
    let name = "ai-agent-0.3.0-linux-x86_64".parse().unwrap();
    let mut artifact = CatalogArtifact::new(&platform(), name, PROGRAM);
    artifact.minisig = Some(Minisign::new(1).sign(PROGRAM, comment));
    let release = CatalogRelease {
        version: "0.3.0".parse().unwrap(),
        published_at: "2026-01-31T00:00:00Z".to_owned(),
        rollout: Rollout::ALL,
        artifacts: vec![artifact],
        unknown: Default::default(),
    };
    let catalog =
        siem_protocol::update::ReleaseCatalog { releases: vec![release], ..Default::default() };
    catalog.manifest(&platform(), None).releases.remove(0)
}

fn reason(result: Result<(), ArtifactError>) -> Option<UpdateReason> {
    result.unwrap_err().reason()
}

#[test]
fn signed_artifact_verifies_by_any_of_the_keys() {
    let release = signed(COMMENT);
    release.verify(&platform(), &[key(1)], PROGRAM).unwrap();
    release.verify(&platform(), &[key(2), key(1)], PROGRAM).unwrap();
    release.verify(&platform(), &[key(1), key(2)], PROGRAM).unwrap();
}

#[test]
fn artifact_of_unknown_origin_is_refused() {
    let release = signed(COMMENT);
    let verify = |keys: &[u8]| {
        let keys: Vec<_> = keys.iter().map(|seed| key(*seed)).collect();
        release.verify(&platform(), &keys, PROGRAM)
    };
    assert_eq!(reason(verify(&[])), Some(UpdateReason::UnknownKey));
    assert_eq!(reason(verify(&[2, 3])), Some(UpdateReason::UnknownKey));
    let unsigned = UpdateRelease { minisig: None, ..release };
    assert_eq!(
        reason(unsigned.verify(&platform(), &[key(1)], PROGRAM)),
        Some(UpdateReason::Unsigned)
    );
}

/// A key id is no secret: another key can have the same.
#[test]
fn signature_by_a_key_with_the_same_id_is_refused() {
    let release = signed(COMMENT);
    let other = data_encoding::BASE64.decode(key(2).to_string().as_bytes()).unwrap();
    let forged = [b"Ed".as_slice(), &[1; 8], &other[10..]].concat();
    let forged = data_encoding::BASE64.encode(&forged).parse().unwrap();
    assert_eq!(
        reason(release.verify(&platform(), &[forged], PROGRAM)),
        Some(UpdateReason::WrongSignature)
    );
}

#[test]
fn signature_of_another_artifact_is_refused() {
    for comment in [
        "ai-agent 0.2.0 linux x86_64",
        "ai-agent 0.3.1 linux x86_64",
        "ai-agent 0.3.0 macos x86_64",
        "ai-agent 0.3.0 linux aarch64",
        "other 0.3.0 linux x86_64",
        "ai-agent  0.3.0 linux x86_64",
        "ai-agent 0.3.0 linux x86_64 ",
        "timestamp:1\tfile:ai-agent",
        "",
    ] {
        let result = signed(comment).verify(&platform(), &[key(1)], PROGRAM);
        assert_eq!(reason(result), Some(UpdateReason::OtherArtifact), "{comment}");
    }
}

/// A manifest that lies about size or hash is refused even if the signature fits the bytes.
#[test]
fn manifest_that_lies_about_size_or_hash_is_refused() {
    let verify = |change: &dyn Fn(&mut UpdateRelease)| {
        let mut release = signed(COMMENT);
        change(&mut release);
        reason(release.verify(&platform(), &[key(1)], PROGRAM))
    };
    assert_eq!(verify(&|it| it.size += 1), Some(UpdateReason::WrongSize));
    assert_eq!(verify(&|it| it.size -= 1), Some(UpdateReason::WrongSize));
    assert_eq!(
        verify(&|it| it.sha256 = siem_protocol::Digest::ZERO),
        Some(UpdateReason::WrongHash)
    );
    assert_eq!(
        verify(&|it| it.version = "0.4.0".parse().unwrap()),
        Some(UpdateReason::OtherArtifact)
    );
}

/// The size is untrusted: a file that grew is not read to its end.
#[test]
fn verification_reads_one_byte_beyond_the_size() {
    let mut endless = io::repeat(7);
    let result = signed(COMMENT).verify(&platform(), &[key(1)], endless.by_ref());
    assert_eq!(reason(result), Some(UpdateReason::WrongSize));
}

#[test]
fn file_that_cannot_be_read_is_no_refusal() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("disk"))
        }
    }
    assert_eq!(reason(signed(COMMENT).verify(&platform(), &[key(1)], Failing)), None);
}

proptest! {
    #[test]
    fn changed_artifact_is_refused(at in 0..PROGRAM.len(), byte in any::<u8>(), fitting in any::<bool>()) {
        let mut changed = PROGRAM.to_vec();
        prop_assume!(changed[at] != byte);
        changed[at] = byte;
        let mut release = signed(COMMENT);
        if fitting {
            release.sha256 = siem_protocol::Digest::of(&changed);
        }
        let expected = if fitting { UpdateReason::WrongSignature } else { UpdateReason::WrongHash };
        let result = release.verify(&platform(), &[key(1)], &changed[..]);
        prop_assert_eq!(reason(result), Some(expected));
    }

    /// Streaming and whole verification agree for any sizes of reads.
    #[test]
    fn reader_verifies_as_the_whole_body_does(
        body in prop::collection::vec(any::<u8>(), 0..300),
        size in 1usize..50,
        other in any::<bool>(),
    ) {
        struct Short<'a>(&'a [u8], usize);
        impl Read for Short<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = self.0.len().min(self.1).min(buffer.len());
                buffer[..count].copy_from_slice(&self.0[..count]);
                self.0 = &self.0[count..];
                Ok(count)
            }
        }
        let minisig = Minisign::new(1).sign(if other { b"other" } else { &body }, "c");
        let whole = key(1).verify(&body, &minisig);
        let read = key(1).verify_reader(&mut Short(&body, size), &minisig);
        match (whole, read) {
            (Ok(whole), Ok(read)) => prop_assert_eq!(whole, read),
            (Err(whole), Err(read)) => prop_assert_eq!(whole.to_string(), read.to_string()),
            (whole, read) => prop_assert!(false, "{:?} {:?}", whole, read),
        }
    }
}
