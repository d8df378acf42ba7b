//! The sink `elasticsearch` from session files to a server, with faults in between: what the server
//! has in the end is compared with the files.
#![cfg(unix)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::Value;
use test_requires::requires;

use crate::support::{
    agent::AgentCommand,
    assembly::{ServerEvent, assemble, decode},
    copy_tree, eventually, files_below,
    home::Home,
    http_server::{Fault, HttpServer, Reply, Request},
    osmem::Osmem,
    reference_reader::{self, Rules},
};

const INDEX: &str = "claude-code";
/// Text of a record that the server refuses: a filter masks it, and the index has a mapping that the
/// field for masked content does not fit.
const POISON: &str = "poisoned-record";
/// Largest total size of the session files of the corpus.
const TREE_BYTES: u64 = 4 << 20;
const MAPPING: &str =
    r#"{"mappings":{"properties":{"ai_agent":{"properties":{"masked":{"type":"long"}}}}}}"#;

/// A home directory with session trees of the corpus, where it exists, and generated files.
fn home() -> Home {
    let home = Home::new();
    let mut total = 0;
    for tree in corpus() {
        let size: u64 = files_below(&tree).iter().map(|it| it.metadata().unwrap().len()).sum();
        if total + size <= TREE_BYTES {
            total += size;
            let name = tree.parent().unwrap().file_name().unwrap();
            copy_tree(&tree, &home.projects().join(name));
        }
    }
    for file in 0..4 {
        let line = |number: usize| {
            let text = "\u{e9}\\u0000\\\"".repeat(number % 50);
            format!("{{\"type\":\"user\",\"n\":{number},\"a\":1,\"a\":2,\"text\":\"{text}\"}}\n")
        };
        let mut bytes: Vec<u8> = (0..500).flat_map(|number| line(number).into_bytes()).collect();
        bytes.extend_from_slice(b"not json \xff\0\n{\"number\":NaN}\nnull\n");
        home.write(&format!("-generated/{file}.jsonl"), bytes);
    }
    let (before, after) = ("{\"type\":\"user\",\"n\":1}\n", "{\"type\":\"user\",\"n\":2}\n");
    let poison = format!("{{\"type\":\"user\",\"text\":\"{POISON}\"}}\n");
    home.write("-poison/session.jsonl", format!("{before}{poison}{after}"));
    home
}

/// Directories with the session files of the corpus, in order; none where it is missing.
fn corpus() -> Vec<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let shared = std::env::var_os("AI_AGENT_SHARED").map_or(beside, PathBuf::from);
    let Ok(trees) = fs::read_dir(shared.join("corpus")) else { return Vec::new() };
    let mut trees: Vec<_> = trees.map(|tree| tree.unwrap().path().join("projects")).collect();
    trees.retain(|tree| tree.is_dir());
    trees.sort();
    trees
}

fn config(endpoint: &str) -> String {
    format!(
        "pipeline.sinks = [\"elastic\"]\npipeline.filters = [\"mask\"]\n\
         [filter.mask]\ntype = \"mask\"\npatterns = []\nown = {{ poison = \"{POISON}\" }}\n\
         [shipping]\nbatch_size = 100\nflush_interval = \"0s\"\n\
         [sink.elastic]\ntype = \"elasticsearch\"\nendpoint = \"{endpoint}\"\nindex = \"{INDEX}\"\n\
         timeout = \"2s\"\n"
    )
}

/// Forwards a request to the server at `to`.
fn forward(to: SocketAddr, request: &Request) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(to)?;
    let Request { method, path, query, raw_body, .. } = request;
    let mut head = format!("{method} {path}?{query} HTTP/1.0\r\nHost: {to}\r\n");
    for name in ["content-type", "content-encoding"] {
        if !request.header(name).is_empty() {
            head += &format!("{name}: {}\r\n", request.header(name));
        }
    }
    head += &format!("Content-Length: {}\r\n\r\n", raw_body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(raw_body)?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    let end = response.windows(4).position(|it| it == b"\r\n\r\n");
    let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = std::str::from_utf8(&response[9..12]).unwrap().parse().unwrap();
    Ok(Reply::new(status, &response[end + 4..]))
}

/// A proxy before a server, which counts the documents that it forwards.
struct FaultProxy {
    http: HttpServer,
    forwarded: Arc<AtomicUsize>,
}

impl FaultProxy {
    fn start(server: &Osmem, at: SocketAddr) -> Self {
        let to: SocketAddr = server.url().trim_start_matches("http://").parse().unwrap();
        let forwarded = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&forwarded);
        let http = HttpServer::on(at, move |request| {
            let lines = request.body.iter().filter(|byte| **byte == b'\n').count();
            count.fetch_add(lines / 2, Ordering::Relaxed);
            forward(to, request).unwrap_or_else(|_| Reply::new(502, ""))
        });
        Self { http, forwarded }
    }

    fn forwarded(&self) -> usize {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Waits until the faults have happened, and one more request has been made.
    fn wait_for_faults(&self) {
        eventually("the faults", || (self.http.faults_left() == 0).then_some(()));
        let count = self.http.request_count();
        eventually("a request after the faults", || {
            (self.http.request_count() > count).then_some(())
        });
    }
}

