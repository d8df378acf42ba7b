use std::{
    fs,
    time::{Duration, SystemTime},
};

use siem_protocol::{
    note::{NoteSigner as _, SigningKey, VerifierKey},
    statement::{
        Confirmation, Device as DeviceStatement, DeviceState, Enroll, KeyList, Statement as _,
    },
};

use super::*;
use crate::configs::Rollout;
use crate::trust::{
    devices::{DEVICE_KEY_NAME, EnrollRefusal},
    events::{Event, EventKind},
    tokens::{Grant, NewToken, Scope, TokenError, TokenText},
};

const NAME: &str = "siem.example.com";

/// A registry with a receiver key, in a directory of its own.
struct Fixture {
    directory: tempfile::TempDir,
    registry: Registry,
}

fn fixture(level: TrustLevel) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let registry = open(directory.path(), level);
    registry.create_receiver_key(NAME, [200; 32]).unwrap();
    Fixture { directory, registry }
}

fn open(directory: &Path, level: TrustLevel) -> Registry {
    Registry::open(directory, RegistryOptions::new(level)).unwrap()
}

fn device(seed: u16) -> SigningKey {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&seed.to_le_bytes());
    SigningKey::from_seed(DEVICE_KEY_NAME, bytes).unwrap()
}

fn enrollment(seed: u16) -> Enroll {
    Enroll {
        receiver: NAME.into(),
        machine: "m-1".into(),
        user: "u".into(),
        host: "laptop".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        version: "0.2.0".into(),
        key: device(seed).key().clone(),
        previous: None,
    }
}

impl Fixture {
    fn token(&self, seed: u8, new: NewToken) -> Grant {
        let text = TokenText::from_random(&[seed; 32]);
        self.registry.add_token(new, &text).unwrap();
        self.registry.grant(text.reveal().as_bytes()).unwrap()
    }

    fn single_use(&self, seed: u8) -> Grant {
        let scopes = [Scope::Enroll].into();
        self.token(seed, NewToken { scopes, single_use: true, ..NewToken::default() })
    }

    fn lines(&self, name: &str) -> usize {
        fs::read_to_string(self.directory.path().join(name)).unwrap().lines().count()
    }
}

#[test]
fn enrollment_returns_a_signed_statement_and_the_keys() {
    let fixture = fixture(TrustLevel::Enrolled);
    let registry = &fixture.registry;
    let enrolled = registry.enroll(&enrollment(1), &Grant::all()).unwrap();
    let receiver = registry.receiver_key().unwrap().key().clone();
    let statement = DeviceStatement::open(&enrolled.statement, std::slice::from_ref(&receiver));
    let expected = DeviceStatement {
        receiver: NAME.into(),
        key: device(1).key().clone(),
        state: DeviceState::Pending,
        level: TrustLevel::Enrolled,
        confirmed_by: None,
    };
    assert_eq!(statement.unwrap().statement, expected);
    let keys = KeyList::open(&enrolled.keys.keys, std::slice::from_ref(&receiver)).unwrap();
    assert_eq!(keys.statement.current, receiver);
    assert_eq!(registry.keys_answer(), Some(enrolled.keys));
}

#[test]
fn enrollment_again_appends_nothing() {
    let fixture = fixture(TrustLevel::FirstUse);
    let first = fixture.registry.enroll(&enrollment(1), &Grant::all()).unwrap();
    let again = fixture.registry.enroll(&enrollment(1), &Grant::all()).unwrap();
    assert_eq!(first, again);
    assert_eq!(fixture.lines("devices.ndjson"), 1);
}

#[test]
fn single_use_token_confirms_one_device() {
    let fixture = fixture(TrustLevel::FirstUse);
    let grant = fixture.single_use(1);
    for _ in 0..2 {
        let enrolled = fixture.registry.enroll(&enrollment(1), &grant).unwrap();
        assert_eq!(enrolled.device.state, DeviceState::Confirmed);
    }
    let refused = fixture.registry.enroll(&enrollment(2), &grant).unwrap_err();
    assert!(matches!(refused, EnrollError::Token(TokenError::Used)), "{refused:?}");
    assert_eq!(fixture.registry.devices().len(), 1);
}

