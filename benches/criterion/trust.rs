//! Signatures per batch: sealing in the agent, verifying in the receiver, checking a receipt.
#![allow(missing_docs, reason = "the macros generate functions without docs")]

use criterion::{Criterion, criterion_group, criterion_main};
use siem_protocol::{
    Digest,
    note::{NoteSigner as _, SigningKey},
    statement::{self, Durability, Seal, Statement as _, StoredReceipt},
};

fn key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(name, [seed; 32]).expect("the name and the seed are valid")
}

fn signatures(criterion: &mut Criterion) {
    let (device, receiver) = (key("ai-agent-device", 1), key("siem.example.com", 2));
    let seal = Seal {
        receiver: Some("siem.example.com".to_owned()),
        machine: "11112222333344445555666677778888".to_owned(),
        user: "someone@example.com".to_owned(),
        epoch: "01a227dd-518c-73d4-83ac-f6f0f5ccac58".to_owned(),
        first_seq: Some(1_234_468),
        last_seq: 1_234_567,
        chain: Digest::of(b"chain"),
        dead_lettered: None,
        config: Digest::of(b"config"),
        receipt: Some(Digest::of(b"receipt")),
        instance: Some("3f0c5d0a9be14c6f8a1b2c3d4e5f6071".to_owned()),
    };
    let note = seal.sign(&[&device]).expect("the seal is signed");
    let receipt = StoredReceipt {
        receiver: "siem.example.com".to_owned(),
        machine: seal.machine.clone(),
        user: seal.user.clone(),
        epoch: seal.epoch.clone(),
        last_seq: seal.last_seq,
        chain: seal.chain,
        seal: Some(statement::digest(&note)),
        received_at: "2026-11-29T12:00:00.000Z".to_owned(),
        durability: Durability::Synced,
    };
    let signed = receipt.sign(&[&receiver]).expect("the receipt is signed");
    let (device_key, receiver_keys) = (device.key().clone(), [receiver.key().clone()]);
    let mut group = criterion.benchmark_group("signatures");
    group.bench_function("device seals a batch", |bencher| {
        bencher.iter(|| seal.sign(&[&device]).expect("the seal is signed"));
    });
    // Of several devices whose keys have the same id, the receiver tries each.
    let device_keys = [device_key];
    group.bench_function("receiver verifies the seal of a batch", |bencher| {
        bencher.iter(|| Seal::open(&note, &device_keys).expect("the seal is valid"));
    });
    group.bench_function("receiver signs the receipt for a batch", |bencher| {
        bencher.iter(|| receipt.sign(&[&receiver]).expect("the receipt is signed"));
    });
    group.bench_function("device checks the receipt for a batch", |bencher| {
        bencher
            .iter(|| StoredReceipt::open(&signed, &receiver_keys).expect("the receipt is valid"));
    });
    group.finish();
}

criterion_group!(benches, signatures);
criterion_main!(benches);
