//! Runs every case in `tests/cases/FILTER/CASE/`: the lines of `input.jsonl` go through the filter
//! with the options of `stage.toml`, and those that stay, after edits, are `expected.jsonl`, byte
//! for byte.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ai_agent::internals::stages;
use ai_agent_stage::{
    StageKind,
    testing::{FilterTest, Filtered},
};

/// Directory of one case.
struct Case {
    filter: String,
    path: PathBuf,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut cases = Vec::new();
    for filter in directories(&root) {
        let name = filter.file_name().unwrap().to_str().unwrap().to_owned();
        // The cases of the source are run by `audit_cases.rs`, those of the enricher by
        // `enricher_cases.rs`.
        if ["activity", "auditd"].contains(&&*name) {
            continue;
        }
        cases.extend(
            directories(&filter).into_iter().map(|path| Case { filter: name.clone(), path }),
        );
    }
    cases
}

fn directories(parent: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(parent)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

impl Case {
    fn filter(&self) -> FilterTest {
        let options = fs::read_to_string(self.path.join("stage.toml")).unwrap();
        FilterTest::new(&self.filter, &options)
            .unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }

    /// The lines of a file, without their endings.
    fn lines(&self, file: &str) -> Vec<Vec<u8>> {
        let path = self.path.join(file);
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "{}: no last newline", path.display());
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        lines.map(|line| line[..line.len() - 1].to_vec()).collect()
    }

    /// Returns the lines that pass the filter.
    fn run(&self, filter: &mut FilterTest) -> Vec<Vec<u8>> {
        let mut stay = Vec::new();
        for line in self.lines("input.jsonl") {
            match filter.line(&line) {
                Filtered::Kept => stay.push(line),
                Filtered::Edited(text) => stay.push(text.into_bytes()),
                Filtered::Dropped(_) => {}
            }
        }
        stay
    }
}

/// Formats two lists of lines as a difference, with details of the first line that differs.
fn difference(expected: &[Vec<u8>], found: &[Vec<u8>]) -> String {
    let same = expected.iter().zip(found).take_while(|(one, other)| one == other).count();
    let show = |lines: &[Vec<u8>], sign: char| {
        let shown = lines.iter().skip(same).take(3);
        shown.map(|line| format!("{sign} {}\n", line.escape_ascii())).collect::<String>()
    };
    format!(
        "line {} differs ({} expected, {} stay):\n{}{}",
        same + 1,
        expected.len(),
        found.len(),
        show(expected, '-'),
        show(found, '+'),
    )
}

#[test]
fn filter_cases_keep_what_they_expect() {
    let mut failures = Vec::new();
    for case in cases() {
        let expected = case.lines("expected.jsonl");
        let found = case.run(&mut case.filter());
        if found != expected {
            let name = case.path.display();
            failures.push(format!("{name}: {}", difference(&expected, &found)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A group that could not be stored is read again: the filter must forget what it remembered of it.
#[test]
fn rolled_back_lines_get_the_same_verdict_again() {
    for case in cases() {
        let mut filter = case.filter();
        let first = case.run(&mut filter);
        filter.filter.rollback();
        let again = case.run(&mut filter);
        assert!(first == again, "{}: {}", case.path.display(), difference(&first, &again));
    }
}

#[test]
fn every_filter_has_cases() {
    let cases = cases();
    for stage in stages::all().iter().filter(|stage| stage.kind == StageKind::Filter) {
        let count = cases.iter().filter(|case| case.filter == stage.name).count();
        assert!(count >= 2, "{stage:?} has {count} cases in tests/cases/{}", stage.name);
    }
}

#[test]
fn difference_shows_where_it_begins() {
    let lines =
        |text: &str| text.split(' ').map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>();
    assert_eq!(
        difference(&lines("a b c"), &lines("a x")),
        "line 2 differs (3 expected, 2 stay):\n- b\n- c\n+ x\n"
    );
}
