//! Metrics of the agent, as Prometheus reads them.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::{
    agent::Agent,
    eventually,
    home::Home,
    lines_with_code,
    receiver::{Receiver, settle},
};
use test_requires::requires;

const AT_ONCE: &str = "[shipping]\nflush_interval = \"0s\"\n";

/// Starts an agent that serves metrics at `listen`.
fn start(home: &Home, receiver: &Receiver, listen: &str) -> Agent {
    let config = format!("metrics.listen = \"{listen}\"\n{AT_ONCE}");
    let agent = home.agent(&["run"]).config(&config).ships_to(&receiver.url());
    let mut agent = agent.start_and_wait();
    agent.wait_for_code("metrics_served");
    agent
}

/// Returns the address that the agent has logged.
fn address(agent: &Agent) -> String {
    let log = agent.log();
    let line = lines_with_code(&log, "metrics_served")[0].to_owned();
    let at = line.split("address=").nth(1).unwrap();
    at.split_whitespace().next().unwrap().to_owned()
}

/// Sends a request and returns the body of the response.
fn scrape(mut stream: impl Read + Write) -> String {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    body.to_owned()
}

/// Returns the value of a sample.
fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

#[test]
fn metrics_show_what_was_read_and_delivered() {
    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("-work/one.jsonl", "{\"n\":1}\n{\"type\":\"progress\"}\n{\"n\":2}\n");
    let agent = start(&home, &receiver, "127.0.0.1:0");
    settle(&receiver, 2);
    let address = address(&agent);
    let text = eventually("everything is acknowledged", || {
        let text = scrape(TcpStream::connect(&address).unwrap());
        (value(&text, "ai_agent_sink_queued_entries{sink=\"siem\"}") == Some(0.0)
            && value(&text, "ai_agent_sink_delivered_entries_total{sink=\"siem\"}") > Some(2.0))
        .then_some(text)
    });
    let is =
        |sample: &str, expected: f64| assert_eq!(value(&text, sample), Some(expected), "{text}");
    is("ai_agent_running", 1.0);
    is("ai_agent_read_lines_total", 3.0);
    is("ai_agent_filtered_lines_total{stage=\"ignore-types\",reason=\"ignored_type\"}", 1.0);
    is("ai_agent_outbox_entries", 0.0);
    is("ai_agent_sink_oldest_entry_age_seconds{sink=\"siem\"}", 0.0);
    is("ai_agent_sink_retries_total{sink=\"siem\"}", 0.0);
    is("ai_agent_sink_failing{sink=\"siem\"}", 0.0);
    let stored = value(&text, "ai_agent_stored_entries_total");
    assert_eq!(stored, value(&text, "ai_agent_sink_delivered_entries_total{sink=\"siem\"}"));
    agent.stop();
}

#[test]
fn failed_deliveries_are_counted() {
    let (home, mut receiver) = (Home::new(), Receiver::start());
    let agent = start(&home, &receiver, "127.0.0.1:0");
    settle(&receiver, 0);
    receiver.kill();
    home.write("-work/one.jsonl", "{\"n\":1}\n");
    let address = address(&agent);
    let text = eventually("a delivery fails", || {
        let text = scrape(TcpStream::connect(&address).unwrap());
        (value(&text, "ai_agent_sink_retries_total{sink=\"siem\"}") > Some(0.0)).then_some(text)
    });
    assert_eq!(value(&text, "ai_agent_sink_failing{sink=\"siem\"}"), Some(1.0), "{text}");
    assert!(value(&text, "ai_agent_sink_queued_entries{sink=\"siem\"}") > Some(0.0), "{text}");
    agent.kill();
}

#[cfg(unix)]
#[test]
fn metrics_on_a_socket_are_private() {
    use std::os::unix::{fs::PermissionsExt as _, net::UnixStream};

    let (home, receiver) = (Home::new(), Receiver::start());
    let socket = tempfile::tempdir().unwrap();
    let socket = socket.path().join("metrics");
    let agent = start(&home, &receiver, &format!("unix:{}", socket.display()));
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(scrape(UnixStream::connect(&socket).unwrap()).contains("ai_agent_build_info{version="));
    agent.stop();
    assert!(fs::symlink_metadata(&socket).is_err());
}

#[test]
fn address_in_use_does_not_stop_the_agent() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = other.local_addr().unwrap();
    let config = format!("metrics.listen = \"{listen}\"\n{AT_ONCE}");
    home.write("-work/one.jsonl", "{\"n\":1}\n");
    let agent = home.agent(&["run"]).config(&config).ships_to(&receiver.url());
    let mut agent = agent.start_and_wait();
    agent.wait_for_code("metrics_unavailable");
    settle(&receiver, 1);
    agent.stop();
}

/// Returns the names of the metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[requires(promtool)]
#[test]
fn metrics_are_documented_and_follow_the_conventions() {
    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("-work/one.jsonl", "{\"n\":1}\n{\"type\":\"progress\"}\n");
    let agent = start(&home, &receiver, "127.0.0.1:0");
    settle(&receiver, 1);
    let address = address(&agent);
    let text = eventually("an acknowledgement", || {
        let text = scrape(TcpStream::connect(&address).unwrap());
        text.contains("ai_agent_sink_acknowledgement_age_seconds").then_some(text)
    });
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = fs::read_to_string(page).unwrap();
    let documented = |prefix: &str| -> BTreeSet<String> {
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows = rows.filter_map(|row| row.split(['`', '{']).next());
        rows.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
    };
    let of_agent = |name: &String| name.starts_with("ai_agent_");
    let found: BTreeSet<_> = names(&text).into_iter().filter(of_agent).collect();
    let mut expected = documented("ai_agent_");
    // They are missing until the first heartbeat, and the first signed response.
    let late = ["ai_agent_heartbeat_age_seconds", "ai_agent_config_signed_age_seconds"];
    expected.retain(|name| found.contains(name) || !late.contains(&name.as_str()));
    assert_eq!(found, expected);
    let mut check = Command::new("promtool");
    check.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut check = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.is_empty(), "{said}");
    agent.stop();
}
