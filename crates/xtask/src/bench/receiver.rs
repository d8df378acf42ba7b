//! What the receiver bears on one core: its own load tool, three times each way.

use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use super::{Tree, runner::Runs};
use crate::{Failure, sh};

/// The ways of sending, as the tool names them.
pub(super) const PLAIN: &str = "identity";
pub(super) const ZSTD: &str = "zstd";
pub(super) const FLEET: &str = "fleet";

/// Sends what `data` holds, and says what came of each run.
pub(super) fn measure(data: &Tree) -> Result<Runs, Failure> {
    let mut build = sh::cargo(["build", "--release", "--package", "siem-server"]);
    build.args(["--bin", "demo-server", "--example", "load"]);
    if !build.stdin(Stdio::null()).status()?.success() {
        return Err("the receiver and its load could not be built".into());
    }
    let tool = sh::target_directory()?.join("release/examples/load");
    let mut runs = Vec::new();
    for round in 1..=3 {
        for way in [PLAIN, ZSTD, FLEET] {
            println!("── receiver, {way}, {round} of 3");
            // The sender on the other core.
            let mut command = Command::new("taskset");
            command.args(["-c", "1"]).arg(&tool).args(["--core", "0", "--records"]);
            let output = command
                .arg(data.path.join("projects"))
                .arg(way)
                .stderr(Stdio::inherit())
                .output()?;
            if !output.status.success() {
                return Err(format!("the load ended with {}", output.status).into());
            }
            let mut run: Map<String, Value> = serde_json::from_slice(&output.stdout)?;
            run.insert("peer".into(), way.into());
            runs.push(run);
        }
    }
    Ok(Runs(runs))
}
