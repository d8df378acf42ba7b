use proptest::{collection::vec, prelude::*};

use super::*;

const LIMITS: QuotaLimits =
    QuotaLimits { machines_per_hour: 10, device_bytes_per_day: 1000, token_bytes_per_day: 5000 };
const START: Duration = Duration::from_secs(1);

fn quotas(limits: QuotaLimits) -> Quotas {
    let mut quotas = Quotas::new(limits);
    quotas.learn([]);
    quotas
}

fn batch(token: u64, machine: u64, bytes: u64) -> SentBatch {
    SentBatch { token, device: machine, machine, bytes }
}

#[test]
fn fleet_of_20000_behind_one_token_starts_at_once() {
    let mut quotas = quotas(QuotaLimits::default());
    for machine in 0..20_000 {
        quotas.admit(batch(1, machine, 64 << 20), START).unwrap();
    }
}

#[test]
fn machines_of_the_store_are_not_new() {
    let mut quotas = Quotas::new(LIMITS);
    assert!(quotas.needs_machines());
    for machine in 0..50 {
        quotas.admit(batch(1, machine, 1), START).unwrap();
    }
    quotas.learn(50..100);
    assert!(!quotas.needs_machines());
    for machine in 0..110 {
        quotas.admit(batch(1, machine, 1), START).unwrap();
    }
    let refused = quotas.admit(batch(1, 110, 1), START).unwrap_err();
    assert_eq!(refused.quota, QuotaKind::Machines);
    quotas.admit(batch(2, 110, 1), START).unwrap();
}

#[test]
fn refused_machines_return_one_by_one() {
    let mut quotas = quotas(QuotaLimits { machines_per_hour: 3600, ..LIMITS });
    for machine in 0..3600 {
        quotas.admit(batch(1, machine, 0), START).unwrap();
    }
    let waits: Vec<_> = (3600..3700)
        .map(|machine| quotas.admit(batch(1, machine, 0), START).unwrap_err().retry_after.as_secs())
        .collect();
    // One second is the time in which one more may begin.
    assert!(waits.windows(2).all(|pair| pair[1] == pair[0] + 1), "{waits:?}");
    for (machine, wait) in (3600..).zip(waits) {
        quotas.admit(batch(1, machine, 0), START + Duration::from_secs(wait)).unwrap();
    }
}

#[test]
fn batch_larger_than_the_quota_is_admitted_once() {
    let mut quotas = quotas(LIMITS);
    quotas.admit(batch(1, 1, 3000), START).unwrap();
    let refused = quotas.admit(batch(1, 1, 1), START).unwrap_err();
    assert_eq!(refused.quota, QuotaKind::DeviceBytes);
    // Two days refill what is missing, and agents ask once an hour.
    assert_eq!(refused.retry_after, HOUR);
    quotas.admit(batch(1, 1, 1), START + 2 * DAY + Duration::from_secs(1)).unwrap();
}

#[test]
fn bytes_of_all_devices_count_for_the_token() {
    let mut quotas = quotas(LIMITS);
    for machine in 0..6 {
        quotas.admit(batch(1, machine, 900), START).unwrap();
    }
    let refused = quotas.admit(batch(1, 7, 1), START).unwrap_err();
    assert_eq!(refused.quota, QuotaKind::TokenBytes);
    quotas.admit(batch(2, 7, 1), START).unwrap();
}

#[test]
fn batch_that_could_not_be_stored_does_not_count() {
    let mut quotas = quotas(LIMITS);
    for _ in 0..100 {
        let counted = quotas.admit(batch(1, 1, 1000), START).unwrap();
        quotas.refund(counted);
    }
}

#[test]
fn new_machine_of_a_batch_that_was_not_stored_does_not_count() {
    let mut quotas = quotas(LIMITS);
    for machine in 0..100 {
        let counted = quotas.admit(batch(1, machine, 1), START).unwrap();
        quotas.refund(counted);
    }
    quotas.admit(batch(1, 100, 1), START).unwrap();
    let counted = quotas.admit(batch(1, 100, 1), START).unwrap();
    quotas.refund(counted);
    assert!(quotas.known.contains(&100), "a batch before is stored");
    assert!(!quotas.known.contains(&0), "none is stored");
}

#[test]
fn senders_with_full_buckets_are_forgotten() {
    let mut quotas = quotas(QuotaLimits { machines_per_hour: 0, ..LIMITS });
    for n in 0..100_000 {
        let now = START + Duration::from_secs(n * 100);
        quotas.admit(batch(1, n, 1), now).unwrap();
    }
    assert!(quotas.devices.len() < 100, "{}", quotas.devices.len());
}

proptest! {
    /// In any hour at most twice the quota of new machines begins: a full bucket, and what is refilled.
    /// The same holds for the bytes of a day, and the last batch of a sender.
    #[test]
    fn admitted_amounts_are_bounded(
        sent in vec((0_u64..3, 0_u64..100, 0_u64..600, 0_u64..1200), 1..400)
    ) {
        let mut quotas = quotas(LIMITS);
        let (mut now, mut seen) = (START, HashSet::new());
        let (mut begun, mut of_devices) = (Vec::new(), HashMap::<u64, Vec<(Duration, u64)>>::new());
        for (token, machine, bytes, wait) in sent {
            now += Duration::from_secs(wait);
            let was_known = quotas.known.contains(&machine);
            match quotas.admit(batch(token, machine, bytes), now) {
                Ok(_) => {
                    if seen.insert(machine) {
                        begun.push((now, token));
                    }
                    of_devices.entry(machine).or_default().push((now, bytes));
                }
                Err(QuotaExceeded { quota, retry_after }) => {
                    prop_assert!(retry_after >= Duration::from_secs(1) && retry_after <= HOUR);
                    prop_assert!(quota != QuotaKind::Machines || !was_known);
                }
            }
        }
        for (end, token) in &begun {
            let in_hour = begun.iter().filter(|(at, of)| of == token && at <= end && *at + HOUR > *end);
            prop_assert!(in_hour.count() as u64 <= 2 * LIMITS.machines_per_hour + 1);
        }
        for sent in of_devices.values() {
            for (end, _) in sent {
                let in_day = sent.iter().filter(|(at, _)| at <= end && *at + DAY > *end);
                let bytes: u64 = in_day.map(|(_, bytes)| bytes).sum();
                prop_assert!(bytes <= 2 * LIMITS.device_bytes_per_day + 600);
            }
        }
    }

    /// A sender that waits for its `Retry-After` is admitted, if no other uses its token meanwhile.
    #[test]
    fn sender_that_waits_is_admitted(sent in vec((0_u64..40, 0_u64..600), 1..100)) {
        let mut quotas = quotas(LIMITS);
        let mut now = START;
        for (machine, bytes) in sent {
            let mut attempts = 0;
            while let Err(refused) = quotas.admit(batch(1, machine, bytes), now) {
                now += refused.retry_after;
                attempts += 1;
                prop_assert!(attempts < 100);
            }
        }
    }
}
