//! Receivers that decide about single entries, through the real task.
//!
//! Each receiver answers as its protocol allows, at random. In the end every entry is accepted, a
//! dead letter, or in a batch with unidentified refusals, and none was sent after it was decided.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::prelude::*;
use siem_protocol::Entry;
use tokio::{sync::watch, time::Instant};

use super::{
    SinkControl, SinkProgress, StopMode,
    tests::{outbox_with, shipping, sink_task},
};
use crate::{
    event::Event,
    pipeline::outbox::Outbox,
    stages::sink::{Acknowledged, Batch, Delivery, DeliveryFuture, EntryResult, Rest, Sink},
};

/// Protocol of a receiver.
#[derive(Clone, Copy, Debug)]
enum Protocol {
    /// Stops at the first refused entry, as Splunk's HTTP event collector.
    Prefix,
    /// Decides about each entry, as Elasticsearch's bulk requests.
    PerEntry,
    /// Counts the refused entries, as OTLP.
    Counting,
    /// Refuses whole batches, of which it stores nothing.
    Whole,
    /// Acknowledges nothing, as syslog: entries count as accepted some time after they were sent.
    Transit,
}

const PROTOCOLS: [Protocol; 5] =
    [Protocol::Prefix, Protocol::PerEntry, Protocol::Counting, Protocol::Whole, Protocol::Transit];

/// Outcome of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Accepted,
    Refused,
    Unidentified,
}

/// What the receiver knows, for the assertions.
#[derive(Debug, Default)]
struct Ledger {
    fates: BTreeMap<u64, Fate>,
    requests: u64,
    /// Number of entries that were sent over a connection more than once.
    repeated: u64,
    sent: BTreeSet<u64>,
    /// First violation.
    wrong: Option<String>,
}

struct Receiver {
    protocol: Protocol,
    random: fastrand::Rng,
    /// Entries that it refuses.
    bad: BTreeSet<u64>,
    ledger: Arc<Mutex<Ledger>>,
    /// Largest number of entries in a request.
    largest: usize,
    /// Number of requests after which nothing fails any more.
    faults: u64,
    /// Entries sent over the current connection, and when.
    in_transit: BTreeMap<u64, Instant>,
}

const WINDOW: Duration = Duration::from_secs(30);

fn refused() -> EntryResult {
    EntryResult::Refused { status: 400, answer: "bad".into() }
}

fn retry() -> Rest {
    Rest::Retry { after: None, reason: "busy".into() }
}

impl Receiver {
    fn answer(&mut self, seqs: &[u64]) -> Delivery {
        self.faults = self.faults.saturating_sub(1);
        let fails = self.faults > 0 && self.random.u32(..3) == 0;
        if fails && self.random.bool() {
            self.in_transit.clear();
            return match self.random.u32(..3) {
                0 => Delivery::Retry { after: None, reason: "down".into() },
                1 => Delivery::Hold { after: None, reason: "token".into() },
                _ => Delivery::Slow { waited: WINDOW, reason: "slow".into() },
            };
        }
        if seqs.len() > self.largest {
            return Delivery::Refused { status: 413, answer: "too large".into() };
        }
        match self.protocol {
            Protocol::Prefix => self.prefix(seqs, fails),
            Protocol::PerEntry => self.each(seqs, fails),
            Protocol::Counting => self.count(seqs),
            Protocol::Whole => match seqs.iter().any(|seq| self.bad.contains(seq)) {
                true => Delivery::Refused { status: 422, answer: "bad".into() },
                false => Delivery::Acknowledged,
            },
            Protocol::Transit => self.transit(seqs),
        }
    }

