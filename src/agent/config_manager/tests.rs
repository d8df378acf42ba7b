use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{file_watch::Change, poll_schedule::Outcome},
    *,
};
use crate::{
    pipeline::ingest::Inbox,
    platform::{Environment, SystemClock, bounded::BoundedCalls, secure_file},
    siem::FetchedConfig,
};

const TOKEN: &str = "sink.siem.token = 'the token of the fleet'\n";

/// A home directory with a configuration file, and the manager of an agent that runs with it.
struct World {
    home: tempfile::TempDir,
    manager: ConfigManager,
}

impl World {
    fn new(config: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("agent.toml");
        fs::write(&file, format!("{TOKEN}{config}")).unwrap();
        let home_dir = home.path().to_str().unwrap();
        let environment = Environment::from_iter([
            ("HOME", home_dir),
            ("USERPROFILE", home_dir),
            ("CLAUDE_SIEM_ENDPOINT", "http://127.0.0.1:9"),
            ("CLAUDE_SIEM_HMAC_SECRET", "correct horse battery staple"),
        ]);
        let sources = ConfigSources::new(environment, Some(&file)).unwrap();
        let watch = ConfigFileWatch::before_reading(sources.layer_files());
        let loaded = sources.load().unwrap();
        let state_dir = home.path().join("state");
        fs::create_dir(&state_dir).unwrap();
        let context = sources.stage_context(&loaded, Some(&state_dir), false);
        let (manager, _) = ConfigManager::new(sources, &state_dir, loaded, watch, context).unwrap();
        Self { home, manager }
    }

    fn file(&self) -> PathBuf {
        self.home.path().join("agent.toml")
    }

    fn refusals(&mut self) -> usize {
        let events = self.manager.take_events();
        events.iter().filter(|event| event.name == event::CONFIG_REFUSED).count()
    }
}

/// Replaces a file whole.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

/// Regression: the files were read again to identify a refused content. When one had changed since,
/// the same refusal counted as another one, and was reported twice.
#[test_requires::requires(not_wine)]
#[test]
fn file_replaced_while_read_is_refused_once_per_content() {
    let mut world = World::new("");
    let file = world.file();
    let ended = Arc::new(AtomicBool::new(false));
    let replacing = {
        let (file, ended) = (file.clone(), Arc::clone(&ended));
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                replace(&file, "one = [");
                replace(&file, "another = [");
            }
        })
    };
    for _ in 0..200 {
        world.manager.read_files_by_order();
    }
    ended.store(true, Ordering::Relaxed);
    replacing.join().unwrap();
    let refusals = world.refusals();
    assert!((1..=2).contains(&refusals), "{refusals} refusals of two contents");
}

/// Regression: an editor empties a file before it writes it. An inspection that read it between both
/// applied a configuration without any setting.
#[test]
fn file_changed_during_an_inspection_is_left_for_later() {
    let mut world = World::new("filter.meta.enabled = true");
    let complete = format!("{TOKEN}filter.meta.enabled = false");
    replace(&world.file(), &complete);
    let stamps = world.manager.stamps();
    for text in [TOKEN, "filter.meta = ["] {
        replace(&world.file(), text);
        assert!(world.manager.read_changed_files(stamps.clone()).is_none());
        let stamps = world.manager.stamps();
        assert_eq!(world.manager.watch.compare(&stamps), Change::InProgress);
    }
    assert_eq!(world.refusals(), 0, "an incomplete file is not refused");
    replace(&world.file(), &complete);
    let stamps = world.manager.stamps();
    assert!(world.manager.read_changed_files(stamps.clone()).is_some());
    assert_eq!(world.manager.watch.compare(&stamps), Change::None);
}

/// A file of the configuration was opened once to see whether it answers, and then read on the thread
/// that also follows accounts: one that hung from its second open on stopped that.
#[cfg(unix)]
#[test]
fn file_that_hangs_at_any_open_is_refused_in_time() {
    use crate::platform::faults::{self, Call};

    for skip in 0..3 {
        let (ended, has_ended) = mpsc::channel();
        let attempt = thread::spawn(move || {
            let mut world = World::new("");
            let calls = BoundedCalls::with_limit(Arc::new(SystemClock), Duration::from_millis(300));
            world.manager.context.calls = calls;
            faults::hang_after(Call::Open, &world.file(), skip);
            while world.manager.read_files_by_order().is_some() {}
            let hanging = faults::hanging();
            faults::end();
            ended.send((hanging, world.refusals())).unwrap();
        });
        let ended = has_ended.recv_timeout(Duration::from_secs(60));
        assert_eq!(ended, Ok((1, 1)), "after {skip}: one thread hangs, one refusal");
        attempt.join().unwrap();
    }
}

