//! Statistics from scratch: in unit tests each response is compared with them.

use std::{cell::Cell, collections::HashMap};

use proptest::{collection::vec, option, prelude::*, sample::select};
use siem_protocol::{DeadLettered, statement::DeviceState};

use super::*;
use crate::{
    batch::{Claim, Counts},
    fleet::{FleetProblem, FleetRow, FleetThresholds, PageBuilder, StatsQuery, totals_of},
    ledger::{Break, BreakKind, Claimed, TallyChange},
    stats::{CloneKind, Stats},
    trust::{DeviceStanding, Standings, StandingsVersion},
};

impl Catalog {
    /// Returns the response to a query as it follows from the epochs alone.
    pub(super) fn counted_again(&self, query: &StatsQuery, standings: &Standings<'_>) -> Stats {
        let all = StatsQuery { thresholds: query.thresholds, ..StatsQuery::all(query.now) };
        let all = self.walk(&all, standings);
        let is = |wanted: &Option<String>, found: &String| wanted.iter().all(|it| it == found);
        let is_match = |row: &&FleetRow| {
            is(&query.machine, &row.machine)
                && is(&query.user, &row.user)
                && query.problem.is_none_or(|problem| row.problems.contains(&problem))
        };
        Stats {
            totals: totals_of(all.rows.iter()),
            matching: totals_of(all.rows.iter().filter(is_match)),
            ..self.walk(query, standings)
        }
    }

    /// Adds all machines to a page.
    fn walk(&self, query: &StatsQuery, standings: &Standings<'_>) -> Stats {
        let (mut page, mut machines, mut unexplained) = (PageBuilder::new(query), Vec::new(), 0);
        let epochs: MachineEpochs<'_> = self.all().collect();
        for epochs in epochs.chunk_by(|((a, _), _), ((b, _), _)| a == b) {
            let facts = self.facts(epochs, standings);
            unexplained += facts.iter().filter(|epoch| epoch.unexplained).count() as u64;
            let level = |at: usize| epochs[at].1.owner.as_ref().map(|owner| owner.level);
            let rows = page.add(&epochs[0].0.0, &facts, level);
            if !rows.is_empty() {
                machines.extend(self.machine_stats(epochs, &facts, &rows));
            }
        }
        let page = page.finish();
        let next = page.next.map(|next| next.to_string());
        Stats { unexplained, rows: page.rows, next, machines, ..Stats::default() }
    }
}

/// What happens between two requests.
#[derive(Clone, Debug)]
enum Step {
    /// A record is added to an epoch.
    Note(Key, Box<Note>),
    /// The state of a device changes; it is unknown without one.
    Device(u8, Option<(DeviceState, u8, bool)>),
    /// The server has other thresholds.
    Thresholds(u64),
    Ask(Box<StatsQuery>),
    /// The next page of the last request.
    Next,
}

fn minute(minutes: u64) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::from_secs(60 * minutes)
}

fn name(of: &'static str) -> impl Strategy<Value = String> {
    (0..3_u8).prop_map(move |number| format!("{of}{number}"))
}

fn time() -> impl Strategy<Value = String> {
    (0..60_u64).prop_map(|minutes| clock::text(minute(minutes)))
}

fn key_of(device: u8) -> DeviceKey {
    DeviceKey::from_bytes([device; 32])
}

prop_compose! {
    fn senders()(user in name("u"), hostname in name("h"), version in 0..200_u8) -> Identity {
        let agent_version = if version < 100 { "0.2.0".into() } else { format!("0.{version}.0") };
        Identity { user, hostname, agent_version, ..crate::testing::identity() }
    }
}

prop_compose! {
    fn devices()(key in 0..3_u8, confirmed in any::<bool>()) -> DeviceNote {
        DeviceNote {
            key: key_of(key),
            mark: if confirmed { Mark::Confirmed } else { Mark::Unconfirmed },
            level: TrustLevel::FirstUse,
            instance: None,
            adopted_at: None,
            confirms: false,
            seal: None,
        }
    }
}

