//! Updates that end or fail at every step.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use siem_protocol::{agent_event::UpdateReason, update::Version};

use super::{
    StoredState, UpdateError,
    guard::{self, Started},
    program_files::{ProgramFiles, UpdateLock, digest_of},
    record::{RollbackReason, UpdateRecord, UpdateState},
    steps::Step,
    supervisor::{Countdown, Watched},
    swap::{self, InstallError, NewProgram, RestoreError},
};
use crate::platform::Timestamp;

/// Directory with a program of version 0.1.0, and a new one.
struct Bench {
    dir: tempfile::TempDir,
    files: ProgramFiles,
}

/// Script that prints a version, as the agent does.
fn script(version: &str) -> String {
    format!("#!/bin/sh\necho ai-agent {version}\n")
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = ProgramFiles::of(&dir.path().join("ai-agent"));
        write_program(files.program(), &script("0.1.0"));
        write_program(&dir.path().join("staged"), &script("0.2.0"));
        Self { dir, files }
    }

    fn staged(&self) -> PathBuf {
        self.dir.path().join("staged")
    }

    fn install(
        &self,
        reach: &(dyn Fn(Step) -> io::Result<()> + Sync),
    ) -> Result<UpdateRecord, InstallError> {
        let staged = self.staged();
        let new = NewProgram {
            staged: &staged,
            sha256: digest_of(&staged).unwrap(),
            from: "0.1.0",
            to: "0.2.0",
            at: Timestamp(1),
        };
        let lock = UpdateLock::take_within(&self.files, Duration::from_secs(10)).unwrap();
        swap::install(&lock, &new, &|| Ok(()), reach)
    }

    fn installed() -> Self {
        let bench = Self::new();
        bench.install(&ok).unwrap();
        bench
    }

    fn state(&self) -> Option<UpdateState> {
        UpdateRecord::read(&self.files).map(|record| record.state)
    }

    /// Returns the versions that are not installed again by themselves.
    fn rolled_back(&self) -> Vec<Version> {
        let record = UpdateRecord::read(&self.files);
        StoredState::default().rolled_back(record.as_ref()).to_vec()
    }

    /// Version of the program in place, which must be one of the two, whole and executable.
    fn version(&self) -> &'static str {
        let program = self.files.program();
        assert_eq!(fs::metadata(program).unwrap().permissions().mode() & 0o100, 0o100);
        let content = fs::read_to_string(program).unwrap();
        let whole = ["0.1.0", "0.2.0"].into_iter().find(|version| content == script(version));
        whole.unwrap_or_else(|| panic!("`{content}` is in place"))
    }

    /// Starts the program in place as the service manager does.
    fn start(&self, reach: &(dyn Fn(Step) -> io::Result<()> + Sync)) -> Started {
        guard::count_start(&UpdateLock::try_take(&self.files).unwrap(), None, reach)
    }
}

