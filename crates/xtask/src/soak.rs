//! `cargo xtask soak`: the same faults as in the tests, for as long as one likes.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{Failure, sh};

/// Kills, power cuts and simulated worlds, as many as one likes. Each harness says what it did,
/// fails when a kind of fault never came, and prints the seed that repeats a failure.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How often the agent is killed in each round; the receiver is killed a quarter as often.
    #[arg(long, default_value_t = 20)]
    kills: u64,
    /// How often the power goes in each round.
    #[arg(long, default_value_t = 200)]
    power_cuts: u64,
    /// How many simulated worlds there are in each round.
    #[arg(long, default_value_t = 200)]
    worlds: u64,
    /// Goes on with rounds for so long; one round without.
    #[arg(long, default_value_t = 0)]
    minutes: u64,
}

/// A harness: the variable that says how much of it, the package's tests that it is in, and its
/// name.
const HARNESSES: [(&str, &[&str], &str); 3] = [
    ("AI_AGENT_POWER_CUTS", &["--lib"], "no_power_cut_loses_or_repeats_an_entry"),
    ("AI_AGENT_WORLDS", &["--lib"], "every_line_of_every_world_is_accounted_for"),
    (
        "AI_AGENT_KILLS",
        &["--test", "crash"],
        "nothing_is_lost_or_stored_twice_when_agent_and_receiver_are_killed",
    ),
];

impl Arguments {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let began = Instant::now();
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
            if began.elapsed() >= Duration::from_secs(60 * self.minutes) {
                break;
            }
        }
        let [power_cuts, worlds, kills] = amounts.map(|amount| amount * rounds);
        println!(
            "{power_cuts} power cuts, {worlds} worlds, {kills} kills of the agent in {:.0} s: 0 lost, 0 twice",
            began.elapsed().as_secs_f64()
        );
        Ok(ExitCode::SUCCESS)
    }
}
