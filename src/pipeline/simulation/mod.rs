//! The whole pipeline in a world of its own: time, disk, receiver and whoever writes the files
//! follow a script that a seed has made.
//!
//! Session files grow, move, are cut, rewritten and deleted; the receiver is away, refuses, or
//! loses its answers; the store fails or loses its power; the agent is killed, started with other
//! filters, or given yesterday's store; the wall clock jumps. At the end everything is well again,
//! and every line is looked for: at the receiver exactly once and byte for byte, or filtered, or a
//! dead letter, or gone before it could be read.
//!
//! `AI_AGENT_WORLDS` says how many worlds, `AI_AGENT_SEED` repeats one.

mod determinism;
mod invariants;
mod receiver;
mod session_files;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use receiver::{Held, MOODS, Mood, records};
use serde_json::Value;
use session_files::{MAX_LINE, Nature, Script};
use siem_protocol::{Digest, Entry, Identity};
use tokio::{runtime::Runtime, sync::watch};

use super::{
    backpressure::Backpressure,
    config_status::SharedConfigStatus,
    delivery::{SinkControl, SinkProgress, SinkTask},
    filter_chain::FilterChain,
    group_builder::GroupBuilder,
    ingest::{Inbox, Ingest, IngestState, StepOutcome, Writer},
    outbox::{
        Outbox, SinkRegistration, builder,
        simulated_disk::{SimulatedDisk, env_number},
    },
    record_stages::RecordStages,
};
use crate::{
    config::ShippingSettings,
    event::Event,
    frame::Codec,
    platform::{Clock, Timestamp},
    stages::{
        Named, Record, StageOptions,
        filter::{self, Filter, Verdict},
        source::{Progress, Source, Survey},
    },
    tail::{BadRow, FileKey, GenerationId, Intake, NewGeneration, Tail, TailOptions},
    text::causes,
};

const STEPS: usize = 150;
const POLL: Duration = Duration::from_secs(300);
/// How long the name of the root is, on any machine.
const ROOT_LENGTH: usize = 120;
/// Compressed, the length of what is stored would depend on the name of the folder.
const CODEC: Codec = Codec::Plain;
const YEAR: u64 = 365 * 24 * 3600 * 1000;

/// What is wrong with the agent, on purpose: the check must find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A sink takes a batch for delivered that the receiver does not have.
    AcknowledgedEarly,
    /// `dedupe` remembers lines of groups that were not stored.
    DedupeKept,
}

/// Time as the world has it.
#[derive(Debug)]
struct Time {
    wall: AtomicU64,
    up: AtomicU64,
}

impl Time {
    fn pass(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap();
        self.wall.fetch_add(millis, Ordering::Relaxed);
        self.up.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for Time {
    fn now(&self) -> Timestamp {
        Timestamp(self.wall.load(Ordering::Relaxed))
    }

    fn uptime(&self) -> Duration {
        Duration::from_millis(self.up.load(Ordering::Relaxed))
    }
}

/// A source that is nothing but a tail.
struct Sessions(Tail);

impl Source for Sessions {
    fn label(&self) -> &'static str {
        "claude-sessions"
    }

    fn restore(
        &mut self,
        rows: &mut dyn Iterator<Item = (GenerationId, Vec<u8>)>,
    ) -> Result<(), BadRow> {
        self.0.restore(rows)
    }

    fn read(&mut self, intake: &mut dyn Intake) -> Progress {
        self.0.read(intake)
    }

    fn sealed(&mut self) {
        self.0.sealed();
    }

    fn committed(&mut self) {
        self.0.committed();
    }

    fn survey(&self) -> Survey {
        self.0.survey()
    }
}

/// A filter that does not take anything back.
struct Stubborn(Box<dyn Filter>);

impl Filter for Stubborn {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        self.0.check(record)
    }

    fn commit(&mut self) {
        self.0.commit();
    }

    fn rollback(&mut self) {
        self.0.commit();
    }

    fn forget(&mut self, file: FileKey) {
        self.0.forget(file);
    }

    fn take_events(&mut self) -> Vec<Event> {
        self.0.take_events()
    }
}

/// An agent that runs.
struct Agent {
    ingest: Ingest,
    outbox: Arc<Outbox>,
    runtime: Runtime,
    _orders: watch::Sender<SinkControl>,
}

struct World {
    random: fastrand::Rng,
    fault: Fault,
    time: Arc<Time>,
    folder: tempfile::TempDir,
    root: PathBuf,
    disk: SimulatedDisk,
    script: Script,
    held: Arc<Mutex<Held>>,
    agent: Option<Agent>,
    epochs: Arc<AtomicU64>,
    generations: Arc<Mutex<fastrand::Rng>>,
    /// A copy of the store, from some time ago.
    copy: Option<Vec<u8>>,
    is_restored: bool,
    tally: BTreeMap<&'static str, u64>,
    /// What happened, and where the store ended then.
    trace: Vec<String>,
}

