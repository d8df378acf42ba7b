//! Agent and receiver are killed under load, again and again, as a power cut would: nothing that
//! stands in a file is lost, nothing is stored twice, the chain is whole.
#![allow(clippy::unwrap_used, reason = "a test ends there")]
#![cfg(unix)]

mod support;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use support::{
    agent::Agent,
    entries::{self, Line},
    home::Home,
    random,
    receiver::{Receiver, wait_for},
};

const KILLS_OF_AGENT: usize = 20;
const KILLS_OF_RECEIVER: usize = 5;
const FILES: usize = 4;
/// Small batches and no waiting: much is under way at any moment.
const CONFIG: &str = "[shipping]\nflush_interval = \"0s\"\nbatch_size = 40";

/// Appends numbered records to several files until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<PathBuf, Vec<u8>>>,
}

impl Writer {
    fn start(home: &Arc<Home>, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (home, end) = (Arc::clone(home), Arc::clone(&stop));
        let thread = thread::spawn(move || write(&home, &end, seed));
        Self { stop, thread }
    }

    /// Stops, and gives what each file holds.
    fn finish(self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn write(home: &Home, end: &AtomicBool, seed: u64) -> BTreeMap<PathBuf, Vec<u8>> {
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
        // In two writes, so that at times the agent meets half a line.
        let (first, second) = piece.split_at(random.usize(..piece.len()));
        home.append(&name, first);
        thread::sleep(Duration::from_micros(random.u64(..20_000)));
        let path = home.append(&name, second);
        files.entry(path).or_insert_with(Vec::new).extend_from_slice(&piece);
    }
    files
}

#[test]
fn nothing_is_lost_or_stored_twice_when_agent_and_receiver_are_killed() {
    let mut random = random();
    let home = Arc::new(Home::new());
    let mut receiver = Receiver::start();
    let url = receiver.url();
    let start = || home.agent(&["run"]).config(CONFIG).ships_to(&url).start();
    let writer = Writer::start(&home, random.u64(..));

    let mut kills: Vec<bool> = Vec::new();
    kills.resize(KILLS_OF_AGENT, true);
    kills.resize(KILLS_OF_AGENT + KILLS_OF_RECEIVER, false);
    random.shuffle(&mut kills);
    let mut agent = start();
    for kills_agent in kills {
        // From before the agent has opened its store to well within its work.
        thread::sleep(Duration::from_millis(random.u64(1..700)));
        if kills_agent {
            assert!(agent.runs(), "ended by itself:\n{}", agent.log());
            agent.kill();
            agent = start();
        } else {
            receiver.kill();
            thread::sleep(Duration::from_millis(random.u64(1..300)));
            receiver.start_again();
        }
    }
    let files = writer.finish();
    all_arrives(&home, &receiver, agent, &files);
}

#[track_caller]
fn all_arrives(home: &Home, receiver: &Receiver, agent: Agent, files: &BTreeMap<PathBuf, Vec<u8>>) {
    let count = |bytes: &Vec<u8>| bytes.iter().filter(|byte| **byte == b'\n').count();
    let written: usize = files.values().map(count).sum();
    assert!(written > 500, "{written} records were written");
    wait_for(receiver, "every record arrived", |entries| {
        (entries.iter().filter(|entry| entry.event.is_none()).count() >= written).then_some(())
    });
    // A last run finds nothing more to send.
    agent.stop();
    home.agent(&["run", "--once"]).config(CONFIG).ships_to(&receiver.url()).succeed();

    let mut arrived: BTreeMap<PathBuf, Vec<Line>> = BTreeMap::new();
    for line in entries::lines(&receiver.entries()) {
        arrived.entry(line.path.clone()).or_default().push(line);
    }
    for (path, bytes) in files {
        let lines = arrived.remove(path).expect("every file arrives");
        let mut rebuilt = Vec::new();
        for line in lines {
            let place = path.display();
            assert_eq!(line.offset, rebuilt.len() as u64, "a line of {place} is lost or doubled");
            rebuilt.extend_from_slice(&line.bytes);
            rebuilt.push(b'\n');
        }
        assert!(rebuilt == *bytes, "other bytes of {}", path.display());
    }
    assert!(arrived.is_empty(), "lines of files that were never written");
    receiver.assert_whole();
}

/// Ends in order in the middle of work lose and double nothing either, and each is quick.
#[test]
fn nothing_is_lost_when_the_agent_is_ended_in_mid_work() {
    let mut random = random();
    let home = Arc::new(Home::new());
    let receiver = Receiver::start();
    let start = || home.agent(&["run"]).config(CONFIG).ships_to(&receiver.url()).start_and_wait();
    let writer = Writer::start(&home, random.u64(..));
    for _ in 0..5 {
        let agent = start();
        thread::sleep(Duration::from_millis(random.u64(1..500)));
        agent.stop();
    }
    let files = writer.finish();
    all_arrives(&home, &receiver, start(), &files);
}
