//! Development commands of this workspace: `cargo xtask demo`, `test`, `bench`, `dist`, `soak` and
//! more.
#![expect(clippy::print_stdout, reason = "the output of a command-line program")]

mod bench;
mod cross;
mod demo;
mod dist;
mod instructions;
mod language;
mod machine;
mod new_stage;
mod public_api;
mod sh;
mod shared;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Run, check and build this workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent and a receiver on the sessions of this machine, or on samples
    Demo(demo::Arguments),
    /// Run all checks, as CI does
    Test(test::Arguments),
    /// Compare the agent with its peers on the same data
    Bench(bench::Arguments),
    /// Count instructions of fixed workloads, and compare them with the stored counts
    Instructions(instructions::Arguments),
    /// Write a new stage from a template, and register its file
    New(new_stage::Arguments),
    /// Search for words that this workspace does not use, and print their replacements
    Language,
    /// Compare the public items of library crates with their committed listings
    PublicApi(public_api::Arguments),
    /// Build the release files: programs, packages, manuals, checksums
    Dist(dist::Arguments),
    /// Run the randomised tests with kills, power cuts and simulations for a long time
    Soak(soak::Arguments),
}

/// Error message of a command that failed.
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
    fn command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