/// Records of a server by file and offset, and the numbers of all its entries.
#[derive(Default)]
struct Stored {
    records: BTreeMap<(PathBuf, u64), Vec<u8>>,
    numbers: BTreeSet<u64>,
    documents: usize,
    repetitions: usize,
}

fn stored(server: &Osmem) -> Stored {
    let documents = server.documents(INDEX);
    let mut stored = Stored { documents: documents.len(), ..Stored::default() };
    let mut origins = BTreeMap::new();
    let mut events = Vec::new();
    for (_, document) in documents {
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| document[name].as_u64();
        stored.numbers.insert(number("event.sequence").unwrap());
        let of = text("ai_agent.part.of");
        let id = if of.is_empty() { text("event.id") } else { of.clone() };
        if let Some(offset) = number("log.offset") {
            origins.insert(id, (PathBuf::from(text("log.file.path")), offset));
        }
        let position = |name: &str| number(name).unwrap_or_default();
        events.push(ServerEvent {
            id: text("event.id"),
            part: (!of.is_empty())
                .then(|| (of, position("ai_agent.part.index"), position("ai_agent.part.total"))),
            hash: text("event.hash"),
            content: decode(&text("event.original"), &text("ai_agent.encoding")),
        });
    }
    // Compares the hashes too.
    let assembled = assemble(events);
    assert_eq!(assembled.incomplete, Vec::<String>::new());
    stored.repetitions = assembled.repetitions;
    for (id, content) in assembled.contents {
        if let Some(origin) = origins.remove(&id) {
            assert!(stored.records.insert(origin, content).is_none(), "{id} is there twice");
        }
    }
    stored
}

fn expected(home: &Path) -> BTreeMap<(PathBuf, u64), Vec<u8>> {
    let lines = reference_reader::read_tree(home, &Rules::default());
    let is_poison = |line: &[u8]| line.windows(POISON.len()).any(|it| it == POISON.as_bytes());
    let lines = lines.into_iter().filter(|it| !is_poison(&it.line));
    lines.map(|it| ((it.path, it.offset), it.line)).collect()
}

/// The server keeps its documents in memory, so that the proxy before it is what restarts.
#[requires(servers)]
#[test]
fn server_has_every_record_once_after_faults() {
    let home = home();
    let server = Osmem::start();
    server.call("PUT", &format!("/{INDEX}"), MAPPING);
    let proxy = FaultProxy::start(&server, "127.0.0.1:0".parse().unwrap());
    let (url, address) = (proxy.http.url(), proxy.http.address());
    let agent =
        |arguments: &[&str]| -> AgentCommand { home.agent(arguments).config(&config(&url)) };

    // A time-out after storing, lost responses, a server that is busy and one that is unavailable.
    let busy = |status| Fault::Answer(Reply::new(status, "{}").header("Retry-After", "1"));
    proxy.http.fail(
        "_bulk",
        [
            Fault::None,
            Fault::ProcessAndHang,
            busy(429),
            Fault::ProcessAndClose,
            Fault::ProcessAndTruncate,
            busy(503),
        ],
    );
    let running = agent(&["run"]).start_and_wait();
    proxy.wait_for_faults();
    running.kill();

    // A kill after the server stored a request whose response the agent never got.
    proxy.http.fail("_bulk", [Fault::ProcessAndHang]);
    home.append("-generated/0.jsonl", "{\"type\":\"user\",\"after\":\"kill\"}\n");
    let running = agent(&["run"]).start_and_wait();
    eventually("the fault", || (proxy.http.faults_left() == 0).then_some(()));
    running.kill();

    // A restart of what the agent connects to.
    let mut forwarded = proxy.forwarded();
    drop(proxy);
    let running = agent(&["run"]).start_and_wait();
    home.append("-generated/1.jsonl", "{\"type\":\"user\",\"after\":\"restart\"}\n");
    let proxy = FaultProxy::start(&server, address);
    eventually("a request after the restart", || (proxy.forwarded() > 0).then_some(()));
    running.stop();

    agent(&["run", "--once"]).deliver();
    forwarded += proxy.forwarded();
    let expected = expected(&home.projects());
    let Stored { records, numbers, documents, repetitions } = stored(&server);
    let missing = expected.keys().filter(|origin| !records.contains_key(*origin)).count();
    eprintln!(
        "{} records in the files, {} on the server; {documents} documents, {forwarded} sent; \
         {missing} missing, {repetitions} repeated",
        expected.len(),
        records.len()
    );
    assert_eq!((missing, repetitions), (0, 0));
    assert!(records == expected);

    // Only the poisoned record is a dead letter, and no other number is missing.
    let listed = agent(&["deadletter", "list", "--json"]).succeed();
    let dead: Vec<Value> =
        listed.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(dead.len(), 1, "{}", listed.text());
    let all: BTreeSet<u64> = (1..=numbers.last().copied().unwrap()).collect();
    let lacking: Vec<u64> = all.difference(&numbers).copied().collect();
    assert_eq!(lacking, [dead[0]["seq"].as_u64().unwrap()]);
}
