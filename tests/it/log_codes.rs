//! The codes of log lines in the sources and their list in `docs/status.md` are the same.

use std::{collections::BTreeMap, fs, path::Path};

use crate::support::files_below;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A log macro in the sources.
#[derive(Debug)]
struct Call {
    level: &'static str,
    code: Option<String>,
    place: String,
}

/// Every call of a log macro in the sources of the agent and its crates.
fn calls() -> Vec<Call> {
    let mut folders = vec![root().join("src")];
    for package in fs::read_dir(root().join("crates")).unwrap() {
        folders.push(package.unwrap().path().join("src"));
    }
    let files = folders.iter().flat_map(|folder| files_below(folder));
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .flat_map(|path| calls_in(&path.display().to_string(), &fs::read_to_string(&path).unwrap()))
        .collect()
}

fn calls_in(path: &str, text: &str) -> Vec<Call> {
    let mut found = Vec::new();
    for (name, level) in [("error!(", "ERROR"), ("warn!(", "WARN"), ("info!(", "INFO")] {
        for (at, _) in text.match_indices(name) {
            let line = text[..at].matches('\n').count() + 1;
            let start_of_line = text[..at].rfind('\n').map_or(0, |end| end + 1);
            let is_other = text[..at].ends_with(|c: char| c == '_' || c.is_alphanumeric());
            if is_other || text[start_of_line..at].contains("//") {
                continue;
            }
            let arguments = text[at + name.len()..].trim_start();
            let code = arguments.strip_prefix("code = \"").and_then(|rest| rest.split_once('"'));
            let code = code.map(|(code, _)| code.to_owned());
            found.push(Call { level, code, place: format!("{path}:{line}") });
        }
    }
    found.extend(lines_of_the_logger_in(path, text));
    found
}

/// The cells of each row that the page has for a code.
fn rows(page: &str) -> Vec<Vec<String>> {
    let section = page.split("\n## Log codes\n").nth(1).expect("a section on log codes");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// The lines that the logger itself writes, without a macro.
fn lines_of_the_logger_in(path: &str, text: &str) -> Vec<Call> {
    let call = |(at, target): (usize, &str)| {
        text[..at].trim_end().strip_suffix("Line::warning(")?;
        let code = text[at + target.len()..].trim_start().strip_prefix('"')?;
        let (code, _) = code.split_once('"')?;
        let line = text[..at].matches('\n').count() + 1;
        Some(Call { level: "WARN", code: Some(code.to_owned()), place: format!("{path}:{line}") })
    };
    text.match_indices("module_path!(),").filter_map(call).collect()
}

#[test]
fn warnings_and_errors_have_a_code_as_first_field() {
    let without = |call: &Call| call.level != "INFO" && call.code.is_none();
    let without: Vec<_> = calls().into_iter().filter(without).collect();
    assert!(without.is_empty(), "{without:#?}");
}

#[test]
fn codes_of_the_sources_are_those_of_the_page() {
    let mut coded: BTreeMap<String, &str> = BTreeMap::new();
    for Call { level, code, place } in calls() {
        let Some(code) = code else { continue };
        let before = coded.insert(code, level);
        assert!(before.is_none_or(|before| before == level), "two levels of one code: {place}");
    }
    assert!(coded.len() > 100, "{} codes are found", coded.len());
    let page = fs::read_to_string(root().join("docs/status.md")).unwrap();
    let mut listed = BTreeMap::new();
    for row in rows(&page) {
        let [code, level, cause, remedy] = &row[..] else { panic!("not four cells: {row:?}") };
        assert!(!cause.is_empty() && !remedy.is_empty(), "{row:?}");
        let before = listed.insert(code.trim_matches('`').to_owned(), level.clone());
        assert!(before.is_none(), "listed twice: {code}");
    }
    let missing: Vec<_> = coded.keys().filter(|code| !listed.contains_key(*code)).collect();
    let unused: Vec<_> = listed.keys().filter(|code| !coded.contains_key(*code)).collect();
    assert!(missing.is_empty() && unused.is_empty(), "not listed: {missing:?}, unused: {unused:?}");
    for (code, level) in coded {
        assert_eq!(listed[&code], level, "{code}");
    }
}