#[test]
fn refused_enrollment_does_not_use_up_the_token() {
    let fixture = fixture(TrustLevel::FirstUse);
    fixture.registry.enroll(&enrollment(1), &Grant::all()).unwrap();
    let grant = fixture.single_use(1);
    let mut other = enrollment(1);
    other.user = "v".into();
    let refused = fixture.registry.enroll(&other, &grant).unwrap_err();
    let expected = EnrollRefusal::OtherDevice;
    assert!(matches!(refused, EnrollError::Refused(found) if found == expected), "{refused:?}");
    fixture.registry.enroll(&enrollment(2), &grant).unwrap();
}

#[test]
fn killed_between_token_and_device_enrolls_at_the_next_attempt() {
    let fixture = fixture(TrustLevel::FirstUse);
    let grant = fixture.single_use(1);
    // The process ended after the token's line was appended.
    let key = DeviceKey::from(device(1).key());
    fixture.registry.use_token(grant.single_use().unwrap(), key).unwrap();
    let registry = open(fixture.directory.path(), TrustLevel::FirstUse);
    assert_eq!(registry.device(&key), None);
    let enrolled = registry.enroll(&enrollment(1), &grant).unwrap();
    assert_eq!(enrolled.device.state, DeviceState::Confirmed);
}

#[test]
fn machine_bound_token_enrolls_its_machine_only() {
    let fixture = fixture(TrustLevel::FirstUse);
    let machine = Some("m-1".to_owned());
    let new = NewToken { scopes: [Scope::Enroll].into(), machine, ..NewToken::default() };
    let grant = fixture.token(1, new);
    let mut other = enrollment(1);
    other.machine = "m-2".into();
    let refused = fixture.registry.enroll(&other, &grant).unwrap_err();
    assert!(matches!(refused, EnrollError::OtherMachine), "{refused:?}");
    let enrolled = fixture.registry.enroll(&enrollment(1), &grant).unwrap();
    assert_eq!(enrolled.device.state, DeviceState::Confirmed);
}

#[test]
fn enrollment_for_another_receiver_is_refused() {
    let fixture = fixture(TrustLevel::FirstUse);
    let registry = &fixture.registry;
    let mut other = enrollment(1);
    other.receiver = "other.example.com".into();
    let refused = registry.enroll(&other, &Grant::all()).unwrap_err();
    assert!(matches!(refused, EnrollError::OtherReceiver { .. }), "{refused:?}");
}

#[test]
fn enrollment_under_another_key_name_is_refused() {
    let fixture = fixture(TrustLevel::FirstUse);
    let registry = &fixture.registry;
    let mut other = enrollment(1);
    other.key = VerifierKey::new("other", *other.key.public()).unwrap();
    let refused = registry.enroll(&other, &Grant::all()).unwrap_err();
    assert!(matches!(refused, EnrollError::KeyName), "{refused:?}");
}

#[test]
fn receiver_without_key_enrolls_no_device() {
    let directory = tempfile::tempdir().unwrap();
    let registry = open(directory.path(), TrustLevel::Shared);
    let refused = registry.enroll(&enrollment(1), &Grant::all()).unwrap_err();
    assert!(matches!(refused, EnrollError::NoReceiverKey), "{refused:?}");
    assert_eq!(registry.keys_answer(), None);
}

#[test]
fn commands_of_another_process_take_effect() {
    let fixture = fixture(TrustLevel::FirstUse);
    let command = open(fixture.directory.path(), TrustLevel::Shared);
    let server = &fixture.registry;
    server.enroll(&enrollment(1), &Grant::all()).unwrap();
    let key = DeviceKey::from(device(1).key());
    assert!(command.confirm(&key, Confirmation::Operator).unwrap());
    assert!(!command.confirm(&key, Confirmation::Operator).unwrap());
    assert!(server.confirmed_for("m-1", "u"));
    assert!(command.allow_shared("m-1", true).unwrap());
    assert!(server.is_shared_allowed("m-1"));
    assert!(command.revoke(&key).unwrap());
    assert_eq!(server.device(&key).unwrap().state, DeviceState::Revoked);
    let text = TokenText::from_random(&[1; 32]);
    let new = NewToken { scopes: [Scope::Read].into(), ..NewToken::default() };
    let id = command.add_token(new, &text).unwrap();
    assert!(server.grant(text.reveal().as_bytes()).is_some());
    assert!(command.revoke_token(&id).unwrap());
    assert!(server.grant(text.reveal().as_bytes()).is_none());
}

