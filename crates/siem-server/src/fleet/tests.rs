use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::UNIX_EPOCH,
};

use proptest::prelude::*;
use siem_protocol::{
    Identity,
    agent_event::{ConfigOrigin, Transport, TrustState, UpdateReason, UpdateState},
    statement::DeviceState,
};

use super::{figures::count_version, *};
use crate::{clock, trust::DeviceKey};

/// An epoch of the simulated fleet; times are minutes.
#[derive(Clone, Debug)]
struct Epoch {
    user: u8,
    device: Option<(u8, bool)>,
    first_host: u8,
    host: u8,
    began: u64,
    grew: u64,
    entries: u64,
    missing: u64,
    heartbeat: Option<Heartbeat>,
}

impl Epoch {
    fn of(host: u8, began: u64, grew: u64) -> Self {
        Self {
            user: 0,
            device: None,
            first_host: host,
            host,
            began,
            grew,
            entries: 1,
            missing: 0,
            heartbeat: None,
        }
    }

    fn device(self, key: u8, confirmed: bool) -> Self {
        Self { device: Some((key, confirmed)), ..self }
    }
}

fn minute(minutes: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(minutes * 60)
}

/// Epochs by machine.
type Fleet = BTreeMap<String, Vec<Epoch>>;

fn fleet(epochs: impl IntoIterator<Item = Epoch>) -> Fleet {
    BTreeMap::from([("m".to_owned(), epochs.into_iter().collect())])
}

/// Response to a query.
struct Found {
    totals: FleetTotals,
    matching: FleetTotals,
    rows: Vec<FleetRow>,
    next: Option<Cursor>,
    cursors: Vec<Cursor>,
}

fn page(fleet: &Fleet, query: &StatsQuery) -> Found {
    let names: Vec<Vec<_>> = fleet
        .iter()
        .map(|(machine, epochs)| {
            let names = epochs.iter().enumerate().map(|(at, epoch)| {
                let identity = Arc::new(Identity {
                    machine_id: machine.clone(),
                    hostname: format!("h{}", epoch.host),
                    user: format!("u{}", epoch.user),
                    os: String::new(),
                    arch: String::new(),
                    agent_version: String::new(),
                });
                let times = [epoch.began, epoch.grew].map(|time| clock::text(minute(time)));
                (format!("e{at:03}"), identity, format!("h{}", epoch.first_host), times)
            });
            names.collect()
        })
        .collect();
    let of_machine = names.iter().zip(fleet.values());
    let of_machine: Vec<_> = of_machine.map(|(names, epochs)| facts(names, epochs)).collect();
    let machines = || fleet.keys().map(String::as_str).zip(of_machine.iter().cloned());
    let figures = FleetFigures::new(query.thresholds, machines());
    let FleetSums { totals, matching, .. } = figures.sums(query);
    let mut page = PageBuilder::new(query);
    for (machine, facts) in machines() {
        page.add(machine, &facts, |_| None);
    }
    let Page { rows, next, cursors } = page.finish();
    Found { totals, matching, rows, next, cursors }
}

/// Id, sender, first host, and times of the first and the last batch of an epoch.
type EpochNames = (String, Arc<Identity>, String, [String; 2]);

fn facts<'a>(names: &'a [EpochNames], epochs: &'a [Epoch]) -> Vec<EpochFacts<'a>> {
    let facts = names.iter().zip(epochs);
    let facts = facts.map(|((id, identity, first_host, [began, grew]), epoch)| EpochFacts {
        id,
        identity,
        first_host,
        first_seen: began,
        last_seen: grew,
        grew_at: grew,
        began: (0, began),
        device: epoch.device.map(|(key, confirmed)| DeviceFacts {
            key: DeviceKey::from_bytes([key; 32]),
            root: DeviceKey::from_bytes([key; 32]),
            state: match confirmed {
                true => DeviceState::Confirmed,
                false => DeviceState::Unconfirmed,
            },
            cloned: false,
        }),
        entries: epoch.entries,
        bytes: epoch.entries * 10,
        missing: epoch.missing,
        holes: 0,
        breaks: 0,
        unexplained: false,
        cloned: false,
        heartbeat: epoch.heartbeat.as_ref(),
    });
    facts.collect()
}

