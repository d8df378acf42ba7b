use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use siem_protocol::{Digest, Entry};

use tokio::time::sleep;

use super::{schedule::SendRule, *};
use crate::{
    frame::Codec,
    pipeline::{
        group_builder::GroupBuilder,
        outbox::{DeadLetter, DeadLetterId, SinkRegistration, io_error_tests::FaultyFile},
    },
    platform::Timestamp,
    stages::sink::{Batch, Delivery, DeliveryFuture, EntryResult, Rest},
};

/// Returns the outcome for a batch of these sequence numbers.
type Script = Box<dyn FnMut(&[u64]) -> Delivery + Send>;

/// A sink that checks every batch and responds as the test scripts it.
struct Scripted {
    script: Script,
    seen: Arc<Mutex<Vec<Vec<u64>>>>,
}

impl Sink for Scripted {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            let header = &batch.header;
            let lines = batch.body.lines().unwrap();
            let lines: Vec<&[u8]> = lines
                .strip_suffix(b"\n")
                .map_or(Vec::new(), |l| l.split(|b| *b == b'\n').collect());
            let seqs: Vec<u64> = lines.iter().map(|line| Entry::parse(line).unwrap().seq).collect();
            assert_eq!(header.count, seqs.len() as u64);
            // Every number is a line or a dead letter, and the chain covers both.
            let mut chain = header.chain.unwrap().before;
            let mut rest = lines.iter().zip(&seqs).peekable();
            for seq in header.first_seq.unwrap()..=header.last_seq.unwrap() {
                let digest = match rest.next_if(|(_, next)| **next == seq) {
                    Some((line, _)) => Digest::of(line),
                    None => {
                        let dead = header.dead_lettered.iter().find(|dead| dead.seq == seq);
                        dead.expect("a number is missing").line_sha256
                    }
                };
                chain = chain.chain(digest);
            }
            assert!(rest.next().is_none());
            assert_eq!(chain, header.chain.unwrap().after);
            self.seen.lock().unwrap().push(seqs.clone());
            (self.script)(&seqs)
        })
    }
}

/// A clock that does not advance.
struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_000_000)
    }
}

struct Run {
    seen: Vec<Vec<u64>>,
    outbox: Arc<Outbox>,
    events: Vec<Event>,
    _folder: tempfile::TempDir,
}

impl Run {
    fn delivered(&self) -> u64 {
        self.outbox.cursor("siem").unwrap().acknowledged.seq
    }
}

/// Creates an outbox with groups of the given numbers of events.
pub(super) fn outbox_with(folder: &Path, groups: &[usize]) -> Arc<Outbox> {
    let path = folder.join("outbox.redb");
    let outbox = Outbox::open(
        &path,
        &[SinkRegistration { name: "siem".into(), ..SinkRegistration::default() }],
        || "e".into(),
    )
    .unwrap();
    append(&outbox, groups, Timestamp(1));
    Arc::new(outbox)
}

/// Stores groups of the given numbers of events.
fn append(outbox: &Outbox, groups: &[usize], now: Timestamp) {
    let sealing = ShippingSettings { batch_size: 100, ..ShippingSettings::default() };
    let mut builder = GroupBuilder::new(outbox.end(), Digest::ZERO, sealing, Codec::Zstd);
    for count in groups {
        for n in 0..*count {
            builder.add_event(&Event::info("test", serde_json::json!({ "n": n })), &mut [], now);
        }
        outbox.commit(&builder.finish(now)).unwrap();
    }
}

fn identity() -> Identity {
    Identity {
        machine_id: "m".into(),
        hostname: "h".into(),
        user: "u".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        agent_version: "0".into(),
    }
}

pub(super) fn sink_task(
    outbox: &Arc<Outbox>,
    sink: Box<dyn Sink>,
    report: Arc<dyn Fn(Event) + Send + Sync>,
) -> SinkTask {
    SinkTask {
        name: "siem".into(),
        sink,
        outbox: Arc::clone(outbox),
        identity: Arc::new(identity()),
        rate_limit: None,
        clock: Arc::new(StoppedClock),
        jitter: Box::new(|| 0.0),
        progress: watch::Sender::default(),
        report,
        new_epoch: Arc::new(|| "e-2".into()),
    }
}

/// Stores groups of the given numbers of events and delivers them all.
async fn run(
    groups: &[usize],
    shipping: ShippingSettings,
    answer: impl FnMut(&[u64]) -> Delivery + Send + 'static,
) -> Run {
    run_until(StopMode::WhenDrained, None, groups, shipping, answer).await
}

