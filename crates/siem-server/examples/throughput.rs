//! How fast a store takes what HTTP brings: `cargo run --release -p siem-server --example
//! throughput [DIR]`. Prints MB/s of decoded records, synced, for large batches, and the latency
//! of many agents that send small ones.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool to measure by hand")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use siem_protocol::{BatchHeader, Chain, Digest, Encoding, Identity, names::header, sign};
use siem_server::{FileStore, Keys, Receiver, Secret, ServeOptions, serve};

const TOKEN: &str = "0123456789abcdef";
const SECRET: &str = "fedcba9876543210";
/// What a record's text is made of: bits of session lines, so that it compresses as those do.
const WORDS: [&str; 8] = [
    r#"{\"type\":\"text\",\"text\":"#,
    "the function returns early when ",
    "crates/siem-server/src/store/mod.rs ",
    r#"\n    let value = self.next()?;\n"#,
    "error[E0382]: borrow of moved value ",
    "toolu_01",
    "0193c2a4-7d",
    " and then it writes the journal",
];

#[tokio::main]
async fn main() {
    let root = std::env::args().nth(1).unwrap_or_else(|| "target/throughput".into());
    let root = std::path::Path::new(&root);
    drop(std::fs::remove_dir_all(root));
    for encoding in [Encoding::Identity, Encoding::Zstd] {
        large(&root.join(encoding.as_str()), encoding).await;
    }
    small(&root.join("small")).await;
    drop(std::fs::remove_dir_all(root));
}

async fn start(root: &std::path::Path) -> String {
    let keys = Keys::new(Secret::new(TOKEN).unwrap(), Secret::new(SECRET).unwrap());
    let receiver = Receiver::new(keys, Arc::new(FileStore::open(root).unwrap()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/ingest", listener.local_addr().unwrap());
    let options = ServeOptions::default();
    tokio::spawn(serve(listener, receiver.router(), options, std::future::pending()));
    url
}

/// The batches of one agent: bodies with their signatures, and the length of all lines.
fn batches(
    agent: usize,
    count: u64,
    entries: u64,
    words: usize,
    encoding: Encoding,
) -> (Vec<(Vec<u8>, String)>, usize) {
    let identity = Identity {
        machine_id: format!("machine-{agent}"),
        hostname: "h".into(),
        user: "u".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        agent_version: "0.1.0".into(),
    };
    let (mut random, mut value, mut bytes, mut bodies) =
        (agent as u64 + 1, Digest::ZERO, 0, Vec::new());
    for batch in 0..count {
        let (first, before) = (batch * entries + 1, value);
        let mut lines = Vec::new();
        for seq in first..first + entries {
            let mut line = format!(
                r#"{{"seq":{seq},"kind":"record","source":"claude-sessions","record":{{"type":"user","message":""#
            );
            for _ in 0..words {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                line.push_str(WORDS[(random >> 61) as usize]);
                line.push_str(&format!("{:x}", random >> 40));
            }
            line.push_str("\"}}");
            value = value.chain(Digest::of(line.as_bytes()));
            lines.extend_from_slice(line.as_bytes());
            lines.push(b'\n');
        }
        let mut header = BatchHeader::new(&identity, "epoch-1".into(), Digest::ZERO, String::new());
        (header.first_seq, header.last_seq) = (Some(first), Some(first + entries - 1));
        header.count = entries;
        header.chain = Some(Chain { before, after: value });
        let mut body = serde_json::to_vec(&header).unwrap();
        body.push(b'\n');
        body.extend_from_slice(&lines);
        bytes += lines.len();
        if encoding == Encoding::Zstd {
            body = zstd::encode_all(body.as_slice(), 1).unwrap();
        }
        let signature = sign(SECRET.as_bytes(), &body);
        bodies.push((body, signature));
    }
    (bodies, bytes)
}

async fn send(
    client: &reqwest::Client,
    url: &str,
    encoding: Encoding,
    (body, signature): (Vec<u8>, String),
) {
    let request = client.post(url).bearer_auth(TOKEN).header(header::SIGNATURE, signature);
    let request = request.header("content-encoding", encoding.as_str()).body(body);
    let response = request.send().await.unwrap();
    let status = response.status();
    assert_eq!(status, 200, "{}", response.text().await.unwrap());
}

async fn large(root: &std::path::Path, encoding: Encoding) {
    let url = start(root).await;
    let agents: Vec<_> = (0..4).map(|agent| batches(agent, 25, 1000, 90, encoding)).collect();
    let bytes: usize = agents.iter().map(|(_, bytes)| bytes).sum();
    let sent: usize =
        agents.iter().flat_map(|(bodies, _)| bodies).map(|(body, _)| body.len()).sum();
    let (begin, cpu) = (Instant::now(), cpu());
    let tasks = agents.into_iter().map(|(bodies, _)| {
        let (client, url) = (reqwest::Client::new(), url.clone());
        tokio::spawn(async move {
            for body in bodies {
                send(&client, &url, encoding, body).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), self::cpu() - cpu);
    let megabytes = bytes as f64 / 1e6;
    println!(
        "{}: {megabytes:.0} MB of lines, {:.0} MB sent: {:.0} MB/s, {:.2} CPU s/GB with the senders",
        encoding.as_str(),
        sent as f64 / 1e6,
        megabytes / seconds,
        cpu / megabytes * 1000.0
    );
}

/// CPU seconds of this process, where the system tells.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

async fn small(root: &std::path::Path) {
    const AGENTS: u64 = 2000;
    let url = start(root).await;
    let client = reqwest::Client::new();
    let agents: Vec<_> =
        (0..AGENTS as usize).map(|agent| batches(agent, 4, 1, 10, Encoding::Identity).0).collect();
    let begin = tokio::time::Instant::now() + Duration::from_millis(200);
    let tasks = agents.into_iter().zip(0..).map(|(bodies, agent)| {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            for (body, second) in bodies.into_iter().zip(0..) {
                let at = Duration::from_micros(second * 1_000_000 + agent * 1_000_000 / AGENTS);
                tokio::time::sleep_until(begin + at).await;
                let sent = Instant::now();
                send(&client, &url, Encoding::Identity, body).await;
                times.push(sent.elapsed());
            }
            times
        })
    });
    let mut times = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        times.extend(task.await.unwrap());
    }
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100 - 1].as_secs_f64() * 1000.0;
    println!(
        "{AGENTS} agents at 1/s: p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms",
        at(50),
        at(99),
        at(100)
    );
}
