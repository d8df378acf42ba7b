//! The agent with an additional filter.

use std::process::ExitCode;

// Without this line the linker leaves the filter out.
use custom_filter as _;

fn main() -> ExitCode {
    ai_agent::main()
}