/// Like [`run`], but within `rate_limit`; ends according to `stop`, or when the outbox is empty.
async fn run_until(
    stop: StopMode,
    rate_limit: Option<RateLimit>,
    groups: &[usize],
    shipping: ShippingSettings,
    answer: impl FnMut(&[u64]) -> Delivery + Send + 'static,
) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox_with(folder.path(), groups);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::new(Mutex::new(Vec::new()));
    let reported = Arc::clone(&events);
    let sink = Scripted { script: Box::new(answer), seen: Arc::clone(&seen) };
    let report = Arc::new(move |event| reported.lock().unwrap().push(event));
    let mut task = sink_task(&outbox, Box::new(sink), report);
    task.rate_limit = rate_limit;
    let (sender, watched) = watch::channel(SinkControl::new(shipping, u64::MAX).until(stop));
    let all = outbox.end().seq - 1;
    let mut progress = task.progress.subscribe();
    let emptied = async {
        progress.wait_for(|progress| progress.acknowledged == all).await.unwrap();
        while outbox.stored_bytes() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let delivered = async {
        tokio::select! {
            () = task.run(watched) => {}
            () = emptied, if stop == StopMode::Never => {}
        }
    };
    let run = tokio::time::timeout(Duration::from_secs(60), delivered);
    run.await.expect("delivery ends");
    drop(sender);
    let seen = seen.lock().unwrap().clone();
    let events = events.lock().unwrap().clone();
    Run { seen, outbox, events, _folder: folder }
}

pub(super) fn shipping(batch_size: usize) -> ShippingSettings {
    ShippingSettings { batch_size, ..ShippingSettings::default() }
}

/// Time is simulated: it advances when all tasks wait.
#[tokio::test(start_paused = true)]
async fn rate_limit_is_kept() {
    let begun = Instant::now();
    let sent = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&sent);
    let pace = Some(RateLimit::new(4 << 10));
    let run = run_until(StopMode::WhenDrained, pace, &[100; 6], shipping(100), move |seqs| {
        noted.lock().unwrap().push((begun.elapsed(), seqs.len() as f64));
        Delivery::Acknowledged
    });
    assert_eq!(run.await.delivered(), 600);
    let sent = sent.lock().unwrap();
    assert_eq!(sent.len(), 6);
    // An entry has more than 100 bytes. The credit of one second may be sent at once.
    for (at, count) in sent.windows(2).map(|two| (two[1].0 - two[0].0, two[0].1)) {
        let least = count * 100.0 / 4096.0 - 1.0;
        assert!(at.as_secs_f64() >= least, "{at:?} after {count} entries");
    }
}

/// The end of a backlog stayed behind for as long as a new entry may wait.
/// Acknowledges everything, and notes when it was called. Each delivery counts as 1000 bytes.
struct Noting(Arc<Mutex<Vec<Duration>>>, Instant);

impl Sink for Noting {
    fn deliver<'a>(&'a mut self, _: &'a Batch) -> DeliveryFuture<'a> {
        self.0.lock().unwrap().push(self.1.elapsed());
        Box::pin(async { Delivery::Acknowledged })
    }

    fn sent(&self, _: &Batch) -> u64 {
        1000
    }
}

/// A retry was sent by a second sink, which knew nothing of the limit.
#[tokio::test(start_paused = true)]
async fn retry_waits_for_the_rate_limit_of_the_sink() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox_with(folder.path(), &[1]);
    let id = DeadLetterId { sink: "siem".into(), epoch: "before".into(), seq: 7 };
    let letter = DeadLetter::new(b"{}", Digest::ZERO, 422, "no".into(), String::new());
    outbox.store_dead_letter(&id, &letter).unwrap();
    let called = Arc::new(Mutex::new(Vec::new()));
    let sink = Noting(Arc::clone(&called), Instant::now());
    let mut task = sink_task(&outbox, Box::new(sink), Arc::new(|_| {}));
    task.rate_limit = Some(RateLimit::new(100));
    let mut progress = task.progress.subscribe();
    let shipping =
        ShippingSettings { flush_interval: Duration::ZERO, ..ShippingSettings::default() };
    let (_control, controlled) = watch::channel(SinkControl::new(shipping, u64::MAX));
    let (retries, ordered) = mpsc::channel(1);
    let task = tokio::spawn(task.run_with_retries(controlled, ordered));
    progress.wait_for(|progress| progress.acknowledged == 1).await.unwrap();

    let (outcome, received) = tokio::sync::oneshot::channel();
    retries.send(DeadLetterRetry { id: id.clone(), outcome }).await.unwrap();
    assert_eq!(received.await.unwrap().unwrap(), RetryOutcome::Delivered);
    assert!(outbox.dead_letter(&id).unwrap().is_none());
    let called = called.lock().unwrap().clone();
    assert_eq!(called.len(), 2);
    assert!(called[1] - called[0] >= Duration::from_secs(10), "{called:?}");
    task.abort();
}