    fn prefix(&mut self, seqs: &[u64], fails: bool) -> Delivery {
        let stop = seqs.iter().position(|seq| self.bad.contains(seq));
        let stop = match (stop, fails) {
            // Another request of the batch was not answered.
            (_, true) => self.random.usize(..=seqs.len()).min(stop.unwrap_or(seqs.len())),
            (None, false) => return Delivery::Acknowledged,
            (Some(stop), false) => stop,
        };
        let mut entries = vec![EntryResult::Accepted; stop];
        if !fails {
            entries.push(refused());
        }
        entries.resize(seqs.len(), EntryResult::Undecided);
        Delivery::PerEntry { entries, rest: if fails { retry() } else { Rest::Unprocessed } }
    }

    fn each(&mut self, seqs: &[u64], fails: bool) -> Delivery {
        let entry = |seq: &u64| match self.bad.contains(seq) {
            _ if fails && self.random.bool() => EntryResult::Undecided,
            true => refused(),
            false if seq.is_multiple_of(7) => EntryResult::Misfiled { answer: "mapping".into() },
            false => EntryResult::Accepted,
        };
        let entries = seqs.iter().map(entry).collect();
        let rest = match self.random.u32(..4) {
            0 if fails => Rest::Refused { status: 413, answer: "too large".into() },
            1 if fails => Rest::Unprocessed,
            _ => retry(),
        };
        Delivery::PerEntry { entries, rest }
    }

    fn count(&self, seqs: &[u64]) -> Delivery {
        let refused = seqs.iter().filter(|seq| self.bad.contains(seq)).count();
        let answer = "bad".to_owned();
        match refused {
            0 => Delivery::Acknowledged,
            _ if refused == seqs.len() => Delivery::Refused { status: 400, answer },
            refused => Delivery::Unidentified { refused: refused as u64, answer },
        }
    }

    /// Sends what it has not sent over this connection. The connection breaks at random.
    fn transit(&mut self, seqs: &[u64]) -> Delivery {
        let now = Instant::now();
        for seq in seqs {
            if !self.in_transit.contains_key(seq) {
                self.in_transit.insert(*seq, now);
                let mut ledger = self.ledger.lock().unwrap();
                ledger.repeated += u64::from(!ledger.sent.insert(*seq));
            }
        }
        let left = |seq: &u64| WINDOW.saturating_sub(now - self.in_transit[seq]);
        let entry = |seq: &u64| match left(seq).is_zero() {
            true => EntryResult::Accepted,
            false => EntryResult::Undecided,
        };
        let entries: Vec<_> = seqs.iter().map(entry).collect();
        let recheck = seqs.iter().map(left).filter(|left| !left.is_zero()).min();
        match recheck {
            None => Delivery::Acknowledged,
            Some(recheck) => Delivery::PerEntry { entries, rest: Rest::InTransit { recheck } },
        }
    }

    /// Notes what the answer decides.
    fn note(&self, seqs: &[u64], delivery: &Delivery) {
        let mut ledger = self.ledger.lock().unwrap();
        ledger.requests += 1;
        if let Some(seq) = seqs.iter().find(|seq| ledger.fates.contains_key(seq)) {
            let wrong = format!("entry {seq} was {:?} and is sent again", ledger.fates[seq]);
            ledger.wrong.get_or_insert(wrong);
        }
        let fate = |entry: &EntryResult| match entry {
            EntryResult::Accepted | EntryResult::Misfiled { .. } => Some(Fate::Accepted),
            EntryResult::Unidentified { .. } => Some(Fate::Unidentified),
            EntryResult::Refused { .. } => Some(Fate::Refused),
            EntryResult::Undecided => None,
        };
        let fates: Vec<Option<Fate>> = match delivery {
            Delivery::Acknowledged => vec![Some(Fate::Accepted); seqs.len()],
            Delivery::Unidentified { .. } => vec![Some(Fate::Unidentified); seqs.len()],
            Delivery::PerEntry { entries, rest } => {
                let is_undecided = |entry: &&EntryResult| **entry == EntryResult::Undecided;
                let is_one = entries.iter().filter(is_undecided).count() == 1;
                // The rest is one entry, which is refused.
                let rest =
                    (is_one && matches!(rest, Rest::Refused { .. })).then_some(Fate::Refused);
                entries.iter().map(|entry| fate(entry).or(rest)).collect()
            }
            Delivery::Refused { .. } if seqs.len() == 1 => vec![Some(Fate::Refused)],
            _ => Vec::new(),
        };
        let decided = seqs.iter().zip(fates).filter_map(|(seq, fate)| Some((*seq, fate?)));
        ledger.fates.extend(decided);
    }
}

