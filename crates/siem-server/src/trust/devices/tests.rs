use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use siem_protocol::note::{NoteSigner as _, SigningKey, VerifierKey};

use super::*;

fn verifier(seed: u8) -> VerifierKey {
    SigningKey::from_seed(DEVICE_KEY_NAME, [seed; 32]).unwrap().key().clone()
}

fn key(seed: u8) -> DeviceKey {
    DeviceKey::from(&verifier(seed))
}

fn enrollment(seed: u8, previous: Option<u8>) -> Enroll {
    Enroll {
        receiver: "siem".into(),
        machine: "m-1".into(),
        user: "u".into(),
        host: "laptop".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        version: "0.2.0".into(),
        key: verifier(seed),
        previous: previous.map(verifier),
    }
}

fn moment() -> Moment {
    Moment { at: "t".into(), hour_ago: "t".into(), may_evict: true }
}

impl Devices {
    /// Enrolls, applies the line, and reports whether the enrollment forked a lineage.
    fn present(&mut self, enroll: &Enroll, confirms: bool) -> Result<bool, EnrollRefusal> {
        let made_at = confirms.then_some("t");
        let decision = self.enroll(enroll, made_at, &moment(), &|_| false)?;
        if let Some(line) = decision.line {
            self.apply(line);
        }
        Ok(decision.forked)
    }

    fn state_of(&self, seed: u8) -> DeviceState {
        self.view(&key(seed), TrustLevel::FirstUse).unwrap().state
    }
}

#[test]
fn first_key_is_unconfirmed_and_pending_at_level_enrolled() {
    let mut devices = Devices::default();
    assert_eq!(devices.present(&enrollment(1, None), false), Ok(false));
    let state = |level| devices.view(&key(1), level).unwrap().state;
    assert_eq!(state(TrustLevel::Shared), DeviceState::Unconfirmed);
    assert_eq!(state(TrustLevel::FirstUse), DeviceState::Unconfirmed);
    assert_eq!(state(TrustLevel::Enrolled), DeviceState::Pending);
    assert!(devices.knows("m-1", "u") && !devices.confirmed_for("m-1", "u"));
}

#[test]
fn same_key_again_changes_nothing() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), false).unwrap();
    let mut again = enrollment(1, None);
    again.host = "renamed".into();
    assert_eq!(devices.enroll(&again, None, &moment(), &|_| false).unwrap().line, None);
}

#[test]
fn devices_are_listed_in_the_order_of_their_keys() {
    let mut devices = Devices::default();
    for seed in 1..=9 {
        devices.present(&enrollment(seed, None), false).unwrap();
    }
    let listed: Vec<_> = devices.views(TrustLevel::Shared).iter().map(|it| it.key).collect();
    let mut expected: Vec<_> = (1..=9).map(key).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

#[test]
fn confirming_token_confirms_new_and_known_keys() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), true).unwrap();
    devices.present(&enrollment(2, None), false).unwrap();
    assert_eq!(devices.state_of(2), DeviceState::Unconfirmed);
    devices.present(&enrollment(2, None), true).unwrap();
    for seed in [1, 2] {
        let view = devices.view(&key(seed), TrustLevel::Enrolled).unwrap();
        assert_eq!(view.state, DeviceState::Confirmed);
        assert_eq!(view.confirmed_by, Some(Confirmation::Token));
    }
}

#[test]
fn confirmation_is_of_one_machine_and_user() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), true).unwrap();
    assert!(devices.confirmed_for("m-1", "u"));
    assert!(!devices.confirmed_for("m-1", "other") && !devices.confirmed_for("m-2", "u"));
}

