//! `ai-agent test`. Needs no server and no secrets.

use std::path::Path;

use clap::Args;

use super::{
    context::{CliContext, ConfigFiles},
    failure::Failure,
    output::print,
};
use crate::{
    pipeline::{
        assembly,
        config_test::{self, Mismatch},
    },
    text::counted,
};

/// Run the `[[test]]` tables of the configuration in force, or of configuration files
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    files: ConfigFiles,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let loaded = CliContext::new(explicit)?.load_files(&self.files)?;
        let mut failed = 0;
        for test in &loaded.tests {
            // Each test gets new filters, without memory of other tests.
            let mut filters = assembly::filters(&loaded).map_err(Failure::usage)?;
            let mismatches = config_test::run(test, &mut filters);
            let verdict = if mismatches.is_empty() { "ok    " } else { "FAILED" };
            print(format_args!("{verdict}  {}", test.name))?;
            if !mismatches.is_empty() {
                failed += 1;
                print(format_args!("        in {}", test.location))?;
            }
            for mismatch in &mismatches {
                let input = &test.lines[mismatch.line - 1].input;
                show(mismatch, input)?;
            }
        }
        let all = loaded.tests.len();
        match failed {
            0 => print(format_args!("{} passed", tests(all))),
            _ => Err(Failure::failed(format!("{failed} of {} failed", tests(all)))),
        }
    }
}

fn tests(count: usize) -> String {
    counted(count as u64, "test", "tests")
}

/// Prints a line, and the difference between the expected and the actual result.
fn show(mismatch: &Mismatch, input: &str) -> Result<(), Failure> {
    let Mismatch { line, expected, found } = mismatch;
    print(format_args!("        line {line}: {input}"))?;
    print(format_args!("          expected  {}", expected.without_output()))?;
    print(format_args!("          got       {}", found.without_output()))?;
    if let (Some(expected), Some(found)) = (expected.output(), found.output())
        && expected != found
    {
        let same = expected.chars().zip(found.chars()).take_while(|(one, other)| one == other);
        let same = same.count();
        print(format_args!("          - {expected}"))?;
        print(format_args!("          + {found}"))?;
        print(format_args!("            {:same$}^ differs from here", ""))?;
    }
    Ok(())
}