fn write_program(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn ok(_: Step) -> io::Result<()> {
    Ok(())
}

/// Runs `action` again and again, and ends it before the first, second, ... step, until it reaches its
/// end. `check` is called after each.
fn at_every_step(
    mut action: impl FnMut(&(dyn Fn(Step) -> io::Result<()> + Sync)),
    fault: impl Fn(Step) -> io::Result<()> + Sync,
) -> usize {
    for last in 0.. {
        let count = AtomicUsize::new(0);
        let has_failed = AtomicUsize::new(0);
        action(&|step| {
            if count.fetch_add(1, Ordering::Relaxed) != last {
                return Ok(());
            }
            has_failed.store(1, Ordering::Relaxed);
            fault(step)
        });
        if has_failed.into_inner() == 0 {
            return last;
        }
    }
    unreachable!()
}

/// Ends the process of `action` at a step: no code of it runs afterwards, and its locks are released.
fn killed(action: impl FnOnce()) {
    drop(catch_unwind(AssertUnwindSafe(action)));
}

fn kill(_: Step) -> io::Result<()> {
    resume_unwind(Box::new("killed"))
}

#[test]
fn new_program_is_in_place_until_it_is_confirmed() {
    let bench = Bench::installed();
    assert_eq!((bench.version(), bench.state()), ("0.2.0", Some(UpdateState::Unconfirmed)));
    assert_eq!(fs::read_to_string(bench.files.previous()).unwrap(), script("0.1.0"));
    assert!(!bench.files.next().try_exists().unwrap());
    assert_eq!(bench.start(&ok), Started::New);
    guard::confirm_at(&bench.files, &ok).unwrap();
    for _ in 0..5 {
        assert_eq!(bench.start(&ok), Started::Other);
    }
    assert_eq!((bench.version(), bench.state()), ("0.2.0", Some(UpdateState::Confirmed)));
}

#[test]
fn kill_at_every_step_of_an_install_leaves_a_whole_program() {
    let steps = at_every_step(
        |reach| {
            let bench = Bench::new();
            killed(|| drop(bench.install(reach)));
            let version = bench.version();
            let started = bench.start(&ok);
            let expected = if version == "0.2.0" { Started::New } else { Started::Other };
            assert_eq!((started, bench.version()), (expected, version));
            if version == "0.2.0" {
                // The new program never runs: the second and third start, and the previous one is back.
                assert_eq!(bench.start(&ok), Started::New);
                assert_eq!(bench.start(&ok), Started::RolledBack);
                assert_eq!(bench.version(), "0.1.0");
            }
            assert_ne!(bench.state(), Some(UpdateState::Unconfirmed));
            // An update is possible again.
            bench.install(&ok).unwrap();
            assert_eq!(bench.version(), "0.2.0");
        },
        kill,
    );
    assert_eq!(steps, 6);
}

fn kind(error: &InstallError) -> &'static str {
    match error {
        InstallError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            "disk full"
        }
        InstallError::NoSupervisor(_) => "no supervisor",
        InstallError::NotExecutable(_) => "not executable",
        _ => "another",
    }
}

#[test]
fn error_at_every_step_of_an_install_keeps_the_old_program() {
    let full = |_| Err(io::ErrorKind::StorageFull.into());
    let mut reasons = Vec::new();
    at_every_step(
        |reach| {
            let bench = Bench::new();
            if let Err(error) = bench.install(reach) {
                reasons.push(kind(&error));
                assert_eq!(bench.version(), "0.1.0", "{error}");
                assert!(!bench.files.next().try_exists().unwrap());
                assert_eq!(bench.start(&ok), Started::Other);
                assert_eq!(bench.version(), "0.1.0");
                bench.install(&ok).unwrap();
            }
        },
        full,
    );
    let full = "disk full";
    assert_eq!(reasons, [full, full, full, "no supervisor", full, "not executable"]);
}

#[test]
fn kill_at_every_step_of_a_rollback_leaves_the_previous_program() {
    let steps = at_every_step(
        |reach| {
            let bench = Bench::installed();
            assert_eq!(bench.start(&ok), Started::New);
            assert_eq!(bench.start(&ok), Started::New);
            killed(|| {
                bench.start(reach);
            });
            let version = bench.version();
            match bench.start(&ok) {
                Started::RolledBack => assert_eq!(version, "0.2.0"),
                Started::Other => assert_eq!(version, "0.1.0"),
                Started::New => panic!("a new program that crashed three times is started again"),
            }
            assert_eq!(bench.version(), "0.1.0");
            let record = UpdateRecord::read(&bench.files).unwrap();
            // It is not tried again.
            let expected = (UpdateState::RolledBack, Some(RollbackReason::Crashed));
            assert_eq!((record.state, record.reason), expected);
            assert_eq!(bench.start(&ok), Started::Other);
        },
        kill,
    );
    assert_eq!(steps, 4);
}

#[test]
fn full_disk_does_not_keep_the_previous_program_away() {
    let bench = Bench::installed();
    let full = |step| match step {
        Step::WriteRecord => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    };
    // The starts cannot be counted.
    assert_eq!(bench.start(&full), Started::RolledBack);
    assert_eq!(bench.version(), "0.1.0");
    // The agent that runs then corrects the record, and does not try this version again.
    let seen = [swap::look(&bench.files), swap::settle(&bench.files)].map(|it| it.unwrap().state);
    assert_eq!(seen, [UpdateState::RolledBack; 2]);
    assert_eq!(bench.state(), Some(UpdateState::RolledBack));
    assert_eq!(bench.start(&ok), Started::Other);
    assert_eq!(bench.version(), "0.1.0");
}