/// A clock that advances with each call, and stores an entry right after the first.
struct StoringClock<'a> {
    outbox: &'a Outbox,
    calls: AtomicU64,
}

impl Clock for StoringClock<'_> {
    fn now(&self) -> Timestamp {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if call == 0 {
            append(self.outbox, &[1], Timestamp(1));
        }
        Timestamp(2 * call)
    }
}

/// Regression: the time was read before the entries. On a busy machine, an entry that was stored in
/// between looked as if the clock had been set back, and was sent at once.
#[test]
fn entry_stored_after_the_time_is_read_waits_for_the_interval() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox_with(folder.path(), &[]);
    let clock = StoringClock { outbox: &outbox, calls: AtomicU64::new(0) };
    let flush_interval = Duration::from_secs(3600);
    let rule = SendRule { flush: false, flush_through: 0, flush_interval, sent: None };
    let next = || {
        let snapshot = &outbox.snapshot().unwrap();
        let assembler = Assembler {
            snapshot,
            sink: "siem",
            codec: Codec::Zstd,
            identity: &identity(),
            shipping: shipping(100),
            clock: &clock,
            decided: &DecidedEntries::default(),
        };
        assembler.next(&snapshot.cursor("siem").unwrap(), None, &rule).unwrap()
    };
    assert!(!matches!(next(), NextBatch::Ready { .. }));
    clock.now();
    let next = next();
    assert!(matches!(next, NextBatch::Waiting(rest) if rest < flush_interval), "{next:?}");
}

#[tokio::test]
async fn end_of_a_backlog_does_not_wait_for_a_full_batch() {
    let shipping = ShippingSettings { flush_interval: Duration::from_secs(3600), ..shipping(100) };
    let run =
        run_until(StopMode::Never, None, &[100, 30], shipping, |_| Delivery::Acknowledged).await;
    assert_eq!(run.seen.concat(), (1..=130).collect::<Vec<_>>());
}

/// An acknowledgement waits to be stored with new entries, which may never come.
#[tokio::test]
async fn last_acknowledgement_is_stored_without_later_entries() {
    let run = run_until(StopMode::Never, None, &[3], shipping(3), |_| Delivery::Acknowledged).await;
    assert_eq!((run.delivered(), run.outbox.stored_bytes()), (3, 0));
}

#[tokio::test]
async fn everything_is_delivered_in_order_and_deleted() {
    let run = run(&[3, 1, 250], shipping(100), |_| Delivery::Acknowledged).await;
    assert_eq!(run.seen.concat(), (1..=254).collect::<Vec<_>>());
    assert!(run.seen.iter().all(|batch| batch.len() <= 100));
    assert_eq!((run.delivered(), run.outbox.stored_bytes()), (254, 0));
}

#[tokio::test]
async fn batch_size_below_a_frame_cuts_the_frame() {
    let run = run(&[100], shipping(7), |_| Delivery::Acknowledged).await;
    assert_eq!(run.seen.concat(), (1..=100).collect::<Vec<_>>());
    assert!(run.seen.iter().all(|batch| batch.len() <= 7));
}

#[tokio::test]
async fn batch_never_exceeds_its_byte_limit() {
    let small = ShippingSettings { max_batch_bytes: 20_000, ..shipping(1000) };
    let run = run(&[100, 100, 100], small, |_| Delivery::Acknowledged).await;
    assert_eq!(run.seen.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 100]);
}

#[tokio::test]
async fn unacknowledged_batch_is_sent_again() {
    let mut failures = 3;
    let run = run(&[5], shipping(100), move |_| {
        failures -= 1;
        if failures > 0 {
            Delivery::Retry { after: None, reason: "down".into() }
        } else {
            Delivery::Acknowledged
        }
    })
    .await;
    assert_eq!(run.seen, vec![vec![1, 2, 3, 4, 5]; 3]);
    assert_eq!(run.delivered(), 5);
}

