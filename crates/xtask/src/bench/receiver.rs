//! Throughput of the receiver on one core: its own load tool, three times for each mode.

use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use super::{Tree, runner::Runs};
use crate::{Failure, sh};

/// Modes, as named by the tool.
pub(super) const PLAIN: &str = "identity";
pub(super) const ZSTD: &str = "zstd";
pub(super) const FLEET: &str = "fleet";

/// Sends the content of `data`, and returns the results of each run.
pub(super) fn measure(data: &Tree) -> Result<Runs, Failure> {
    let mut build = sh::cargo(["build", "--release", "--package", "siem-server"]);
    build.args(["--bin", "demo-server", "--example", "load"]);
    if !build.stdin(Stdio::null()).status()?.success() {
        return Err("cannot build the receiver and its load tool".into());
    }
    let tool = sh::target_directory()?.join("release/examples/load");
    let mut runs = Vec::new();
    for round in 1..=3 {
        for mode in [PLAIN, ZSTD, FLEET] {
            println!("── receiver, {mode}, {round} of 3");
            // The sender runs on the other core.
            let mut command = Command::new("taskset");
            command.args(["-c", "1"]).arg(&tool).args(["--core", "0", "--records"]);
            let output = command
                .arg(data.path.join("projects"))
                .arg(mode)
                .stderr(Stdio::inherit())
                .output()?;
            if !output.status.success() {
                return Err(format!("the load tool exited with {}", output.status).into());
            }
            let mut run: Map<String, Value> = serde_json::from_slice(&output.stdout)?;
            run.insert("peer".into(), mode.into());
            runs.push(run);
        }
    }
    Ok(Runs(runs))
}
