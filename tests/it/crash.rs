//! Agent and receiver are killed under load again and again, as by a power cut: nothing written to
//! a file is lost, nothing is stored twice, and the chain is intact.
#![cfg(unix)]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::support::{
    PATIENCE,
    agent::Agent,
    entries::{self, Line},
    eventually,
    home::Home,
    random, random_moment,
    receiver::{Receiver, settle},
    relay::{Point, Relay},
};
use rustix::process::Signal;

/// Number of kills of the agent. The receiver is killed a quarter as often.
const KILLS: usize = 20;
const FILES: usize = 4;
/// Small batches without delays, so that much is in progress at any moment.
const CONFIG: &str = "[shipping]\nflush_interval = \"0s\"\nbatch_size = 40";

/// Moment at which the agent is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Any moment.
    Random,
    /// Before or while it opens its store.
    Start,
    /// During a clean stop.
    End,
    /// Just after a change of its store.
    Commit,
    /// With a batch at this point.
    Batch(Point),
}

/// Counts kills whose moment did not come in time.
const MISSED: &str = "at another moment";

const MOMENTS: [(Moment, &str); 7] = [
    (Moment::Random, "at random"),
    (Moment::Start, "at its start"),
    (Moment::End, "while it ends"),
    (Moment::Commit, "as its store changes"),
    (Moment::Batch(Point::Sent), "with a batch sent"),
    (Moment::Batch(Point::StoredEntry), "with a batch stored, unanswered"),
    (Moment::Batch(Point::Answered), "with a batch answered"),
];

/// Appends numbered records to several files until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<PathBuf, Vec<u8>>>,
}

impl Writer {
    /// Starts to write, with pauses that grow with the length of the run.
    fn start(home: &Arc<Home>, seed: u64, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (home, end) = (Arc::clone(home), Arc::clone(&stop));
        let thread = thread::spawn(move || write(&home, &end, seed, pause));
        Self { stop, thread }
    }

    /// Stops, and returns the content of each file.
    fn finish(self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn write(home: &Home, end: &AtomicBool, seed: u64, pause: Duration) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut files = BTreeMap::new();
    let mut number = 0;
    while !end.load(Ordering::Relaxed) {
        let name = format!("-work/session-{}.jsonl", random.usize(..FILES));
        let mut piece = Vec::new();
        for _ in 0..random.usize(1..30) {
            number += 1;
            let filling = "ä".repeat(random.usize(..400));
            let uuid = format!("{:08x}-{number}", random.u32(..));
            let record = format!(
                "{{\"type\":\"user\",\"uuid\":\"{uuid}\",\"n\":{number},\"text\":\"{filling}\"}}\n"
            );
            piece.extend_from_slice(record.as_bytes());
        }
        // Two writes, so that the agent sometimes sees half a line.
        let (first, second) = piece.split_at(random.usize(..piece.len()));
        home.append(&name, first);
        random_moment(&mut random, pause);
        let path = home.append(&name, second);
        files.entry(path).or_insert_with(Vec::new).extend_from_slice(&piece);
    }
    files
}

/// Kills agent and receiver this often, and counts the moments. With `lying`, the agent then gets a
/// receipt for a batch that the receiver never gets.
fn kill(kills: usize, lying: bool) -> Result<BTreeMap<&'static str, usize>, String> {
    let mut random = random();
    let home = Arc::new(Home::new());
    let mut receiver = Receiver::start();
    let tap = Relay::to(&receiver.url());
    let url = tap.url();
    let start = || home.agent(&["run"]).config(CONFIG).ships_to(&url).start();
    let pause = Duration::from_millis(1) * u32::try_from(kills.max(KILLS)).unwrap();
    let writer = Writer::start(&home, random.u64(..), pause);

    // Each moment is used equally often.
    let mut plan: Vec<Option<(Moment, &str)>> =
        MOMENTS.iter().copied().cycle().take(kills).map(Some).collect();
    plan.resize(kills + kills / 4, None);
    random.shuffle(&mut plan);
    let mut counts = BTreeMap::new();
    let mut agent = start();
    for kill in plan {
        let Some((moment, name)) = kill else {
            random_moment(&mut random, Duration::from_millis(300));
            receiver.kill();
            random_moment(&mut random, Duration::from_millis(300));
            receiver.restart();
            *counts.entry("receiver, at random").or_default() += 1;
            continue;
        };
        assert!(agent.runs(), "ended by itself:\n{}", agent.log());
        let is_there = wait_for(moment, &agent, &tap, &home, &mut random);
        agent.kill();
        tap.release();
        *counts.entry(if is_there { name } else { MISSED }).or_default() += 1;
        agent = start();
        if moment == Moment::Start {
            random_moment(&mut random, Duration::from_millis(60));
            agent.kill();
            agent = start();
        }
    }
    if lying {
        eventually("150 entries", || (receiver.count() > 150).then_some(()));
        tap.hold(Point::FalseReceipt).recv_timeout(PATIENCE).unwrap();
    }
    let files = writer.finish();
    all_arrives(&home, &receiver, &url, agent, &files)?;
    Ok(counts)
}

