//! The agent.

use std::process::ExitCode;

fn main() -> ExitCode {
    ai_agent::main()
}
