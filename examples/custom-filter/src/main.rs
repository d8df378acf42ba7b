//! The agent, with this crate's filter in it.

use std::process::ExitCode;

use custom_filter as _;

fn main() -> ExitCode {
    ai_agent::main()
}
