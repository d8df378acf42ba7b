//! Delivery in this process: the real outbox and the real sink, with a stopped clock and no delays
//! except those that a receiver requests.

use std::{
    io::{self, Write},
    ops::Deref,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ai_agent::internals::{
    config::ShippingSettings,
    event::Event,
    frame::Codec,
    pipeline::{
        delivery::{SinkControl, SinkProgress, SinkTask, StopMode},
        group_builder::GroupBuilder,
        outbox::{Outbox, SinkRegistration},
    },
    platform::{Clock, Environment, Os, Paths, Timestamp},
    protocol::{Digest, Identity, agent_event::DeviceKeyReason, note::SigningKey},
    siem::{
        Device,
        device::{KeyFile, StoredKeys},
    },
    stages::{AgentContext, StageOptions, sink},
};
use serde_json::json;
use tokio::sync::watch;

use super::{PATIENCE, SECRET, TOKEN, lines_with_code, within};

/// 2026-11-21T20:00:00Z.
pub(crate) const NOW: Timestamp = Timestamp(1_795_291_200_000);

/// A clock that a test sets.
pub(crate) struct ManualClock(AtomicU64);

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// An outbox with queued entries.
pub(crate) struct DeliverySetup {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) shipping: ShippingSettings,
    pub(crate) max_dead_letter_bytes: u64,
    clock: Arc<ManualClock>,
    /// Lines for the table of the sink.
    options: String,
    folder: tempfile::TempDir,
    device: Device,
}

impl DeliverySetup {
    /// Creates an outbox with `count` events `{"n": number}`.
    pub(crate) fn with(count: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("outbox.redb");
        let seat = SinkRegistration { name: "siem".into(), ..SinkRegistration::default() };
        let outbox = Outbox::open(&path, &[seat], || "epoch-1".into()).unwrap();
        let post = Self {
            outbox: Arc::new(outbox),
            // With a stopped clock no entry would ever be old enough.
            shipping: ShippingSettings {
                flush_interval: Duration::ZERO,
                ..ShippingSettings::default()
            },
            max_dead_letter_bytes: u64::MAX,
            clock: Arc::new(ManualClock(AtomicU64::new(NOW.0))),
            options: String::new(),
            folder,
            device: Device::without_key("instance".to_owned()),
        };
        post.store((1..=count).map(|n| Event::info("test", json!({ "n": n }))));
        post
    }

    /// Limits batches to this number of entries.
    pub(crate) fn in_batches_of(self, batch_size: usize) -> Self {
        let shipping = ShippingSettings { batch_size, ..self.shipping };
        Self { shipping, ..self }
    }

    /// Adds these lines to the table of the sink.
    pub(crate) fn options(self, options: &str) -> Self {
        Self { options: options.to_owned(), ..self }
    }

    /// Gives the device a key, and the agent a state directory.
    pub(crate) fn with_device_key(self) -> Self {
        let file = KeyFile::new(self.folder.path(), &identity().machine_id);
        let keys = StoredKeys {
            current: Arc::new(SigningKey::from_seed("ai-agent-device", [1; 32]).unwrap()),
            previous: None,
            created_at: NOW,
            reason: DeviceKeyReason::First,
        };
        let device = Device::new(file, "instance".to_owned());
        device.set(Ok(keys));
        Self { device, ..self }
    }

    /// Sets the clock.
    pub(crate) fn at(self, now: Timestamp) -> Self {
        self.clock.0.store(now.0, Ordering::Relaxed);
        self
    }

    /// Stores events in one transaction.
    pub(crate) fn store(&self, events: impl IntoIterator<Item = Event>) {
        let start = self.outbox.end();
        let mut builder = GroupBuilder::new(start, Digest::ZERO, self.shipping, Codec::Zstd);
        events.into_iter().for_each(|event| builder.add_event(&event, &mut [], NOW));
        if !builder.is_empty() {
            self.outbox.commit(&builder.finish(NOW)).unwrap();
        }
    }