/// A change was refused since another file did not answer, and was not read when that one did.
#[test]
fn change_beside_a_file_that_hangs_is_read_later() {
    let mut world = World::new("filter.meta.enabled = true");
    let calls = BoundedCalls::with_limit(Arc::new(SystemClock), Duration::from_secs(1));
    world.manager.context.calls = calls.clone();
    let other = world.home.path().join("token");
    secure_file::replace(&other, b"a token of this fleet").unwrap();
    world.manager.named.insert(other.clone());
    world.manager.watch_named();
    let (release, released) = mpsc::channel::<()>();
    let hang = move || {
        released.recv().unwrap_or_default();
        Ok(())
    };
    calls.run(&other, hang).unwrap_err();
    let config = format!("sink.siem.token_file = {other:?}\nfilter.meta.enabled = false");
    replace(&world.file(), &config);
    let stamps = world.manager.stamps();
    let waker = Arc::new(Inbox::default()).waker();
    for refusals in [1, 0] {
        let candidate = world.manager.read_changed_files(stamps.clone()).unwrap();
        // The sink reads its token when it is built.
        assert!(world.manager.replace(candidate, ConfigOrigin::Files, &waker).is_none());
        assert_eq!(world.refusals(), refusals, "it is reported once");
    }
    let stamps = world.manager.stamps();
    assert_eq!(world.manager.watch.compare(&stamps), Change::None);
    drop(release);
    let begun = Instant::now();
    while !calls.silent().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not answer");
        thread::sleep(Duration::from_millis(1));
    }
    let stamps = world.manager.stamps();
    assert_eq!(world.manager.watch.compare(&stamps), Change::InProgress);
    assert!(world.manager.read_changed_files(stamps).is_some());
}

/// Regression: the watch of a file that a new configuration names began after the file was read. A
/// change in between was missed until the next one.
#[test]
fn named_file_that_changes_right_after_it_is_read_is_detected() {
    let mut world = World::new("");
    let token = world.home.path().join("token");
    secure_file::replace(&token, b"a token of this fleet").unwrap();
    replace(&world.file(), &format!("sink.siem.token_file = {token:?}"));
    let candidate = world.manager.read_files_by_order().unwrap();
    let waker = Arc::new(Inbox::default()).waker();
    assert!(world.manager.replace(candidate, ConfigOrigin::Files, &waker).is_some());
    secure_file::replace(&token, b"another token of this fleet").unwrap();
    world.manager.watch_named();
    let stamps = world.manager.stamps();
    assert_eq!(world.manager.watch.compare(&stamps), Change::InProgress);
}

/// A directory service that did not answer took back the configuration in force at the next reload,
/// since its audience is a group of users.
#[cfg(unix)]
#[test]
fn config_for_a_group_stays_in_force_while_groups_are_unknown() {
    let key = include_str!("../../../tests/support/policy/org.pub").lines().last().unwrap();
    let mut world = World::new(&format!("[managed]\nkeys = ['{key}']\n"));
    // The program that reports the groups.
    let (calls, release) = BoundedCalls::with_silent(Path::new("getent"));
    world.manager.context.calls = calls;
    let answer = SignedConfig {
        body: include_str!("../../../tests/support/policy/for-a-group.json").to_owned(),
        nonce: String::new(),
        signature: String::new(),
        etag: None,
        minisig: Some(
            include_str!("../../../tests/support/policy/for-a-group.json.minisig").to_owned(),
        ),
    };
    // Not as long as it is not known that it is meant for this user.
    let (outcome, candidate) = world.manager.evaluate(Ok(FetchedConfig::Answer(answer.clone())));
    assert_eq!((outcome, candidate.is_none()), (Outcome::Failed, true));
    world.manager.answer = Some(answer);
    let candidate = world.manager.read_files_by_order().unwrap();
    assert_eq!(candidate.revision.as_deref(), Some("for-a-group"));
    assert_eq!(world.refusals(), 0);
    drop(release);
}