#[test]
fn rotated_key_continues_lineage_and_confirmation() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), true).unwrap();
    assert_eq!(devices.present(&enrollment(2, Some(1)), false), Ok(false));
    assert_eq!(devices.present(&enrollment(3, Some(2)), false), Ok(false));
    let view = devices.view(&key(3), TrustLevel::Enrolled).unwrap();
    assert_eq!(view.state, DeviceState::Confirmed);
    assert_eq!((view.previous, view.root), (Some(key(2)), key(1)));
    assert_eq!(devices.view(&key(1), TrustLevel::Enrolled).unwrap().next, Some(key(2)));
    assert!(devices.same_lineage(&key(1), &key(3)) && devices.same_lineage(&key(3), &key(2)));
    devices.present(&enrollment(4, None), true).unwrap();
    assert!(!devices.same_lineage(&key(1), &key(4)));
    assert!(!devices.same_lineage(&key(8), &key(9)) && devices.same_lineage(&key(9), &key(9)));
}

#[test]
fn rotated_unconfirmed_key_stays_unconfirmed() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), false).unwrap();
    devices.present(&enrollment(2, Some(1)), false).unwrap();
    assert_eq!(devices.state_of(2), DeviceState::Unconfirmed);
    assert!(devices.same_lineage(&key(1), &key(2)));
}

#[test]
fn key_of_another_machine_or_user_is_not_continued() {
    for (machine, user) in [("m-2", "u"), ("m-1", "v")] {
        let mut devices = Devices::default();
        devices.present(&enrollment(1, None), true).unwrap();
        let mut other = enrollment(2, Some(1));
        (other.machine, other.user) = (machine.into(), user.into());
        devices.present(&other, false).unwrap();
        assert_eq!(devices.state_of(2), DeviceState::Unconfirmed);
        assert!(!devices.same_lineage(&key(1), &key(2)));
    }
}

#[test]
fn second_successor_forks_and_does_not_continue() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), true).unwrap();
    devices.present(&enrollment(2, Some(1)), false).unwrap();
    assert_eq!(devices.present(&enrollment(3, Some(1)), false), Ok(true));
    assert_eq!(devices.state_of(3), DeviceState::Unconfirmed);
    assert!(!devices.same_lineage(&key(1), &key(3)));
}

#[test]
fn cloned_key_is_not_continued() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), true).unwrap();
    let instances = ["a".to_owned(), "b".to_owned()];
    let line = DeviceLine::Clone { at: "t".into(), key: key(1), instances: Some(instances) };
    devices.apply(line);
    assert!(devices.is_cloned(&key(1)));
    assert_eq!(devices.present(&enrollment(2, Some(1)), false), Ok(true));
    assert_eq!(devices.state_of(2), DeviceState::Unconfirmed);
}

#[test]
fn copy_of_a_replaced_key_marks_the_whole_lineage() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), true).unwrap();
    devices.present(&enrollment(2, Some(1)), false).unwrap();
    devices.apply(DeviceLine::Clone { at: "t".into(), key: key(1), instances: None });
    let standing = devices.standing(&key(2), ("m-1", "u"), TrustLevel::FirstUse).unwrap();
    assert!(standing.cloned && standing.state == DeviceState::Confirmed);
    assert!(devices.is_copied(&key(1)) && !devices.is_cloned(&key(1)), "its batches are answered");
}

#[test]
fn revocation_is_final_for_the_whole_lineage() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), true).unwrap();
    devices.present(&enrollment(2, Some(1)), false).unwrap();
    let line = devices.decide_revoke(&key(1), "t".into()).unwrap().unwrap();
    devices.apply(line);
    assert_eq!(devices.state_of(1), DeviceState::Revoked);
    assert_eq!(devices.state_of(2), DeviceState::Revoked);
    assert_eq!(devices.decide_revoke(&key(2), "t".into()), Ok(None));
    let approved = devices.decide_confirm(&key(2), Confirmation::Operator, "t".into());
    assert_eq!(approved, Err(DeviceError::Revoked));
    devices.present(&enrollment(2, None), true).unwrap();
    assert_eq!(devices.state_of(2), DeviceState::Revoked);
    assert_eq!(devices.present(&enrollment(3, Some(2)), true), Err(EnrollRefusal::Revoked));
    assert!(devices.confirmed_for("m-1", "u"), "a stolen laptop does not end the ratchet");
}

