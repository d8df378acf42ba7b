//! Simulation of the whole pipeline: time, disk, receiver and session files follow a script made from
//! a seed.
//!
//! Session files grow, are moved, truncated, rewritten and deleted; the receiver is unreachable,
//! refuses batches, or loses its responses; the store fails or loses power; the agent is killed,
//! restarted with other filters, or given an old copy of its store; the wall clock jumps. An attacker
//! with the secrets of the fleet answers in the receiver's place, and sends batches of its own and old
//! ones. At the end
//! all faults are removed, and every line must be accounted for: at the receiver exactly once and
//! byte for byte, filtered, a dead letter, or deleted before it could be read.
//!
//! `AI_AGENT_WORLDS` sets the number of simulations, `AI_AGENT_SEED` repeats one.

mod determinism;
mod forger;
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

use forger::Forger;
use receiver::{Behaviour, FAULTS, MACHINE, RECEIVER, ReceiverState, USER, records};
use serde_json::Value;
use session_files::{Line, LineKind, MAX_LINE, SessionFiles};
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
        Named, Record,
        filter::{self, Filter, Verdict},
        source::{Progress, Source, Survey},
    },
    tail::{BadRow, FileKey, GenerationId, Intake, NewGeneration, Tail, TailOptions},
    text::causes,
};

const STEPS: usize = 150;
const POLL: Duration = Duration::from_secs(300);
/// Length of the root's path, on any machine.
const ROOT_LENGTH: usize = 120;
/// With compression, the size of stored entries would depend on the name of the folder.
const CODEC: Codec = Codec::Plain;
const YEAR: u64 = 365 * 24 * 3600 * 1000;

/// A deliberate defect of the agent, which the checks must detect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    /// A sink acknowledges a batch that the receiver does not have.
    AcknowledgedEarly,
    /// `dedupe` keeps its memory of groups that were not stored.
    DedupeKept,
    /// A sink believes acknowledgements without a receipt.
    BelievesAnyAnswer,
    /// A sink believes receipts that name the seal of another sender.
    BelievesAnySeal,
}

/// Simulated time.
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

/// A source made of a tail only.
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

/// A filter that ignores rollbacks.
struct NoRollback(Box<dyn Filter>);

