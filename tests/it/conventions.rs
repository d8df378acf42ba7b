//! Conventions of the tests: short names, no fixed delays, and no test that passes without running.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::files_below;

const FOLDERS: [&str; 4] = ["src", "tests", "crates", "examples"];
const LONGEST_NAME: usize = 60;

/// Every source file of the workspace with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = FOLDERS.iter().flat_map(|folder| files_below(&root.join(folder)));
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            (path.strip_prefix(root).unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect()
}

/// The names of the tests in a source file.
fn tests(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        let function = line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn "));
        if let Some(function) = function.filter(|_| is_test) {
            names.extend(function.split(['(', '<']).next());
            is_test = false;
        } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        }
    }
    names
}

#[test]
fn test_names_have_at_most_60_characters() {
    let mut count = 0;
    let mut long = Vec::new();
    for (path, text) in sources() {
        for name in tests(&text) {
            count += 1;
            if name.len() > LONGEST_NAME {
                long.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(count > 800, "only {count} tests are found");
    assert!(long.is_empty(), "{long:#?}");
}

/// `support` has the helpers that poll a condition, wait for a random moment, or answer late.
#[test]
fn integration_tests_have_no_fixed_delays() {
    let call = concat!("sleep", "(");
    let sleeps =
        |(path, text): &(PathBuf, String)| path.starts_with("tests/it") && text.contains(call);
    let found: Vec<_> = sources().into_iter().filter(sleeps).map(|(path, _)| path).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// `#[requires(...)]` ignores a test that cannot run here; a test that returns early counts as passed.
#[test]
fn no_test_prints_that_it_was_skipped() {
    let message = concat!("eprintln!(\"", "skipped");
    let found: Vec<_> = sources().into_iter().filter(|(_, text)| text.contains(message)).collect();
    let paths: Vec<_> = found.iter().map(|(path, _)| path).collect();
    assert!(paths.is_empty(), "{paths:?}");
}