prop_compose! {
    fn heartbeats()(
        at in time(),
        seq in 0..9_u64,
        lag in select(vec![0, 901]),
        letters in 0..2_u64,
        backlog in select(vec![0, 65_u64 << 20]),
    ) -> Box<Heartbeat> {
        Box::new(Heartbeat {
            seq,
            received_at: at.clone(),
            at,
            lag_seconds: lag,
            dead_lettered: letters,
            backlog_bytes: backlog,
            ..Heartbeat::default()
        })
    }
}

prop_compose! {
    fn changes()(
        first in 1..20_u64,
        more in option::weighted(0.9, 0..4_u64),
        hole in any::<bool>(),
        broken in option::weighted(0.1, Just(())),
        lost in option::weighted(0.1, 1..20_u64),
        filled in 1..20_u64,
        base in option::weighted(0.1, 0..3_u64),
        claimed in option::weighted(0.2, 0..20_u64),
    ) -> Change {
        let hash = Digest::ZERO;
        let new: Vec<_> = more.map(|more| Range { first, last: first + more }).into_iter().collect();
        let holes = new.iter().filter(|_| hole);
        let claim = |seq| Claim { seq, counts: Counts { events: seq, ..Counts::default() }, uncounted: 0 };
        let claims = claimed.map(|seq| Claimed { claim: claim(seq), ..Claimed::default() });
        Change {
            accepted: new.iter().map(|new| new.count()).sum(),
            holes: holes.map(|new| DeadLettered { seq: new.last, line_sha256: hash }).collect(),
            filled: vec![filled],
            breaks: broken.map(|()| Break { seq: first, kind: BreakKind::Before, expected: hash, found: hash }).into_iter().collect(),
            lost: lost.map(|first| Range { first, last: first + 2 }).into_iter().collect(),
            begins_at: base.map(|seq| siem_protocol::ChainPoint { seq, hash }),
            tally: Some(TallyChange { claims: claims.into_iter().collect(), ..TallyChange::default() }),
            new,
            ..Change::default()
        }
    }
}

prop_compose! {
    fn notes()(
        (machine, epoch) in (name("m"), name("e")),
        at in time(),
        identity in option::weighted(0.8, senders()),
        (device, heartbeat) in (option::of(devices()), option::of(heartbeats())),
        ended in option::weighted(0.3, (name("e"), 0..30_u64)),
        cloned in option::weighted(0.1, name("h")),
        (bytes, order) in (0..100_u64, 0..3_u64),
        removed in option::weighted(0.1, any::<bool>()),
        change in changes(),
    ) -> Step {
        let sender = identity.map(|identity| Sender {
            epoch: epoch.clone(),
            previous_epoch: None,
            identity: Identity { machine_id: machine.clone(), ..identity },
            config_hash: Digest::ZERO,
        });
        let clone = |other| CloneReport {
            kind: CloneKind::TwoHostnames,
            epoch: epoch.clone(),
            other,
            last_seen: at.clone(),
            times: 1,
        };
        let note = Note {
            lines_at: 10,
            bytes,
            sender,
            clones: cloned.map(clone).into_iter().collect(),
            order,
            device,
            heartbeat,
            ended: ended.map(|(epoch, delivered)| Box::new(EndedEpoch { seq: 1, epoch, delivered })),
            removed: removed == Some(true),
            removed_before: if removed == Some(false) { 5 } else { 0 },
            change,
            at,
            ..Note::default()
        };
        Step::Note((machine, epoch), Box::new(note))
    }
}

prop_compose! {
    fn questions()(
        minutes in 0..90_u64,
        machine in option::weighted(0.2, name("m")),
        user in option::weighted(0.2, name("u")),
        problem in option::weighted(0.4, select(FleetProblem::ALL.to_vec())),
        limit in select(vec![0, 1, 2, 1000]),
    ) -> Step {
        let all = StatsQuery::all(minute(minutes));
        Step::Ask(Box::new(StatsQuery { machine, user, problem, limit, ..all }))
    }
}

