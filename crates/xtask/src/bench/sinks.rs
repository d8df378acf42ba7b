//! CPU and throughput of each sink beside `http-siem`, in one run: catch-up of one tree with
//! `run --once`, without compression, to receivers that only read and acknowledge.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
};

use serde::{Deserialize, Serialize};

use super::{Tree, runner::link};
use crate::Failure;

/// A sink to measure: its type and its options; `{HTTP}` and `{TCP}` are the addresses of the
/// receivers.
const SINKS: [(&str, &str); 6] = [
    (
        "http-siem",
        r#"endpoint = "http://{HTTP}"
token = "a token of the bench"
hmac_secret = "a secret of the bench"
acknowledgement = "status"
compression = "none""#,
    ),
    (
        "splunk-hec",
        r#"endpoint = "http://{HTTP}"
token = "a token of the bench"
compression = "none""#,
    ),
    (
        "elasticsearch",
        r#"endpoint = "http://{HTTP}"
api_key = "YSBrZXk6b2YgdGhlIGJlbmNo"
compression = "none""#,
    ),
    (
        "otlp",
        r#"endpoint = "http://{HTTP}"
compression = "none""#,
    ),
    (
        "http",
        r#"endpoint = "http://{HTTP}/events"
compression = "none""#,
    ),
    (
        "syslog",
        r#"address = "{TCP}"
transport = "tcp""#,
    ),
];

/// Sinks with a limit on their CPU, as a multiple of that of `http-siem`.
const LIMITS: [(&str, f64); 2] = [("splunk-hec", 1.6), ("elasticsearch", 1.6)];

/// Number of runs of each sink, in turn.
const RUNS: usize = 3;

/// Measurement of one sink: the medians of its runs.
#[derive(Serialize)]
pub(super) struct Row {
    sink: &'static str,
    /// Bytes of the tree per second, in MB. For `syslog` it includes the wait for its window.
    mb_per_s: f64,
    /// CPU time of the agent in seconds per GB of the tree.
    cpu_s_per_gb: f64,
    /// CPU time relative to `http-siem`.
    ratio: f64,
    /// Largest permitted ratio.
    limit: Option<f64>,
}

/// CPU and wall time of one run.
#[derive(Clone, Copy, Deserialize)]
struct Run {
    code: i32,
    cpu_s: f64,
    wall_s: f64,
}

/// Runs a command and prints its exit code, CPU time and wall time. The standard library does not
/// return the CPU time of a child.
const MEASURE: &str = "\
import json, resource, subprocess, sys, time
begun = time.monotonic()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({'code': code, 'cpu_s': used.ru_utime + used.ru_stime,
                  'wall_s': time.monotonic() - begun}))
";