impl Sink for Receiver {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            let lines = batch.body.lines().unwrap();
            let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let seqs: Vec<u64> = lines.map(|line| Entry::parse(line).unwrap().seq).collect();
            if seqs.is_empty() {
                return Delivery::Acknowledged;
            }
            let delivery = self.answer(&seqs);
            self.note(&seqs, &delivery);
            delivery
        })
    }

    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::Indexed
    }
}

/// A delivery of everything in an outbox.
struct Run {
    ledger: Ledger,
    outbox: Arc<Outbox>,
    events: Vec<Event>,
    delivered: u64,
    unproven: u64,
    took: Duration,
    _folder: tempfile::TempDir,
}

impl Run {
    /// Delivers `count` entries in groups of random sizes. Time is simulated.
    fn new(protocol: Protocol, count: u64, bad: BTreeSet<u64>, faults: u64, seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(Self::deliver(protocol, count, bad, faults, seed))
    }

    async fn deliver(
        protocol: Protocol,
        count: u64,
        bad: BTreeSet<u64>,
        faults: u64,
        seed: u64,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut groups, mut left) = (Vec::new(), count as usize);
        while left > 0 {
            groups.push(random.usize(1..=left.min(40)));
            left -= groups.last().unwrap();
        }
        let outbox = outbox_with(folder.path(), &groups);
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let is_limited = faults > 0 && random.bool();
        let largest = if is_limited { random.usize(1..20) } else { usize::MAX };
        let receiver = Receiver {
            protocol,
            bad,
            ledger: Arc::clone(&ledger),
            largest,
            faults,
            in_transit: BTreeMap::new(),
            random: random.fork(),
        };
        let events = Arc::new(Mutex::new(Vec::new()));
        let reported = Arc::clone(&events);
        let report = Arc::new(move |event| reported.lock().unwrap().push(event));
        let mut task = sink_task(&outbox, Box::new(receiver), report);
        task.jitter = Box::new(move || random.f64());
        let progress = task.progress.subscribe();
        // The smallest batches cut frames, which have up to 40 entries.
        let shipping = shipping([25, 1000, 50][(seed % 3) as usize]);
        let control = SinkControl::new(shipping, u64::MAX).until(StopMode::WhenDrained);
        let (_sender, control) = watch::channel(control);
        let begun = Instant::now();
        tokio::time::timeout(Duration::from_secs(30 * 24 * 3600), task.run(control))
            .await
            .unwrap_or_else(|_| panic!("{protocol:?} does not end: {:?}", progress.borrow()));
        let took = begun.elapsed();
        let (delivered, unproven) = (progress.borrow().delivered, progress.borrow().unproven);
        let ledger = std::mem::take(&mut *ledger.lock().unwrap());
        let events = events.lock().unwrap().clone();
        Self { ledger, outbox, events, delivered, unproven, took, _folder: folder }
    }

    /// Number of entries with this fate.
    fn count(&self, fate: Fate) -> u64 {
        self.ledger.fates.values().filter(|it| **it == fate).count() as u64
    }

    fn dead_letters(&self) -> Vec<u64> {
        self.outbox.dead_letter_ids().unwrap().iter().map(|id| id.seq).collect()
    }

    fn events_named(&self, name: &str) -> Vec<&Event> {
        self.events.iter().filter(|event| event.name == name).collect()
    }
}