/// Regression: it stayed unconfirmed until the agent was restarted.
#[test]
fn interrupted_install_is_settled_while_the_agent_runs() {
    let bench = Bench::new();
    killed(|| {
        let kill_at_swap = |step| if step == Step::Swap { kill(step) } else { Ok(()) };
        drop(bench.install(&kill_at_swap));
    });
    assert_eq!(bench.state(), Some(UpdateState::Unconfirmed));
    let lock = UpdateLock::try_take(&bench.files).unwrap();
    let state = |record: Option<UpdateRecord>| record.unwrap().state;
    // A process is at work.
    assert_eq!(state(swap::settle(&bench.files)), UpdateState::Unconfirmed);
    assert_eq!(state(swap::look(&bench.files)), UpdateState::Unconfirmed);
    drop(lock);
    assert_eq!(state(swap::look(&bench.files)), UpdateState::Interrupted);
    assert_eq!(bench.state(), Some(UpdateState::Unconfirmed), "nothing is written");
    assert_eq!(state(swap::settle(&bench.files)), UpdateState::Interrupted);
    assert_eq!(bench.state(), Some(UpdateState::Interrupted));
    bench.install(&ok).unwrap();
}

#[test]
fn kill_at_the_confirmation_does_not_lose_a_good_program() {
    let steps = at_every_step(
        |reach| {
            let bench = Bench::installed();
            assert_eq!(bench.start(&ok), Started::New);
            killed(|| drop(guard::confirm_at(&bench.files, reach)));
            if bench.start(&ok) == Started::New {
                guard::confirm_at(&bench.files, &ok).unwrap();
            }
            assert_eq!((bench.version(), bench.state()), ("0.2.0", Some(UpdateState::Confirmed)));
        },
        kill,
    );
    assert_eq!(steps, 1);
}

#[test]
fn program_that_does_not_run_at_its_place_is_replaced_at_once() {
    for (content, what) in [
        ("#!/none/such\n", "an interpreter that does not exist"),
        ("#!/bin/sh\nexit 7\n", "a program that fails"),
        ("#!/bin/sh\necho ai-agent 0.3.0\n", "another version"),
        ("", "no program"),
    ] {
        let bench = Bench::new();
        write_program(&bench.staged(), content);
        let error = bench.install(&ok).unwrap_err();
        assert!(matches!(error, InstallError::NotExecutable(_)), "{what}: {error}");
        assert_eq!(
            (bench.version(), bench.state()),
            ("0.1.0", Some(UpdateState::RolledBack)),
            "{what}"
        );
        let record = UpdateRecord::read(&bench.files).unwrap();
        assert_eq!(record.reason, Some(RollbackReason::NotExecutable));
    }
}

#[test]
fn second_update_waits_until_the_first_is_confirmed() {
    let bench = Bench::installed();
    write_program(&bench.staged(), &script("0.3.0"));
    let error = bench.install(&ok).unwrap_err();
    assert!(matches!(&error, InstallError::InProgress { to } if to == "0.2.0"), "{error}");
    assert_eq!(fs::read_to_string(bench.files.previous()).unwrap(), script("0.1.0"));
    guard::confirm_at(&bench.files, &ok).unwrap();
    write_program(&bench.staged(), &script("0.2.0"));
    assert!(matches!(bench.install(&ok), Err(InstallError::Same)));
}

