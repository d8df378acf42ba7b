//! A fleet that returns after an outage, simulated on a virtual clock.
//!
//! Turns, memory, `Retry-After` and quotas are those of the receiver. Networks, processors and the disk are
//! times that pass. `AI_AGENT_RETURNING_AGENTS` sets the number of agents; with `--no-capture` the tests print
//! tables.

use std::{
    fmt::Write as _,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap,
        header::{AUTHORIZATION, CONTENT_LENGTH},
    },
};
use hyper::body::{Body as HttpBody, Frame};
use siem_protocol::names::header;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

use super::{Limits, intake::Intake, problem::Rejection, retry_spread::RetrySpread};
use crate::{
    memory::Budget,
    quotas::{QuotaLimits, Quotas, SentBatch},
    serve::ServeOptions,
};

/// Decoded bytes that an agent has after 8 hours: half to one and a half times this.
const BACKLOG: usize = 10 << 20;
/// Decoded bytes of a batch.
const BATCH: usize = 4 << 20;
/// Ratio of compression.
const RATIO: usize = 10;
/// Bytes in a second that an agent sends.
const UPLINK: usize = 1 << 20;
/// Decoded bytes that a core processes in a second: less than is measured, see `docs/performance.md`.
const CORE_RATE: usize = 150 << 20;
const CORES: usize = 2;
/// Time to write and sync the journal.
const SYNC: Duration = Duration::from_millis(10);
/// Time that an agent waits for a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// Longest pause of an agent without `Retry-After`, chosen evenly from zero on.
const BACKOFF: Duration = Duration::from_secs(300);
/// Size of the pieces in which a body arrives.
const PIECE: usize = 64 << 10;
/// Interval of the table's rows.
const INTERVAL: Duration = Duration::from_secs(60);

static ZEROS: [u8; PIECE] = [0; PIECE];

struct World {
    limits: Limits,
    connections: Semaphore,
    intake: Intake,
    texts: Budget,
    cores: Semaphore,
    retries: RetrySpread,
    quotas: Mutex<Quotas>,
    started: Instant,
    seen: Mutex<Seen>,
}

/// What was seen in an interval, and in all.
#[derive(Default)]
struct Seen {
    /// Times from the start of a request to its response.
    latencies: Vec<Duration>,
    all_latencies: Vec<Duration>,
    refused: u64,
    over_quota: u64,
    unconnected: u64,
    slow: u64,
    bytes: usize,
    most_waiting: usize,
    most_memory: usize,
}

/// A body that arrives in pieces.
struct Paced {
    left: usize,
    next: Pin<Box<Sleep>>,
}

impl Paced {
    fn new(length: usize) -> Self {
        Self { left: length, next: Box::pin(sleep(piece_time(length.min(PIECE)))) }
    }
}

fn piece_time(length: usize) -> Duration {
    Duration::from_secs_f64(length as f64 / UPLINK as f64)
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.next.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        let piece = self.left.min(PIECE);
        self.left -= piece;
        let at = Instant::now() + piece_time(self.left.min(PIECE));
        self.next.as_mut().reset(at);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS[..piece])))))
    }
}

impl World {
    fn new(quotas: QuotaLimits) -> Self {
        let limits = Limits::default();
        let mut quotas = Quotas::new(quotas);
        quotas.learn([]);
        Self {
            limits,
            connections: Semaphore::new(ServeOptions::default().connections),
            intake: Intake::new(limits.memory / 2, &limits),
            texts: Budget::new(limits.memory / 2, limits.patience),
            cores: Semaphore::new(CORES),
            retries: RetrySpread::default(),
            quotas: Mutex::new(quotas),
            started: Instant::now(),
            seen: Mutex::default(),
        }
    }

