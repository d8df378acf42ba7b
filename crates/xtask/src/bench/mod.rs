//! `cargo xtask bench`: the agent and its peers on the same data, alternately, as one table.

mod data;
mod fleet;
mod growth;
mod hooks;
mod receiver;
mod released;
mod restart;
mod runner;
mod sinks;
mod targets;
mod tools;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use crate::{Failure, dist::linux, sh, shared};
use data::Data;
use runner::{Runner, Runs};

/// Compare the agent with syslog-ng on the data of `../shared/bench`, and print a table of targets
/// and measurements. All files are below `target/bench`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Catch-up of 530 MB, idle and live on 20 MB: a few minutes (default)
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// All measurements: 2 GB, 10,000 and 50,000 files, a restart; half an hour
    #[arg(long)]
    full: bool,
    /// Only the sinks: CPU and throughput of each beside `http-siem`, on 530 MB. Fails if the static
    /// binary is too large
    #[arg(long, conflicts_with_all = ["quick", "full"])]
    sinks: bool,
    /// Only the receiver with a large fleet: start, memory and `/stats` as machines, epochs and gaps
    /// grow, and 2,000 agents at once. Fails if a target is missed or a figure grows faster than the data
    #[arg(long, conflicts_with_all = ["quick", "full", "sinks"])]
    receiver: bool,
    /// Only the receiver: its throughput beside that of FILE, another build of `demo-server`, on
    /// 530 MB, alternating, and the CPU time that seals cost. Fails below 0.97 of it, or above 0.2 ms a batch
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "full", "sinks", "receiver"])]
    receiver_against: Option<PathBuf>,
}

/// Measurements. Those that were not made are absent.
#[derive(Default)]
pub(super) struct Measured {
    /// 530 MB: agent, agent with `activity`, agent without compression and syslog-ng alternately.
    medium: Runs,
    /// 20 MB, each record sent at once: time until the first one arrives.
    start: Runs,
    /// The same, then idle and live.
    small: Runs,
    /// 2 GB.
    large: Runs,
    /// 10,000 files: agent and syslog-ng alternately.
    many10k: Runs,
    /// The same, idle and live, each record sent at once.
    many10k_live: Runs,
    /// 50,000 files, with 20,000 open files allowed, and with 256.
    many: [Runs; 2],
    /// 100 files of that size.
    many100: Runs,
    restart: Option<restart::Restart>,
    /// Size of the static binary in bytes.
    binary: Option<u64>,
    receiver: Runs,
    hooks: Runs,
}

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        if self.receiver {
            return measure_fleet();
        }
        let shared = shared::find()?.join("bench");
        if !sh::has_program("python3") {
            return Err("the runner needs python3, which is not installed".into());
        }
        let bench = sh::target_directory()?.join("bench");
        fs::create_dir_all(&bench)?;
        if let Some(other) = &self.receiver_against {
            return compare_receivers(other, &Data::new(&shared, &bench), &bench);
        }
        let agent = released::build()?;
        if self.sinks {
            return measure_sinks(&agent, &Data::new(&shared, &bench), &bench);
        }
        let sink = tools::sink(&shared, &bench)?;
        let syslog_ng = tools::syslog_ng();
        let runner = Runner::new(&shared, &bench, agent, sink)?;
        let data = Data::new(&shared, &bench);
        let measured = self.measure(&runner, &data, syslog_ng)?;
        let rows = targets::rows(&measured);
        let growth = growth::rows(&measured, &data)?;
        println!("\n{}\n{}", targets::table(&rows), growth::table(&growth));
        if !syslog_ng {
            println!("skipped: {}", tools::NO_SYSLOG_NG);
        }
        let file = bench.join(if self.full { "full.json" } else { "quick.json" });
        let report = json!({ "measures": rows, "growth": growth });
        fs::write(&file, serde_json::to_vec_pretty(&report)?)?;
        println!("the table as JSON, and the output of each run: {}", bench.display());
        // A missed target is only a figure; a lost record is a failure.
        Ok(if targets::is_whole(&measured) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn measure(&self, run: &Runner, data: &Data, syslog_ng: bool) -> Result<Measured, Failure> {
        let with = |peer: &'static str, mut peers: Vec<&'static str>| {
            peers.extend(syslog_ng.then_some(peer));
            peers
        };
        let (agent, plain, activity) = (runner::AGENT, runner::PLAIN, runner::ACTIVITY);
        let mut measured = Measured { binary: released::size(run.agent())?, ..Measured::default() };
        let (medium, small) = (data.make("medium")?, data.make("small")?);
        let all = with("syslog-ng", vec![agent, activity, plain]);
        measured.medium = run.run("medium", &medium, &all, &["--runs=3"])?;
        let no_delay = "--flush-ms=0";
        measured.start = run.run("start", &small, &[agent], &["--runs=5", no_delay])?;
        let live = ["--phases=catchup,idle,live", no_delay];
        let small_live = [&live[..], &[if self.full { "--runs=3" } else { "--runs=1" }]].concat();
        measured.small = run.run("small", &small, &[agent], &small_live)?;
        measured.hooks = hooks::measure(run.agent(), run.folder())?;
        if !self.full {
            return Ok(measured);
        }
        let many10k = data.make("many10k")?;
        let two = with("syslog-ng-poll", vec![agent]);
        measured.many10k = run.run("many10k", &many10k, &two, &["--runs=3"])?;
        let once = [&live[..], &["--runs=1"]].concat();
        measured.many10k_live = run.run("many10k-live", &many10k, &[agent], &once)?;
        let large = data.make("large")?;
        measured.large = run.run("large", &large, &[agent, plain], &["--runs=1"])?;
        let many = data.make("many")?;
        let idle = ["--phases=catchup,idle", "--runs=1", "--limit=900", "--stall=60"];
        measured.many = [
            run.limited(20_000).run("many-20000", &many, &[agent], &idle)?,
            run.limited(256).run("many-256", &many, &[agent], &idle)?,
        ];
        measured.many100 = run.run("many100", &data.make("many100")?, &[agent], &["--runs=3"])?;
        measured.restart = Some(restart::measure(run, &many)?);
        measured.receiver = receiver::measure(&medium)?;
        Ok(measured)
    }
}

