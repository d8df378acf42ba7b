//! Data directory of a fleet, made with the store itself.

use std::{path::Path, sync::Arc, task::Poll, thread, time::SystemTime};

use siem_protocol::{
    BatchHeader, Chain, ChainPoint, Digest, Identity,
    note::{NoteSigner as _, SigningKey},
    statement::{Confirmation, Enroll, Seal, Statement as _, TrustLevel},
};
use siem_server::{
    FileStore, FileStoreOptions, Storage as _,
    batch::Batch,
    trust::{BatchSeal, DeviceKey, Grant, Registry, RegistryOptions},
};

use crate::Outcome;

const RECEIVER: &str = "fleet";
/// Number of batches that wait for the store at a time.
const AT_ONCE: usize = 1000;
/// Number of enrollments at a time, which share their syncs.
const THREADS: usize = 32;

/// Makes a data directory in which `machines` have `epochs` each, and each of them `gaps`.
pub(crate) fn make(data: &Path, machines: usize, epochs: u64, gaps: u64) -> Outcome<()> {
    let options = RegistryOptions::new(TrustLevel::FirstUse);
    let registry = Arc::new(Registry::open(&data.join("trust"), options)?);
    registry.create_receiver_key(RECEIVER, [9; 32])?;
    enroll(&registry, machines)?;
    let options = FileStoreOptions::default();
    let store = FileStore::open_with_registry(data, options, registry.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for epoch in 0..epochs {
        let mut agents: Vec<_> = (0..machines).map(|number| Agent::new(number, epoch)).collect();
        for _ in 0..=gaps {
            for some in agents.chunks_mut(AT_ONCE) {
                let batches = some.iter_mut().map(|agent| agent.batch(&registry));
                let batches = batches.collect::<Outcome<Vec<_>>>()?;
                runtime.block_on(store_all(&store, batches))?;
            }
        }
    }
    Ok(())
}

/// Stores batches, all of which are in the queue of the store before the first response.
async fn store_all(store: &FileStore, batches: Vec<Batch>) -> Outcome<()> {
    let mut waiting: Vec<_> = batches.into_iter().map(|batch| store.store(batch)).collect();
    let mut failed = None;
    std::future::poll_fn(|context| {
        waiting.retain_mut(|answer| match answer.as_mut().poll(context) {
            Poll::Pending => true,
            Poll::Ready(outcome) => {
                failed = outcome.err().or(failed.take());
                false
            }
        });
        if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn enroll(registry: &Registry, machines: usize) -> Outcome<()> {
    thread::scope(|scope| {
        let all: Vec<_> = (0..THREADS)
            .map(|first| {
                scope.spawn(move || {
                    (first..machines).step_by(THREADS).try_for_each(|number| {
                        let agent = Agent::new(number, 0);
                        registry.enroll(&agent.enrollment(), &Grant::all())?;
                        registry.confirm(&agent.key(), Confirmation::Operator)?;
                        Outcome::Ok(())
                    })
                })
            })
            .collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| "a thread panicked")?)
    })
}

/// An agent with its position in an epoch.
struct Agent {
    identity: Identity,
    epoch: String,
    device: SigningKey,
    seq: u64,
    value: Digest,
}

impl Agent {
    fn new(number: usize, epoch: u64) -> Self {
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&(number as u64).to_le_bytes());
        Self {
            identity: Identity {
                machine_id: format!("{number:032x}"),
                hostname: format!("laptop-{number}"),
                user: format!("developer-{number}"),
                os: "linux".into(),
                arch: "x86_64".into(),
                agent_version: "0.2.0".into(),
            },
            epoch: format!("01930000-0000-7{epoch:03x}-8000-{number:012}"),
            device: SigningKey::from_seed("ai-agent-device", seed).expect("the name is valid"),
            seq: 0,
            value: Digest::ZERO,
        }
    }

    fn key(&self) -> DeviceKey {
        DeviceKey::from(self.device.key())
    }

    fn enrollment(&self) -> Enroll {
        let identity = self.identity.clone();
        Enroll {
            receiver: RECEIVER.into(),
            machine: identity.machine_id,
            user: identity.user,
            host: identity.hostname,
            os: identity.os,
            arch: identity.arch,
            version: identity.agent_version,
            key: self.device.key().clone(),
            previous: None,
        }
    }

    /// The next batch, with a heartbeat and a record. The number after the ones before is skipped, unless
    /// this is the first batch.
    fn batch(&mut self, registry: &Registry) -> Outcome<Batch> {
        if self.seq > 0 {
            let lost = format!(r#"{{"seq":{},"kind":"event","event":"lost"}}"#, self.seq + 1);
            self.take(&lost);
        }
        let (first, before) = (self.seq + 1, self.value);
        let heartbeat = format!(
            r#"{{"seq":{first},"kind":"event","source":"agent","event":"heartbeat","severity":"info","at":"2026-01-01T00:00:00.000Z","data":{{"epoch":"other","totals":{{}},"outbox_bytes":4096,"unread_bytes":0,"transport":"tls","config":{{"applied":{{"hash":"","revision":"2026-01","at":""}}}},"trust":{{"receivers":[{{"state":"confirmed","level":"first-use"}}]}}}}}}"#
        );
        self.take(&heartbeat);
        let record = format!(r#"{{"seq":{},"kind":"event","event":"canary"}}"#, self.seq + 1);
        self.take(&record);
        let mut header = BatchHeader::new(
            &self.identity,
            self.epoch.clone(),
            Digest::ZERO,
            "2026-01-01T00:00:01.000Z".into(),
        );
        (header.first_seq, header.last_seq, header.count) = (Some(first), Some(self.seq), 2);
        header.chain = Some(Chain { before, after: self.value });
        header.instance = Some(format!("{:032x}", 1));
        header.seal = Some(self.seal(&header)?);
        let text = format!("{}\n{heartbeat}\n{record}\n", serde_json::to_string(&header)?);
        let mut batch = Batch::parse(text.into_bytes(), now())?;
        batch.seal = BatchSeal::verify(&batch, registry);
        Ok(batch)
    }

    fn take(&mut self, line: &str) {
        self.seq += 1;
        self.value = self.value.chain(Digest::of(line.as_bytes()));
    }

    fn seal(&self, header: &BatchHeader) -> Outcome<String> {
        let point = ChainPoint { seq: self.seq, hash: self.value };
        let seal = Seal::of(header, Some(RECEIVER.into()), point, None);
        Ok(seal.sign(&[&self.device])?)
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the server whose data this is uses the system's time"
)]
fn now() -> SystemTime {
    SystemTime::now()
}
