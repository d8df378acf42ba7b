//! Load test of a `demo-server`: starts one, sends the traffic of a fleet, and prints the results
//! as a line of JSON.
//!
//! ```text
//! cargo build --release -p siem-server --bin demo-server --example load
//! target/release/examples/load --core 0 identity     large batches, as they are
//! target/release/examples/load --core 0 zstd         large batches, compressed
//! target/release/examples/load --core 0 fleet        2,000 agents, a record a second each
//! target/release/examples/load --core 0 zstd --sealed    with device keys, seals and receipts
//! ```
#![allow(clippy::print_stdout, reason = "a tool to measure by hand")]

mod batches;
mod server;

use std::{
    error::Error,
    path::PathBuf,
    time::{Duration, Instant},
};

use batches::{Agent, Records, Request};
use clap::{Parser, ValueEnum};
use server::{SECRET, Server, TOKEN};
use siem_protocol::Encoding;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Maximum number of bytes that an agent puts into one batch.
const BATCH: (u64, usize) = (1000, 4 << 20);

/// Start a demo-server, send to it, and print the figures as JSON
#[derive(Parser)]
struct Args {
    /// Kind of traffic
    mode: Mode,
    /// Program to start [default: the one built beside this one]
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// Core that the server may use; needs taskset [default: any]
    #[arg(long, value_name = "NUMBER")]
    core: Option<usize>,
    /// Directory with session files whose lines are sent [default: generated lines]
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
    /// Data directory of the server; must not exist, and is removed
    #[arg(long, value_name = "DIR", default_value = "target/load")]
    data: PathBuf,
    /// Number of agents [default: 8, for a fleet 2000]
    #[arg(long)]
    agents: Option<usize>,
    /// Megabytes of lines, for large batches
    #[arg(long, default_value_t = 1000)]
    megabytes: usize,
    /// Enroll a device key for each agent, and seal all batches
    #[arg(long)]
    sealed: bool,
    /// Seconds for which a fleet sends
    #[arg(long, default_value_t = 45)]
    seconds: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    Identity,
    Zstd,
    Fleet,
}

/// Measurements of one agent.
#[derive(Default)]
struct AgentTimes {
    lines: usize,
    sent: usize,
    times: Vec<Duration>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let args = Args::parse();
    let records = match &args.records {
        Some(directory) => Records::read(directory, 400 << 20)?,
        None => Records::made(20_000),
    };
    if records.is_empty() {
        return Err("there is no record to send".into());
    }
    let fleet = args.mode == Mode::Fleet;
    let agents = args.agents.unwrap_or(if fleet { 2000 } else { 8 });
    let encoding = if args.mode == Mode::Identity { Encoding::Identity } else { Encoding::Zstd };
    // All batches are built before the measurement, so that the sender costs little.
    let requests: Vec<_> =
        (0..agents).map(|number| requests(&args, &records, number, agents, encoding)).collect();
    let enrollments: Vec<_> = (0..agents)
        .filter_map(|number| Agent::new(&records, number, encoding, args.sealed).enrollment(TOKEN))
        .collect();
    drop(records);
    let server = Server::start(args.server.clone(), args.core, &args.data, args.sealed)?;
    agent(&server.address, enrollments, None).await?;
    let begin = tokio::time::Instant::now() + Duration::from_millis(100);
    let second = Duration::from_secs(1);
    let tasks = requests.into_iter().enumerate().map(|(number, requests)| {
        let pace = fleet.then(|| (begin + second * number as u32 / agents as u32, second));
        let address = server.address.clone();
        tokio::spawn(async move { agent(&address, requests, pace).await })
    });
    let mut all = AgentTimes::default();
    let mut first = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        let seen = task.await??;
        first.extend(seen.times.first());
        all.times.extend(seen.times);
        (all.lines, all.sent) = (all.lines + seen.lines, all.sent + seen.sent);
    }
    let wall = begin.elapsed().as_secs_f64();
    let used = server.end()?;
    std::fs::remove_dir_all(&args.data)?;
    let megabytes = all.lines as f64 / 1e6;
    let figures = serde_json::json!({
        "mode": args.mode.to_possible_value().map(|mode| mode.get_name().to_owned()),
        "agents": agents,
        "sealed": args.sealed,
        "megabytes": round(megabytes),
        "megabytes_sent": round(all.sent as f64 / 1e6),
        "seconds": round(wall),
        "megabytes_per_second": round(megabytes / wall),
        "requests": all.times.len(),
        "requests_per_second": round(all.times.len() as f64 / wall),
        "syncs": used.syncs,
        "p50_ms": at(&mut all.times, 500),
        "p99_ms": at(&mut all.times, 990),
        "worst_ms": at(&mut all.times, 1000),
        "first_p99_ms": at(&mut first, 990),
        "cpu_seconds": used.cpu_seconds,
        "cpu_seconds_per_gigabyte": round(used.cpu_seconds / megabytes * 1000.0),
        "peak_rss_megabytes": used.peak_rss_megabytes,
    });
    println!("{figures}");
    Ok(())
}

/// Builds the requests that the agent with this number sends.
fn requests(
    args: &Args,
    records: &Records,
    number: usize,
    agents: usize,
    encoding: Encoding,
) -> Vec<Request> {
    let mut agent = Agent::new(records, number, encoding, args.sealed);
    let mut requests: Vec<Request> = Vec::new();
    let is_fleet = args.mode == Mode::Fleet;
    let share = args.megabytes * 1_000_000 / agents;
    while match is_fleet {
        true => (requests.len() as u64) < args.seconds,
        false => requests.iter().map(|request| request.lines).sum::<usize>() < share,
    } {
        let (entries, bytes) = if is_fleet { (1, 1) } else { BATCH };
        requests.push(agent.batch((TOKEN, SECRET), entries, bytes));
    }
    requests
}

/// Sends each batch after the response to the previous one, at the given rate if there is one.
async fn agent(
    address: &str,
    requests: Vec<Request>,
    pace: Option<(tokio::time::Instant, Duration)>,
) -> Outcome<AgentTimes> {
    let mut seen = AgentTimes::default();
    let mut stream = None;
    for (number, request) in (0_u32..).zip(requests) {
        if let Some((begin, pause)) = pace {
            tokio::time::sleep_until(begin + pause * number).await;
        }
        let sent = Instant::now();
        let stream = match &mut stream {
            Some(stream) => stream,
            None => stream.insert(TcpStream::connect(address).await?),
        };
        stream.write_all(&request.bytes).await?;
        read_receipt(stream).await?;
        seen.times.push(sent.elapsed());
        seen.lines += request.lines;
        seen.sent += request.bytes.len();
    }
    Ok(seen)
}

/// Reads a response, which must be a receipt.
async fn read_receipt(stream: &mut TcpStream) -> Outcome<()> {
    let mut answer = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err("the server closed the connection".into());
        }
        let text = std::str::from_utf8(&answer)?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        if body.len() < length.unwrap_or(usize::MAX) {
            continue;
        }
        return if head.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(text.into()) };
    }
}

fn round(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// Returns a percentile in milliseconds; `thousandths` of the times are below it.
fn at(times: &mut [Duration], thousandths: usize) -> f64 {
    times.sort();
    let place = (times.len() * thousandths).div_ceil(1000).max(1) - 1;
    times.get(place).map_or(0.0, |time| round(time.as_secs_f64() * 1000.0))
}
