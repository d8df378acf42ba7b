//! A restart with all files known: time until a new record arrives at the receiver.

use serde::Deserialize;

use super::{Tree, runner::Runner};
use crate::{Failure, sh};

/// Output of `restart.py`.
#[derive(Deserialize)]
pub(super) struct Restart {
    /// Seconds for each restart; `None` if the record did not arrive.
    seconds: Vec<Option<f64>>,
    pub(super) lost: f64,
    pub(super) dups: f64,
    pub(super) extra: f64,
}

impl Restart {
    /// Longest time; `None` if a record did not arrive.
    pub(super) fn most(&self) -> Option<f64> {
        self.seconds.iter().copied().reduce(|one, other| Some(one?.max(other?))).flatten()
    }
}

pub(super) fn measure(runner: &Runner, tree: &Tree) -> Result<Restart, Failure> {
    println!("── restart on {}", tree.name);
    let script = sh::workspace().join("benches/side-by-side/restart.py");
    let mut python = runner.python(&script, "restart", tree);
    python.arg("--runner").arg(runner.script()).arg("--bin").arg(runner.agent());
    let output = python.stderr(std::process::Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err("cannot measure the restart".into());
    }
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_that_did_not_arrive_leaves_no_figure() {
        let restart = |seconds: &[Option<f64>]| {
            Restart { seconds: seconds.to_vec(), lost: 0.0, dups: 0.0, extra: 0.0 }.most()
        };
        assert_eq!(restart(&[Some(0.2), Some(0.4)]), Some(0.4));
        assert_eq!(restart(&[Some(0.2), None]), None);
        assert_eq!(restart(&[]), None);
    }
}