/// Measures all sinks alternately on `tree` with `bytes`.
pub(super) fn measure(
    agent: &Path,
    folder: &Path,
    tree: &Tree,
    bytes: f64,
) -> Result<Vec<Row>, Failure> {
    let (http, tcp) = (serve(respond)?, serve(discard)?);
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); SINKS.len()];
    for number in 1..=RUNS {
        for ((sink, options), runs) in SINKS.iter().zip(&mut runs) {
            println!("── {sink}, run {number} of {RUNS}");
            let options = options.replace("{HTTP}", &http.to_string());
            let options = options.replace("{TCP}", &tcp.to_string());
            runs.push(run(agent, &folder.join("sinks"), tree, sink, &options)?);
        }
    }
    let median = |runs: &[Run], figure: fn(&Run) -> f64| {
        let mut figures: Vec<f64> = runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    let reference = median(&runs[0], |run| run.cpu_s);
    let row = |((sink, _), runs): (&(&'static str, &str), &Vec<Run>)| {
        let cpu = median(runs, |run| run.cpu_s);
        Row {
            sink,
            mb_per_s: bytes / 1e6 / median(runs, |run| run.wall_s),
            cpu_s_per_gb: cpu / (bytes / 1e9),
            ratio: cpu / reference,
            limit: LIMITS.iter().find(|(name, _)| name == sink).map(|(_, limit)| *limit),
        }
    };
    Ok(SINKS.iter().zip(&runs).map(row).collect())
}

/// Formats the rows as a table.
pub(super) fn table(rows: &[Row]) -> String {
    let mut table = "| sink | MB/s | CPU s/GB | times http-siem | target | |\n\
                     | --- | ---: | ---: | ---: | ---: | --- |\n"
        .to_owned();
    for row in rows {
        let (limit, met) = match row.limit {
            Some(limit) if row.ratio <= limit => (format!("≤ {limit}"), "met"),
            Some(limit) => (format!("≤ {limit}"), "MISSED"),
            None => (String::new(), ""),
        };
        let Row { sink, mb_per_s, cpu_s_per_gb, ratio, .. } = row;
        table += &format!(
            "| {sink} | {mb_per_s:.0} | {cpu_s_per_gb:.2} | {ratio:.2} | {limit} | {met} |\n"
        );
    }
    table
}

fn run(
    agent: &Path,
    folder: &Path,
    tree: &Tree,
    sink: &str,
    options: &str,
) -> Result<Run, Failure> {
    if folder.try_exists()? {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder.join("home/.claude"))?;
    link(&tree.path.join("projects"), &folder.join("home/.claude/projects"))?;
    let config = folder.join("agent.toml");
    let state = folder.join("state");
    fs::write(
        &config,
        format!(
            "[agent]\nstate_dir = \"{}\"\n[pipeline]\nsinks = [\"bench\"]\n[sink.bench]\ntype = \
             \"{sink}\"\n{options}\n",
            state.display()
        ),
    )?;
    let mut python = Command::new("python3");
    python.args(["-c", MEASURE]).arg(agent).args(["run", "--once", "--config"]).arg(&config);
    python.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", folder.join("home"));
    let output = python.output()?;
    let run: Run = serde_json::from_slice(&output.stdout)?;
    if run.code != 0 {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(
            format!("the agent ended with {} with the sink {sink}: {errors}", run.code).into()
        );
    }
    Ok(run)
}

/// Listens on a port of its own, and handles each connection in a thread.
fn serve(handle: fn(TcpStream) -> io::Result<()>) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A connection that ends in the middle of a request is of no interest here.
            thread::spawn(move || drop(handle(client)));
        }
    });
    Ok(address)
}

fn discard(mut client: TcpStream) -> io::Result<()> {
    io::copy(&mut client, &mut io::sink()).map(drop)
}

/// Reads requests, and acknowledges each in the way of its protocol.
fn respond(client: TcpStream) -> io::Result<()> {
    let mut writer = client.try_clone()?;
    let mut reader = BufReader::with_capacity(256 << 10, client);
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or_default();
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        let (kind, answer) = acknowledgement(&path, &body);
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        writer.write_all(&[head.as_bytes(), answer.as_bytes()].concat())?;
    }
}

fn acknowledgement(path: &str, body: &[u8]) -> (&'static str, String) {
    let path = path.split('?').next().unwrap_or_default();
    if path.ends_with("/_bulk") {
        // An action and a document for each entry. The search of the standard library is fast in a
        // build without optimizations, too.
        let count = std::str::from_utf8(body).unwrap_or_default().matches('\n').count() / 2;
        let items = vec![r#"{"create":{"status":201}}"#; count].join(",");
        return ("application/json", format!(r#"{{"errors":false,"items":[{items}]}}"#));
    }
    if path.ends_with("/v1/logs") {
        return ("application/x-protobuf", String::new());
    }
    if path.contains("/services/collector") {
        return ("application/json", r#"{"text":"Success","code":0}"#.to_owned());
    }
    ("application/json", "{}".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_response_has_an_item_for_each_document() {
        let (_, answer) = acknowledgement("/logs/_bulk?x=1", b"{}\n{}\n{}\n{}\n");
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["items"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn table_says_which_target_is_missed() {
        let row = |ratio| Row {
            sink: "splunk-hec",
            mb_per_s: 100.0,
            cpu_s_per_gb: 5.0,
            ratio,
            limit: Some(1.6),
        };
        let table = table(&[row(1.6), row(1.7)]);
        assert!(table.contains("| 1.60 | ≤ 1.6 | met |"), "{table}");
        assert!(table.contains("| 1.70 | ≤ 1.6 | MISSED |"), "{table}");
    }
}