fn all(fleet: &Fleet, minutes: u64) -> Vec<FleetRow> {
    page(fleet, &StatsQuery::all(minute(minutes))).rows
}

fn summary(rows: &[FleetRow]) -> Vec<(&str, &str, Vec<&str>)> {
    let problems = |row: &FleetRow| row.problems.iter().map(|it| it.as_str()).collect();
    rows.iter().map(|row| (row.host.as_str(), row.epoch.as_str(), problems(row))).collect()
}

#[test]
fn later_epochs_of_a_host_are_one_row_with_the_last_as_current() {
    let rows = all(&fleet([Epoch::of(0, 0, 5), Epoch::of(0, 10, 15)]), 16);
    assert_eq!(summary(&rows), [("h0", "e001", vec![])]);
    assert_eq!((rows[0].epochs, rows[0].entries), (2, 2));
    assert_eq!(rows[0].first_seen, clock::text(UNIX_EPOCH));
}

#[test]
fn two_hosts_with_one_machine_id_are_two_marked_rows() {
    let shared = || vec!["shared_machine_id"];
    let rows = all(&fleet([Epoch::of(0, 0, 10), Epoch::of(1, 5, 12)]), 12);
    assert_eq!(summary(&rows), [("h0", "e000", shared()), ("h1", "e001", shared())]);
    assert!(rows.iter().all(|row| row.shared_machine_id && !row.replaced));
    // The copy continues the first epoch, and the original starts another one.
    let copied = Epoch { first_host: 0, ..Epoch::of(1, 0, 14) };
    let rows = all(&fleet([copied, Epoch::of(0, 10, 15)]), 15);
    assert_eq!(summary(&rows), [("h1", "e000", shared()), ("h0", "e001", shared())]);
}

#[test]
fn renamed_host_stays_one_row() {
    let renamed = Epoch { first_host: 0, ..Epoch::of(1, 8, 15) };
    let rows = all(&fleet([Epoch::of(0, 0, 5), renamed]), 15);
    assert_eq!(summary(&rows), [("h1", "e001", vec![])]);
}

#[test]
fn users_and_devices_of_a_machine_are_rows_of_their_own() {
    let other = Epoch { user: 1, ..Epoch::of(0, 0, 10) };
    let device = |key| Epoch::of(0, 0, 10).device(key, true);
    let rows = all(&fleet([device(2), device(1), other]), 10);
    let devices: Vec<_> = rows.iter().map(|row| (&row.user[..], row.device.as_deref())).collect();
    let (first, second) = ("0101010101010101", "0202020202020202");
    assert_eq!(devices, [("u0", Some(first)), ("u0", Some(second)), ("u1", None)]);
    assert!(rows.iter().all(|row| !row.shared_machine_id));
}

#[test]
fn replaced_row_is_not_quiet_unless_the_new_key_is_unconfirmed() {
    let old = || Epoch::of(0, 0, 10).device(1, true);
    let rows = all(&fleet([old(), Epoch::of(0, 90, 100).device(2, true)]), 100);
    assert_eq!(summary(&rows), [("h0", "e000", vec![]), ("h0", "e001", vec![])]);
    assert!(rows[0].replaced && !rows[1].replaced);
    let rows = all(&fleet([old(), Epoch::of(0, 90, 100).device(2, false)]), 100);
    let expected = [("h0", "e000", vec!["quiet"]), ("h0", "e001", vec!["unconfirmed"])];
    assert_eq!(summary(&rows), expected);
}

fn beat(at: u64) -> Heartbeat {
    let at = clock::text(minute(at));
    Heartbeat { at: at.clone(), received_at: at, ..Heartbeat::default() }
}

fn updating(state: UpdateState) -> Heartbeat {
    let update = UpdateFigures { state: Some(state), ..UpdateFigures::default() };
    Heartbeat { update: Some(update), ..beat(10) }
}

fn rolled_back_by_hand() -> Heartbeat {
    let (state, reason) = (Some(UpdateState::RolledBack), Some(UpdateReason::ByHand));
    let update = UpdateFigures { state, reason, ..UpdateFigures::default() };
    Heartbeat { update: Some(update), ..beat(10) }
}

