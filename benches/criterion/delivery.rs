//! The delivery loop: from the outbox, signed, to a receiver in this process, and acknowledged.
#![allow(missing_docs, reason = "the macros generate functions without docs")]

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use ai_agent::internals::{
    config::ShippingSettings,
    frame::Codec,
    pipeline::{
        delivery::{SinkControl, SinkTask, StopMode},
        outbox::Outbox,
    },
    platform::{Environment, Paths, SystemClock, SystemPower},
    protocol::Identity,
    stages::{AgentContext, StageOptions, sink},
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tokio::{runtime::Runtime, sync::watch};
use workloads::{frames, session};

/// Size of the session in the outbox.
const SESSION: usize = 8 << 20;

fn deliver(criterion: &mut Criterion) {
    let session = session::session(SESSION);
    let (origin, pieces) = (session::origin(), session::pieces(&session));
    let address = receiver().expect("a receiver listens");
    let runtime = Runtime::new().expect("a runtime starts");
    let mut group = criterion.benchmark_group("delivery");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(session.len() as u64));
    for (name, codec) in [("none", Codec::Plain), ("zstd", Codec::Zstd)] {
        let filled = || {
            let folder = tempfile::tempdir().expect("there is a temporary directory");
            let outbox = frames::outbox(folder.path());
            frames::encode(frames::beginning(), codec, &origin, &pieces, |group| {
                outbox.commit(&group).expect("it is stored");
            });
            (folder, Arc::new(outbox))
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                filled,
                |(folder, outbox)| {
                    runtime.block_on(drain(&outbox, address, name));
                    (folder, outbox)
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

async fn drain(outbox: &Arc<Outbox>, address: SocketAddr, compression: &str) {
    let context = context();
    let options = format!(
        "endpoint = \"http://{address}\"\ntoken = \"a token of the bench\"\n\
         hmac_secret = \"a secret of the bench\"\nacknowledgement = \"status\"\n\
         compression = \"{compression}\"\n"
    );
    let options: StageOptions = options.parse().expect("it is TOML");
    let sink = sink::build("http-siem", &options, &context).expect("the options are right");
    let delivering = SinkTask {
        name: frames::SINK.to_owned(),
        sink,
        outbox: Arc::clone(outbox),
        identity: Arc::new(context.identity),
        clock: context.clock,
        jitter: Box::new(|| 0.0),
        rate_limit: None,
        progress: watch::Sender::default(),
        report: Arc::new(|_| {}),
        new_epoch: Arc::new(String::new),
    };
    let (_orders, watched) = watch::channel(
        SinkControl::new(ShippingSettings::default(), 0).until(StopMode::WhenDrained),
    );
    delivering.run(watched).await;
    assert_eq!(outbox.stored_bytes(), 0, "not everything was delivered");
}

fn context() -> AgentContext {
    let environment = Environment::from_process();
    let word = || "bench".to_owned();
    AgentContext {
        identity: Identity {
            machine_id: word(),
            hostname: word(),
            user: word(),
            os: word(),
            arch: word(),
            agent_version: word(),
        },
        paths: Paths::from_environment(&environment).expect("there is a home"),
        environment,
        clock: Arc::new(SystemClock),
        calls: ai_agent::internals::platform::bounded::BoundedCalls::new(Arc::new(SystemClock)),
        power: Arc::new(SystemPower),
        revision: ai_agent::internals::siem::Revision::default(),
        device: ai_agent::internals::siem::Device::without_key("instance".to_owned()),
        trust: ai_agent::internals::siem::TrustStates::default(),
        organisation_keys: Vec::new(),
        state_dir: None,
        sandbox: ai_agent::internals::platform::Sandbox::default(),
        sessions: ai_agent::internals::stages::Sessions::default(),
        once: true,
        poll_interval: std::time::Duration::from_secs(300),
    }
}

/// Starts a receiver that reads every body and answers 200.
fn receiver() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The agent handles broken connections.
            thread::spawn(move || answer(stream).unwrap_or_default());
        }
    });
    Ok(address)
}

fn answer(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut write = stream.try_clone()?;
    let mut read = BufReader::with_capacity(256 << 10, stream);
    let mut line = String::new();
    loop {
        let mut length = 0;
        loop {
            line.clear();
            if read.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let lower = line.trim_end().to_ascii_lowercase();
            if lower.is_empty() {
                break;
            }
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        io::copy(&mut read.by_ref().take(length), &mut io::sink())?;
        write.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")?;
    }
}

criterion_group!(benches, deliver);
criterion_main!(benches);