    /// Receives a batch of `agent` as the receiver does.
    async fn receive(&self, agent: u64, bytes: usize) -> Result<(), Rejection> {
        let length = bytes / RATIO;
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, "Bearer token".parse().unwrap());
        headers.insert(header::MACHINE_ID, agent.into());
        headers.insert(CONTENT_LENGTH, length.into());
        // All agents are behind one address.
        let sender = self.intake.turns.sender(&headers, Some([203, 0, 113, 7].into()));
        let mut body = Body::new(Paced::new(length));
        let limit = self.limits.compressed;
        let (mut parts, ()) = axum::http::Request::new(()).into_parts();
        parts.headers = headers;
        let (_body, memory) = self.intake.receive(sender, &parts, &mut body, limit).await?;
        let likely = (length * 16).min(self.limits.decoded);
        let mut text = self.texts.reserve(likely).await.ok_or(Rejection::Overloaded)?;
        {
            let _core = self.cores.acquire().await;
            sleep(Duration::from_secs_f64(bytes as f64 / CORE_RATE as f64)).await;
        }
        drop(memory);
        text.shrink_to(bytes);
        let sent = SentBatch { token: 1, device: agent, machine: agent, bytes: bytes as u64 };
        let now = self.started.elapsed();
        self.quotas.lock().unwrap().admit(sent, now)?;
        sleep(SYNC).await;
        Ok(())
    }

    /// Delivers the backlog of an agent that first sends after `start`.
    async fn deliver(self: Arc<Self>, agent: u64, start: Duration) {
        sleep_until(self.started + start).await;
        let mut random = Random(agent);
        let mut left = BACKLOG / 2 + (BACKLOG as f64 * random.next()) as usize;
        while left > 0 {
            let bytes = left.min(BATCH);
            match self.send(agent, bytes, &mut random).await {
                Ok(()) => left -= bytes,
                Err(pause) => sleep(pause).await,
            }
        }
    }

    /// Sends a batch. Returns the time after which the agent tries again.
    async fn send(&self, agent: u64, bytes: usize, random: &mut Random) -> Result<(), Duration> {
        let backoff = BACKOFF.mul_f64(random.next());
        let Ok(Ok(_connection)) = timeout(CONNECT, self.connections.acquire()).await else {
            self.seen.lock().unwrap().unconnected += 1;
            return Err(backoff);
        };
        let begun = Instant::now();
        let received = self.receive(agent, bytes).await;
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap();
        match received {
            Ok(()) => {
                self.retries.serve(now.into_std());
                seen.latencies.push(now - begun);
                seen.bytes += bytes;
                Ok(())
            }
            Err(Rejection::Overloaded) => {
                seen.refused += 1;
                Err(Duration::from_secs(self.retries.refuse(now.into_std()).as_secs().max(2)))
            }
            Err(Rejection::Quota(exceeded)) => {
                seen.over_quota += 1;
                Err(exceeded.retry_after)
            }
            Err(_) => {
                seen.slow += 1;
                Err(backoff)
            }
        }
    }

    /// Memory that is reserved, in bytes.
    fn memory(&self) -> usize {
        self.intake.memory().0 + self.texts.reserved()
    }
}

/// Random numbers from 0 to 1, the same in each run. SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Result of a simulation.
struct Outcome {
    table: String,
    /// Time until everything was delivered.
    took: Duration,
    /// Time that the processors need for it at least.
    least: Duration,
    seen: Seen,
    /// Refused requests of each interval, and the agents at its start.
    refusals: Vec<(u64, usize)>,
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get(sorted.len() * percent / 100).or(sorted.last()).copied().unwrap_or_default()
}

