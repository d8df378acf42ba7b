//! `cargo xtask soak`: the faults of the tests, for a long time.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{Failure, sh};

/// Run the tests with kills, power cuts and simulations as often as requested. Each prints a
/// summary, fails if a kind of fault never occurred, and prints the seed that repeats a failure.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Kills of the agent per round; the receiver is killed a quarter as often
    #[arg(long, default_value_t = 20)]
    kills: u64,
    /// Power cuts per round
    #[arg(long, default_value_t = 200)]
    power_cuts: u64,
    /// Simulations per round
    #[arg(long, default_value_t = 200)]
    worlds: u64,
    /// Repeat rounds for this long [default: one round]
    #[arg(long, default_value_t = 0)]
    minutes: u64,
}

/// A randomised test: the variable with the number of its cases, the test target that contains it,
/// and its name.
const HARNESSES: [(&str, &[&str], &str); 3] = [
    ("AI_AGENT_POWER_CUTS", &["--lib"], "no_power_cut_loses_or_repeats_an_entry"),
    ("AI_AGENT_WORLDS", &["--lib"], "every_line_of_every_world_is_accounted_for"),
    ("AI_AGENT_KILLS", &["--test", "it"], "kills_of_agent_and_receiver_lose_and_double_nothing"),
];

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let started = Instant::now();
        let amounts = [self.power_cuts, self.worlds, self.kills];
        let mut rounds = 0;
        loop {
            for ((variable, tests, name), amount) in HARNESSES.into_iter().zip(amounts) {
                if amount == 0 {
                    continue;
                }
                let mut command = sh::cargo(["test", "--package", "ai-agent"]);
                command.args(tests).args(["--", "--nocapture", name]);
                if !command.env(variable, amount.to_string()).status()?.success() {
                    return Ok(ExitCode::FAILURE);
                }
            }
            rounds += 1;
            if started.elapsed() >= Duration::from_secs(60 * self.minutes) {
                break;
            }
        }
        let [power_cuts, worlds, kills] = amounts.map(|amount| amount * rounds);
        println!(
            "{power_cuts} power cuts, {worlds} worlds, {kills} kills of the agent in {:.0} s: 0 lost, 0 twice",
            started.elapsed().as_secs_f64()
        );
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn harnesses_name_existing_tests() {
        let files = ["src/pipeline", "tests/it"].map(|folder| sh::workspace().join(folder));
        let files = files.iter().flat_map(|folder| sh::files_below(folder).unwrap());
        let sources: String = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
        for (_, _, name) in HARNESSES {
            assert!(sources.contains(&format!("fn {name}(")), "{name}");
        }
    }
}