impl World {
    fn new(seed: u64, fault: Fault) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = folder();
        // Paths stand in entries, and how long they are decides what goes into a group.
        let rest = ROOT_LENGTH - folder.path().as_os_str().len();
        let root = folder.path().join("p".repeat(rest));
        std::fs::create_dir(&root).unwrap();
        let disk = SimulatedDisk::new(random.u64(..));
        Self {
            fault,
            time: Arc::new(Time { wall: AtomicU64::new(2 * YEAR * 27), up: AtomicU64::new(0) }),
            disk,
            script: Script::below(root.clone()),
            root,
            folder,
            held: Arc::default(),
            agent: None,
            epochs: Arc::default(),
            generations: Arc::new(Mutex::new(random.fork())),
            random,
            copy: None,
            is_restored: false,
            tally: BTreeMap::new(),
            trace: Vec::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
        let end = self.agent.as_ref().map(|agent| agent.outbox.end().seq);
        let lines = self.script.lines.len();
        let step = format!("{what}; the store ends before {end:?}, {lines} lines");
        if env_number("AI_AGENT_TRACE").is_some() {
            eprintln!("{step}");
        }
        self.trace.push(step);
    }

    fn run(&mut self) -> Result<(), String> {
        self.start()?;
        for _ in 0..STEPS {
            self.step()?;
            if self.disk.is_off() {
                self.agent = None;
                self.disk.reboot();
                self.count("power cut");
                self.start()?;
            }
        }
        self.all_is_well_again()?;
        self.account_for_all()
    }

    fn step(&mut self) -> Result<(), String> {
        let choice = self.random.u32(..100);
        match choice {
            0..38 => {
                let now = self.time.now();
                let what = self.script.step(&mut self.random, now);
                self.count(what);
            }
            38..62 => self.read(),
            62..78 => {
                let seconds = self.random.u64(1..40);
                self.deliver(Duration::from_secs(seconds));
            }
            78..83 => {
                let (mood, what) = MOODS[self.random.usize(..MOODS.len())];
                let is_good = self.random.bool();
                self.held.lock().unwrap().mood = if is_good { Mood::Good } else { mood };
                if !is_good {
                    self.count(what);
                    self.deliver(Duration::from_secs(60));
                }
            }
            83..86 => self.settle(),
            86..89 => self.disk.cut_after(self.random.u64(1..150)),
            89..92 => {
                // In delivery first, at times: the handle is gone then, and reading finds it so.
                if self.random.bool() {
                    self.disk.fail(self.random.u64(1..4));
                    self.deliver(Duration::from_secs(1));
                }
                self.disk.fail(self.random.u64(1..4));
                self.read();
                self.disk.fail(0);
            }
            92..94 => {
                self.agent = None;
                self.count("agent killed");
                self.start()?;
            }
            94..96 => {
                if let Some(agent) = self.agent.take() {
                    agent.ingest.end();
                }
                self.count("agent started with other filters");
                self.start()?;
            }
            96..97 => self.copy = Some(self.disk.bytes()),
            97..98 => self.restore()?,
            _ => {
                let wall = &self.time.wall;
                let by = self.random.u64(1..YEAR);
                if self.random.bool() {
                    wall.fetch_add(by, Ordering::Relaxed);
                } else {
                    wall.fetch_sub(by.min(self.time.now().0 / 2), Ordering::Relaxed);
                }
                self.count("clock jumped");
            }
        }
        Ok(())
    }