/// Lets `agents` return within `spread` of each other.
async fn simulate(agents: u64, spread: Duration, quotas: QuotaLimits) -> Outcome {
    let world = Arc::new(World::new(quotas));
    let mut tasks = JoinSet::new();
    for agent in 0..agents {
        let start = spread.mul_f64(Random(agent << 32).next());
        tasks.spawn(world.clone().deliver(agent, start));
    }
    let mut table = String::from(
        "| minute | delivered, GiB | waiting for a turn | refused | p50, s | p99, s | memory, MiB | agents left |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let (mut next, mut refusals) = (world.started, Vec::new());
    let (mut before, mut agents_before) = (0, tasks.len());
    while !tasks.is_empty() {
        next += Duration::from_secs(1);
        sleep_until(next).await;
        while tasks.try_join_next().is_some() {}
        let mut seen = world.seen.lock().unwrap();
        seen.most_waiting = seen.most_waiting.max(world.intake.turns.waiting());
        seen.most_memory = seen.most_memory.max(world.memory());
        let is_row = (next - world.started).as_secs().is_multiple_of(INTERVAL.as_secs());
        if is_row || tasks.is_empty() {
            let mut latencies = std::mem::take(&mut seen.latencies);
            latencies.sort();
            let refused = seen.refused + seen.over_quota + seen.unconnected + seen.slow;
            let row = (refused - before, seen.bytes as f64 / f64::from(1 << 30));
            let (p50, p99) = (percentile(&latencies, 50), percentile(&latencies, 99));
            let minute = (next - world.started).as_secs_f64() / 60.0;
            writeln!(
                table,
                "| {minute:.0} | {:.1} | {} | {} | {:.1} | {:.1} | {} | {} |",
                row.1,
                world.intake.turns.waiting(),
                row.0,
                p50.as_secs_f64(),
                p99.as_secs_f64(),
                world.memory() >> 20,
                tasks.len(),
            )
            .unwrap();
            refusals.push((row.0, agents_before));
            (before, agents_before) = (refused, tasks.len());
            seen.all_latencies.append(&mut latencies);
        }
    }
    let mut seen = std::mem::take(&mut *world.seen.lock().unwrap());
    seen.all_latencies.sort();
    let least = Duration::from_secs_f64(seen.bytes as f64 / (CORE_RATE * CORES) as f64);
    Outcome { table, took: next - world.started, least, seen, refusals }
}

fn agents() -> u64 {
    let text = std::env::var("AI_AGENT_RETURNING_AGENTS").unwrap_or_default();
    text.parse().unwrap_or(1000)
}

fn total_backlog(agents: u64) -> usize {
    let of_agent = |agent| BACKLOG / 2 + (BACKLOG as f64 * Random(agent).next()) as usize;
    (0..agents).map(of_agent).sum()
}

fn assert_smooth(outcome: &Outcome, agents: u64) {
    let Outcome { table, took, least, seen, refusals } = outcome;
    eprintln!("{agents} agents, delivered in {took:.0?}, at least {least:.0?}\n{table}");
    assert_eq!(seen.bytes, total_backlog(agents), "everything is delivered, once");
    assert_eq!(seen.slow, 0, "no body is too slow");
    assert!(seen.most_memory <= Limits::default().memory);
    let p99 = percentile(&seen.all_latencies, 99);
    assert!(p99 < Duration::from_secs(30), "{p99:?}");
    // The processors are busy nearly all the time.
    assert!(*took < least.mul_f64(1.25) + BACKOFF, "{took:?}, at least {least:?}");
    // An agent does not come more often than twice a minute while it is refused.
    let is_spread = |(refused, agents): &(u64, usize)| *refused <= 2 * *agents as u64;
    assert!(refusals.iter().all(is_spread), "{refusals:?}");
    assert!(seen.most_waiting < ServeOptions::default().connections, "{}", seen.most_waiting);
}

/// After an outage agents try again within their longest pause.
#[tokio::test(start_paused = true)]
async fn agents_return_smoothly_after_an_outage() {
    let agents = agents();
    let outcome = simulate(agents, BACKOFF, QuotaLimits::default()).await;
    assert_smooth(&outcome, agents);
    assert_eq!(outcome.seen.over_quota, 0);
}

/// When a network returns, all of its machines may be started at once.
#[tokio::test(start_paused = true)]
async fn agents_that_return_at_once_are_spread() {
    let agents = agents();
    let outcome = simulate(agents, Duration::from_secs(1), QuotaLimits::default()).await;
    assert_smooth(&outcome, agents);
    assert_eq!(outcome.seen.over_quota, 0);
}

/// Machines over the quota begin one after the other, and lose nothing.
#[tokio::test(start_paused = true)]
async fn machines_over_the_quota_deliver_later() {
    let quotas = QuotaLimits { machines_per_hour: 100, ..QuotaLimits::default() };
    let outcome = simulate(150, Duration::from_secs(1), quotas).await;
    assert_eq!(outcome.seen.bytes, total_backlog(150));
    assert!(outcome.took < Duration::from_secs(3600), "{:?}", outcome.took);
    // Each was refused at most once, and then had its turn.
    let over_quota = outcome.seen.over_quota;
    assert!((40..=50).contains(&over_quota), "{over_quota}");
}

#[tokio::test(start_paused = true)]
async fn simulation_is_deterministic() {
    let of = || simulate(200, Duration::from_secs(1), QuotaLimits::default());
    let (first, second) = (of().await, of().await);
    assert_eq!(first.table, second.table);
}
