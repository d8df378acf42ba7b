//! Check that the words of an old private dialect stay out of the tree.
//!
//! The texts and names of this workspace are plain technical English. Some words crept in again and
//! again in place of the standard term; each of them is listed here with the term to use.

use std::{fmt, fs, path::Path, process::ExitCode};

use crate::{Failure, sh};

/// Quotations and names of other programs, in which a word may stand.
const ALLOWED: &str = "crates/xtask/language-allow.txt";

/// This file, which lists the words, and the list of exceptions.
const EXEMPT: [&str; 2] = ["crates/xtask/src/language.rs", ALLOWED];

/// Extensions of files that people read.
const EXTENSIONS: [&str; 17] = [
    "rs",
    "md",
    "toml",
    "py",
    "sh",
    "yml",
    "yaml",
    "json",
    "wxs",
    "ps1",
    "mobileconfig",
    "plist",
    "service",
    "rules",
    "dict",
    "xml",
    "txt",
];

/// Files that people read and that have no extension.
const NAMES: [&str; 2] = ["justfile", ".ci/run"];

/// Folders of data: recorded, generated or minimised by a tool.
const DATA: [&str; 3] = ["fuzz/corpus/", "proptest-regressions/", "tests/stores/"];

/// Phrases with their replacements.
///
/// A phrase is a sequence of words; `a|b` stands for either word, `*` for up to three words within
/// a sentence. Underscores in names separate words.
const PHRASES: [(&str, &str); 20] = [
    ("get|gets|getting|got on", "make progress, be stalled"),
    ("mend|mends|mended|mending", "fix, repair"),
    ("anew", "again, new, re-…"),
    ("trouble|troubles", "error, failure, problem"),
    ("whoever|somebody|nobody", "the agent, a client, a user, no process"),
    ("hold|holds|held|holding * against", "compare with, check against"),
    ("take|takes|took|taken|taking away", "remove"),
    ("lay|lays|laid|laying down", "install"),
    ("is|are|was|were gone", "was deleted, is missing"),
    ("goes|went|go away", "disconnect, disappear"),
    ("has|have not taken", "has not acknowledged"),
    ("the way of a|an|the record|line|entry", "data flow"),
    ("server's|receiver's words", "response"),
    ("is|are|was|were|be told", "is notified"),
    ("is|are|was|were|be asked", "is queried, is requested"),
    ("above the machine's|user's", "overrides"),
    ("its|their like", "list them"),
    ("and the like", "list them"),
    ("comes|come|came along with", "is included in"),
    ("what became of", "outcome of, result of"),
];

/// A phrase that was found.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// From 1.
    line: usize,
    /// The words as written, in lower case.
    words: String,
    instead: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, words, instead } = self;
        write!(f, "{path}:{line}: `{words}`, write: {instead}")
    }
}

