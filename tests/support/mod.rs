//! Fixtures of the integration tests: a home directory, the agent as a process, receivers, and an
//! independent reader of session files.
#![cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "most tests need Unix, and some need Linux")
)]

pub(crate) mod agent;
pub(crate) mod claude_client;
pub(crate) mod entries;
pub(crate) mod forger;
pub(crate) mod home;
#[cfg(target_os = "linux")]
pub(crate) mod hostile_answers;
#[cfg(target_os = "linux")]
pub(crate) mod hostile_configs;
#[cfg(target_os = "linux")]
pub(crate) mod hostile_files;
pub(crate) mod in_process_delivery;
pub(crate) mod middle;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod reference_reader;
pub(crate) mod relay;
pub(crate) mod releases;
pub(crate) mod scripted_receiver;
#[cfg(unix)]
pub(crate) mod session_tree;
#[cfg(unix)]
pub(crate) mod siem;
#[cfg(target_os = "linux")]
pub(crate) mod systemd_user;
#[cfg(unix)]
pub(crate) mod tls;

#[cfg(unix)]
pub(crate) use test_support::{assembly, hec_server, osmem, otlp_server, rotel, rsyslog};
pub(crate) use test_support::{http_server, minisign, release_server};

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Token and secret of every test. The agent must never print them.
pub(crate) const TOKEN: &str = "token-of-the-fleet-4f7a1c";
pub(crate) const SECRET: &str = "secret-of-the-fleet-b81e90";

/// Returns a loopback address that no other test uses. On a shared address, an agent whose receiver
/// was killed once reached the receiver of another test, which had got the same port.
pub(crate) fn own_address() -> Ipv4Addr {
    // All of 127/8 is loopback, except on macOS.
    if cfg!(target_os = "macos") {
        return Ipv4Addr::LOCALHOST;
    }
    Ipv4Addr::new(127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255))
}

/// Returns an address and a port where no process listens.
pub(crate) fn unused_address() -> SocketAddr {
    TcpListener::bind((own_address(), 0)).unwrap().local_addr().unwrap()
}

/// Default time limit of a condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Polls a condition until it holds, and fails after `limit`. Pauses grow with the time waited.
#[track_caller]
pub(crate) fn within<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let started_at = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        let waited = started_at.elapsed();
        assert!(waited < limit, "{what} did not happen within {limit:?}");
        thread::sleep((waited / 10).clamp(Duration::from_millis(5), Duration::from_millis(200)));
    }
}

/// Sleeps for a random time up to `limit`, so that a fault or a write comes at a random moment.
/// Expected results are never waited for like this.
pub(crate) fn random_moment(random: &mut fastrand::Rng, limit: Duration) {
    thread::sleep(limit.mul_f64(random.f64()));
}

/// Delays the response of a simulated receiver.
pub(crate) fn answer_late(delay: Duration) {
    thread::sleep(delay);
}

/// Polls a condition until it holds, and fails after [`PATIENCE`].
#[track_caller]
pub(crate) fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition)
}

/// Returns the lines of a log with this code.
pub(crate) fn lines_with_code<'a>(log: &'a str, code: &str) -> Vec<&'a str> {
    let field = format!("code=\"{code}\"");
    log.lines().filter(|line| line.contains(&field)).collect()
}

/// Returns the directory with material outside the project: real session files, the real client.
/// Tests that use it have `#[requires(shared)]`.
pub(crate) fn shared() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let given = std::env::var_os("AI_AGENT_SHARED").map(PathBuf::from);
    let folder = given.unwrap_or(beside);
    fs::canonicalize(&folder).unwrap_or_else(|error| panic!("{error}: {}", folder.display()))
}

/// Returns random numbers from the seed `AI_AGENT_SEED`, or from a new seed, which a failed test
/// shows.
pub(crate) fn random() -> fastrand::Rng {
    let given = std::env::var("AI_AGENT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("AI_AGENT_SEED={seed} repeats this");
    fastrand::Rng::with_seed(seed)
}

/// Replaces a file as a whole, unless it has this content already. A running agent that watches it
/// never reads an incomplete one.
pub(crate) fn replace_file(path: &Path, text: &str) {
    if fs::read(path).is_ok_and(|bytes| bytes == text.as_bytes()) {
        return;
    }
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

/// Copies a tree of files and directories.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Returns all files below a directory, at any depth, in order.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}