#[test]
fn unknown_key_cannot_be_changed() {
    let devices = Devices::default();
    let confirmed = devices.decide_confirm(&key(1), Confirmation::Operator, "t".into());
    assert_eq!(confirmed, Err(DeviceError::Unknown));
    assert_eq!(devices.decide_revoke(&key(1), "t".into()), Err(DeviceError::Unknown));
}

#[test]
fn key_of_another_machine_is_refused() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), false).unwrap();
    let mut other = enrollment(1, None);
    other.machine = "m-2".into();
    assert_eq!(devices.present(&other, true), Err(EnrollRefusal::OtherDevice));
}

/// Someone with an ingest token can enroll any number of keys for a machine and user.
#[test]
fn flood_of_keys_leaves_room_for_the_machine() {
    let mut devices = Devices::default();
    let count = UNCONFIRMED_OF_PAIR as u8;
    for seed in 1..=count {
        devices.present(&enrollment(seed, None), false).unwrap();
    }
    let next = enrollment(count + 1, None);
    let full = Moment { may_evict: false, ..moment() };
    let refused = devices.enroll(&next, None, &full, &|_| false).unwrap_err();
    assert_eq!(refused, EnrollRefusal::TooMany);
    let owns = |of: u8| move |it: &DeviceKey| (1..=of).any(|seed| *it == key(seed));
    let evicted = |devices: &Devices, of: u8| match devices
        .enroll(&next, None, &moment(), &owns(of))
        .unwrap()
        .line
    {
        Some(DeviceLine::Enroll(enrolled)) => enrolled.evicts,
        other => panic!("{other:?}"),
    };
    assert_eq!(evicted(&devices, 0), Some(key(1)));
    assert_eq!(evicted(&devices, 3), Some(key(4)), "the oldest that owns no epoch");
    assert_eq!(evicted(&devices, count), Some(key(1)), "each owns one");
    devices.present(&next, false).unwrap();
    assert_eq!(devices.view(&key(1), TrustLevel::Shared), None);
    assert_eq!(devices.by_key_id(verifier(1).id(), TrustLevel::Shared), []);
    check(&devices);
    // An evicted key is enrolled again, and a confirmed one is never evicted.
    devices.present(&enrollment(2, None), true).unwrap();
    devices.present(&enrollment(1, None), false).unwrap();
    devices.present(&enrollment(count + 2, None), false).unwrap();
    assert_eq!(devices.state_of(2), DeviceState::Confirmed);
    assert_eq!(devices.view(&key(3), TrustLevel::Shared), None);
    devices.present(&enrollment(count + 3, None), true).unwrap();
    assert_eq!(devices.state_of(count + 3), DeviceState::Confirmed);
    check(&devices);
}

/// Rotations of a confirmed key are exempt from the number of keys.
#[test]
fn lineage_gets_few_keys_in_an_hour() {
    let mut devices = Devices::default();
    let mut enroll = |seed, previous, now: u64| {
        let text = |seconds: u64| crate::clock::text(UNIX_EPOCH + Duration::from_secs(seconds));
        let moment = Moment { at: text(now), hour_ago: text(now - 3600), may_evict: true };
        let decision =
            devices.enroll(&enrollment(seed, previous), Some("t"), &moment, &|_| false)?;
        decision.line.into_iter().for_each(|line| devices.apply(line));
        Ok(())
    };
    assert_eq!(enroll(1, None, 10_000), Ok(()));
    for seed in 2..=4 {
        assert_eq!(enroll(seed, Some(seed - 1), 10_000), Ok(()));
    }
    assert_eq!(enroll(5, Some(4), 13_599), Err(EnrollRefusal::TooOften));
    assert_eq!(enroll(6, None, 13_599), Ok(()), "another lineage");
    // A clock that was set back does not stop rotations.
    assert_eq!(enroll(5, Some(4), 9_000), Ok(()));
    assert_eq!(enroll(7, Some(5), 13_600), Ok(()));
}