#[tokio::test]
async fn refused_entry_is_a_dead_letter_and_others_are_delivered() {
    let run = run(&[100, 100], shipping(1000), |seqs| {
        if seqs.contains(&77) {
            Delivery::Refused { status: 422, answer: "no such thing".into() }
        } else {
            Delivery::Acknowledged
        }
    })
    .await;
    assert_eq!(run.delivered(), 200);
    assert!(run.seen.len() <= 2 * 8 + 4, "{}", run.seen.len());
    let dead = run.outbox.dead_letters_after("siem", "e", 0).unwrap();
    assert_eq!(dead.iter().map(|dead| dead.seq).collect::<Vec<_>>(), [77]);
    assert_eq!(run.events.len(), 1);
    assert_eq!(run.events[0].data["seq"], 77);
}

#[tokio::test]
async fn dead_letter_at_the_end_is_reported_to_the_receiver() {
    let run = run(&[3], shipping(1000), |seqs| {
        if seqs.contains(&3) {
            Delivery::Refused { status: 422, answer: String::new() }
        } else {
            Delivery::Acknowledged
        }
    })
    .await;
    assert_eq!(run.seen.last().unwrap(), &Vec::<u64>::new());
    assert_eq!(run.delivered(), 3);
}

#[tokio::test]
async fn conflict_starts_a_new_epoch_without_loss() {
    let mut conflicts = 1;
    let run = run(&[5], shipping(100), move |_| {
        if conflicts > 0 {
            conflicts -= 1;
            return Delivery::Conflict { expected: Some(9) };
        }
        Delivery::Acknowledged
    })
    .await;
    assert_eq!(run.seen, vec![vec![1, 2, 3, 4, 5]; 2]);
    assert_eq!((run.delivered(), run.outbox.epoch()), (5, "e-2".into()));
    let data = &run.events[0].data;
    assert_eq!((&data["previous_epoch"], &data["previous_last_seq"]), (&"e".into(), &5.into()));
    assert!(data["previous_totals"]["shipped"].is_object(), "{data}");
}

#[tokio::test]
async fn frame_larger_than_a_lowered_byte_limit_is_cut() {
    // 100 events of about 120 bytes in one frame.
    let small = ShippingSettings { max_batch_bytes: 5000, ..shipping(1000) };
    let run = run(&[100], small, |_| Delivery::Acknowledged).await;
    assert_eq!(run.seen.concat(), (1..=100).collect::<Vec<_>>());
    assert!(run.seen.iter().all(|batch| batch.len() <= 30), "{:?}", run.seen);
}

/// A new token must not wait for a hanging request with the old one.
#[tokio::test]
async fn stopped_task_ends_within_a_batch_and_keeps_it() {
    struct Hangs(watch::Sender<bool>);
    impl Sink for Hangs {
        fn deliver<'a>(&'a mut self, _batch: &'a Batch) -> DeliveryFuture<'a> {
            self.0.send_replace(true);
            Box::pin(std::future::pending())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox_with(folder.path(), &[3]);
    let (request, mut is_requested) = watch::channel(false);
    let task = sink_task(&outbox, Box::new(Hangs(request)), Arc::new(|_| ()));
    let progress = task.progress.subscribe();
    let now = ShippingSettings { flush_interval: Duration::ZERO, ..ShippingSettings::default() };
    let (control, controlled) = watch::channel(SinkControl::new(now, u64::MAX));
    let task = tokio::spawn(task.run(controlled));
    is_requested.wait_for(|is_requested| *is_requested).await.unwrap();
    control.send_modify(|control| control.stop = StopMode::HandOver);
    task.await.unwrap();
    assert!(progress.borrow().handed_over);
    assert_eq!(outbox.cursor("siem").unwrap().acknowledged.seq, 0);
}

/// A sink without acknowledgements: the first delivery is in transit, later ones are delivered.
struct Transit {
    recheck: Duration,
    called: Arc<Mutex<Vec<Duration>>>,
    begun: Instant,
}

impl Sink for Transit {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        let mut called = self.called.lock().unwrap();
        called.push(self.begun.elapsed());
        let delivery = match called.len() {
            1 => Delivery::PerEntry {
                entries: vec![EntryResult::Undecided; batch.header.count as usize],
                rest: Rest::InTransit { recheck: self.recheck },
            },
            _ => Delivery::Acknowledged,
        };
        Box::pin(async { delivery })
    }
}

/// Entries in transit counted as delivered only when later entries were due, after minutes.
#[tokio::test(start_paused = true)]
async fn recheck_does_not_wait_until_later_entries_are_due() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = outbox_with(folder.path(), &[3]);
    let (recheck, called) = (Duration::from_secs(30), Arc::new(Mutex::new(Vec::new())));
    let sink = Transit { recheck, called: Arc::clone(&called), begun: Instant::now() };
    let task = sink_task(&outbox, Box::new(sink), Arc::new(|_| ()));
    let mut progress = task.progress.subscribe();
    let flush_interval = Duration::from_secs(3600);
    let shipping = ShippingSettings { flush_interval, ..shipping(1000) };
    let mut control = SinkControl::new(shipping, u64::MAX);
    control.flush = *outbox.watch().borrow();
    let (_control, controlled) = watch::channel(control);
    let task = tokio::spawn(task.run(controlled));
    progress.wait_for(|progress| progress.in_transit_until.is_some()).await.unwrap();
    append(&outbox, &[1], StoppedClock.now());
    progress.wait_for(|progress| progress.acknowledged >= 3).await.unwrap();
    let called = called.lock().unwrap().clone();
    let waited = called[1] - called[0];
    assert!(waited >= recheck && waited < recheck * 2, "{called:?}");
    task.abort();
}

