//! Throughput of the receiver on one core: its own load tool, three times for each mode.

use std::{
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
            let mut run = load(&tool, data, mode, None)?;
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

/// Sends the content of `data` to `server`, or to the receiver of this workspace.
fn load(
    tool: &Path,
    data: &Tree,
    mode: &str,
    server: Option<&Path>,
) -> Result<Map<String, Value>, Failure> {
    // The sender runs on the other core.
    let mut command = Command::new("taskset");
    command.args(["-c", "1"]).arg(tool).args(["--core", "0", "--records"]);
    command.arg(data.path.join("projects")).arg(mode);
    if let Some(server) = server {
        command.arg("--server").arg(server);
    }
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
            for (rates, server) in rates.iter_mut().zip([None, Some(other)]) {
                let run = load(&tool, data, mode, server)?;
                let rate = run.get("megabytes_per_second").and_then(Value::as_f64);
                rates.push(rate.ok_or("the load tool names no throughput")?);
            }
        }
        let [own, other] = rates.map(median);
        rows.push(Comparison { mode, own, other, ratio: own / other });
    }
    Ok(rows)
}

fn median(mut rates: Vec<f64>) -> f64 {
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