/// Waits for the moment. Returns false if it does not come within a while.
fn wait_for(
    moment: Moment,
    agent: &Agent,
    tap: &Relay,
    home: &Home,
    random: &mut fastrand::Rng,
) -> bool {
    const WHILE: Duration = Duration::from_secs(10);
    match moment {
        Moment::Start => {}
        Moment::Random => random_moment(random, Duration::from_millis(700)),
        Moment::End => {
            random_moment(random, Duration::from_millis(400));
            agent.signal(Signal::TERM);
            random_moment(random, Duration::from_millis(15));
        }
        Moment::Commit => {
            let store = home.path().join(".local/state/ai-agent/outbox.redb");
            let changed = || fs::metadata(&store).and_then(|store| store.modified()).ok();
            let (started_at, before) = (Instant::now(), changed());
            while changed() == before {
                if started_at.elapsed() > WHILE {
                    return false;
                }
                thread::yield_now();
            }
        }
        Moment::Batch(point) => return tap.hold(point).recv_timeout(WHILE).is_ok(),
    }
    true
}

#[test]
fn kills_of_agent_and_receiver_lose_and_double_nothing() {
    let kills = std::env::var("AI_AGENT_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let counts = kill(kills, false).unwrap();
    eprintln!("{} kills: 0 lines lost, 0 twice", counts.values().sum::<usize>());
    for (when, count) in &counts {
        eprintln!("{count:>9}  {when}");
    }
    assert!(MOMENTS.iter().all(|(_, name)| counts.contains_key(name)), "some moment never came");
}

/// The harness must detect lost lines: a check that cannot fail proves nothing. After a kill, the batch
/// could be one that the receiver has already.
#[test]
fn false_receipts_are_detected_by_the_harness() {
    let found = kill(0, true).expect_err("lines are lost");
    assert!(found.contains("lost"), "{found}");
}

fn all_arrives(
    home: &Home,
    receiver: &Receiver,
    url: &str,
    agent: Agent,
    files: &BTreeMap<PathBuf, Vec<u8>>,
) -> Result<(), String> {
    let count = |bytes: &Vec<u8>| bytes.iter().filter(|byte| **byte == b'\n').count();
    let written: usize = files.values().map(count).sum();
    assert!(written > 100, "{written} records were written");
    settle(receiver, written);
    // A last run has nothing more to send.
    agent.stop();
    home.agent(&["run", "--once"]).config(CONFIG).ships_to(url).succeed();

    let mut arrived: BTreeMap<PathBuf, Vec<Line>> = BTreeMap::new();
    // After a loss the agent has to start another epoch.
    for line in entries::lines(&receiver.entries_of_all_epochs()) {
        arrived.entry(line.path.clone()).or_default().push(line);
    }
    for (path, bytes) in files {
        let place = path.display();
        let lines = arrived.remove(path).ok_or_else(|| format!("all of {place} is lost"))?;
        let mut rebuilt = Vec::new();
        for line in lines {
            if line.offset != rebuilt.len() as u64 {
                return Err(format!("a line of {place} is lost or doubled"));
            }
            rebuilt.extend_from_slice(&line.bytes);
            rebuilt.push(b'\n');
        }
        if rebuilt != *bytes {
            return Err(format!("other bytes of {place}, or the last are lost"));
        }
    }
    assert!(arrived.is_empty(), "lines of files that were never written");
    receiver.assert_complete();
    Ok(())
}

/// Clean stops under load lose and double nothing either, and are quick.
#[test]
fn stops_in_the_middle_of_work_lose_nothing() {
    let mut random = random();
    let home = Arc::new(Home::new());
    let receiver = Receiver::start();
    let start = || home.agent(&["run"]).config(CONFIG).ships_to(&receiver.url()).start_and_wait();
    let writer = Writer::start(&home, random.u64(..), Duration::from_millis(20));
    for _ in 0..5 {
        let agent = start();
        random_moment(&mut random, Duration::from_millis(500));
        agent.stop();
    }
    let files = writer.finish();
    all_arrives(&home, &receiver, &receiver.url(), start(), &files).unwrap();
}