#[test]
fn alternating_instances_are_found_once() {
    let fixture = fixture(TrustLevel::FirstUse);
    let registry = &fixture.registry;
    registry.enroll(&enrollment(1), &Grant::all()).unwrap();
    let key = DeviceKey::from(device(1).key());
    let found: Vec<_> = ["a", "b", "a", "b", "a", "b", "a"]
        .iter()
        .map(|instance| registry.observe_instance(&key, instance).is_some())
        .collect();
    assert_eq!(found, [false, false, false, false, true, false, false]);
    assert!(registry.device(&key).unwrap().cloned);
    assert!(open(fixture.directory.path(), TrustLevel::Shared).device(&key).unwrap().cloned);
}

/// The keys that own epochs stay while there are others.
#[test]
fn flood_of_keys_evicts_those_without_an_epoch() {
    let fixture = fixture(TrustLevel::FirstUse);
    let enroll = |seed| fixture.registry.enroll(&enrollment(seed), &Grant::all()).unwrap();
    let own = enroll(1).device.key;
    fixture.registry.note_owner(own);
    let first = enroll(2).device.key;
    (3..100).for_each(|seed| drop(enroll(seed)));
    assert!(fixture.registry.device(&own).is_some());
    assert!(fixture.registry.device(&first).is_none());
    let again = open(fixture.directory.path(), TrustLevel::FirstUse);
    assert_eq!(again.devices(), fixture.registry.devices());
    assert_eq!(again.devices().len(), 64);
}

#[test]
fn instances_append_no_line() {
    let fixture = fixture(TrustLevel::FirstUse);
    fixture.registry.enroll(&enrollment(1), &Grant::all()).unwrap();
    let key = DeviceKey::from(device(1).key());
    for start in 0..100 {
        assert_eq!(fixture.registry.observe_instance(&key, &start.to_string()), None);
    }
    assert_eq!(fixture.lines("devices.ndjson"), 1);
}

#[test]
fn events_are_counted_over_restarts() {
    let fixture = fixture(TrustLevel::FirstUse);
    let directory = fixture.directory;
    for _ in 0..100 {
        fixture.registry.record(Event::new(EventKind::SecondKey, "m-1"));
    }
    fixture.registry.record(Event::new(EventKind::Impersonation, "m-1"));
    let counts = EventCounts { impersonation: 1, second_key: 100, ..EventCounts::default() };
    assert_eq!(fixture.registry.event_counts(), counts);
    drop(fixture.registry);
    assert_eq!(open(directory.path(), TrustLevel::Shared).event_counts(), counts);
    let text = fs::read_to_string(directory.path().join("events.ndjson")).unwrap();
    assert_eq!(text.lines().count(), 22, "20 lines, the other kind, and one for the rest");
}

#[test]
fn thousand_devices_enroll_at_once() {
    let fixture = fixture(TrustLevel::FirstUse);
    std::thread::scope(|scope| {
        for thread in 0..20_u16 {
            let registry = &fixture.registry;
            scope.spawn(move || {
                for n in 0..50 {
                    let mut one = enrollment(thread * 50 + n);
                    one.machine = format!("m-{}", thread * 50 + n);
                    registry.enroll(&one, &Grant::all()).unwrap();
                }
            });
        }
    });
    assert_eq!(open(fixture.directory.path(), TrustLevel::Shared).devices().len(), 1000);
}

/// A clock that a test sets.
#[derive(Debug)]
struct SetClock(Mutex<SystemTime>);

impl Clock for SetClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// The token is on the disk of the laptop that was lost. Its finder deleted the key, and had another one
/// confirmed at once.
#[test]
fn token_from_before_a_revocation_confirms_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(SetClock(Mutex::new(SystemTime::UNIX_EPOCH)));
    let options = || RegistryOptions::new(TrustLevel::Enrolled).with_clock(clock.clone());
    let registry = Registry::open(directory.path(), options()).unwrap();
    registry.create_receiver_key(NAME, [200; 32]).unwrap();
    let fixture = Fixture { directory, registry };
    let registry = &fixture.registry;
    let machine = Some("m-1".to_owned());
    let new = NewToken { scopes: [Scope::Enroll].into(), machine, ..NewToken::default() };
    let (earlier, single_use) = (fixture.token(1, new.clone()), fixture.single_use(2));
    let enroll = |registry: &Registry, seed, user: &str, grant: &Grant| {
        let enroll = Enroll { user: user.into(), ..enrollment(seed) };
        registry.enroll(&enroll, grant).unwrap().device.state
    };
    let revoke = |seed| registry.revoke(&DeviceKey::from(device(seed).key())).unwrap();
    // Anyone with the token of the fleet can have enrolled this one.
    enroll(registry, 1, "u", &Grant::all());
    revoke(1);
    assert_eq!(enroll(registry, 2, "u", &earlier), DeviceState::Confirmed);
    revoke(2);
    assert_eq!(enroll(registry, 3, "u", &earlier), DeviceState::Pending);
    assert_eq!(enroll(registry, 3, "u", &earlier), DeviceState::Pending, "the same key again");
    assert_eq!(enroll(registry, 4, "v", &earlier), DeviceState::Pending, "another user");
    assert_eq!(enroll(registry, 5, "u", &single_use), DeviceState::Pending);
    *clock.0.lock().unwrap() += Duration::from_secs(1);
    let later = fixture.token(3, new);
    let reopened = Registry::open(fixture.directory.path(), options()).unwrap();
    assert_eq!(enroll(&reopened, 6, "u", &earlier), DeviceState::Pending);
    assert_eq!(enroll(&reopened, 3, "u", &later), DeviceState::Confirmed);
}