/// Measures the receiver with a large fleet, and prints and stores the table.
fn measure_fleet() -> Result<ExitCode, Failure> {
    let bench = sh::target_directory()?.join("bench");
    fs::create_dir_all(&bench)?;
    let fleet = fleet::measure(&bench)?;
    println!("\n{}", fleet.table());
    fs::write(bench.join("fleet.json"), serde_json::to_vec_pretty(&fleet)?)?;
    Ok(if fleet.is_missed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Measures the sinks, and prints and stores the table. A missed target is only a figure.
fn measure_sinks(agent: &Path, data: &Data, bench: &Path) -> Result<ExitCode, Failure> {
    let tree = data.make("medium")?;
    let bytes = data.manifest("medium")?.map_or(0.0, |manifest| manifest.bytes);
    let rows = sinks::measure(agent, bench, &tree, bytes)?;
    println!("\n{}", sinks::table(&rows));
    fs::write(bench.join("sinks.json"), serde_json::to_vec_pretty(&rows)?)?;
    if cfg!(target_os = "linux") {
        linux::check_size(agent)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Compares the receiver with another build of it, and prints and stores the figures.
fn compare_receivers(other: &Path, data: &Data, bench: &Path) -> Result<ExitCode, Failure> {
    let tree = data.make("medium")?;
    let rows = receiver::compare(other, &tree)?;
    let seal = receiver::seal_cost(&tree)?;
    println!("\n{}\nseals: {seal:.3} ms of CPU for each batch", receiver::table(&rows));
    let report = json!({ "throughput": rows, "seal_ms": seal });
    fs::write(bench.join("receiver.json"), serde_json::to_vec_pretty(&report)?)?;
    let slower = rows.iter().any(receiver::Comparison::is_slower) || seal > receiver::SEAL_MS;
    Ok(if slower { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A folder of data: a tree of session files with its properties.
pub(super) struct Tree {
    path: PathBuf,
    name: &'static str,
}
