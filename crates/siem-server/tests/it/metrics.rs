//! Metrics of a receiver, as Prometheus reads them, and the sample alerts.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use siem_protocol::Encoding;
use siem_server::{
    FileStore, Receiver, ServeOptions, Transport,
    metrics::{Metrics, MetricsAddress, MetricsListener, MetricsServer, serve_metrics},
    serve_with,
};
use test_requires::requires;

use crate::common::{Server, VECTOR, keys};

/// A receiver that serves metrics.
struct Measured {
    server: Server,
    url: String,
    _metrics: MetricsServer,
}

impl Measured {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let store = FileStore::open(data.path()).unwrap();
        let metrics = Arc::new(Metrics::of_store(&store, data.path()));
        let listener = MetricsListener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let MetricsAddress::Loopback(address) = listener.address().unwrap() else { unreachable!() };
        let receiver = Receiver::new(keys(), Arc::new(store)).with_metrics(metrics.clone());
        let server = Server::serving(data, receiver, ServeOptions::default()).await;
        let url = format!("http://{address}/metrics");
        Self { server, url, _metrics: serve_metrics(listener, metrics) }
    }

    async fn text(&self) -> String {
        let response = reqwest::get(&self.url).await.unwrap().error_for_status().unwrap();
        assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        response.text().await.unwrap()
    }
}

/// Returns the value of a sample.
fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

#[tokio::test]
async fn metrics_count_batches_entries_and_refusals() {
    let measured = Measured::start().await;
    let server = &measured.server;
    for _ in 0..2 {
        let stored = server.request(VECTOR, Encoding::Zstd).send().await.unwrap();
        assert_eq!(stored.status(), 200);
    }
    let forged = server.signed(VECTOR.into(), "identity", "00").send().await.unwrap();
    assert_eq!(forged.status(), 403);
    let unknown = reqwest::get(server.url("/stats")).await.unwrap();
    assert_eq!(unknown.status(), 401);
    let text = measured.text().await;
    let is =
        |sample: &str, expected: f64| assert_eq!(value(&text, sample), Some(expected), "{text}");
    is("siem_server_batches_total{outcome=\"stored\"}", 1.0);
    is("siem_server_batches_total{outcome=\"duplicate\"}", 1.0);
    is("siem_server_batches_total{outcome=\"refused\"}", 1.0);
    is("siem_server_entries_total", 3.0);
    is("siem_server_duplicate_entries_total", 3.0);
    is("siem_server_refusals_total{status=\"403\",reason=\"signature\"}", 1.0);
    is("siem_server_refusals_total{status=\"401\",reason=\"token\"}", 1.0);
    is("siem_server_request_duration_seconds_count{path=\"/ingest\"}", 3.0);
    is("siem_server_store_duration_seconds_count", 2.0);
    is("siem_server_turns_waiting", 0.0);
    is("siem_server_memory_reserved_bytes{of=\"bodies\"}", 0.0);
    is("siem_server_machines", 1.0);
    is("siem_server_stored_entries", 3.0);
    is("siem_server_sender_problems{problem=\"gap\"}", 0.0);
    assert!(value(&text, "siem_server_journal_sync_duration_seconds_count") > Some(0.0), "{text}");
    assert!(value(&text, "siem_server_received_bytes_total") > Some(1000.0), "{text}");
}

/// The server answers these without the router of the receiver.
#[tokio::test]
async fn requests_with_too_large_headers_are_counted() {
    let metrics = Arc::new(Metrics::default());
    let listener = MetricsListener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let MetricsAddress::Loopback(address) = listener.address().unwrap() else { unreachable!() };
    let _served = serve_metrics(listener, metrics.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/healthz", listener.local_addr().unwrap());
    let transport = Transport { metrics: Some(metrics), ..Transport::default() };
    let serving = serve_with(
        listener,
        axum::Router::new(),
        ServeOptions::default(),
        transport,
        std::future::pending(),
    );
    let task = tokio::spawn(serving);
    // The second one does not fit in the buffer.
    for size in [66 << 10, 100 << 10] {
        let request = reqwest::Client::new().get(&url).header("x-a", "b".repeat(size));
        drop(request.send().await);
    }
    let sample = "siem_server_refusals_total{status=\"431\",reason=\"too-large\"}";
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let text = reqwest::get(format!("http://{address}/metrics")).await.unwrap();
        let text = text.text().await.unwrap();
        if value(&text, sample) == Some(2.0) {
            break;
        }
        assert!(Instant::now() < deadline, "{text}");
        tokio::task::yield_now().await;
    }
    task.abort();
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Returns the names of metrics in the documentation.
fn documented() -> BTreeSet<String> {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| row.split(['`', '{']).next());
    names.filter(|name| name.contains('_')).map(str::to_owned).collect()
}

fn run_promtool(arguments: &[&str], input: &str) {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).current_dir(root().join("config"));
    promtool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = promtool.spawn().unwrap();
    running.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = running.wait_with_output().unwrap();
    let said = format!(
        "{:?}",
        (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr))
    );
    assert!(ended.status.success() && ended.stderr.is_empty(), "{said}");
}

#[requires(promtool)]
#[tokio::test]
async fn metrics_are_documented_and_follow_the_conventions() {
    let measured = Measured::start().await;
    measured.server.request(VECTOR, Encoding::Zstd).send().await.unwrap();
    measured.server.signed(VECTOR.into(), "identity", "00").send().await.unwrap();
    let text = measured.text().await;
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let found: BTreeSet<_> = types.map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    let mut expected = documented();
    expected.retain(|name| name.starts_with("siem_server_"));
    // This receiver knows no devices, and another function serves it.
    for name in ["trust_events_total", "connections", "connections_limit"] {
        assert!(expected.remove(&format!("siem_server_{name}")), "{name}");
    }
    assert_eq!(found, expected);
    run_promtool(&["check", "metrics"], &text);
}

#[requires(promtool)]
#[test]
fn each_sample_alert_fires_and_is_silent() {
    run_promtool(&["check", "rules", "alerts.yml"], "");
    run_promtool(&["test", "rules", "alerts-test.yml"], "");
    let read = |name: &str| fs::read_to_string(root().join("config").join(name)).unwrap();
    let (alerts, tests) = (read("alerts.yml"), read("alerts-test.yml"));
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let names = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for name in names {
        for case in ["fires", "is silent"] {
            assert!(tests.contains(&format!("name: {name} {case}\n")), "{name} {case}");
        }
        assert!(page.contains(&format!("| `{name}` |")), "{name} is not documented");
    }
}

#[test]
fn sample_alerts_use_documented_metrics() {
    let alerts = fs::read_to_string(root().join("config/alerts.yml")).unwrap();
    let documented = documented();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let expressions = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let words = expressions.flat_map(|text| text.split(|c: char| !is_name(c)));
    let used: BTreeSet<_> = words
        .filter(|word| word.starts_with("siem_server_") || word.starts_with("ai_agent_"))
        .map(|word| word.trim_end_matches("_bucket"))
        .collect();
    assert!(used.len() > 15, "{used:?}");
    let unknown: Vec<_> = used.iter().filter(|name| !documented.contains(**name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
