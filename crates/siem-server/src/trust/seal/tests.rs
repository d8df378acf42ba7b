use std::time::{Instant, UNIX_EPOCH};

use siem_protocol::{Chain, statement::TrustLevel};

use super::*;
use crate::{
    testing::{BatchText, RECEIVER, TestDevice, identity},
    trust::{Grant, RegistryOptions},
};

fn registry(devices: &[&TestDevice]) -> (tempfile::TempDir, Registry) {
    let root = tempfile::tempdir().unwrap();
    let options = RegistryOptions::new(TrustLevel::FirstUse);
    let registry = Registry::open(root.path(), options).unwrap();
    registry.create_receiver_key(RECEIVER, [9; 32]).unwrap();
    for device in devices {
        let note = device.enrollment(&identity(), None);
        let enroll = siem_protocol::statement::Enroll::open_self_signed(&note).unwrap();
        registry.enroll(&enroll, &Grant::all()).unwrap();
    }
    (root, registry)
}

fn parsed(text: &BatchText) -> Batch {
    Batch::parse(text.text().into_bytes(), UNIX_EPOCH).unwrap()
}

fn verify(text: &BatchText, registry: &Registry) -> BatchSeal {
    BatchSeal::verify(&parsed(text), registry)
}

#[test]
fn seal_must_agree_with_the_header_of_its_batch() {
    let device = TestDevice::new(1);
    let (_root, registry) = registry(&[&device]);
    let batch = || BatchText::new(4, 6);
    let verify = |batch: BatchText| verify(&batch, &registry);
    let valid = verify(batch().seal(&device));
    assert_eq!(valid.valid().map(|seal| seal.last_seq), Some(6));
    let edits: [fn(&mut Seal); 10] = [
        |seal| seal.receiver = None,
        |seal| seal.receiver = Some("other.example.com".into()),
        |seal| seal.machine = "m-2".into(),
        |seal| seal.user = "v".into(),
        |seal| seal.epoch = "e-2".into(),
        |seal| seal.first_seq = Some(5),
        |seal| seal.last_seq = 5,
        |seal| seal.dead_lettered = Some(Digest::ZERO),
        |seal| seal.config = Digest::of(b"other"),
        |seal| seal.instance = Some("other".into()),
    ];
    for edit in edits {
        let sealed = verify(batch().seal_with(&device, None, edit));
        assert!(matches!(sealed, BatchSeal::Invalid(_)), "{sealed:?}");
    }
    // The seal of another batch.
    let other = batch().seal(&device).with(|header| {
        let chain = header.chain.unwrap();
        header.chain = Some(Chain { before: chain.before, after: chain.before });
    });
    assert!(matches!(verify(other), BatchSeal::Invalid(_)));
    assert_eq!(verify(batch()), BatchSeal::None);
    assert_eq!(verify(batch().seal(&TestDevice::new(2))), BatchSeal::Unknown);
    let garbage = batch().with(|header| header.seal = Some("x".into()));
    assert!(matches!(verify(garbage), BatchSeal::Invalid(_)));
    // A right signature under a changed text.
    let changed = batch().seal(&device).with(|header| {
        header.seal = header.seal.take().map(|note| note.replace("last_seq=6", "last_seq=7"));
    });
    assert_eq!(verify(changed), BatchSeal::Invalid("its signature is wrong"));
}

/// The value of the chain is the same without a line: the receipt for the rest would make the agent
/// delete the line, too.
#[test]
fn seal_does_not_fit_a_batch_without_one_of_its_lines() {
    let device = TestDevice::new(1);
    let (_root, registry) = registry(&[&device]);
    let whole = BatchText::new(4, 6).seal(&device);
    for shorter in [BatchText::new(5, 6), BatchText::new(4, 6).dead(&[4])] {
        assert_eq!(shorter.header.chain.unwrap().after, whole.header.chain.unwrap().after);
        let shorter = shorter.with(|header| header.seal.clone_from(&whole.header.seal));
        let sealed = verify(&shorter, &registry);
        assert_eq!(sealed, BatchSeal::Invalid("it covers other entries"));
    }
}

/// The header is sealed, and the lines come from anyone who has seen it.
#[test]
fn seal_does_not_fit_other_lines_under_its_header() {
    let device = TestDevice::new(1);
    let (_root, registry) = registry(&[&device]);
    let forged = r#"{"seq":5,"kind":"event","source":"agent","event":"forged"}"#;
    let other = BatchText::new(4, 6).seal(&device).line(5, forged);
    assert_eq!(verify(&other, &registry), BatchSeal::Invalid("it covers other entries"));
    let before = BatchText::new(4, 6).seal(&device).with(|header| {
        header.chain.as_mut().unwrap().before = Digest::ZERO;
    });
    assert_eq!(verify(&before, &registry), BatchSeal::Invalid("it covers other entries"));
}

/// The target is 0.2 ms for each batch on one core, which `cargo xtask bench --receiver-against`
/// measures; unoptimized code takes longer, so that this test shows only an error in the order of
/// magnitude.
#[test]
fn verification_is_cheap_among_many_devices() {
    let devices: Vec<_> = (1..60).map(TestDevice::new).collect();
    let (_root, registry) = registry(&devices.iter().collect::<Vec<_>>());
    let sealed = parsed(&BatchText::new(1, 1).seal(&devices[50]));
    let start = Instant::now();
    for _ in 0..100 {
        assert!(BatchSeal::verify(&sealed, &registry).valid().is_some());
    }
    let each = start.elapsed() / 100;
    assert!(each.as_millis() < 20, "{each:?}");
}
