use std::time::Instant;

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

#[test]
fn seal_must_agree_with_the_header_of_its_batch() {
    let device = TestDevice::new(1);
    let (_root, registry) = registry(&[&device]);
    let batch = || BatchText::new(4, 6);
    let verify = |batch: BatchText| BatchSeal::verify(&batch.header, &registry);
    let valid = verify(batch().seal(&device));
    assert_eq!(valid.valid().map(|seal| seal.last_seq), Some(6));
    let edits: [fn(&mut Seal); 8] = [
        |seal| seal.receiver = None,
        |seal| seal.receiver = Some("other.example.com".into()),
        |seal| seal.machine = "m-2".into(),
        |seal| seal.user = "v".into(),
        |seal| seal.epoch = "e-2".into(),
        |seal| seal.last_seq = 5,
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

/// The target is 0.2 ms for each batch on one core, which `cargo xtask bench --receiver-against`
/// measures; unoptimized code takes longer, so that this test shows only an error in the order of
/// magnitude.
#[test]
fn verification_is_cheap_among_many_devices() {
    let devices: Vec<_> = (1..60).map(TestDevice::new).collect();
    let (_root, registry) = registry(&devices.iter().collect::<Vec<_>>());
    let sealed = BatchText::new(1, 1).seal(&devices[50]);
    let start = Instant::now();
    for _ in 0..100 {
        assert!(BatchSeal::verify(&sealed.header, &registry).valid().is_some());
    }
    let each = start.elapsed() / 100;
    assert!(each.as_millis() < 20, "{each:?}");
}