    /// Starts the agent on what is there, with the filters of the day.
    fn start(&mut self) -> Result<(), String> {
        // A runtime that goes waits for what it has begun; only then is the store free.
        let outbox = loop {
            let disk = self.disk.clone();
            let opener = move || Ok((builder().create_with_backend(disk.clone())?, None));
            let seat = SinkRegistration { name: "siem".into(), ..SinkRegistration::default() };
            let epoch = self.new_epoch();
            let path = self.folder.path().join("outbox.redb");
            match Outbox::open_with(&path, Box::new(opener), &[seat], || epoch()) {
                Ok(outbox) => break Arc::new(outbox),
                Err(_) if self.disk.is_off() => self.disk.reboot(),
                // Cut while the file was made: it is moved aside, and nothing was in it.
                Err(error) if error.is_damage() && self.script.lines.iter().all(|l| !l.is_safe) => {
                    self.disk.clear();
                }
                Err(error) => return Err(format!("cannot be opened: {}", causes(&error))),
            }
        };
        let batch_size = self.random.usize(3..120);
        let shipping = ShippingSettings {
            batch_size,
            flush_interval: Duration::ZERO,
            ..ShippingSettings::default()
        };
        let mut filters: Vec<Named<dyn Filter>> = Vec::new();
        for (name, options) in
            [("dedupe", ""), ("ignore-types", "types = [\"progress\"]"), ("sidechain", "")]
        {
            if name == "sidechain" && self.random.bool() {
                continue;
            }
            let built = filter::build(name, &StageOptions::from_toml(options).unwrap()).unwrap();
            let is_stubborn = self.fault == Fault::DedupeKept && name == "dedupe";
            let built = if is_stubborn { Box::new(Stubborn(built)) } else { built };
            filters.push((name.to_owned(), built));
        }
        let config = Digest::of(&[filters.len() as u8]);
        let inbox = Arc::new(Inbox::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let reported = Arc::clone(&inbox);
        let mut jitter = fastrand::Rng::with_seed(self.random.u64(..));
        let sink = receiver::Line { held: Arc::clone(&self.held), fault: self.fault, calls: 0 };
        let delivering = SinkTask {
            name: "siem".into(),
            sink: Box::new(sink),
            outbox: Arc::clone(&outbox),
            identity: Arc::new(Identity {
                machine_id: "m".into(),
                hostname: "h".into(),
                user: "u".into(),
                os: "linux".into(),
                arch: "x86_64".into(),
                agent_version: "0".into(),
            }),
            rate_limit: None,
            clock: Arc::clone(&self.time) as Arc<dyn Clock>,
            jitter: Box::new(move || jitter.f64()),
            progress: watch::Sender::<SinkProgress>::default(),
            report: Arc::new(move |event| reported.report(event)),
            new_epoch: self.new_epoch(),
        };
        let (orders, watched) = watch::channel(SinkControl::new(shipping, u64::MAX));
        runtime.spawn(delivering.run(watched));
        let options = TailOptions {
            roots: vec![self.root.clone()],
            max_record_bytes: MAX_LINE as u64,
            part_bytes: 1024,
            chunk_bytes: 4096,
            open_files: 3,
            poll_interval: POLL,
            watch: false,
            ..TailOptions::default()
        };
        let clock = Arc::clone(&self.time) as Arc<dyn Clock>;
        let tail = Tail::new(options, Arc::clone(&clock), self.new_generation(), Arc::new(|| ()));
        let mut builder = GroupBuilder::new(outbox.end(), config, shipping, CODEC);
        // So small that there is often more to read while a group is stored.
        builder.full = 1500;
        let mut ingest = Ingest {
            sources: vec![("sessions".into(), Box::new(Sessions(tail)))],
            stages: RecordStages::new(FilterChain::new(filters), Vec::new()),
            builder,
            writer: Writer::inline(Arc::clone(&outbox), CODEC),
            outbox: Arc::clone(&outbox),
            backpressure: Backpressure::new(1 << 30),
            inbox,
            clock,
            heartbeat: POLL,
            config_status: SharedConfigStatus::default(),
            jitter: Box::new(|| 0.5),
            on_progress: Box::new(|_| ()),
            state: IngestState::default(),
        };
        ingest.begin();
        self.agent = Some(Agent { ingest, outbox, runtime, _orders: orders });
        Ok(())
    }

    fn new_epoch(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let epochs = Arc::clone(&self.epochs);
        Arc::new(move || format!("epoch-{:03}", epochs.fetch_add(1, Ordering::Relaxed)))
    }

    /// As the real ones are: the time, which may go back here, and random bytes.
    fn new_generation(&self) -> NewGeneration {
        let (random, time) = (Arc::clone(&self.generations), Arc::clone(&self.time));
        Box::new(move || {
            let random = random.lock().unwrap().u128(..1 << 80);
            GenerationId(format!("{:012x}{random:020x}", time.now().0))
        })
    }

    /// Fills and stores a group or two.
    fn read(&mut self) {
        self.time.pass(Duration::from_millis(self.random.u64(1..20_000)));
        for _ in 0..self.random.usize(1..4) {
            let Some(agent) = &mut self.agent else { return };
            match agent.ingest.step() {
                StepOutcome::NotStored { .. } => self.count("group not stored"),
                StepOutcome::Read(Progress::Idle { .. }) => return,
                StepOutcome::Read(Progress::More) => self.count("read on while storing"),
                StepOutcome::Full | StepOutcome::Held => {}
            }
        }
    }

    /// Lets the sink do what it can in so much time.
    fn deliver(&mut self, time: Duration) {
        let Some(agent) = &mut self.agent else { return };
        agent.runtime.block_on(async { tokio::time::sleep(time).await });
        self.time.pass(time);
    }

    /// Reads until nothing is left. What stands in the files then is stored, whatever comes.
    fn settle(&mut self) {
        for _ in 0..2 {
            self.time.pass(POLL + POLL / 2);
            let mut turns = 0;
            loop {
                let Some(agent) = &mut self.agent else { return };
                match agent.ingest.step() {
                    StepOutcome::Read(Progress::Idle { .. }) => break,
                    StepOutcome::NotStored { .. } if self.disk.is_off() => return,
                    _ => turns += 1,
                }
                assert!(turns < 10_000, "reading does not come to an end");
            }
        }
        self.script.all_is_read();
        self.count("everything read");
    }

    /// The store is replaced by its copy from some time ago.
    fn restore(&mut self) -> Result<(), String> {
        let Some(copy) = self.copy.take() else { return Ok(()) };
        self.agent = None;
        self.disk = SimulatedDisk::of(copy, self.random.u64(..));
        // What only the store of today held is gone with it; what a file has still is to be read.
        let held = self.held.lock().unwrap();
        let at_receiver: HashSet<Vec<u8>> =
            records(&held.epochs).into_iter().map(|record| record.bytes).collect();
        drop(held);
        for line in &mut self.script.lines {
            line.is_safe &= at_receiver.contains(&line.bytes);
        }
        self.is_restored = true;
        self.count("store from yesterday");
        self.start()
    }

    /// The receiver is there, the disk works, and time goes by.
    fn all_is_well_again(&mut self) -> Result<(), String> {
        self.held.lock().unwrap().mood = Mood::Good;
        self.disk.reboot();
        self.agent = None;
        self.start()?;
        self.settle();
        let mut quiet = 0;
        for _ in 0..200 {
            let Some(agent) = &mut self.agent else { break };
            let turn = agent.ingest.step();
            self.deliver(Duration::from_secs(600));
            let Some(agent) = &mut self.agent else { break };
            let end = agent.outbox.end().seq;
            let done = agent.outbox.cursor("siem").map_err(|error| causes(&error))?;
            let is_done = done.acknowledged.seq + 1 == end;
            quiet = if is_done && matches!(turn, StepOutcome::Read(Progress::Idle { .. })) {
                quiet + 1
            } else {
                0
            };
            // A dead letter and a new epoch are reported after they happened.
            if quiet == 3 {
                return Ok(());
            }
        }
        Err("delivery does not come to an end".into())
    }
}

/// Where there is a file system in memory, the ids of files come in a row, and whether one is used
/// again does not hang on what else the machine does. That one is has cases of its own in the tail.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().take(400).collect()
}