#[test]
fn versions_are_counted_within_a_limit() {
    let mut totals = FleetTotals::default();
    (0..150).for_each(|n| count_version(&mut totals, &format!("0.{}.0", n % 120), 1));
    let versions = totals.versions;
    assert_eq!(versions.values().sum::<u64>(), 150);
    assert_eq!((versions.len(), versions["0.7.0"], versions["other"]), (101, 2, 20));
}

#[test]
fn problems_follow_from_times_and_the_last_heartbeat() {
    let refusal =
        ConfigRefusal { from: ConfigOrigin::Server, reason: "invalid".into(), at: String::new() };
    let cases = [
        (beat(10), 25, vec![]),
        (beat(10), 26, vec!["quiet"]),
        (Heartbeat { lag_seconds: 900, ..beat(10) }, 10, vec![]),
        (Heartbeat { lag_seconds: 901, ..beat(10) }, 10, vec!["behind"]),
        (Heartbeat { backlog_bytes: 64 << 20, ..beat(10) }, 10, vec![]),
        (Heartbeat { backlog_bytes: 64 << 20, unread_bytes: 1, ..beat(10) }, 10, vec!["behind"]),
        (Heartbeat { dead_lettered: 1, ..beat(10) }, 10, vec!["dead_letter"]),
        (Heartbeat { refused: Some(refusal), ..beat(10) }, 10, vec!["refused"]),
        (Heartbeat { unreadable: 1, ..beat(10) }, 10, vec!["unreadable"]),
        (Heartbeat { transport: Some(Transport::Plain), ..beat(10) }, 10, vec!["plain"]),
        (Heartbeat { transport: Some(Transport::Tls), ..beat(10) }, 10, vec![]),
        (
            Heartbeat { trust: Some(TrustState::ReceiptUntrusted), ..beat(10) },
            10,
            vec!["untrusted"],
        ),
        (updating(UpdateState::Failed), 10, vec!["update_failed"]),
        (updating(UpdateState::RolledBack), 10, vec!["update_failed"]),
        (updating(UpdateState::Unconfirmed), 10, vec![]),
        (rolled_back_by_hand(), 10, vec![]),
    ];
    for (heartbeat, now, expected) in cases {
        let shown = format!("{heartbeat:?}");
        let epoch = Epoch { heartbeat: Some(heartbeat), ..Epoch::of(0, 0, 10) };
        assert_eq!(summary(&all(&fleet([epoch]), now)), [("h0", "e000", expected)], "{shown}");
    }
    let gap = Epoch { missing: 2, ..Epoch::of(0, 0, 10) };
    assert_eq!(all(&fleet([gap]), 10)[0].problems, [FleetProblem::Gap]);
    let silent = Epoch { heartbeat: Some(beat(10)), ..Epoch::of(0, 0, 26) };
    assert_eq!(all(&fleet([silent]), 26)[0].problems, [FleetProblem::NoHeartbeat]);
    assert_eq!(all(&fleet([Epoch::of(0, 0, 15)]), 15)[0].problems, []);
    assert_eq!(all(&fleet([Epoch::of(0, 0, 16)]), 16)[0].problems, [FleetProblem::NoHeartbeat]);
}

#[test]
fn names_of_problems_are_those_of_the_wire() {
    for problem in FleetProblem::ALL {
        assert_eq!(serde_json::to_value(problem).unwrap(), problem.as_str());
        assert_eq!(problem.as_str().parse(), Ok(problem));
    }
}

