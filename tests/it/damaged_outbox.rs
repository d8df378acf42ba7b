//! The outbox is damaged, deleted or restored from a copy, at start and while the agent runs: it is
//! moved aside and reported, and every line reaches the receiver.

use std::{
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use crate::support::{
    PATIENCE, entries::StoredEntry, eventually, home::Home, receiver::Receiver, within,
};

const CONFIG: &str = "[shipping]\nflush_interval = \"0s\"";
const LINES: usize = 300;

/// Distinct lines `from..to` of a session file.
fn lines(from: usize, to: usize) -> String {
    let line =
        |n| format!("{{\"type\":\"user\",\"uuid\":\"u-{n}\",\"text\":\"{}\"}}\n", "x".repeat(n));
    (from..to).map(line).collect()
}

fn store(home: &Home) -> PathBuf {
    home.path().join(".local/state/ai-agent/outbox.redb")
}

fn records(epochs: &[Vec<StoredEntry>]) -> Vec<(String, u64, Vec<u8>)> {
    let all = epochs.iter().flatten().filter(|entry| entry.event.is_none());
    all.map(|entry| (entry.generation.clone(), entry.offset, entry.bytes.clone())).collect()
}

/// Fails unless every line of the file is at the receiver, byte for byte, at its offset, in one
/// generation, and no epoch has a line twice.
#[track_caller]
fn assert_all_there(receiver: &Receiver, file: &Path) {
    let epochs = receiver.epochs();
    let mut found = records(&epochs);
    found.sort();
    found.dedup();
    let text = fs::read(file).unwrap();
    let mut offset = 0;
    let mut expected: Vec<(u64, Vec<u8>)> = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        expected.push((offset, line[..line.len() - 1].to_vec()));
        offset += line.len() as u64;
    }
    let at: Vec<_> = found.iter().map(|(_, at, bytes)| (*at, bytes.clone())).collect();
    assert_eq!(at.len(), expected.len(), "lines are missing, or come under two generations");
    assert_eq!(at, expected);
    for epoch in &epochs {
        let mut once = records(std::slice::from_ref(epoch));
        let all = once.len();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), all, "a line stands twice in one epoch");
    }
}

fn reported(receiver: &Receiver, event: &str) -> usize {
    let named = |entry: &&StoredEntry| entry.event.as_deref() == Some(event);
    receiver.epochs().iter().flatten().filter(named).count()
}

/// Damages the store of a stopped agent; the second path is an older copy.
type Damage = fn(&Path, &Path);

/// Each damage, the code that the log has for it, and the events that report it.
const DAMAGES: [(&str, Damage, &str, &[&str]); 7] = [
    (
        "truncated",
        |store, _| {
            let half = fs::metadata(store).unwrap().len() / 2;
            fs::File::options().write(true).open(store).unwrap().set_len(half).unwrap();
        },
        "outbox_quarantined",
        &["outbox_quarantined", "epoch_started"],
    ),
    (
        "zeroed in places",
        |store, _| {
            let mut bytes = fs::read(store).unwrap();
            // The header points to the trees, whose pages follow.
            for page in bytes[4096..].chunks_mut(4096).step_by(2) {
                page.fill(0);
            }
            fs::write(store, bytes).unwrap();
        },
        "outbox_quarantined",
        &["outbox_quarantined", "epoch_started"],
    ),
    (
        "garbage",
        |store, _| fs::write(store, b"this is no store").unwrap(),
        "outbox_quarantined",
        &["outbox_quarantined", "epoch_started"],
    ),
    (
        "a directory",
        |store, _| {
            fs::remove_file(store).unwrap();
            fs::create_dir(store).unwrap();
        },
        "outbox_quarantined",
        &["outbox_quarantined", "epoch_started"],
    ),
    ("gone", |store, _| fs::remove_file(store).unwrap(), "agent_started", &["epoch_started"]),
    ("empty", |store, _| fs::write(store, b"").unwrap(), "agent_started", &["epoch_started"]),
    (
        "a copy from yesterday",
        |store, copy| {
            fs::copy(copy, store).unwrap();
        },
        "epoch_conflict",
        &["epoch_started"],
    ),
];