#[test]
fn two_agents_that_update_at_once_install_one_program() {
    let bench = Bench::new();
    let install = || bench.install(&ok);
    let results = thread::scope(|scope| {
        [scope.spawn(install), scope.spawn(install)].map(|agent| agent.join().unwrap())
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    let refused = results.into_iter().find_map(Result::err);
    assert!(matches!(&refused, Some(InstallError::InProgress { .. })), "{refused:?}");
    assert_eq!((bench.version(), bench.state()), ("0.2.0", Some(UpdateState::Unconfirmed)));
    assert_eq!(fs::read_to_string(bench.files.previous()).unwrap(), script("0.1.0"));
}

/// Regression: the update was taken for interrupted, and neither a guard nor the supervisor acted.
#[test]
fn error_of_a_rename_that_was_made_does_not_end_the_update() {
    let bench = Bench::new();
    // The directory cannot be synced.
    let renamed = |step| match step {
        Step::Swap => {
            fs::rename(bench.files.next(), bench.files.program())?;
            Err(io::Error::other("no sync"))
        }
        _ => Ok(()),
    };
    bench.install(&renamed).unwrap();
    assert_eq!((bench.version(), bench.state()), ("0.2.0", Some(UpdateState::Unconfirmed)));
    // The same when the previous one comes back.
    let restored = |step| match step {
        Step::Restore => {
            fs::rename(bench.files.previous(), bench.files.program())?;
            Err(io::Error::other("no sync"))
        }
        _ => Ok(()),
    };
    let started = [bench.start(&ok), bench.start(&ok), bench.start(&restored)];
    assert_eq!(started, [Started::New, Started::New, Started::RolledBack]);
    assert_eq!((bench.version(), bench.state()), ("0.1.0", Some(UpdateState::RolledBack)));
}

/// Regression: the same on Windows, which renames in two steps.
#[test]
fn error_that_leaves_the_place_empty_is_repaired() {
    let bench = Bench::new();
    let emptied = |step| match step {
        Step::Swap => {
            fs::remove_file(bench.files.program())?;
            Err(io::Error::other("held"))
        }
        _ => Ok(()),
    };
    bench.install(&emptied).unwrap_err();
    assert_eq!(bench.state(), Some(UpdateState::Unconfirmed));
    assert!(supervise(&bench, Duration::from_secs(60), &Service::default()));
    assert_eq!((bench.version(), bench.state()), ("0.1.0", Some(UpdateState::RolledBack)));
    assert!(bench.rolled_back().is_empty());
    assert!(!bench.files.next().try_exists().unwrap());
}

/// Regression: a virus scanner that held the new program kept a good release away for good.
#[test]
fn program_that_is_held_at_its_place_is_installed_later() {
    let bench = Bench::new();
    let held = |step| match step {
        Step::RunNew => Err(io::ErrorKind::ExecutableFileBusy.into()),
        _ => Ok(()),
    };
    let error = bench.install(&held).unwrap_err();
    assert_eq!(UpdateError::from(error).reason(), UpdateReason::FileInUse);
    assert_eq!((bench.version(), bench.state()), ("0.1.0", Some(UpdateState::RolledBack)));
    assert!(bench.rolled_back().is_empty());
    bench.install(&ok).unwrap();
}

/// Regression: such a program was taken for a damaged one, and replaced.
#[test]
fn program_of_other_means_that_is_held_is_left_alone() {
    let bench = Bench::installed();
    let program = bench.files.program();
    fs::copy("/bin/true", program).unwrap();
    let held = fs::OpenOptions::new().append(true).open(program).unwrap();
    assert_eq!(bench.start(&ok), Started::Other);
    assert_eq!(bench.state(), Some(UpdateState::Unconfirmed));
    drop(held);
    assert_eq!(fs::read(program).unwrap(), fs::read("/bin/true").unwrap());
}

#[test]
fn file_that_changed_after_its_verification_is_not_installed() {
    let bench = Bench::new();
    let staged = bench.staged();
    let sha256 = digest_of(&staged).unwrap();
    write_program(&staged, "#!/bin/sh\necho evil\n");
    let new = NewProgram { staged: &staged, sha256, from: "0.1.0", to: "0.2.0", at: Timestamp(1) };
    let lock = UpdateLock::try_take(&bench.files).unwrap();
    let error = swap::install(&lock, &new, &|| Ok(()), &ok).unwrap_err();
    assert!(matches!(error, InstallError::Changed), "{error}");
    assert_eq!((bench.version(), bench.state()), ("0.1.0", None));
}

/// Regression: an agent that an administrator had replaced, and that was not restarted yet, put an older
/// program into the place of the new one.
#[test]
fn update_does_not_replace_a_program_that_came_by_other_means() {
    let bench = Bench::new();
    let other = script("0.9.0");
    write_program(bench.files.program(), &other);
    let error = bench.install(&ok).unwrap_err();
    assert!(matches!(&error, InstallError::Foreign(it) if it == "ai-agent 0.9.0"), "{error}");
    assert_eq!(fs::read_to_string(bench.files.program()).unwrap(), other);
    // One that does not run is replaced.
    write_program(bench.files.program(), "\x7fELF half");
    bench.install(&ok).unwrap();
    assert_eq!(bench.version(), "0.2.0");
}

/// An administrator or `ai-agent install` may put another program into place at any time.
#[test]
fn program_that_came_by_other_means_is_never_replaced() {
    let bench = Bench::installed();
    let other = script("0.9.0");
    write_program(bench.files.program(), &other);
    for _ in 0..5 {
        assert_eq!(bench.start(&ok), Started::Other);
    }
    assert_eq!(fs::read_to_string(bench.files.program()).unwrap(), other);
    assert_eq!(bench.state(), Some(UpdateState::Replaced));
    let lock = UpdateLock::try_take(&bench.files).unwrap();
    let refused = swap::roll_back_by_hand(&lock, &ok).unwrap_err();
    assert!(matches!(refused, RestoreError::NoPrevious), "{refused}");
}

/// Regression: the release was not tried again, as if it were to blame.
#[test]
fn power_cut_between_two_renames_blames_no_release() {
    for (until, expected) in [(Step::Swap, 0), (Step::RunNew, 1)] {
        let bench = Bench::new();
        killed(|| drop(bench.install(&|step| if step == until { kill(step) } else { Ok(()) })));
        fs::remove_file(bench.files.program()).unwrap();
        assert_eq!(bench.start(&ok), Started::Other);
        assert_eq!((bench.version(), bench.state()), ("0.1.0", Some(UpdateState::RolledBack)));
        assert_eq!(bench.rolled_back().len(), expected, "{until:?}");
    }
}

/// A file system may lose content in a power cut despite the sync, and Windows renames in two steps.
#[test]
fn damaged_or_missing_program_is_replaced_by_the_previous_one() {
    for content in [None, Some(""), Some("\x7fELF half")] {
        let bench = Bench::installed();
        match content {
            None => fs::remove_file(bench.files.program()).unwrap(),
            Some(content) => write_program(bench.files.program(), content),
        }
        assert_eq!(bench.start(&ok), Started::Other);
        assert_eq!((bench.version(), bench.state()), ("0.1.0", Some(UpdateState::RolledBack)));
    }
}

#[test]
fn lost_or_damaged_previous_program_keeps_the_new_one_in_place() {
    for content in [None, Some("half")] {
        let bench = Bench::installed();
        match content {
            None => fs::remove_file(bench.files.previous()).unwrap(),
            Some(content) => write_program(&bench.files.previous(), content),
        }
        for _ in 0..5 {
            assert_eq!(bench.start(&ok), Started::New);
            assert_eq!(bench.version(), "0.2.0");
        }
        guard::confirm_at(&bench.files, &ok).unwrap();
        assert_eq!(bench.state(), Some(UpdateState::Confirmed));
    }
}

/// Regression: it stayed `rolling-back`, so that it was neither confirmed nor updated any more.
#[test]
fn rollback_without_a_previous_program_is_given_up() {
    let bench = Bench::installed();
    let text = fs::read_to_string(bench.files.record()).unwrap();
    fs::write(bench.files.record(), text.replace("unconfirmed", "rolling-back")).unwrap();
    fs::remove_file(bench.files.previous()).unwrap();
    assert_eq!(bench.start(&ok), Started::New);
    guard::confirm_at(&bench.files, &ok).unwrap();
    assert_eq!((bench.version(), bench.state()), ("0.2.0", Some(UpdateState::Confirmed)));
}

#[test]
fn start_is_counted_once_by_both_guards() {
    let bench = Bench::installed();
    for invocation in ["a", "b"] {
        for _ in 0..2 {
            let lock = UpdateLock::try_take(&bench.files).unwrap();
            assert_eq!(guard::count_start(&lock, Some(invocation), &ok), Started::New);
        }
    }
    let lock = UpdateLock::try_take(&bench.files).unwrap();
    assert_eq!(guard::count_start(&lock, Some("c"), &ok), Started::RolledBack);
}

#[test]
fn person_gets_the_previous_program_back_once() {
    let bench = Bench::installed();
    guard::confirm_at(&bench.files, &ok).unwrap();
    let lock = UpdateLock::try_take(&bench.files).unwrap();
    let record = swap::roll_back_by_hand(&lock, &ok).unwrap();
    assert_eq!(record.reason, Some(RollbackReason::ByHand));
    assert_eq!((bench.version(), bench.state()), ("0.1.0", Some(UpdateState::RolledBack)));
    assert!(matches!(swap::roll_back_by_hand(&lock, &ok), Err(RestoreError::NoPrevious)));
}

#[test]
fn removal_leaves_only_the_program() {
    let bench = Bench::installed();
    fs::write(bench.files.next(), "half").unwrap();
    fs::write(bench.dir.path().join("ai-agent.previous.new"), "half").unwrap();
    fs::remove_file(bench.staged()).unwrap();
    bench.files.remove_all_but_program().unwrap();
    let left = fs::read_dir(bench.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["ai-agent"]);
    bench.files.remove_all_but_program().unwrap();
}

#[test]
fn program_that_every_user_can_write_is_not_replaceable() {
    use crate::update::program_files::NotReplaceable;

    let bench = Bench::new();
    bench.files.check_replaceable().unwrap();
    fs::set_permissions(bench.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let refused = bench.files.check_replaceable().unwrap_err();
    assert!(matches!(refused, NotReplaceable::OpenToAll { .. }), "{refused}");
}

#[test]
fn read_only_directory_is_found_before_anything_is_written() {
    use crate::update::program_files::NotReplaceable;

    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("ai-agent");
    write_program(&program, &script("0.1.0"));
    let files = ProgramFiles::of(&program);
    files.check_replaceable().unwrap();
    // A directory in the place of the lock simulates a missing permission, which root would not notice.
    fs::remove_file(dir.path().join("ai-agent.update.lock")).unwrap();
    fs::create_dir(dir.path().join("ai-agent.update.lock")).unwrap();
    let refused = files.check_replaceable().unwrap_err();
    assert!(matches!(refused, NotReplaceable::NotWritable { .. }), "{refused}");
}

/// A service that a person has stopped, for so many looks at it.
#[derive(Default)]
struct Service {
    stopped: AtomicUsize,
    looks: AtomicUsize,
}

impl Watched for Service {
    fn is_stopped(&self) -> bool {
        self.looks.fetch_add(1, Ordering::Relaxed) < self.stopped.load(Ordering::Relaxed)
    }

    fn resume(&self) {}
}

/// Regression: the supervisor ended, and the guard gave up.
#[test]
fn rollback_that_fails_is_tried_again() {
    let fails_once = || {
        let failed = AtomicBool::new(false);
        move |step| match step {
            Step::Restore if !failed.swap(true, Ordering::Relaxed) => Err(io::Error::other("held")),
            _ => Ok(()),
        }
    };
    let bench = Bench::installed();
    let (files, soon) = (&bench.files, Duration::from_millis(1));
    assert!(super::supervisor::supervise(files, soon, &Service::default(), &fails_once()));
    assert_eq!((bench.version(), bench.state()), ("0.1.0", Some(UpdateState::RolledBack)));

    let bench = Bench::installed();
    let reach = fails_once();
    let roll_back = || guard::try_roll_back(&bench.files, "no progress", &reach);
    assert_eq!((roll_back(), bench.version()), (None, "0.2.0"));
    assert_eq!((roll_back(), bench.version()), (Some(true), "0.1.0"));
    fs::remove_file(bench.files.record()).unwrap();
    assert_eq!(roll_back(), None, "the record cannot be read");
}

/// Regression: a service that was started a moment before the end of the time was rolled back at once, and
/// one that was stopped for an hour was no longer watched.
#[test]
fn countdown_begins_at_a_start_and_waits_while_it_is_stopped() {
    let (timeout, begun) = (Duration::from_secs(150), Instant::now());
    let after = |seconds: u64| begun + Duration::from_secs(seconds);
    let bench = Bench::installed();
    let mut countdown = Countdown::new(timeout, begun);
    let note = |countdown: &mut Countdown, at| {
        countdown.note(&UpdateRecord::read(&bench.files).unwrap(), at);
    };
    note(&mut countdown, after(0));
    note(&mut countdown, after(149));
    assert!(!countdown.is_due(after(149)) && countdown.is_due(after(150)));
    bench.start(&ok);
    note(&mut countdown, after(149));
    assert!(!countdown.is_due(after(298)) && countdown.is_due(after(299)));

    for look in 1..200 {
        countdown.note_stopped(true, after(look * 1800));
        let next = after((look + 1) * 1800);
        assert!(countdown.is_due(next) && !countdown.is_given_up(next), "look {look}");
    }
    countdown.note_stopped(false, after(400_000));
    assert!(!countdown.is_due(after(400_149)) && countdown.is_due(after(400_150)));
    assert!(countdown.is_given_up(after(403_750)));
}

fn supervise(bench: &Bench, timeout: Duration, service: &Service) -> bool {
    super::supervisor::supervise(&bench.files, timeout, service, &ok)
}

/// Regression: the release was rolled back, and the service was started.
#[test]
fn supervisor_waits_while_a_person_has_stopped_the_service() {
    let bench = Bench::installed();
    let service = Service { stopped: 3.into(), ..Service::default() };
    let timeout = Duration::from_millis(20);
    thread::scope(|scope| {
        let supervisor = scope.spawn(|| supervise(&bench, timeout, &service));
        while service.looks.load(Ordering::Relaxed) < 3 {
            assert_eq!(bench.state(), Some(UpdateState::Unconfirmed));
            thread::yield_now();
        }
        // It is started, and the time begins.
        assert!(supervisor.join().unwrap());
    });
    // The look at its start, and one at its deadline.
    assert_eq!(service.looks.load(Ordering::Relaxed), 5);
}

/// Regression: a release was rolled back since another agent held the state directory.
#[test]
fn start_that_no_program_could_make_does_not_count() {
    let bench = Bench::installed();
    for _ in 0..5 {
        assert_eq!(bench.start(&ok), Started::New);
        guard::withdraw_start(&bench.files).unwrap();
    }
    for expected in [Started::New, Started::New, Started::RolledBack] {
        assert_eq!(bench.start(&ok), expected);
    }
    guard::withdraw_start(&bench.files).unwrap();
    assert_eq!(bench.state(), Some(UpdateState::RolledBack));
}

#[test]
fn supervisor_replaces_a_program_that_is_never_confirmed() {
    let bench = Bench::installed();
    let soon = Duration::from_millis(1);
    assert!(supervise(&bench, soon, &Service::default()));
    let record = UpdateRecord::read(&bench.files).unwrap();
    assert_eq!((bench.version(), record.state), ("0.1.0", UpdateState::RolledBack));
    assert_eq!(record.reason, Some(RollbackReason::NotConfirmed));
    assert!(!supervise(&bench, soon, &Service::default()), "nothing is left to do");
}

#[test]
fn supervisor_ends_when_the_new_program_is_confirmed() {
    let bench = Bench::installed();
    guard::confirm_at(&bench.files, &ok).unwrap();
    let soon = Duration::from_millis(1);
    assert!(!supervise(&bench, soon, &Service::default()));
    assert_eq!(bench.version(), "0.2.0");
}

#[test]
fn record_of_a_newer_release_or_damaged_touches_no_program() {
    let bench = Bench::installed();
    let text = fs::read_to_string(bench.files.record()).unwrap();
    assert!(text.ends_with("}\n") && text.matches('\n').count() == 1, "{text}");
    for other in
        [text.replace("\"v\":1", "\"v\":2"), text.replace("unconfirmed", "new"), "{".into()]
    {
        fs::write(bench.files.record(), other).unwrap();
        for _ in 0..4 {
            assert_eq!(bench.start(&ok), Started::Other);
        }
        assert_eq!(bench.version(), "0.2.0");
    }
}