fn figures(data: &str) -> Option<Heartbeat> {
    let text = HeartbeatText { seq: 7, at: Some(r#""2026-11-21T20:00:00.000Z""#), data };
    text.figures("2026-11-21T20:20:05.500Z", "2026-11-21T20:20:06.000Z")
}

#[test]
fn heartbeat_of_a_later_release_is_read_as_far_as_it_is_known() {
    let data = r#"{"epoch":"e","totals":7,"outbox_bytes":5,"unread_bytes":"many","unreadable":2,
        "dead_lettered":{"siem":{"entries":3,"bytes":9},"other":{"entries":4}},"transport":"carrier",
        "config":{"applied":{"revision":"r-1","at":""},"refused":{"from":"server","reason":"no","at":"t"}},
        "trust":{"receivers":[{"state":"confirmed","level":"enrolled"},{"state":"new"},
        {"state":"pending","level":"first-use"}]},
        "update":{"mode":"later","state":"rolled_back","version":"0.3.0","reason":"no_progress"}}"#;
    let found = figures(data).unwrap();
    let expected = Heartbeat {
        seq: 7,
        at: "2026-11-21T20:00:00.000Z".into(),
        received_at: "2026-11-21T20:20:06.000Z".into(),
        lag_seconds: 1205,
        revision: Some("r-1".into()),
        refused: Some(ConfigRefusal {
            from: ConfigOrigin::Server,
            reason: "no".into(),
            at: "t".into(),
        }),
        backlog_bytes: 5,
        unread_bytes: 0,
        unreadable: 2,
        dead_lettered: 7,
        transport: None,
        trust: Some(TrustState::Pending),
        trust_level: Some("first-use".into()),
        update: Some(UpdateFigures {
            state: Some(UpdateState::RolledBack),
            version: Some("0.3.0".into()),
            reason: Some(UpdateReason::NoProgress),
            ..UpdateFigures::default()
        }),
    };
    assert_eq!(found, expected);
    assert_eq!(figures("{}"), None);
    assert_eq!(figures("7"), None);
    let long =
        format!(r#"{{"epoch":"e","config":{{"applied":{{"revision":"{}"}}}}}}"#, "é".repeat(999));
    assert_eq!(figures(&long).unwrap().revision.unwrap().chars().count(), 200);
}

fn epochs() -> impl Strategy<Value = Epoch> {
    let device = prop::option::of((0..2_u8, any::<bool>()));
    let names = (0..2_u8, device, 0..3_u8, 0..3_u8);
    let figures = (0..50_u64, 0..50_u64, 0..1000_u64, 0..3_u64);
    (names, figures).prop_map(
        |((user, device, first_host, host), (began, length, entries, missing))| {
            let grew = began + length;
            Epoch { user, device, first_host, host, began, grew, entries, missing, heartbeat: None }
        },
    )
}

fn fleets() -> impl Strategy<Value = Fleet> {
    prop::collection::btree_map("[a-f]{1,2}", prop::collection::vec(epochs(), 1..6), 0..12)
}

/// What arrives while a client reads the pages.
#[derive(Clone, Debug)]
enum Arrival {
    /// New entries of an epoch, from a host.
    Grown {
        machine: prop::sample::Index,
        epoch: prop::sample::Index,
        host: u8,
    },
    /// A new epoch of a known machine.
    Epoch {
        machine: prop::sample::Index,
        epoch: Epoch,
    },
    Machine {
        name: String,
        epoch: Epoch,
    },
}

fn arrivals() -> impl Strategy<Value = Arrival> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), index(), 0..3_u8).prop_map(|(machine, epoch, host)| Arrival::Grown {
            machine,
            epoch,
            host
        }),
        (index(), epochs()).prop_map(|(machine, epoch)| Arrival::Epoch { machine, epoch }),
        ("[a-f]{3}", epochs()).prop_map(|(name, epoch)| Arrival::Machine { name, epoch }),
    ]
}

fn arrive(fleet: &mut Fleet, now: u64, arrival: Arrival) {
    let new = |epoch| Epoch { began: now, grew: now, ..epoch };
    match arrival {
        Arrival::Grown { machine, epoch, host } if !fleet.is_empty() => {
            let at = machine.index(fleet.len());
            let epochs = fleet.values_mut().nth(at).unwrap();
            let count = epochs.len();
            let epoch = &mut epochs[epoch.index(count)];
            (epoch.grew, epoch.host, epoch.entries) = (now, host, epoch.entries + 1);
        }
        Arrival::Epoch { machine, epoch } if !fleet.is_empty() => {
            let at = machine.index(fleet.len());
            fleet.values_mut().nth(at).unwrap().push(new(epoch));
        }
        Arrival::Grown { .. } | Arrival::Epoch { .. } => {}
        Arrival::Machine { name, epoch } => fleet.entry(name).or_default().push(new(epoch)),
    }
}

