use std::time::UNIX_EPOCH;

use siem_protocol::statement::TrustLevel;

use super::*;
use crate::{
    fleet::StatsQuery, stats::CloneKind, store::admission::AdmittedDevice, testing::BatchText,
};

pub(super) fn record_batch(catalog: &mut Catalog, text: &BatchText) -> Note {
    record_admitted(catalog, text, &Admission::loose())
}

fn record_admitted(catalog: &mut Catalog, text: &BatchText, admission: &Admission) -> Note {
    let batch = Batch::parse(text.text().into_bytes(), UNIX_EPOCH).unwrap();
    // No test here sends a number twice, so that only the previous value is read.
    let values = vec![Digest::ZERO; 1000];
    let planned = catalog.plan(&batch, admission, &mut values.as_slice()).unwrap();
    catalog.record(&key(&batch.header), &planned.note, planned.note.line().len() as u64);
    planned.note
}

pub(super) fn of(epoch: &str, first: u64) -> BatchText {
    BatchText::new(first, first).with(|header| header.epoch = epoch.into())
}

fn clones(catalog: &Catalog) -> Vec<(CloneKind, String, String, u64)> {
    let machine = catalog.stats(&StatsQuery::all(UNIX_EPOCH), None).machines.remove(0);
    machine.clones.into_iter().map(|it| (it.kind, it.epoch, it.other, it.times)).collect()
}

#[test]
fn return_to_an_old_epoch_is_a_clone() {
    let mut catalog = Catalog::default();
    record_batch(&mut catalog, &of("a", 1));
    record_batch(&mut catalog, &of("b", 1));
    assert_eq!(clones(&catalog), []);
    record_batch(&mut catalog, &of("a", 2));
    record_batch(&mut catalog, &of("b", 2));
    let kind = CloneKind::AlternatingEpochs;
    let expected = [(kind, "a".into(), "b".into(), 1), (kind, "b".into(), "a".into(), 1)];
    assert_eq!(clones(&catalog), expected);
}

#[test]
fn dead_letters_of_an_old_epoch_are_not_a_clone() {
    let mut catalog = Catalog::default();
    record_batch(
        &mut catalog,
        &BatchText::new(1, 2).dead(&[2]).with(|header| header.epoch = "a".into()),
    );
    record_batch(&mut catalog, &of("b", 1));
    record_batch(
        &mut catalog,
        &BatchText::redelivery(&[2]).with(|header| header.epoch = "a".into()),
    );
    record_batch(&mut catalog, &of("b", 2));
    assert_eq!(clones(&catalog), []);
}

#[test]
fn one_epoch_from_two_hostnames_is_a_clone() {
    let mut catalog = Catalog::default();
    record_batch(&mut catalog, &of("a", 1));
    record_batch(&mut catalog, &of("a", 2).with(|header| header.hostname = "copy".into()));
    let expected = [(CloneKind::TwoHostnames, "a".into(), "laptop".into(), 1)];
    assert_eq!(clones(&catalog), expected);
}

/// Instances show whether two agents use the key of a device. The machine was only renamed.
#[test]
fn renamed_host_with_a_device_key_is_no_clone() {
    let mut catalog = Catalog::default();
    let owner = AdmittedDevice {
        key: DeviceKey::from_bytes([7; 32]),
        mark: Mark::Confirmed,
        level: TrustLevel::FirstUse,
        adopts: false,
        confirms: false,
        is_replaced: false,
    };
    let admission = Admission { owner: Some(owner), ..Admission::loose() };
    for (first, hostname) in [(1, "laptop"), (2, "renamed"), (3, "laptop")] {
        let text = of("a", first).with(|header| header.hostname = hostname.into());
        record_admitted(&mut catalog, &text, &admission);
    }
    assert_eq!(clones(&catalog), []);
}

#[test]
fn two_users_of_a_machine_are_not_a_clone() {
    let mut catalog = Catalog::default();
    for seq in 1..4 {
        record_batch(&mut catalog, &of("a", seq));
        record_batch(&mut catalog, &of("b", seq).with(|header| header.user = "v".into()));
    }
    assert_eq!(clones(&catalog), []);
}

/// Each read of a value waits for files.
#[test]
fn batch_that_continues_the_last_one_reads_no_value() {
    struct None;
    impl ChainValues for None {
        type Error = u64;
        fn read(&mut self, at: u64, _: u64) -> Result<Vec<Digest>, u64> {
            Err(at)
        }
    }
    let mut catalog = Catalog::default();
    let batch = |first, last| {
        let text = BatchText::new(first, last).text();
        Batch::parse(text.into_bytes(), UNIX_EPOCH).unwrap()
    };
    let first = batch(1, 3);
    let key = key(&first.header);
    let note = catalog.plan(&first, &Admission::loose(), &mut None).unwrap().note;
    catalog.record(&key, &note, 1);
    assert!(matches!(
        catalog.plan(&batch(4, 5), &Admission::loose(), &mut None),
        Err(Refusal::Values(2))
    ));
    catalog.remember(&key, first.chain(3, 3)[0]);
    let planned = catalog.plan(&batch(4, 5), &Admission::loose(), &mut None).unwrap();
    assert!(planned.note.change.breaks.is_empty() && planned.note.change.claims.is_empty());
    // Held numbers are compared with the stored values.
    assert!(matches!(
        catalog.plan(&batch(2, 5), &Admission::loose(), &mut None),
        Err(Refusal::Values(1))
    ));
    catalog.record(&key, &planned.note, 1);
    assert!(matches!(
        catalog.plan(&batch(6, 6), &Admission::loose(), &mut None),
        Err(Refusal::Values(4))
    ));
}

#[test]
fn note_that_stores_entries_names_the_sender() {
    let mut catalog = Catalog::default();
    let first = of("b", 1).with(|header| header.previous_epoch = Some("a".into()));
    assert!(record_batch(&mut catalog, &first).sender.is_some());
    let second = record_batch(&mut catalog, &of("b", 2)).sender.unwrap();
    assert_eq!(second.previous_epoch.as_deref(), Some("a"));
    let newer = of("b", 3).with(|header| header.agent_version = "0.2.0".into());
    assert!(record_batch(&mut catalog, &newer).sender.is_some());
    let epoch =
        catalog.stats(&StatsQuery::all(UNIX_EPOCH), None).machines.remove(0).epochs.remove(0);
    assert_eq!(epoch.previous_epoch.as_deref(), Some("a"));
}