#[test]
fn token_expires_by_the_clock_of_the_registry() {
    let directory = tempfile::tempdir().unwrap();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let clock = Arc::new(SetClock(Mutex::new(start)));
    let options = RegistryOptions::new(TrustLevel::Shared).with_clock(clock.clone());
    let registry = Registry::open(directory.path(), options).unwrap();
    let text = TokenText::from_random(&[1; 32]);
    let expires = Some(start + Duration::from_secs(60));
    let new = NewToken { scopes: [Scope::Ingest].into(), expires, ..NewToken::default() };
    registry.add_token(new, &text).unwrap();
    assert!(registry.grant(text.reveal().as_bytes()).is_some());
    *clock.0.lock().unwrap() += Duration::from_secs(60);
    assert!(registry.grant(text.reveal().as_bytes()).is_none());
}

#[test]
fn no_file_has_the_text_of_a_token() {
    let fixture = fixture(TrustLevel::FirstUse);
    let grant = fixture.single_use(1);
    fixture.registry.enroll(&enrollment(1), &grant).unwrap();
    fixture.registry.record(Event::new(EventKind::Clone, "m-1"));
    let text = TokenText::from_random(&[1; 32]);
    for name in ["devices.ndjson", "tokens.ndjson", "events.ndjson"] {
        let content = fs::read_to_string(fixture.directory.path().join(name)).unwrap();
        assert!(!content.contains(&text.reveal()[5..]), "{name}");
    }
    let shown = format!("{:?}", fixture.registry);
    assert!(!shown.contains("PRIVATE"), "{shown}");
}

/// Anyone with the secrets of the fleet can make up machines that refuse a configuration.
#[test]
fn made_up_devices_halt_no_rollout_beside_a_confirmed_one() {
    let fixture = fixture(TrustLevel::FirstUse);
    let registry = &fixture.registry;
    let (hash, rollout) = (Digest::of(b"new"), Rollout::new(100));
    registry.offer_config(&hash, None).unwrap();
    let identity = |machine: &str| Identity {
        machine_id: machine.into(),
        user: "u".into(),
        hostname: "laptop".into(),
        os: "linux".into(),
        arch: String::new(),
        agent_version: String::new(),
    };
    let refuse = |machine: &str| {
        let refusal = ConfigRefusal { hash: Some(hash), reason: "r".into() };
        registry.note_answers(&identity(machine), None, &[refusal]).unwrap();
    };
    let halts = || registry.halt_if_exceeded(hash, &rollout).unwrap().is_some();
    registry.enroll(&enrollment(1), &Grant::all()).unwrap();
    registry.confirm(&DeviceKey::from(device(1).key()), Confirmation::Operator).unwrap();
    registry.note_answers(&identity("m-1"), Some(hash), &[]).unwrap();
    ["x-1", "x-2", "x-3", "x-4"].into_iter().for_each(refuse);
    assert!(!halts());
    for (seed, machine) in [(2, "m-2"), (3, "m-3"), (4, "m-4")] {
        assert!(!halts());
        let enroll = Enroll { machine: machine.into(), ..enrollment(seed) };
        registry.enroll(&enroll, &Grant::all()).unwrap();
        registry.confirm(&DeviceKey::from(device(seed).key()), Confirmation::Operator).unwrap();
        refuse(machine);
    }
    assert!(halts());
}
