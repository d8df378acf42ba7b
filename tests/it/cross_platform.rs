//! What differs between systems: names, long paths, line endings, files that are moved and deleted
//! while they are read, and the lock of the state directory.

use std::{fs, path::PathBuf};

use crate::support::{entries, eventually, home::Home, scripted_receiver::ScriptedReceiver};
use test_requires::requires;

/// A file below the projects with a path longer than `bytes`.
fn long_name(bytes: usize) -> String {
    let mut name = "-work".to_owned();
    while name.len() < bytes {
        name += "/a directory with a long name of its own";
    }
    name + "/s.jsonl"
}

#[test]
fn unusual_file_names_and_line_endings_arrive() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
    let names = [
        "C--Users-me-work/s.jsonl".to_owned(),
        "-home-jürgen-größe/s.jsonl".to_owned(),
        "-作業-日本語/会話 1.jsonl".to_owned(),
        "with space & 'quotes'/s.jsonl".to_owned(),
        "emoji 🦀/s.jsonl".to_owned(),
        long_name(400),
    ];
    let mut expected: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let ending = if number % 2 == 0 { "\n" } else { "\r\n" };
        let line = format!("{{\"type\":\"user\",\"n\":{number}}}");
        expected.push((home.write(name, format!("{line}{ending}")), line.into_bytes()));
    }
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    let mut found: Vec<_> = entries::lines(&receiver.entries())
        .into_iter()
        .map(|line| (line.path, line.bytes))
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

/// The client moves and deletes files that the agent reads: neither may be blocked, and nothing is
/// lost.
#[requires(not_wine)]
#[test]
fn file_moved_and_deleted_while_read_loses_nothing() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
    let line = |number: usize| format!("{{\"type\":\"user\",\"n\":{number}}}\n");
    let path = home.write("-work/s.jsonl", line(0));
    let agent = home
        .agent(&["run"])
        .config("[shipping]\nflush_interval = \"0s\"")
        .ships_to(&receiver.url())
        .start_and_wait();
    let arrived = |count: usize| {
        let found = entries::lines(&receiver.entries()).len();
        (found >= count).then_some(found)
    };
    eventually("the first record", || arrived(1));
    home.append("-work/s.jsonl", line(1));
    let moved = path.with_file_name("moved.jsonl");
    fs::rename(&path, &moved).unwrap();
    crate::support::home::append_to(&moved, line(2));
    eventually("what was written before and after the move", || arrived(3));
    fs::remove_file(&moved).unwrap();
    assert!(!fs::exists(&moved).unwrap(), "it is deleted at once, though it is being read");
    fs::remove_dir(moved.parent().unwrap()).unwrap();
    let again = home.write("-work/s.jsonl", line(3));
    assert_eq!(eventually("a new file of the old name", || arrived(4)), 4);
    assert_eq!(entries::lines(&receiver.entries()).last().unwrap().path, again);
    agent.stop();
}

#[test]
fn second_agent_names_the_process_with_the_state_directory() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]));
    let agent = home.agent(&["run"]).ships_to(&receiver.url()).start_and_wait();
    let second = home.agent(&["run"]).ships_to(&receiver.url()).fail(1);
    assert!(second.contains(&agent.pid().to_string()), "{second}");
    agent.stop();
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
}