/// Prints the findings, and fails if there is one.
pub(crate) fn run() -> Result<ExitCode, Failure> {
    let findings = check()?;
    findings.iter().for_each(|finding| println!("{finding}"));
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Searches all tracked files and returns the findings.
pub(crate) fn check() -> Result<Vec<String>, Failure> {
    let output = sh::git(["ls-files", "-z"]).output()?;
    let files = String::from_utf8(output.stdout)?;
    let mut findings = Vec::new();
    for path in files.split('\0').filter(|path| is_read(path)) {
        let Ok(text) = fs::read_to_string(sh::workspace().join(path)) else { continue };
        search(path, &text, &mut findings);
    }
    let allowed = fs::read_to_string(sh::workspace().join(ALLOWED))?;
    Ok(without_allowed(findings, &allowed))
}

/// Reports whether people read the file.
fn is_read(path: &str) -> bool {
    let extension = Path::new(path).extension().and_then(|it| it.to_str()).unwrap_or_default();
    (EXTENSIONS.contains(&extension) || NAMES.contains(&path))
        && !DATA.iter().any(|folder| path.contains(folder))
        && !EXEMPT.contains(&path)
}

/// Returns the findings that the list of exceptions does not cover, and exceptions without use.
fn without_allowed(findings: Vec<Finding>, allowed: &str) -> Vec<String> {
    let lines = allowed.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut allowed: Vec<_> =
        lines.filter_map(|line| line.split_once(": ")).map(|it| (it, false)).collect();
    let mut remaining = Vec::new();
    for finding in findings {
        let covers = |(path, words): &(&str, &str)| {
            finding.path.starts_with(path) && finding.words == *words
        };
        match allowed.iter_mut().find(|(entry, _)| covers(entry)) {
            Some((_, is_used)) => *is_used = true,
            None => remaining.push(finding.to_string()),
        }
    }
    let unused = allowed.iter().filter(|(_, is_used)| !is_used);
    remaining.extend(
        unused.map(|((path, words), _)| format!("{ALLOWED}: `{path}: {words}` covers nothing")),
    );
    remaining
}

/// Searches a text. A phrase may continue on the next line, behind the marks of a comment.
fn search(path: &str, text: &str, findings: &mut Vec<Finding>) {
    let words = words(text);
    for (instead, phrase) in PHRASES.map(|(phrase, instead)| (instead, phrase)) {
        let phrase: Vec<Vec<&str>> =
            phrase.split(' ').map(|word| word.split('|').collect()).collect();
        for start in 0..words.len() {
            let Some(length) = length_of_match(&words[start..], &phrase) else { continue };
            let matched = &words[start..start + length];
            findings.push(Finding {
                path: path.to_owned(),
                line: words[start].line,
                words: matched.iter().map(|word| &*word.text).collect::<Vec<_>>().join(" "),
                instead,
            });
        }
    }
}

/// A word, or the end of a sentence with an empty text.
struct Word {
    text: String,
    line: usize,
}

fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.replace('’', "'");
        let mut word = String::new();
        for character in line.chars().chain([' ']) {
            if character.is_alphabetic() || (character == '\'' && !word.is_empty()) {
                word.extend(character.to_lowercase());
                continue;
            }
            if !word.is_empty() {
                let text = std::mem::take(&mut word).trim_end_matches('\'').to_owned();
                words.push(Word { text, line: index + 1 });
            }
            if ".;:,(){}[]\"=|&".contains(character) {
                words.push(Word { text: String::new(), line: index + 1 });
            }
        }
    }
    words
}

/// Returns how many words the phrase takes at the start of `words`, if it stands there.
fn length_of_match(words: &[Word], phrase: &[Vec<&str>]) -> Option<usize> {
    let Some((first, rest)) = phrase.split_first() else { return Some(0) };
    if first == &["*"] {
        return (0..=3)
            .take_while(|skipped| words.iter().take(*skipped).all(|word| !word.text.is_empty()))
            .find_map(|skipped| Some(skipped + length_of_match(words.get(skipped..)?, rest)?));
    }
    let word = words.first()?;
    first.contains(&&*word.text).then_some(())?;
    Some(1 + length_of_match(&words[1..], rest)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, String)> {
        let mut findings = Vec::new();
        search("a.rs", text, &mut findings);
        findings.into_iter().map(|it| (it.line, it.words)).collect()
    }

    #[test]
    fn phrases_are_found_in_prose_and_names() {
        assert_eq!(found("fn begin_anew() {}"), [(1, "anew".to_owned())]);
        assert_eq!(found("/// It gets\n/// on."), [(1, "gets on".to_owned())]);
        assert_eq!(found("Holds it all against B"), [(1, "holds it all against".to_owned())]);
    }

    #[test]
    fn other_words_are_left_alone() {
        for text in ["recommend", "it holds. B is against it", "amended", "hold a, b against c"] {
            assert_eq!(found(text), [], "{text}");
        }
    }

    #[test]
    fn exceptions_cover_a_path_and_must_be_used() {
        let finding = || Finding {
            path: "config/a.service".to_owned(),
            line: 1,
            words: "nobody".to_owned(),
            instead: "no process",
        };
        assert_eq!(without_allowed(vec![finding()], "# x\nconfig/: nobody\n"), [""; 0]);
        assert_eq!(without_allowed(vec![finding()], "docs/: nobody\n").len(), 2);
    }
}
