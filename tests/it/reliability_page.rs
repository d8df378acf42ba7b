//! The tests named in `docs/reliability.md` exist.

use std::{collections::BTreeSet, fs, path::Path};

fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
            let names = names
                .chain(text.lines().filter_map(|line| line.trim_start().strip_prefix("async fn ")));
            found.extend(names.filter_map(|name| Some(name.split_once('(')?.0.to_owned())));
        }
    }
}

#[test]
fn reliability_page_names_only_existing_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut there = BTreeSet::new();
    for folder in ["src", "tests", "crates"] {
        functions(&root.join(folder), &mut there);
    }
    let page = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let quoted = page.split('`').skip(1).step_by(2);
    let is_name =
        |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || "_:0123456789".contains(c));
    let named: Vec<&str> = quoted
        .filter(is_name)
        .filter(|word| word.matches('_').count() > 1 || word.contains("::"))
        .map(|word| word.rsplit("::").next().unwrap())
        .collect();
    let missing: Vec<_> = named.iter().filter(|name| !there.contains(**name)).collect();
    assert!(missing.is_empty(), "the page names tests that are not there: {missing:#?}");
    assert!(named.len() > 80, "{} tests are named", named.len());
}
