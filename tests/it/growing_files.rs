//! Files that grow before, between and during runs of the agent, by pieces of any length, split in
//! the middle of lines and characters. The result is the same as reading the final files at once.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::support::{
    entries,
    home::Home,
    random, random_moment,
    receiver::{Receiver, settle},
    reference_reader::{self, Expected, Rules},
    shared,
};
use test_requires::requires;

/// A growing file: its final bytes, and the lengths at which it pauses.
struct Growing {
    name: String,
    bytes: Vec<u8>,
    rests: Vec<usize>,
}

/// Returns the growing sessions of the corpus, each pausing at the end of its snapshots and at
/// `extra` random places.
fn growing(random: &mut fastrand::Rng, extra: usize) -> Vec<Growing> {
    let mut sessions: Vec<PathBuf> = fs::read_dir(shared().join("corpus"))
        .unwrap()
        .map(|tree| tree.unwrap().path().join("growth"))
        .filter(|growth| growth.is_dir())
        .flat_map(|growth| fs::read_dir(growth).unwrap().map(|session| session.unwrap().path()))
        .collect();
    sessions.sort();
    assert!(!sessions.is_empty(), "the corpus has growing sessions");
    sessions.iter().map(|session| grow(session, random, extra)).collect()
}

fn grow(session: &Path, random: &mut fastrand::Rng, extra: usize) -> Growing {
    let mut snapshots: Vec<Vec<u8>> = crate::support::files_below(session)
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .map(|path| fs::read(path).unwrap())
        .collect();
    let mut rests: Vec<usize> = snapshots.iter().map(Vec::len).collect();
    let bytes = snapshots.pop().unwrap();
    rests.extend((0..extra).map(|_| random.usize(..bytes.len())));
    // Split in the middle of a character, where possible.
    let middles: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] & 0xc0 == 0x80).collect();
    rests.extend((0..extra / 3).filter_map(|_| random.choice(&middles).copied()));
    // Split just before and just after a newline.
    let newlines: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
    rests
        .extend((0..extra / 3).filter_map(|_| Some(random.choice(&newlines)? + random.usize(..2))));
    rests.sort_unstable();
    rests.dedup();
    let name = session.file_name().unwrap().to_str().unwrap();
    Growing { name: format!("-work/{name}.jsonl"), bytes, rests }
}

fn expected(home: &Home, sessions: &[Growing]) -> Vec<Expected> {
    let read = |session: &Growing| {
        reference_reader::read(
            &home.projects().join(&session.name),
            &session.bytes,
            &Rules::default(),
        )
    };
    sessions.iter().flat_map(read).collect()
}

/// Extends every session to its pause number `step`.
fn append(home: &Home, sessions: &[Growing], step: usize) -> bool {
    let mut grew = false;
    for Growing { name, bytes, rests } in sessions {
        let start = if step == 0 { 0 } else { rests.get(step - 1).copied().unwrap_or(bytes.len()) };
        if let Some(end) = rests.get(step) {
            home.append(name, &bytes[start..*end]);
            grew = true;
        }
    }
    grew
}

#[requires(shared)]
#[test]
fn agent_restarted_after_each_append_ships_everything() {
    let mut random = random();
    let sessions = growing(&mut random, 9);
    let (home, receiver) = (Home::new(), Receiver::start());
    let mut step = 0;
    while append(&home, &sessions, step) {
        home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
        step += 1;
    }
    receiver.assert_complete();
    reference_reader::assert_same(
        &expected(&home, &sessions),
        &entries::lines(&receiver.entries()),
    );
}

#[requires(shared)]
#[test]
fn running_agent_ships_growing_files_whole() {
    let mut random = random();
    let sessions = growing(&mut random, 150);
    let (home, receiver) = (Home::new(), Receiver::start());
    let config = "[shipping]\nflush_interval = \"0s\"";
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
    let mut step = 0;
    while append(&home, &sessions, step) {
        // Most pieces are found one by one.
        random_moment(&mut random, Duration::from_millis(8));
        step += 1;
    }
    let expected = expected(&home, &sessions);
    settle(&receiver, expected.len());
    agent.stop();
    receiver.assert_complete();
    reference_reader::assert_same(&expected, &entries::lines(&receiver.entries()));
}