#[test_requires::requires(not_wine)]
#[test]
fn every_line_of_every_world_is_accounted_for() {
    let asked = env_number("AI_AGENT_WORLDS");
    let worlds = asked.unwrap_or(200);
    let first = env_number("AI_AGENT_SEED");
    // The same ones each time, unless somebody goes looking.
    let mut seeds = asked.map_or_else(|| fastrand::Rng::with_seed(1), |_| fastrand::Rng::new());
    let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
    let mut lines = 0;
    for _ in 0..worlds {
        let seed = first.unwrap_or_else(|| seeds.u64(..));
        let mut world = World::new(seed, Fault::None);
        if let Err(wrong) = run(&mut world) {
            if env_number("AI_AGENT_TRACE").is_some() {
                for line in world.held.lock().unwrap().epochs.values().flat_map(BTreeMap::values) {
                    eprintln!("{}", text(line));
                }
            }
            panic!("AI_AGENT_SEED={seed} AI_AGENT_WORLDS=1 repeats this: {wrong}");
        }
        lines += world.script.lines.len();
        for (what, count) in &world.tally {
            *tally.entry(what).or_default() += count;
        }
    }
    eprintln!("{worlds} worlds, {lines} lines: 0 lost, 0 twice");
    for (what, count) in &tally {
        eprintln!("{count:>9}  {what}");
        assert!(*count > 0 || worlds < 200, "`{what}` never happened");
    }
    assert!(tally.len() == KINDS || worlds < 200, "{} kinds of {KINDS} happened", tally.len());
}

/// Runs a world; a panic in it is something wrong too.
fn run(world: &mut World) -> Result<(), String> {
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    ran.unwrap_or_else(|_| Err("it panicked".into()))
}

/// How many kinds of things happen in worlds.
const KINDS: usize = 28;

/// A check that finds nothing proves nothing.
#[test]
fn the_check_finds_what_is_wrong_on_purpose() {
    for fault in [Fault::AcknowledgedEarly, Fault::DedupeKept] {
        let found = (1..60).find_map(|seed| run(&mut World::new(seed, fault)).err());
        let found = found.unwrap_or_else(|| panic!("{fault:?} is not found"));
        eprintln!("{fault:?}: {found}");
    }
}