/// At most 10 refused entries in a row, so that nothing is held.
fn bad_entries() -> impl Strategy<Value = BTreeSet<u64>> {
    proptest::collection::btree_set(1_u64..120, 0..30).prop_map(|mut bad| {
        bad.retain(|seq| seq % 5 != 0);
        bad
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_entry_is_decided_once_and_never_sent_again(
        protocol in 0..PROTOCOLS.len(), count in 1_u64..120, mut bad in bad_entries(),
        faults in 0_u64..12, seed: u64,
    ) {
        let protocol = PROTOCOLS[protocol];
        bad.retain(|seq| *seq <= count);
        let run = Run::new(protocol, count, bad.clone(), faults, seed);
        prop_assert_eq!(&run.ledger.wrong, &None, "{:?}", protocol);
        prop_assert_eq!(run.ledger.fates.keys().copied().collect::<Vec<_>>(), (1..=count).collect::<Vec<_>>());
        let dead: BTreeSet<u64> = run.dead_letters().into_iter().collect();
        let refused = run.ledger.fates.iter().filter(|(_, fate)| **fate == Fate::Refused);
        prop_assert_eq!(&dead, &refused.map(|(seq, _)| *seq).collect::<BTreeSet<_>>());
        prop_assert_eq!(run.outbox.cursor("siem").unwrap().acknowledged.seq, count);
        prop_assert_eq!(run.outbox.stored_bytes(), 0);
        match protocol {
            Protocol::Counting | Protocol::Transit => {}
            _ => prop_assert!(bad.is_subset(&dead)),
        }
        if run.count(Fate::Unidentified) == 0 {
            prop_assert_eq!(run.delivered, run.count(Fate::Accepted));
        }
    }
}

#[test]
fn refused_entries_in_one_answer_are_dead_letters_at_once() {
    let bad = BTreeSet::from([3, 4, 50, 77]);
    let run = Run::new(Protocol::PerEntry, 100, bad, 0, 1);
    assert_eq!((run.dead_letters(), run.delivered), (vec![3, 4, 50, 77], 96));
    assert_eq!(run.events_named("entry_dead_lettered").len(), 4);
    // Misfiled ones are those that 7 divides, but for 77.
    assert_eq!(run.unproven, 13);
}

#[test]
fn entries_after_a_refused_one_are_sent_at_once() {
    let run = Run::new(Protocol::Prefix, 100, BTreeSet::from([3, 50, 100]), 0, 1);
    assert_eq!((run.dead_letters(), run.delivered), (vec![3, 50, 100], 97));
    assert_eq!(run.took, Duration::ZERO);
}

#[test]
fn unidentified_refusals_are_reported_and_not_sent_again() {
    let run = Run::new(Protocol::Counting, 20, BTreeSet::from([3, 9]), 0, 1);
    assert_eq!(run.ledger.wrong, None);
    assert_eq!((run.dead_letters(), run.delivered, run.unproven), (vec![], 18, 2));
    let refused: u64 = run
        .events_named("entries_refused_unidentified")
        .iter()
        .map(|event| event.data["refused"].as_u64().unwrap())
        .sum();
    assert_eq!(refused, 2);
}

#[test]
fn entries_in_transit_are_delivered_once_the_window_has_passed() {
    let run = Run::new(Protocol::Transit, 100, BTreeSet::new(), 0, 1);
    assert_eq!((run.delivered, run.ledger.repeated), (100, 0));
    assert!(run.took >= WINDOW && run.took < 5 * WINDOW, "{:?}", run.took);
    assert!(run.ledger.requests < 60, "{}", run.ledger.requests);
}

/// A batch that was in transit let no other entry pass until it counted as delivered.
#[test]
fn entries_in_transit_do_not_delay_those_after_them() {
    // Batches of 50.
    let run = Run::new(Protocol::Transit, 1000, BTreeSet::new(), 0, 2);
    assert_eq!((run.delivered, run.ledger.repeated), (1000, 0));
    assert!(run.took >= WINDOW && run.took < 2 * WINDOW, "{:?}", run.took);
    assert!(run.ledger.requests < 120, "{}", run.ledger.requests);
}

/// Delivers to a sink until the time is over, and returns its progress.
async fn deliver_for(
    time: Duration,
    count: usize,
    mut answer: impl FnMut(&[u64]) -> Delivery + Send + 'static,
) -> (SinkProgress, Arc<Outbox>, u64) {
    type Answer = Box<dyn FnMut(&[u64]) -> Delivery + Send>;

    struct Scripted(Answer);

    impl Sink for Scripted {
        fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
            let lines = batch.body.lines().unwrap();
            let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let seqs: Vec<u64> = lines.map(|line| Entry::parse(line).unwrap().seq).collect();
            let delivery = (self.0)(&seqs);
            Box::pin(async { delivery })
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox_with(folder.path(), &[count]);
    let requests = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&requests);
    let sink = Scripted(Box::new(move |seqs| {
        *counted.lock().unwrap() += 1;
        answer(seqs)
    }));
    let mut task = sink_task(&outbox, Box::new(sink), Arc::new(|_| ()));
    task.jitter = Box::new(|| 1.0);
    let progress = task.progress.subscribe();
    let control = SinkControl::new(shipping(1000), u64::MAX).until(StopMode::WhenDrained);
    let (_sender, control) = watch::channel(control);
    tokio::time::timeout(time, task.run(control)).await.ok();
    let (progress, requests) = (progress.borrow().clone(), *requests.lock().unwrap());
    (progress, outbox, requests)
}

/// A wrong mapping made the receiver refuse everything: it must not empty the outbox.
#[tokio::test(start_paused = true)]
async fn refusals_in_a_row_within_a_batch_hold_delivery() {
    let hour = Duration::from_secs(3600);
    let (progress, outbox, requests) = deliver_for(hour, 100, |seqs| {
        // Accepts the last entries only.
        let entry = |seq: &u64| if *seq > 60 { EntryResult::Accepted } else { refused() };
        let entries = seqs.iter().map(entry).collect();
        Delivery::PerEntry { entries, rest: Rest::Unprocessed }
    })
    .await;
    // The accepted ones allow ten more, once.
    assert_eq!(outbox.dead_letter_ids().unwrap().len(), 20);
    assert_eq!((progress.acknowledged, progress.delivered), (20, 40));
    assert!(progress.is_held, "{progress:?}");
    assert!(requests < 30, "{requests}");
}

#[tokio::test(start_paused = true)]
async fn receiver_that_processes_nothing_is_not_sent_to_in_a_loop() {
    let hour = Duration::from_secs(3600);
    let nothing = |rest: Rest| {
        move |seqs: &[u64]| Delivery::PerEntry {
            entries: vec![EntryResult::Undecided; seqs.len()],
            rest: rest.clone(),
        }
    };
    let (progress, _, requests) = deliver_for(hour, 10, nothing(Rest::Unprocessed)).await;
    assert!(requests < 30 && progress.problem.is_some(), "{requests}");
    let recheck = Rest::InTransit { recheck: Duration::ZERO };
    let (progress, _, requests) = deliver_for(Duration::from_secs(60), 10, nothing(recheck)).await;
    assert!(requests < 1000 && progress.problem.is_none(), "{requests} {progress:?}");
    assert!(progress.in_transit_until.is_some());
}

#[tokio::test(start_paused = true)]
async fn wrong_number_of_results_holds_delivery() {
    let minute = Duration::from_secs(60);
    let (progress, ..) = deliver_for(minute, 10, |_| Delivery::PerEntry {
        entries: vec![EntryResult::Accepted],
        rest: Rest::Unprocessed,
    })
    .await;
    assert!(progress.is_held && progress.acknowledged == 0, "{progress:?}");
}