#[test]
fn empty_machine_is_refused() {
    let empty = Enroll { machine: String::new(), ..enrollment(1, None) };
    let refused = Devices::default().present(&empty, true);
    assert_eq!(refused, Err(EnrollRefusal::Empty("machine")));
}

#[test]
fn long_claims_are_refused() {
    let edits: [fn(&mut Enroll) -> &mut String; 6] = [
        |it| &mut it.machine,
        |it| &mut it.user,
        |it| &mut it.host,
        |it| &mut it.os,
        |it| &mut it.arch,
        |it| &mut it.version,
    ];
    for edit in edits {
        let mut long = enrollment(1, None);
        *edit(&mut long) = "x".repeat(MAX_NAME);
        assert_eq!(Devices::default().present(&long, true), Ok(false));
        edit(&mut long).push('x');
        let refused = Devices::default().present(&long, true);
        assert!(matches!(refused, Err(EnrollRefusal::TooLong(_))), "{refused:?}");
    }
}

#[test]
fn keys_are_found_by_the_id_in_a_signature_line() {
    let mut devices = Devices::default();
    devices.present(&enrollment(1, None), false).unwrap();
    devices.present(&enrollment(2, None), false).unwrap();
    let found = devices.by_key_id(verifier(2).id(), TrustLevel::Shared);
    assert_eq!(found.iter().map(|device| device.key).collect::<Vec<_>>(), [key(2)]);
    assert_eq!(devices.by_key_id([0; 4], TrustLevel::Shared), []);
}

#[test]
fn shared_batches_are_allowed_and_forbidden_again() {
    let mut devices = Devices::default();
    for allowed in [true, false] {
        let machine = "m-1".to_owned();
        devices.apply(DeviceLine::AllowShared { at: "t".into(), machine, allowed });
        assert_eq!(devices.is_shared_allowed("m-1"), allowed);
    }
}

#[test]
fn device_key_text_is_checked() {
    assert_eq!(key(1).to_string().parse(), Ok(key(1)));
    for wrong in ["", "ab", "zz", &"a".repeat(63), &"a".repeat(66)] {
        assert_eq!(wrong.parse::<DeviceKey>(), Err(InvalidDeviceKey), "{wrong}");
    }
}

/// A line about one of six keys, some of which name each other as previous.
fn any_line() -> impl Strategy<Value = DeviceLine> {
    let seed = 1..7_u8;
    let at = || "t".to_owned();
    prop_oneof![
        (seed.clone(), proptest::option::of(seed.clone()), any::<bool>(), any::<bool>()).prop_map(
            move |(one, previous, other_user, confirms)| {
                let by = confirms.then_some(Confirmation::Token);
                let mut enrolled = Enrolled::new(&enrollment(one, previous), by, at());
                if other_user {
                    enrolled.user = "v".into();
                }
                DeviceLine::Enroll(enrolled)
            }
        ),
        seed.clone().prop_map(move |one| DeviceLine::Confirm {
            at: at(),
            key: key(one),
            by: Confirmation::Continuity,
        }),
        seed.clone().prop_map(move |one| DeviceLine::Revoke { at: at(), key: key(one) }),
        seed.prop_map(move |one| DeviceLine::Clone {
            at: at(),
            key: key(one),
            instances: (one % 2 == 0).then(|| ["a".into(), "b".into()]),
        }),
    ]
}

