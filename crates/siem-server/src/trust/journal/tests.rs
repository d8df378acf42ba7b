use proptest::prelude::*;
use serde::Deserialize;

use super::*;

/// Numbers in the order of their lines.
#[derive(Debug, Default)]
struct Numbers(Vec<u64>);

#[derive(Serialize, Deserialize)]
struct Number {
    n: u64,
}

impl Fold for Numbers {
    type Line = Number;

    fn apply(&mut self, line: Number) {
        self.0.push(line.n);
    }
}

const NAME: &str = "numbers.ndjson";

fn open(directory: &Path) -> Result<Journal<Numbers>, JournalError> {
    Journal::open(directory, NAME, DirectoryLock::open(directory)?)
}

fn append(journal: &Journal<Numbers>, n: u64) {
    let line = |_: &Numbers| Ok::<_, JournalError>((Some(Number { n }), ()));
    journal.transact(Durability::Synced, line).unwrap();
}

fn numbers(journal: &Journal<Numbers>) -> Vec<u64> {
    journal.read(|numbers| numbers.0.clone())
}

fn add_raw(directory: &Path, bytes: &[u8]) {
    let path = directory.join(NAME);
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn lines_survive_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).unwrap();
    append(&journal, 1);
    append(&journal, 2);
    drop(journal);
    assert_eq!(numbers(&open(directory.path()).unwrap()), [1, 2]);
}

#[test]
fn lines_of_another_process_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (open(directory.path()).unwrap(), open(directory.path()).unwrap());
    append(&one, 1);
    assert_eq!(numbers(&two), [1]);
    append(&two, 2);
    append(&one, 3);
    assert_eq!(numbers(&one), [1, 2, 3]);
    let seen = |state: &Numbers| Ok::<_, JournalError>((None, state.0.clone()));
    assert_eq!(two.transact(Durability::Synced, seen).unwrap(), [1, 2, 3]);
}

#[test]
fn torn_last_line_is_ignored_and_then_cut() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).unwrap();
    append(&journal, 1);
    // A process was killed in the middle of a line.
    add_raw(directory.path(), br#"{"n":2"#);
    assert_eq!(numbers(&journal), [1]);
    append(&journal, 3);
    assert_eq!(numbers(&journal), [1, 3]);
    add_raw(directory.path(), br#"{"n":4"#);
    assert_eq!(numbers(&open(directory.path()).unwrap()), [1, 3]);
    let text = fs::read_to_string(directory.path().join(NAME)).unwrap();
    assert_eq!(text, "{\"n\":1}\n{\"n\":3}\n");
}

#[test]
fn damaged_line_is_an_error_with_its_number() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).unwrap();
    append(&journal, 1);
    add_raw(directory.path(), b"{\"n\":2,\n{\"n\":3}\n");
    assert_eq!(numbers(&journal), [1], "the state known before is used");
    let line = |_: &Numbers| Ok::<_, JournalError>((Some(Number { n: 9 }), ()));
    let refused = journal.transact(Durability::Synced, line).unwrap_err();
    assert!(matches!(refused, JournalError::Line { line: 2, .. }), "{refused}");
    let refused = open(directory.path()).unwrap_err();
    assert!(refused.to_string().contains("line 2"), "{refused}");
}

#[test]
fn restored_older_file_replaces_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).unwrap();
    append(&journal, 1);
    append(&journal, 2);
    fs::write(directory.path().join(NAME), "{\"n\":7}\n").unwrap();
    assert_eq!(numbers(&journal), [7]);
}

/// A copy that is renamed to the path is another file, of any length.
#[test]
fn restored_copy_at_the_path_replaces_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(NAME);
    let server = open(directory.path()).unwrap();
    append(&server, 1);
    for (copy, restored) in [("{\"n\":7}\n{\"n\":8}\n", vec![7, 8]), ("{\"n\":6}\n", vec![6])] {
        let beside = directory.path().join("copy");
        fs::write(&beside, copy).unwrap();
        fs::rename(&beside, &path).unwrap();
        assert_eq!(numbers(&server), restored);
        let command = open(directory.path()).unwrap();
        append(&command, 9);
        append(&server, 10);
        assert_eq!(numbers(&server), numbers(&command));
        assert_eq!(numbers(&server), [&restored[..], &[9, 10]].concat());
    }
}

