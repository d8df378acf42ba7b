//! The everyday commands of this workspace: `cargo xtask demo`, `cargo xtask test`,
//! `cargo xtask bench` and `cargo xtask dist`, and `cargo xtask soak` for a long night.
#![expect(clippy::print_stdout, reason = "what it has to say is for whoever called it")]

mod bench;
mod cross;
mod demo;
mod dist;
mod instructions;
mod language;
mod new_stage;
mod public_api;
mod sh;
mod shared;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Shows, checks and builds this workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the agent and a receiver on this machine's sessions, or on samples.
    Demo(demo::Arguments),
    /// Runs every check, as CI does.
    Test(test::Arguments),
    /// Measures the agent and its peers on the same data.
    Bench(bench::Arguments),
    /// Counts instructions, and compares them with what is stored.
    Instructions(instructions::Arguments),
    /// Write a new stage from a template, and register its file
    New(new_stage::Arguments),
    /// Look for words that this workspace does not use, and say what to write instead
    Language,
    /// Compare the public items of library crates with their committed listings
    PublicApi(public_api::Arguments),
    /// Builds what is given away: programs, packages, manuals, checksums.
    Dist(dist::Arguments),
    /// Kills, cuts the power and simulates, for as long as one likes.
    Soak(soak::Arguments),
}

/// Why a command failed, in words.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    if let Some(code) = public_api::rustdoc_wrapper() {
        return code;
    }
    let done = match Arguments::parse().command {
        Command::Demo(demo) => demo.run(),
        Command::Test(test) => test.run(),
        Command::Bench(bench) => bench.run(),
        Command::Instructions(instructions) => instructions.run(),
        Command::New(new) => new.run(),
        Command::Language => language::run(),
        Command::PublicApi(public_api) => public_api.run(),
        Command::Dist(dist) => dist.run(),
        Command::Soak(soak) => soak.run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
