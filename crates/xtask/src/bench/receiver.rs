//! Throughput of the receiver on one core: its own load tool, three times for each mode.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Tree, runner::Runs};
use crate::{Failure, sh};

/// Modes, as named by the tool.
pub(super) const PLAIN: &str = "identity";
pub(super) const ZSTD: &str = "zstd";
pub(super) const FLEET: &str = "fleet";

/// Sends the content of `data`, and returns the results of each run.
pub(super) fn measure(data: &Tree) -> Result<Runs, Failure> {
    let tool = build()?;
    let mut runs = Vec::new();
    for round in 1..=3 {
        for mode in [PLAIN, ZSTD, FLEET] {
            println!("── receiver, {mode}, {round} of 3");
            let mut run = load(&tool, data, mode, &[])?;
            run.insert("peer".into(), mode.into());
            runs.push(run);
        }
    }
    Ok(Runs(runs))
}

/// Builds the receiver and its load tool, and returns the path of the latter.
fn build() -> Result<PathBuf, Failure> {
    let mut build = sh::cargo(["build", "--release", "--package", "siem-server"]);
    build.args(["--bin", "demo-server", "--example", "load"]);
    if !build.stdin(Stdio::null()).status()?.success() {
        return Err("cannot build the receiver and its load tool".into());
    }
    Ok(sh::target_directory()?.join("release/examples/load"))
}

/// Sends the content of `data` to the receiver of this workspace, or as `options` say.
fn load(
    tool: &Path,
    data: &Tree,
    mode: &str,
    options: &[&OsStr],
) -> Result<Map<String, Value>, Failure> {
    // The sender runs on the other core.
    let mut command = Command::new("taskset");
    command.args(["-c", "1"]).arg(tool).args(["--core", "0", "--records"]);
    command.arg(data.path.join("projects")).arg(mode).args(options);
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("the load tool exited with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Throughput of two builds of the receiver in a mode.
#[derive(Serialize)]
pub(super) struct Comparison {
    mode: &'static str,
    /// Median in MB/s.
    own: f64,
    /// Median in MB/s.
    other: f64,
    /// The one divided by the other.
    ratio: f64,
}

/// Least ratio that is accepted.
const LEAST_RATIO: f64 = 0.97;
/// Most milliseconds of CPU that the seal of a batch may cost.
pub(super) const SEAL_MS: f64 = 0.2;
/// Number of runs of each build in each mode.
const ROUNDS: usize = 5;

impl Comparison {
    pub(super) fn is_slower(&self) -> bool {
        self.ratio < LEAST_RATIO
    }
}

/// Compares the throughput of the receiver with that of `other`, alternating.
pub(super) fn compare(other: &Path, data: &Tree) -> Result<Vec<Comparison>, Failure> {
    let tool = build()?;
    let mut rows = Vec::new();
    for mode in [PLAIN, ZSTD] {
        let mut rates = [Vec::new(), Vec::new()];
        for round in 1..=ROUNDS {
            println!("── receiver, {mode}, {round} of {ROUNDS}");
            let server = ["--server".as_ref(), other.as_os_str()];
            for (rates, options) in rates.iter_mut().zip([&[][..], &server]) {
                let run = load(&tool, data, mode, options)?;
                rates.push(figure(&run, "megabytes_per_second")?);
            }
        }
        let [own, other] = rates.map(median);
        rows.push(Comparison { mode, own, other, ratio: own / other });
    }
    Ok(rows)
}

/// Measures what seals cost the receiver, in milliseconds of CPU for each batch: verifying them,
/// signing receipts, and storing both. Includes the enrollment of each agent, a tenth of all
/// requests.
pub(super) fn seal_cost(data: &Tree) -> Result<f64, Failure> {
    let tool = build()?;
    let fleet = ["--agents", "600", "--seconds", "10"];
    let mut times = [Vec::new(), Vec::new()];
    for round in 1..=ROUNDS {
        println!("── receiver, seals, {round} of {ROUNDS}");
        for (times, sealed) in times.iter_mut().zip([&[][..], &["--sealed"]]) {
            let options: Vec<_> = fleet.iter().chain(sealed).map(OsStr::new).collect();
            let run = load(&tool, data, FLEET, &options)?;
            times.push(figure(&run, "cpu_seconds")? / figure(&run, "requests")?);
        }
    }
    let [plain, sealed] = times.map(median);
    Ok((sealed - plain) * 1000.0)
}

/// Returns the 99th percentile of the response times of 2,000 agents, in milliseconds. `data` is the
/// directory of the server.
pub(super) fn fleet_p99(tool: &Path, data: &Path) -> Result<f64, Failure> {
    let mut command = Command::new("taskset");
    command.args(["-c", "1"]).arg(tool).args(["--core", "0", "--seconds", "20", "--data"]);
    let output = command.arg(data).arg(FLEET).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("the load tool exited with {}", output.status).into());
    }
    figure(&serde_json::from_slice(&output.stdout)?, "p99_ms")
}

fn figure(run: &Map<String, Value>, name: &str) -> Result<f64, Failure> {
    let figure = run.get(name).and_then(Value::as_f64);
    figure.ok_or_else(|| format!("the load tool names no `{name}`").into())
}

pub(super) fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

/// Formats comparisons for people.
pub(super) fn table(rows: &[Comparison]) -> String {
    let mut text = "receiver, one core   MB/s   other   ratio\n".to_owned();
    for row in rows {
        text.push_str(&format!(
            "{:18} {:>6.1}  {:>6.1}  {:>6.3}\n",
            row.mode, row.own, row.other, row.ratio
        ));
    }
    text
}