/// A FIFO has no length: it was taken as a journal without lines, and all tokens and devices were unknown.
#[cfg(unix)]
#[test]
fn fifo_in_place_of_the_file_keeps_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).unwrap();
    append(&journal, 1);
    let path = directory.path().join(NAME);
    fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert_eq!(numbers(&journal), [1]);
    assert!(matches!(open(directory.path()), Err(JournalError::Io { .. })));
}

#[test]
fn restored_directory_has_another_lock() {
    let root = tempfile::tempdir().unwrap();
    let (trust, old) = (root.path().join("trust"), root.path().join("old"));
    let server = open(&trust).unwrap();
    append(&server, 1);
    fs::rename(&trust, &old).unwrap();
    fs::create_dir(&trust).unwrap();
    fs::copy(old.join(NAME), trust.join(NAME)).unwrap();
    append(&server, 2);
    assert!(fs::metadata(trust.join("lock")).is_ok());
    assert_eq!(numbers(&open(&trust).unwrap()), [1, 2]);
    assert_eq!(numbers(&open(&old).unwrap()), [1]);
}

#[test]
fn missing_file_keeps_the_state_and_takes_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(NAME);
    let journal = open(directory.path()).unwrap();
    append(&journal, 1);
    let copy = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(numbers(&journal), [1]);
    let line = |_: &Numbers| Ok::<_, JournalError>((Some(Number { n: 2 }), ()));
    assert!(journal.transact(Durability::Synced, line).is_err());
    fs::write(&path, copy).unwrap();
    append(&journal, 2);
    assert_eq!(numbers(&journal), [1, 2]);
}

/// The pages that could not be written may count as clean, so all lines are written again.
#[test]
fn change_after_a_failed_sync_writes_another_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(NAME);
    let (journal, other) = (open(directory.path()).unwrap(), open(directory.path()).unwrap());
    append(&journal, 1);
    let before = identity(&fs::metadata(&path).unwrap());
    journal.synced.lock().unwrap().failed = true;
    append(&journal, 2);
    assert_ne!(identity(&fs::metadata(&path).unwrap()), before);
    append(&other, 3);
    append(&journal, 4);
    assert_eq!(numbers(&journal), [1, 2, 3, 4]);
    assert_eq!(numbers(&open(directory.path()).unwrap()), [1, 2, 3, 4]);
}

#[test]
fn refused_decision_appends_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open(directory.path()).unwrap();
    #[derive(Debug)]
    enum Refused {
        Decision,
        Journal,
    }
    impl From<JournalError> for Refused {
        fn from(_: JournalError) -> Self {
            Self::Journal
        }
    }
    let refuse = |_: &Numbers| Err::<(Option<Number>, ()), _>(Refused::Decision);
    let refused = journal.transact(Durability::Synced, refuse).unwrap_err();
    assert!(matches!(refused, Refused::Decision), "{refused:?}");
    assert!(!directory.path().join(NAME).try_exists().unwrap());
}

#[test]
fn concurrent_writers_lose_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let journals = [open(directory.path()).unwrap(), open(directory.path()).unwrap()];
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let journal = &journals[thread as usize % 2];
            scope.spawn(move || (0..50).for_each(|n| append(journal, thread * 100 + n)));
        }
    });
    let mut all = numbers(&journals[0]);
    assert_eq!(all, numbers(&journals[1]));
    for thread in 0..8 {
        let of_thread: Vec<_> = all.iter().filter(|n| **n / 100 == thread).copied().collect();
        assert_eq!(of_thread, (thread * 100..thread * 100 + 50).collect::<Vec<_>>());
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 400);
}