    /// Writes a file that only its owner can read.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let options = ai_agent::internals::platform::secure_file::options();
        let mut file = options.clone().create(true).truncate(true).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    }

    /// Starts delivery to `endpoint`.
    #[track_caller]
    pub(crate) fn deliver_to(self, endpoint: &str) -> Delivery {
        let table = format!(
            "endpoint = \"{endpoint}\"\ntoken = \"{TOKEN}\"\nhmac_secret = \"{SECRET}\"\n{}",
            self.options
        );
        let options: StageOptions = table.parse().unwrap();
        let sink = sink::build("http-siem", &options, &self.context()).unwrap();
        let (orders, watched) =
            watch::channel(SinkControl::new(self.shipping, self.max_dead_letter_bytes));
        let progress = watch::Sender::default();
        let (log, events) = (Log::default(), Arc::new(Mutex::new(Vec::new())));
        let reported = Arc::clone(&events);
        let delivering = SinkTask {
            name: "siem".into(),
            sink,
            outbox: Arc::clone(&self.outbox),
            identity: Arc::new(identity()),
            rate_limit: None,
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            jitter: Box::new(|| 0.0),
            progress: progress.clone(),
            report: Arc::new(move |event| reported.lock().unwrap().push(event)),
            new_epoch: Arc::new(|| "epoch-2".into()),
        };
        let written = log.clone();
        let thread = thread::spawn(move || {
            let subscriber = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::INFO)
                .with_ansi(false)
                .with_writer(move || written.clone())
                .finish();
            tracing::subscriber::with_default(subscriber, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(delivering.run(watched));
            });
        });
        Delivery { post: self, orders, progress, log, events, thread }
    }

    fn context(&self) -> AgentContext {
        let home = self.folder.path().to_str().unwrap();
        let environment = Environment::from_iter([("HOME", home), ("USERPROFILE", home)]);
        AgentContext {
            identity: identity(),
            paths: Paths::on(Os::CURRENT, &environment).unwrap(),
            environment,
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            calls: ai_agent::internals::platform::bounded::BoundedCalls::new(Arc::new(
                ai_agent::internals::platform::SystemClock,
            )),
            power: Arc::new(ai_agent::internals::platform::SystemPower),
            revision: ai_agent::internals::siem::Revision::default(),
            device: self.device.clone(),
            trust: ai_agent::internals::siem::TrustStates::default(),
            organisation_keys: Vec::new(),
            state_dir: self.device.file().map(|_| self.folder.path().to_owned()),
            sandbox: ai_agent::internals::platform::Sandbox::default(),
            sessions: ai_agent::internals::stages::Sessions::default(),
            once: false,
            poll_interval: PATIENCE,
        }
    }
}

fn identity() -> Identity {
    Identity {
        machine_id: "machine".into(),
        hostname: "host".into(),
        user: "user".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        agent_version: "0.1.0".into(),
    }
}

/// A running delivery.
pub(crate) struct Delivery {
    post: DeliverySetup,
    orders: watch::Sender<SinkControl>,
    progress: watch::Sender<SinkProgress>,
    log: Log,
    events: Arc<Mutex<Vec<Event>>>,
    thread: JoinHandle<()>,
}

impl Deref for Delivery {
    type Target = DeliverySetup;

    fn deref(&self) -> &DeliverySetup {
        &self.post
    }
}

impl Delivery {
    /// Log so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.0.lock().unwrap()).into_owned()
    }

    /// Reported events so far.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// Current progress.
    pub(crate) fn progress(&self) -> SinkProgress {
        self.progress.borrow().clone()
    }

    /// Waits for a log line with this code that contains `token`: a field, a key, a path.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, code: &str, token: &str) {
        within(PATIENCE, &format!("{code} {token}"), || {
            let log = self.log();
            assert!(!self.thread.is_finished(), "ended without {code} {token}:\n{log}");
            lines_with_code(&log, code).iter().any(|line| line.contains(token)).then_some(())
        });
    }

    /// Waits until everything is delivered, and stops. Returns the log.
    #[track_caller]
    pub(crate) fn finish(&self) -> String {
        self.orders.send_modify(|orders| orders.stop = StopMode::WhenDrained);
        let started_at = Instant::now();
        within(2 * PATIENCE, "the end of the delivery", || {
            assert!(
                started_at.elapsed() < PATIENCE,
                "not everything is delivered:\n{}",
                self.log()
            );
            self.thread.is_finished().then_some(())
        });
        assert!(self.progress().drained, "the delivery failed:\n{}", self.log());
        self.log()
    }
}

/// Buffer of the log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
