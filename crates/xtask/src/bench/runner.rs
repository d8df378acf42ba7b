//! The side-by-side runner of `../shared/bench`, with the agent among its peers.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Tree;
use crate::{Failure, sh};

/// The agent with default settings.
pub(super) const AGENT: &str = "ai-agent";
/// The agent without compression.
pub(super) const PLAIN: &str = "ai-agent-plain";
/// The agent with the enricher `activity`.
pub(super) const ACTIVITY: &str = "ai-agent-activity";

/// Runs peers on trees.
#[derive(Clone)]
pub(super) struct Runner {
    bench: PathBuf,
    agent: PathBuf,
    sink: PathBuf,
    /// Limit on open files of the agent.
    limit: Option<u32>,
}

impl Runner {
    /// Links the runner, its peers and those of this workspace into one folder: the runner looks
    /// for peers in its own folder.
    pub(super) fn new(
        shared: &Path,
        bench: &Path,
        agent: PathBuf,
        sink: PathBuf,
    ) -> Result<Self, Failure> {
        let runner = bench.join("runner");
        if runner.try_exists()? {
            fs::remove_dir_all(&runner)?;
        }
        fs::create_dir_all(runner.join("peers"))?;
        link(&shared.join("run.py"), &runner.join("run.py"))?;
        let workspace = sh::workspace().join("benches/side-by-side/peers");
        for peers in [shared.join("peers"), workspace] {
            for peer in fs::read_dir(peers)? {
                let peer = peer?;
                link(&peer.path(), &runner.join("peers").join(peer.file_name()))?;
            }
        }
        Ok(Self { bench: bench.to_owned(), agent, sink, limit: None })
    }

    /// Returns the runner with a limit on open files.
    pub(super) fn limited(&self, files: u32) -> Self {
        Self { limit: Some(files), ..self.clone() }
    }

    /// Returns a python command with the variables that the scripts need.
    pub(super) fn python(&self, script: &Path, name: &str, tree: &Tree) -> Command {
        let mut python = Command::new("python3");
        python.arg("-B").arg(script).arg("--data").arg(&tree.path).arg("--sink").arg(&self.sink);
        python.arg("--out").arg(self.bench.join("runs").join(name));
        python.arg("--state").arg(self.bench.join("state")).arg("--port").arg(PORT);
        match self.limit {
            Some(limit) => python.env("BENCH_NOFILE", limit.to_string()),
            None => python.env_remove("BENCH_NOFILE"),
        };
        python
    }

    /// Path of the runner.
    pub(super) fn script(&self) -> PathBuf {
        self.bench.join("runner/run.py")
    }

    /// Folder of all measurements.
    pub(super) fn folder(&self) -> &Path {
        &self.bench
    }

    /// Path of the measured agent.
    pub(super) fn agent(&self) -> &Path {
        &self.agent
    }

    /// Runs these peers alternately, and returns the results of each run.
    pub(super) fn run(
        &self,
        name: &str,
        tree: &Tree,
        peers: &[&str],
        options: &[&str],
    ) -> Result<Runs, Failure> {
        println!("── {name}: {} on {}", peers.join(", "), tree.name);
        let mut python = self.python(&self.script(), name, tree);
        python.arg("--peers").arg(peers.join(",")).args(options);
        for peer in [AGENT, PLAIN, ACTIVITY] {
            python.arg("--bin").arg(format!("{peer}={}", self.agent.display()));
        }
        if !python.status()?.success() {
            return Err(format!("the runner failed on `{name}`").into());
        }
        #[derive(Deserialize)]
        struct Result {
            runs: Vec<Map<String, Value>>,
        }
        let result = self.bench.join("runs").join(name).join("result.json");
        Ok(Runs(serde_json::from_slice::<Result>(&fs::read(result)?)?.runs))
    }
}

/// Address of the counting receiver.
const PORT: &str = "9917";

#[cfg(unix)]
pub(super) fn link(to: &Path, from: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(fs::canonicalize(to)?, from)
}

#[cfg(not(unix))]
pub(super) fn link(_to: &Path, _from: &Path) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "the runner reads /proc"))
}

/// Results of each run, in order.
#[derive(Default)]
pub(super) struct Runs(pub(super) Vec<Map<String, Value>>);

impl Runs {
    /// Median of a figure over the runs of a peer.
    pub(super) fn median(&self, peer: &str, figure: &str) -> Option<f64> {
        let mut values = self.values(peer, figure);
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(values[middle]),
            _ => Some(f64::midpoint(values[middle - 1], values[middle])),
        }
    }

    /// Largest value.
    pub(super) fn most(&self, peer: &str, figure: &str) -> Option<f64> {
        self.values(peer, figure).into_iter().reduce(f64::max)
    }

    fn values(&self, peer: &str, figure: &str) -> Vec<f64> {
        let runs = self.0.iter().filter(|run| run.get("peer").is_some_and(|name| name == peer));
        runs.filter_map(|run| run.get(figure)?.as_f64()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_computed_per_peer() {
        let runs = r#"[{"peer":"a","wall_s":3},{"peer":"b","wall_s":9},{"peer":"a","wall_s":1},
            {"peer":"a","wall_s":2},{"peer":"b","wall_s":null},{"peer":"b","wall_s":4}]"#;
        let runs = Runs(serde_json::from_str(runs).unwrap());
        assert_eq!(runs.median("a", "wall_s"), Some(2.0));
        assert_eq!(runs.median("b", "wall_s"), Some(6.5));
        assert_eq!(runs.most("a", "wall_s"), Some(3.0));
        assert_eq!(runs.median("c", "wall_s"), None);
    }
}
