//! `ai-agent test`. Needs no server and no secrets.

use std::path::Path;

use clap::Args;
use serde_json::{Value, json};

use super::{
    context::{CliContext, ConfigFiles},
    failure::Failure,
    output::{JSON_VERSION, print},
};
use crate::{
    config::InlineTest,
    pipeline::{
        assembly,
        config_test::{self, Mismatch},
    },
    text::counted,
};

/// Run the `[[test]]` tables of the configuration in force, or of configuration files
///
/// Exits 1 if a test fails.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    files: ConfigFiles,
    /// Print one JSON object, as described in docs/scripts.md
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let loaded = CliContext::new(explicit)?.load_files(&self.files)?;
        let mut failed = 0;
        let mut results = Vec::new();
        for test in &loaded.tests {
            // Each test gets new filters, without memory of other tests.
            let mut filters = assembly::filters(&loaded).map_err(Failure::usage)?;
            let mismatches = config_test::run(test, &mut filters);
            failed += usize::from(!mismatches.is_empty());
            match self.json {
                true => results.push(as_json(test, &mismatches)),
                false => show(test, &mismatches)?,
            }
        }
        let all = loaded.tests.len();
        if self.json {
            let report = json!({
                "version": JSON_VERSION,
                "passed": all - failed,
                "failed": failed,
                "tests": results,
            });
            print(format_args!("{report:#}"))?;
        }
        match failed {
            0 if self.json => Ok(()),
            0 => print(format_args!("{} passed", tests(all))),
            _ => Err(Failure::failed(format!("{failed} of {} failed", tests(all)))),
        }
    }
}

fn as_json(test: &InlineTest, mismatches: &[Mismatch]) -> Value {
    let mismatch = |mismatch: &Mismatch| {
        json!({
            "line": mismatch.line,
            "input": test.lines[mismatch.line - 1].input,
            "expected": mismatch.expected,
            "found": mismatch.found,
        })
    };
    json!({
        "name": test.name,
        "outcome": if mismatches.is_empty() { "ok" } else { "fail" },
        "location": test.location.to_string(),
        "mismatches": mismatches.iter().map(mismatch).collect::<Vec<_>>(),
    })
}

/// Prints the outcome of a test.
fn show(test: &InlineTest, mismatches: &[Mismatch]) -> Result<(), Failure> {
    if mismatches.is_empty() {
        return print(format_args!("ok      {}", test.name));
    }
    print(format_args!("FAILED  {}", test.name))?;
    print(format_args!("        in {}", test.location))?;
    let input = |mismatch: &Mismatch| &*test.lines[mismatch.line - 1].input;
    mismatches.iter().try_for_each(|mismatch| show_mismatch(mismatch, input(mismatch)))
}

fn tests(count: usize) -> String {
    counted(count as u64, "test", "tests")
}

/// Prints a line, and the difference between the expected and the actual result.
fn show_mismatch(mismatch: &Mismatch, input: &str) -> Result<(), Failure> {
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