impl Filter for NoRollback {
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

/// A running agent.
struct Agent {
    ingest: Ingest,
    outbox: Arc<Outbox>,
    runtime: Runtime,
    _orders: watch::Sender<SinkControl>,
}

struct Simulation {
    random: fastrand::Rng,
    defect: Defect,
    time: Arc<Time>,
    folder: tempfile::TempDir,
    root: PathBuf,
    disk: SimulatedDisk,
    script: SessionFiles,
    received: Arc<Mutex<ReceiverState>>,
    forger: Arc<Mutex<Forger>>,
    agent: Option<Agent>,
    epochs: Arc<AtomicU64>,
    generations: Arc<Mutex<fastrand::Rng>>,
    /// An old copy of the store.
    copy: Option<Vec<u8>>,
    is_restored: bool,
    tally: BTreeMap<&'static str, u64>,
    /// Each step, with the end of the store after it.
    trace: Vec<String>,
}

impl Simulation {
    fn new(seed: u64, defect: Defect) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = folder();
        // Entries contain paths, whose length decides how many entries fit into a group.
        let rest = ROOT_LENGTH - folder.path().as_os_str().len();
        let root = folder.path().join("p".repeat(rest));
        std::fs::create_dir(&root).unwrap();
        let disk = SimulatedDisk::new(random.u64(..));
        Self {
            defect,
            time: Arc::new(Time { wall: AtomicU64::new(2 * YEAR * 27), up: AtomicU64::new(0) }),
            disk,
            script: SessionFiles::below(root.clone()),
            root,
            folder,
            received: Arc::default(),
            forger: Arc::new(Mutex::new(Forger::new(random.fork(), RECEIVER))),
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
        self.recover_and_drain()?;
        self.check_every_line()
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
            62..66 => {
                let mut forger = self.forger.lock().unwrap();
                let what = forger.attack(&mut self.received.lock().unwrap());
                drop(forger);
                self.count(what);
            }
            66..78 => {
                let seconds = self.random.u64(1..40);
                self.deliver(Duration::from_secs(seconds));
            }
            78..83 => {
                let (behaviour, what) = FAULTS[self.random.usize(..FAULTS.len())];
                let is_good = self.random.bool();
                self.received.lock().unwrap().behaviour =
                    if is_good { Behaviour::Good } else { behaviour };
                if !is_good {
                    self.count(what);
                    self.deliver(Duration::from_secs(60));
                }
            }
            83..86 => self.read_everything(),
            86..89 => self.disk.cut_after(self.random.u64(1..150)),
            89..92 => {
                // Sometimes delivery fails first: the database handle is closed when reading starts.
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
            97..98 => self.restore_old_store()?,
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

    /// Starts the agent with randomly chosen filters.
    fn start(&mut self) -> Result<(), String> {
        let outbox = self.open_outbox()?;
        let batch_size = self.random.usize(3..120);
        let shipping = ShippingSettings {
            batch_size,
            flush_interval: Duration::ZERO,
            ..ShippingSettings::default()
        };
        let filters = self.filters();
        let config = Digest::of(&[filters.len() as u8]);
        let inbox = Arc::new(Inbox::default());
        outbox.unreported_events().into_iter().for_each(|event| inbox.report(event));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (orders, watched) = watch::channel(SinkControl::new(shipping, u64::MAX));
        runtime.spawn(self.sink_task(&outbox, &inbox).run(watched));
        let mut builder = GroupBuilder::new(outbox.end(), config, shipping, CODEC);
        // Small groups, so that there is often more to read while one is stored.
        builder.full = 1500;
        let mut ingest = Ingest {
            sources: vec![("sessions".into(), Box::new(Sessions(self.tail())))],
            stages: RecordStages::new(FilterChain::new(filters), Vec::new()),
            builder,
            writer: Writer::inline(Arc::clone(&outbox), CODEC),
            outbox: Arc::clone(&outbox),
            backpressure: Backpressure::new(1 << 30),
            inbox,
            clock: Arc::clone(&self.time) as Arc<dyn Clock>,
            heartbeat: POLL,
            config_status: SharedConfigStatus::default(),
            trust: Box::new(Default::default),
            update: Box::new(Default::default),
            jitter: Box::new(|| 0.5),
            on_progress: Box::new(|_| ()),
            state: IngestState::default(),
        };
        ingest.begin();
        self.agent = Some(Agent { ingest, outbox, runtime, _orders: orders });
        Ok(())
    }

    fn open_outbox(&mut self) -> Result<Arc<Outbox>, String> {
        // Dropping the previous runtime waits for its blocking work; only then is the store free.
        loop {
            let disk = self.disk.clone();
            let opener = move || Ok((builder().create_with_backend(disk.clone())?, None));
            let registration =
                SinkRegistration { name: "siem".into(), ..SinkRegistration::default() };
            let epoch = self.new_epoch();
            let path = self.folder.path().join("outbox.redb");
            match Outbox::open_with(&path, Box::new(opener), &[registration], || epoch()) {
                Ok(outbox) => return Ok(Arc::new(outbox)),
                Err(_) if self.disk.is_off() => self.disk.reboot(),
                // Power was cut while the file was created, so that nothing was in it.
                Err(error) if error.is_damage() && self.script.lines.iter().all(|l| !l.is_safe) => {
                    self.disk.clear();
                }
                Err(error) => return Err(format!("cannot be opened: {}", causes(&error))),
            }
        }
    }

    fn filters(&mut self) -> Vec<Named<dyn Filter>> {
        let mut filters: Vec<Named<dyn Filter>> = Vec::new();
        for (name, options) in
            [("dedupe", ""), ("ignore-types", "types = [\"progress\"]"), ("sidechain", "")]
        {
            if name == "sidechain" && self.random.bool() {
                continue;
            }
            let built = filter::build(name, &options.parse().unwrap()).unwrap();
            let ignores_rollback = self.defect == Defect::DedupeKept && name == "dedupe";
            let built = if ignores_rollback { Box::new(NoRollback(built)) } else { built };
            filters.push((name.to_owned(), built));
        }
        filters
    }

    fn sink_task(&mut self, outbox: &Arc<Outbox>, inbox: &Arc<Inbox>) -> SinkTask {
        let inbox = Arc::clone(inbox);
        let mut jitter = fastrand::Rng::with_seed(self.random.u64(..));
        let (received, forger) = (Arc::clone(&self.received), Arc::clone(&self.forger));
        let sink = receiver::SimulatedSink::new(received, forger, self.defect);
        SinkTask {
            name: "siem".into(),
            sink: Box::new(sink),
            outbox: Arc::clone(outbox),
            identity: Arc::new(Identity {
                machine_id: MACHINE.into(),
                hostname: "h".into(),
                user: USER.into(),
                os: "linux".into(),
                arch: "x86_64".into(),
                agent_version: "0".into(),
            }),
            rate_limit: None,
            clock: Arc::clone(&self.time) as Arc<dyn Clock>,
            jitter: Box::new(move || jitter.f64()),
            progress: watch::Sender::<SinkProgress>::default(),
            report: Arc::new(move |event| inbox.report(event)),
            new_epoch: self.new_epoch(),
        }
    }

    fn tail(&self) -> Tail {
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
        Tail::new(options, clock, self.new_generation(), Arc::new(|| ()))
    }

    fn new_epoch(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let epochs = Arc::clone(&self.epochs);
        Arc::new(move || format!("epoch-{:03}", epochs.fetch_add(1, Ordering::Relaxed)))
    }

    /// Like the real ids: time, which may go back here, and random bytes.
    fn new_generation(&self) -> NewGeneration {
        let (random, time) = (Arc::clone(&self.generations), Arc::clone(&self.time));
        Box::new(move || {
            let random = random.lock().unwrap().u128(..1 << 80);
            GenerationId(format!("{:012x}{random:020x}", time.now().0))
        })
    }

    /// Runs a few steps of the ingest thread.
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

    /// Lets the sink's task run for `time`.
    fn deliver(&mut self, time: Duration) {
        let Some(agent) = &mut self.agent else { return };
        agent.runtime.block_on(async { tokio::time::sleep(time).await });
        self.time.pass(time);
    }

    /// Reads everything, so that the content of the files is stored before any later fault.
    fn read_everything(&mut self) {
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
                assert!(turns < 10_000, "reading does not end");
            }
        }
        self.script.all_is_read();
        self.count("everything read");
    }