fn states() -> impl Strategy<Value = DeviceState> {
    use DeviceState as S;
    select(vec![S::Confirmed, S::Unconfirmed, S::Pending, S::Revoked])
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let standing = option::of((states(), 0..3_u8, any::<bool>()));
    let device = (0..3_u8, standing).prop_map(|(key, standing)| Step::Device(key, standing));
    let thresholds = (1..30_u64).prop_map(Step::Thresholds);
    let next = Just(Step::Next);
    let step =
        prop_oneof![20 => notes(), 3 => device, 1 => thresholds, 12 => questions(), 4 => next];
    vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    /// Each response is compared with the one that is counted again.
    #[test]
    fn kept_figures_equal_those_counted_again(steps in steps()) {
        let mut catalog = Catalog::default();
        let mut known: HashMap<DeviceKey, DeviceStanding> = HashMap::new();
        let mut lines = 0;
        let mut thresholds = FleetThresholds::default();
        let mut last: Option<(StatsQuery, Stats)> = None;
        for step in steps {
            let query = match step {
                Step::Note(key, note) => {
                    catalog.record(&key, &note, 1);
                    continue;
                }
                Step::Device(device, standing) => {
                    lines += 1;
                    known.remove(&key_of(device));
                    known.extend(standing.map(|(state, root, cloned)| {
                        (key_of(device), DeviceStanding { state, root: key_of(root), cloned })
                    }));
                    continue;
                }
                Step::Thresholds(minutes) => {
                    thresholds.quiet_after = std::time::Duration::from_secs(60 * minutes);
                    continue;
                }
                Step::Ask(query) => *query,
                Step::Next => match last.take() {
                    Some((query, Stats { next: Some(next), .. })) => {
                        StatsQuery { after: next.parse().ok(), ..query }
                    }
                    _ => continue,
                },
            };
            let query = StatsQuery { thresholds, ..query };
            let version = Some(StandingsVersion::of(lines));
            let stats = catalog.page(&query, version, &|key, _| known.get(key).copied());
            last = Some((query, stats));
        }
    }
}

#[test]
fn unchanged_machines_are_not_computed_again() {
    let mut catalog = Catalog::default();
    for machine in 0..50 {
        let device = DeviceNote {
            key: key_of(1),
            mark: Mark::Confirmed,
            level: TrustLevel::FirstUse,
            instance: None,
            adopted_at: None,
            confirms: false,
            seal: None,
        };
        let identity = crate::testing::identity();
        let (previous_epoch, config_hash) = (None, Digest::ZERO);
        let sender = Sender { epoch: "e".into(), previous_epoch, identity, config_hash };
        let (sender, device) = (Some(sender), Some(device));
        let note = Note { sender, device, ..Note::default() };
        catalog.record(&(format!("m-{machine:02}"), "e".into()), &note, 1);
    }
    let looked = Cell::new(0);
    let count = |_: &DeviceKey, _: (&str, &str)| {
        looked.set(looked.get() + 1);
        None
    };
    let query = StatsQuery { limit: 3, ..StatsQuery::all(minute(0)) };
    let mut kept = catalog.figures.lock();
    let version = Some(StandingsVersion::of(1));
    catalog.figures(&mut kept, query.thresholds, version, &count);
    assert_eq!(looked.take(), 50, "the first request looks at all");
    catalog.figures(&mut kept, query.thresholds, version, &count);
    assert_eq!(looked.take(), 0);
    drop(kept);
    catalog.record(&("m-07".into(), "e".into()), &Note::default(), 1);
    let mut kept = catalog.figures.lock();
    catalog.figures(&mut kept, query.thresholds, version, &count);
    assert_eq!(looked.take(), 1, "a change counts for its machine");
}