/// A line of a file with many unconfirmed keys, which can replace each other, at time `n`.
fn line_with_evictions(n: usize, line: DeviceLine, evicts: Option<u8>) -> DeviceLine {
    match line {
        DeviceLine::Enroll(enrolled) => DeviceLine::Enroll(Enrolled {
            at: format!("t{n}"),
            evicts: evicts.map(key),
            ..enrolled
        }),
        line => line,
    }
}

/// What the state says about all keys, and the order in which they are forgotten.
fn essence(devices: &Devices) -> (Vec<DeviceView>, Vec<DeviceKey>, Devices) {
    let mut order: Vec<_> = devices.devices.keys().copied().collect();
    order.sort_by_key(|key| devices.devices[key].order);
    let mut rest = devices.clone();
    (rest.enrolled, rest.forgotten) = (0, 0);
    for device in rest.devices.values_mut() {
        (device.order, device.enrolled.evicts) = (0, None);
    }
    (devices.views(TrustLevel::Enrolled), order, rest)
}

/// Checks what must hold after any lines.
fn check(devices: &Devices) {
    let views = devices.views(TrustLevel::FirstUse);
    let of = |key: DeviceKey| views.iter().find(|view| view.key == key).unwrap();
    let unconfirmed = views.iter().filter(|view| view.state == DeviceState::Unconfirmed).count();
    assert_eq!(devices.unconfirmed, unconfirmed);
    for view in &views {
        let confirmed = devices.confirmed_for(&view.machine, &view.user);
        assert!(confirmed || view.confirmed_by.is_none());
        assert!(devices.same_lineage(&view.key, &view.root));
        match view.previous {
            Some(previous) => {
                let before = of(previous);
                assert_eq!((before.next, before.root), (Some(view.key), view.root));
                assert_eq!((&before.machine, &before.user), (&view.machine, &view.user));
            }
            None => assert_eq!(view.root, view.key),
        }
    }
}

proptest! {
    #[test]
    fn any_lines_leave_a_consistent_state(lines in proptest::collection::vec(any_line(), 0..40)) {
        let mut devices = Devices::default();
        for line in lines {
            let before = devices.views(TrustLevel::FirstUse);
            devices.apply(line.clone());
            check(&devices);
            for earlier in before {
                let now = devices.view(&earlier.key, TrustLevel::FirstUse).unwrap();
                // Nothing that was decided is undone.
                prop_assert!(earlier.state != DeviceState::Revoked || now.state == DeviceState::Revoked);
                prop_assert!(earlier.confirmed_by.is_none() || now.confirmed_by == earlier.confirmed_by);
                prop_assert_eq!((earlier.root, earlier.previous), (now.root, now.previous));
            }
            let once = devices.clone();
            devices.apply(line);
            prop_assert_eq!(&devices, &once, "a line that is there twice counts once");
        }
    }

    #[test]
    fn compacted_lines_give_the_same_state(
        lines in proptest::collection::vec((any_line(), proptest::option::of(1_u8..12)), 0..60),
    ) {
        let (mut devices, mut file) = (Devices::default(), Vec::new());
        for (n, (line, evicts)) in lines.into_iter().enumerate() {
            let line = line_with_evictions(n, line, evicts);
            devices.apply(line.clone());
            file.push(line);
            let rest: Vec<_> = file.iter().filter_map(|it| devices.remainder(it.clone())).collect();
            prop_assert!(rest.len() as u64 + devices.superfluous() <= file.len() as u64);
            let mut again = Devices::default();
            rest.iter().for_each(|line| again.apply(line.clone()));
            prop_assert_eq!(essence(&again), essence(&devices));
            prop_assert_eq!(again.superfluous(), 0);
            // Compacted now and then.
            if n % 7 == 6 {
                (devices, file) = (again, rest);
            }
        }
    }

    #[test]
    fn line_is_the_same_after_a_round_trip(line in any_line()) {
        let text = serde_json::to_string(&line).unwrap();
        prop_assert_eq!(serde_json::from_str::<DeviceLine>(&text).unwrap(), line);
    }
}
