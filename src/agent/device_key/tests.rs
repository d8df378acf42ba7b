use std::{fs, io, path::Path};

use serde_json::json;

use super::*;
use crate::{
    event::Event, pipeline::outbox::SinkRegistration, platform::secure_file,
    siem::device::Replacement,
};

const HOUR: u64 = 3_600_000;
const NOW: u64 = 1_795_291_200_000;

struct Fixed(u64);

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp(self.0)
    }
}

/// A state directory whose agent is started again and again.
struct Home {
    dir: tempfile::TempDir,
    machine: &'static str,
    now: u64,
}

/// Result of a start.
struct Started {
    device: Device,
    epoch: String,
    owner: Option<String>,
    events: Vec<AgentEvent>,
}

impl Started {
    fn key(&self) -> String {
        self.device.stored_keys().unwrap().public()
    }

    fn created(&self) -> Vec<(DeviceKeyReason, Option<String>)> {
        let created = self.events.iter().filter_map(|event| match event {
            AgentEvent::DeviceKeyCreated { reason, previous, .. } => {
                Some((*reason, previous.clone()))
            }
            _ => None,
        });
        created.collect()
    }
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), machine: "m", now: NOW }
    }

    fn file(&self) -> KeyFile {
        KeyFile::new(self.dir.path(), self.machine)
    }

    fn outbox(&self) -> Outbox {
        let sinks = [SinkRegistration { name: "siem".into(), ..SinkRegistration::default() }];
        let path = self.dir.path().join("outbox.redb");
        Outbox::open(&path, &sinks, new_epoch).unwrap()
    }

    /// Last number and count of the queued entries.
    fn queued(&self) -> (u64, u64) {
        let stats = self.outbox().stats().unwrap();
        (stats.last_seq, stats.entries)
    }

    fn start(&self) -> Started {
        self.start_with(&Device::new(self.file(), "i".to_owned()))
    }

    fn start_with(&self, device: &Device) -> Started {
        let outbox = self.outbox();
        prepare(device, &outbox, &Fixed(self.now)).unwrap();
        let typed = |event: Event| {
            serde_json::from_value(json!({ "event": event.name, "data": event.data })).unwrap()
        };
        let events = outbox.unreported_events().into_iter().map(typed).collect();
        let (epoch, owner) = (outbox.epoch(), outbox.epoch_device().map(|owner| owner.key));
        Started { device: device.clone(), epoch, owner, events }
    }
}

#[test]
fn first_start_makes_a_key_and_keeps_the_epoch_of_the_store() {
    let home = Home::new();
    // As an agent of release 0.1 leaves it.
    let epoch = home.outbox().epoch();
    let first = home.start();
    assert_eq!(first.epoch, epoch);
    assert_eq!(first.owner, Some(first.key()));
    assert_eq!(first.created(), [(DeviceKeyReason::First, None)]);
    let second = home.start();
    assert_eq!((second.key(), &second.epoch), (first.key(), &epoch));
}

#[test]
fn lost_key_is_replaced_in_a_new_epoch_at_most_once_an_hour() {
    let mut home = Home::new();
    let first = home.start();
    fs::remove_file(home.file().path()).unwrap();
    let second = home.start();
    assert_ne!(second.key(), first.key());
    assert_ne!(second.epoch, first.epoch);
    assert_eq!(second.created().last(), Some(&(DeviceKeyReason::Missing, Some(first.key()))));

    home.now += HOUR - 1;
    fs::remove_file(home.file().path()).unwrap();
    let held = home.start();
    let unavailable = held.device.keys().unwrap_err();
    assert_eq!(unavailable.until, Some(Timestamp(NOW + HOUR)));
    assert!(unavailable.reason.contains("less than an hour ago"), "{unavailable}");
    assert_eq!((&held.epoch, held.owner), (&second.epoch, Some(second.key())));
    assert!(!may_recover(&unavailable, &home.file(), Timestamp(home.now)));
    assert!(may_recover(&unavailable, &home.file(), Timestamp(NOW + HOUR)));
    assert!(may_recover(&unavailable, &home.file(), Timestamp(1)), "the clock was set back");

    home.now += 1;
    let third = home.start();
    assert_ne!(third.epoch, second.epoch);
    assert_eq!(third.owner, Some(third.key()));
}

#[test]
fn damaged_file_and_another_machine_have_their_reasons() {
    let home = Home::new();
    let first = home.start();
    fs::write(home.file().path(), "").unwrap();
    let second = home.start();
    assert_eq!(second.created().last(), Some(&(DeviceKeyReason::Damaged, Some(first.key()))));
    let home = Home { machine: "n", now: NOW + HOUR, ..home };
    let third = home.start();
    assert_eq!(third.created().last(), Some(&(DeviceKeyReason::OtherMachine, Some(second.key()))));
}

/// An agent of release 0.1 has left entries 11 to 16 unsent.
#[test]
fn store_of_release_0_1_keeps_its_epoch_and_entries() {
    let stored = include_bytes!("../../../tests/data/release-0.1/state/outbox.redb.zst");
    let mut home = Home::new();
    let path = home.dir.path().join("outbox.redb");
    fs::write(&path, zstd::decode_all(&stored[..]).unwrap()).unwrap();
    let first = home.start();
    assert_eq!(first.epoch, "01a227dd-518c-73d4-83ac-f6f0f5ccac58");
    assert_eq!(first.created(), [(DeviceKeyReason::First, None)]);
    assert_eq!(home.queued(), (16, 6));

    home.now += HOUR;
    fs::remove_file(home.file().path()).unwrap();
    let second = home.start();
    assert_ne!(second.epoch, first.epoch);
    assert_eq!(home.queued(), (6, 6));
}