#[test]
fn missing_parents_are_created() {
    let directory = tempfile::tempdir().unwrap();
    let nested = directory.path().join("a/b/c");
    create_directory(&nested).unwrap();
    create_directory(&nested).unwrap();
    assert!(nested.is_dir());
    fs::write(nested.join("file"), "x").unwrap();
    assert!(create_directory(&nested.join("file/d")).is_err());
}

#[cfg(unix)]
#[test]
fn files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let trust = directory.path().join("trust");
    append(&open(&trust).unwrap(), 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&trust), 0o700);
    assert_eq!(mode(&trust.join(NAME)), 0o600);
    let path = trust.join("replaced.json");
    fs::write(path.with_extension("new"), "left by a crash").unwrap();
    replace_file(&path, b"x").unwrap();
    assert_eq!((mode(&path), fs::read_to_string(&path).unwrap().as_str()), (0o600, "x"));
}

/// The last number; the lines before it are superfluous.
#[derive(Debug, Default)]
struct Last {
    number: u64,
    lines: u64,
}

impl Fold for Last {
    type Line = Number;

    fn apply(&mut self, line: Number) {
        (self.number, self.lines) = (line.n, self.lines + 1);
    }

    fn superfluous(&self) -> u64 {
        self.lines - 1
    }

    fn remainder(&self, line: Number) -> Option<Number> {
        (line.n == self.number).then_some(line)
    }
}

fn open_last(directory: &Path) -> Journal<Last> {
    Journal::open(directory, NAME, DirectoryLock::open(directory).unwrap()).unwrap()
}

fn set(journal: &Journal<Last>, n: u64) {
    let line = |_: &Last| Ok::<_, JournalError>((Some(Number { n }), ()));
    journal.transact(Durability::Written, line).unwrap();
}

fn lines_in(directory: &Path) -> u64 {
    fs::read_to_string(directory.join(NAME)).unwrap().lines().count() as u64
}

#[test]
fn superfluous_lines_are_removed_and_others_notice() {
    let directory = tempfile::tempdir().unwrap();
    let (server, command) = (open_last(directory.path()), open_last(directory.path()));
    for n in 0..3 * COMPACT_FROM {
        set(if n % 500 == 0 { &command } else { &server }, n);
        assert!(lines_in(directory.path()) <= COMPACT_FROM + 1);
        if n % 100 == 0 {
            assert_eq!(server.read(|last| last.number), n);
            assert_eq!(command.read(|last| last.number), n);
        }
    }
    let last = 3 * COMPACT_FROM - 1;
    assert_eq!(open_last(directory.path()).read(|state| state.number), last);
}

#[test]
fn failed_compaction_loses_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let journal = open_last(directory.path());
    // The new file cannot be written.
    let obstacle = directory.path().join(NAME).with_extension("new");
    fs::create_dir(&obstacle).unwrap();
    for n in 0..COMPACT_FROM + 10 {
        set(&journal, n);
    }
    assert_eq!(lines_in(directory.path()), COMPACT_FROM + 10);
    fs::remove_dir(obstacle).unwrap();
    for n in 0..COMPACT_FROM {
        set(&journal, n);
    }
    assert!(lines_in(directory.path()) < COMPACT_FROM);
    assert_eq!(journal.read(|last| last.number), COMPACT_FROM - 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A crash at any byte of the file leaves a prefix of the lines, and later lines follow it.
    #[test]
    fn file_cut_anywhere_keeps_a_prefix(
        written in proptest::collection::vec(any::<u64>(), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let journal = open(directory.path()).unwrap();
        written.iter().for_each(|n| append(&journal, *n));
        drop(journal);
        let path = directory.path().join(NAME);
        let text = fs::read(&path).unwrap();
        let cut = cut.index(text.len() + 1);
        fs::write(&path, &text[..cut]).unwrap();
        let complete = text[..cut].iter().filter(|byte| **byte == b'\n').count();
        let journal = open(directory.path()).unwrap();
        append(&journal, 5);
        let mut expected = written[..complete].to_vec();
        expected.push(5);
        prop_assert_eq!(numbers(&journal), expected.clone());
        prop_assert_eq!(numbers(&open(directory.path()).unwrap()), expected);
    }
}