/// Positions of all rows.
fn positions(fleet: &Fleet) -> BTreeSet<String> {
    let page = page(fleet, &StatsQuery::all(minute(60)));
    page.cursors.iter().map(Cursor::to_string).collect()
}

proptest! {
    #[test]
    fn rows_conserve_the_totals(fleet in fleets()) {
        let page = page(&fleet, &StatsQuery::all(minute(60)));
        let epochs = || fleet.values().flatten();
        let totals = &page.totals;
        prop_assert_eq!(totals.machines, fleet.len() as u64);
        prop_assert_eq!(totals.rows, page.rows.len() as u64);
        let sum = |figure: fn(&FleetRow) -> u64| page.rows.iter().map(figure).sum::<u64>();
        prop_assert_eq!(totals.epochs, epochs().count() as u64);
        prop_assert_eq!(sum(|row| row.epochs), totals.epochs);
        prop_assert_eq!(totals.entries, epochs().map(|epoch| epoch.entries).sum::<u64>());
        prop_assert_eq!(sum(|row| row.entries), totals.entries);
        prop_assert_eq!(sum(|row| row.bytes), totals.bytes);
        prop_assert_eq!(sum(|row| row.missing), totals.missing);
        prop_assert_eq!(sum(|row| u64::from(row.problems.is_empty())), totals.healthy);
        for problem in FleetProblem::ALL {
            let rows = page.rows.iter().filter(|row| row.problems.contains(&problem)).count();
            prop_assert_eq!(totals.problems.get(&problem).copied().unwrap_or(0), rows as u64);
        }
    }

    #[test]
    fn filters_return_exactly_the_rows_that_meet_them(
        fleet in fleets(),
        machine in prop::option::of("[a-f]{1,2}"),
        user in prop::option::of(0..3_u8),
        problem in prop::option::of(prop::sample::select(FleetProblem::ALL.to_vec()))
    ) {
        let everything = page(&fleet, &StatsQuery::all(minute(60)));
        let user = user.map(|user| format!("u{user}"));
        let (wanted, of) = (machine.clone(), user.clone());
        let query = StatsQuery { machine, user, problem, ..StatsQuery::all(minute(60)) };
        let found = page(&fleet, &query);
        let expected = everything.rows.into_iter().filter(|row| {
            wanted.as_ref().is_none_or(|machine| row.machine == *machine)
                && of.as_ref().is_none_or(|user| row.user == *user)
                && problem.is_none_or(|problem| row.problems.contains(&problem))
        });
        prop_assert_eq!(&found.rows, &expected.collect::<Vec<_>>());
        prop_assert_eq!(found.matching, totals_of(found.rows.iter()));
        prop_assert_eq!(found.totals, everything.totals);
    }

    /// A row that exists while a client reads all pages is on exactly one of them.
    #[test]
    fn pages_show_each_row_once_while_entries_arrive(
        mut fleet in fleets(),
        limit in 1..4_usize,
        mut waiting in prop::collection::vec(prop::collection::vec(arrivals(), 0..4), 0..20)
    ) {
        let (mut seen, mut after) = (Vec::new(), None);
        let mut always = positions(&fleet);
        for now in 100.. {
            let query = StatsQuery { limit, after, ..StatsQuery::all(minute(60)) };
            let page = page(&fleet, &query);
            prop_assert!(page.rows.len() == limit || page.next.is_none());
            seen.extend(page.cursors.iter().map(Cursor::to_string));
            let Some(next) = page.next else { break };
            after = Some(next.to_string().parse().unwrap());
            for arrival in waiting.pop().unwrap_or_default() {
                arrive(&mut fleet, now, arrival);
            }
            let now = positions(&fleet);
            always.retain(|position| now.contains(position));
        }
        let once: BTreeSet<_> = seen.iter().cloned().collect();
        prop_assert_eq!(once.len(), seen.len(), "a row was shown twice");
        prop_assert!(once.is_superset(&always), "a row was not shown");
    }
}