#[test]
fn every_line_arrives_after_each_damage_to_the_store() {
    for (name, damage, code, events) in DAMAGES {
        let home = Home::new();
        let receiver = Receiver::start();
        let agent = || home.agent(&["run"]).config(CONFIG).ships_to(&receiver.url());
        let once = || home.agent(&["run", "--once"]).config(CONFIG).ships_to(&receiver.url());
        home.append("-p/a.jsonl", lines(0, LINES));
        once().succeed();
        let copy = home.path().join("copy.redb");
        fs::copy(store(&home), &copy).unwrap();
        home.append("-p/a.jsonl", lines(LINES, 2 * LINES));
        once().succeed();
        let before = receiver.epochs();
        assert_eq!(records(&before).len(), 2 * LINES, "{name}");

        damage(&store(&home), &copy);
        let damaged = fs::read(store(&home)).unwrap_or_default();
        let file = home.append("-p/a.jsonl", lines(2 * LINES, 3 * LINES));
        let mut agent = agent().start();
        agent.wait_for_code(code);
        within(PATIENCE, name, || {
            let found = records(&receiver.epochs());
            let last =
                fs::metadata(&file).unwrap().len() - lines(3 * LINES - 1, 3 * LINES).len() as u64;
            found.iter().any(|(_, offset, _)| *offset == last).then_some(())
        });
        agent.stop();
        assert_all_there(&receiver, &file);
        for event in events {
            let started_at = usize::from(*event == "epoch_started");
            assert_eq!(reported(&receiver, event), 1 + started_at, "{name}: {event}");
        }
        assert_eq!(receiver.epochs().len(), 2, "{name}");
        // Damaged stores are kept for inspection.
        if code == "outbox_quarantined" && name != "a directory" {
            let folder = store(&home).parent().unwrap().to_owned();
            let aside = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            let aside = aside.filter(|path| path.to_string_lossy().contains(".damaged-"));
            let aside: Vec<_> = aside.map(|path| fs::read(path).unwrap()).collect();
            assert_eq!(aside, [damaged], "{name}");
        }
        // Acknowledged lines are read again only if the acknowledgement is unknown, as in the older
        // copy.
        let twice = records(&receiver.epochs()).len() - 3 * LINES;
        let expected = if name == "a copy from yesterday" { LINES } else { 0 };
        assert_eq!(twice, expected, "{name}");
        // The receiver reports the repetitions, and the agent's totals match.
        let stats = receiver.stats();
        let epochs = stats["machines"][0]["epochs"].as_array().unwrap();
        let repeated: u64 = epochs.iter().map(|epoch| epoch["repetitions"].as_u64().unwrap()).sum();
        assert_eq!(repeated, twice as u64, "{name}: {stats:#}");
        assert_eq!(stats["unexplained"], 0, "{name}: {stats:#}");
    }
}

/// Files created within the last minute got another generation, so their repetitions were not
/// recognised.
#[test]
fn recently_created_file_keeps_its_generation_after_damage() {
    let home = Home::new();
    let receiver = Receiver::start();
    let agent = || home.agent(&["run"]).config(CONFIG).ships_to(&receiver.url());
    let file = home.append("-p/a.jsonl", lines(0, LINES));
    let all = |count: usize| {
        eventually("every line", || (records(&receiver.epochs()).len() == count).then_some(()));
    };
    let first = agent().start();
    all(LINES);
    first.kill();
    fs::write(store(&home), b"this is no store").unwrap();
    let second = agent().start();
    all(2 * LINES);
    second.stop();
    assert_all_there(&receiver, &file);
    let stats = receiver.stats();
    let epochs = stats["machines"][0]["epochs"].as_array().unwrap();
    let repeated: u64 = epochs.iter().map(|epoch| epoch["repetitions"].as_u64().unwrap()).sum();
    assert_eq!(repeated, LINES as u64, "{stats:#}");
}

/// Damage under a running agent was delivered as it was, or stopped delivery until a restart.
#[test]
fn store_damaged_while_running_is_replaced_and_loses_nothing() {
    damaged_under(&["run"]);
}

/// `--once` did not notice the damage.
#[test]
fn store_damaged_during_once_is_replaced_and_loses_nothing() {
    damaged_under(&["run", "--once"]);
}

#[track_caller]
fn damaged_under(arguments: &[&str]) {
    const BLOCKS: usize = 200;
    // 20 MB that do not compress and exceed the cache of the store.
    let mut random = crate::support::random();
    let mut block = |n: usize| {
        let text: String = (0..100_000).map(|_| random.alphanumeric()).collect();
        format!("{{\"type\":\"user\",\"uuid\":\"u-{n}\",\"text\":\"{text}\"}}\n")
    };
    let home = Home::new();
    let mut receiver = Receiver::start();
    let is_once = arguments.contains(&"--once");
    let first = if is_once { BLOCKS } else { 1 };
    for n in 0..first {
        home.append("-p/a.jsonl", block(n));
    }
    if is_once {
        receiver.kill();
    }
    let config = "[shipping]\nflush_interval = \"0s\"\n[sink.siem]\ncompression = \"none\"";
    let mut agent = home.agent(arguments).config(config).ships_to(&receiver.url()).start();
    if !is_once {
        // What is written now is not a backlog, which would wait in its file.
        eventually("the first line", || (!records(&receiver.epochs()).is_empty()).then_some(()));
        receiver.kill();
        for n in first..BLOCKS {
            home.append("-p/a.jsonl", block(n));
        }
    }
    let size = || fs::metadata(store(&home)).map_or(0, |file| file.len());
    eventually("a backlog", || (size() > 20_000_000).then_some(()));
    agent.wait_for_code("delivery_postponed");
    let mut file = fs::File::options().write(true).open(store(&home)).unwrap();
    let rest = usize::try_from(size()).unwrap() - 8192;
    file.seek(SeekFrom::Start(8192)).unwrap();
    file.write_all(&vec![0x55; rest]).unwrap();
    // Written before the files are read again, so that `--once` reads it too.
    let file = home.append("-p/a.jsonl", block(BLOCKS));
    receiver.restart();
    agent.wait_for_code("outbox_damaged");
    eventually("every line", || {
        let mut found = records(&receiver.epochs());
        found.sort();
        found.dedup();
        (found.len() == BLOCKS + 1).then_some(())
    });
    if arguments.contains(&"--once") {
        assert_eq!(agent.wait(PATIENCE).code, Some(0));
    } else {
        agent.stop();
    }
    assert_all_there(&receiver, &file);
    assert_eq!(reported(&receiver, "outbox_quarantined"), 1);
}