    /// Replaces the store with its old copy.
    fn restore_old_store(&mut self) -> Result<(), String> {
        let Some(copy) = self.copy.take() else { return Ok(()) };
        self.agent = None;
        self.disk = SimulatedDisk::of(copy, self.random.u64(..));
        // Entries that only the current store had are lost; lines still in a file are read again.
        let received = self.received.lock().unwrap();
        let at_receiver: HashSet<Vec<u8>> =
            records(&received.epochs).into_iter().map(|record| record.bytes).collect();
        drop(received);
        for line in &mut self.script.lines {
            line.is_safe &= at_receiver.contains(&line.bytes);
        }
        self.is_restored = true;
        self.count("old store restored");
        self.start()
    }

    /// Removes all faults and lets the agent read and deliver everything.
    fn recover_and_drain(&mut self) -> Result<(), String> {
        self.received.lock().unwrap().behaviour = Behaviour::Good;
        self.disk.reboot();
        self.agent = None;
        self.start()?;
        self.read_everything();
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
            // Dead letters and new epochs are reported one step later.
            if quiet == 3 {
                return Ok(());
            }
        }
        Err("delivery does not end".into())
    }
}

/// On a file system in memory, file ids are assigned in order, and whether one is reused does not
/// depend on other programs. Reuse of ids is tested in the tail.
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
    let requested = env_number("AI_AGENT_WORLDS");
    let worlds = requested.unwrap_or(200);
    let first = env_number("AI_AGENT_SEED");
    // The same seeds each time, unless a number of simulations is set.
    let mut seeds = requested.map_or_else(|| fastrand::Rng::with_seed(1), |_| fastrand::Rng::new());
    let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
    let mut lines = 0;
    for _ in 0..worlds {
        let seed = first.unwrap_or_else(|| seeds.u64(..));
        let mut simulation = Simulation::new(seed, Defect::None);
        if let Err(wrong) = run(&mut simulation) {
            if env_number("AI_AGENT_TRACE").is_some() {
                for line in
                    simulation.received.lock().unwrap().epochs.values().flat_map(BTreeMap::values)
                {
                    eprintln!("{}", text(line));
                }
            }
            panic!("AI_AGENT_SEED={seed} AI_AGENT_WORLDS=1 repeats this: {wrong}");
        }
        lines += simulation.script.lines.len();
        for (what, count) in &simulation.tally {
            *tally.entry(what).or_default() += count;
        }
    }
    eprintln!("{worlds} simulations, {lines} lines: 0 lost, 0 duplicated");
    for (what, count) in &tally {
        eprintln!("{count:>9}  {what}");
        assert!(*count > 0 || worlds < 200, "`{what}` never happened");
    }
    assert!(tally.len() == KINDS || worlds < 200, "{} kinds of {KINDS} happened", tally.len());
}

/// Runs a simulation. A panic in it is an error, too.
fn run(simulation: &mut Simulation) -> Result<(), String> {
    let ran = catch_unwind(AssertUnwindSafe(|| simulation.run()));
    ran.unwrap_or_else(|_| Err("the simulation panicked".into()))
}

/// Number of different steps and faults in simulations.
const KINDS: usize = 41;

/// Checks that detect no defect would prove nothing.
#[test]
fn invariants_detect_deliberate_defects() {
    let defects = [
        Defect::AcknowledgedEarly,
        Defect::DedupeKept,
        Defect::BelievesAnyAnswer,
        Defect::BelievesAnySeal,
    ];
    for fault in defects {
        let found = (1..60).find_map(|seed| run(&mut Simulation::new(seed, fault)).err());
        let found = found.unwrap_or_else(|| panic!("{fault:?} is not detected"));
        eprintln!("{fault:?}: {found}");
    }
}