/// Accepts all entries but the first three, then these, after which the outbox cannot be read.
struct Breaking {
    file: FaultyFile,
    outbox: Arc<Outbox>,
    control: Arc<watch::Sender<SinkControl>>,
    seen: Arc<Mutex<Vec<Vec<u64>>>>,
}

impl Breaking {
    fn answer(&self, seqs: &[u64]) -> Delivery {
        match seqs.len() {
            10 => {
                // The next batch ends before the accepted entries.
                self.control.send_modify(|control| control.shipping.batch_size = 3);
                let of = |seq: &u64| match seq {
                    1..=3 => EntryResult::Undecided,
                    _ => EntryResult::Accepted,
                };
                let entries = seqs.iter().map(of).collect();
                return Delivery::PerEntry { entries, rest: Rest::Unprocessed };
            }
            3 if seqs[0] == 1 => {
                let id = DeadLetterId { sink: "siem".into(), epoch: "before".into(), seq: 7 };
                let letter = DeadLetter::new(b"{}", Digest::ZERO, 422, "no".into(), String::new());
                self.file.fail_syncs(true);
                self.outbox.store_dead_letter(&id, &letter).unwrap_err();
                self.file.fail_reads(true);
                let file = self.file.clone();
                tokio::spawn(async move {
                    sleep(Duration::from_secs(1)).await;
                    file.fail_reads(false);
                });
            }
            _ => {}
        }
        Delivery::Acknowledged
    }
}

impl Sink for Breaking {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        let lines = batch.body.lines().unwrap();
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let seqs: Vec<u64> = lines.map(|line| Entry::parse(line).unwrap().seq).collect();
        let delivery = self.answer(&seqs);
        self.seen.lock().unwrap().push(seqs);
        Box::pin(async { delivery })
    }
}

/// Accepted entries after a batch were sent again if the outbox could not be read after it.
#[tokio::test(start_paused = true)]
async fn accepted_entries_are_not_repeated_after_a_read_error() {
    let (folder, file) = (tempfile::tempdir().unwrap(), FaultyFile::default());
    let outbox = Arc::new(file.outbox(folder.path()));
    append(&outbox, &[10], Timestamp(1));
    let control = SinkControl::new(shipping(1000), u64::MAX).until(StopMode::WhenDrained);
    let (control, controlled) = watch::channel(control);
    let (control, seen) = (Arc::new(control), Arc::new(Mutex::new(Vec::new())));
    let sink = Breaking {
        file: file.clone(),
        outbox: Arc::clone(&outbox),
        control,
        seen: Arc::clone(&seen),
    };
    let task = sink_task(&outbox, Box::new(sink), Arc::new(|_| ()));
    let progress = task.progress.subscribe();
    tokio::time::timeout(Duration::from_secs(600), task.run(controlled)).await.unwrap();
    assert!(progress.borrow().last_error.is_some(), "the outbox was readable");
    assert_eq!((progress.borrow().acknowledged, progress.borrow().delivered), (10, 10));
    let seen = seen.lock().unwrap().concat();
    assert_eq!(seen, (1..=10).chain(1..=3).collect::<Vec<_>>());
}