/// Kill after the key file was written and before the outbox was renumbered.
#[test]
fn key_without_its_epoch_gets_it_at_the_next_start() {
    let home = Home::new();
    let first = home.start();
    fs::remove_file(home.file().path()).unwrap();
    let orphan = home.file().create(DeviceKeyReason::Missing, Timestamp(NOW)).unwrap();
    let started = home.start();
    assert_eq!(started.key(), orphan.public());
    assert_eq!(started.owner, Some(orphan.public()));
    assert_ne!(started.epoch, first.epoch);
    assert_eq!(started.created().last(), Some(&(DeviceKeyReason::Missing, Some(first.key()))));
}

#[test]
fn rotation_of_a_stopped_agent_continues_the_epoch() {
    let home = Home::new();
    let first = home.start();
    let keys = home.file().load().unwrap();
    let rotated = home.file().rotate(&keys, Timestamp(NOW)).unwrap();
    let second = home.start();
    assert_eq!((second.key(), &second.epoch), (rotated.public(), &first.epoch));
    assert_eq!(second.owner, Some(rotated.public()));
    assert_eq!(second.created().last(), Some(&(DeviceKeyReason::Rotated, Some(first.key()))));
    assert!(second.device.keys().unwrap().previous.is_some());
}

#[test]
fn requested_key_starts_an_epoch() {
    let home = Home::new();
    let first = home.start();
    let requested = first.device.replace(DeviceKeyReason::Cloned, Timestamp(NOW));
    assert_eq!(requested, Replacement::Requested);
    let second = home.start_with(&first.device);
    assert_ne!(second.epoch, first.epoch);
    assert_eq!(second.created().last().unwrap().0, DeviceKeyReason::Cloned);
    let third = home.start_with(&first.device);
    assert_eq!(third.epoch, second.epoch, "the request was carried out once");
}

/// The key is old, but the epoch belongs to it since a moment ago, as after its file was restored.
#[test]
fn request_within_an_hour_of_the_last_key_is_held() {
    let home = Home::new();
    let first = home.start();
    let backup = fs::read(home.file().path()).unwrap();
    fs::remove_file(home.file().path()).unwrap();
    home.start();
    let home = Home { now: NOW + HOUR, ..home };
    secure_file::replace(home.file().path(), &backup).unwrap();
    let restored = home.start();
    assert_eq!((restored.key(), restored.owner), (first.key(), Some(first.key())));

    let home = Home { now: NOW + HOUR + 1, ..home };
    let requested = restored.device.replace(DeviceKeyReason::Cloned, Timestamp(home.now));
    assert_eq!(requested, Replacement::Requested);
    let held = home.start_with(&restored.device);
    let unavailable = held.device.keys().unwrap_err();
    assert_eq!(unavailable.until, Some(Timestamp(NOW + 2 * HOUR)));
    assert_eq!(held.epoch, restored.epoch);
    let again = held.device.replace(DeviceKeyReason::Cloned, Timestamp(home.now));
    assert_eq!(again, Replacement::Requested);
    let home = Home { now: NOW + 2 * HOUR, ..home };
    let third = home.start_with(&held.device);
    assert_ne!((third.key(), third.epoch), (first.key(), restored.epoch));
}

#[test]
fn new_store_with_a_known_key_reports_nothing() {
    let home = Home::new();
    let first = home.start();
    fs::remove_file(home.dir.path().join("outbox.redb")).unwrap();
    let second = home.start();
    assert_eq!(second.key(), first.key());
    assert_eq!(second.created(), []);
    assert_eq!(second.owner, Some(first.key()));
}

#[cfg(unix)]
#[test]
fn file_that_others_can_read_holds_until_it_is_fixed() {
    use std::os::unix::fs::PermissionsExt as _;

    let home = Home::new();
    let first = home.start();
    let set_mode = |mode| {
        fs::set_permissions(home.file().path(), fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(0o644);
    let held = home.start();
    let unavailable = held.device.keys().unwrap_err();
    assert!(unavailable.reason.contains("chmod 600"), "{unavailable}");
    assert_eq!(held.epoch, first.epoch);
    assert!(!may_recover(&unavailable, &home.file(), Timestamp(NOW)));
    set_mode(0o600);
    assert!(may_recover(&unavailable, &home.file(), Timestamp(NOW)));
    assert_eq!(home.start().key(), first.key());
}

#[test]
fn key_that_cannot_be_written_is_not_used() {
    let home = Home::new();
    let full = |_: &Path, _: &[u8]| Err(io::Error::from(io::ErrorKind::StorageFull));
    let device = Device::new(home.file().with_replace(full), "i".to_owned());
    let held = home.start_with(&device);
    let unavailable = held.device.keys().unwrap_err();
    assert!(unavailable.reason.contains("cannot write the device key"), "{unavailable}");
    assert_eq!(held.owner, None);
    assert!(may_recover(&unavailable, &home.file(), Timestamp(NOW + WRITE_RETRY_MS)));
}
