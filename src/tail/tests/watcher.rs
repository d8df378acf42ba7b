//! Change notifications of the operating system.

use super::*;

#[test]
fn hints_find_changes_and_wrong_hints_are_harmless() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.take();
    let sweeps = world.tail.survey().sweeps;
    world.tail.schedule.is_watching = true;
    world.append("a.jsonl", "two\n");
    world.write("new/b.jsonl", "new\n");
    let root = world.path("");
    for path in ["a.jsonl", "new", "absent.jsonl", "new/c.jsonl", "../outside.jsonl"] {
        world.tail.hints.add(root.join(path), Hint::Any);
    }
    world.tail.hints.add("/".into(), Hint::Any);
    world.tail.hints.add(Path::new("").into(), Hint::Any);
    world.read_on();
    let (mut came, events) = world.take();
    came.sort();
    assert_eq!((came, events), lines(["new", "two"]));
    assert_eq!(world.tail.survey().sweeps, sweeps);
}

/// A hint about bytes costs no look at the path; one about another file there does.
#[test_requires::requires(not_wine)]
#[test]
fn hint_about_bytes_reads_the_open_file() {
    let mut world = TailFixture::new();
    world.write("a.jsonl", "one\n");
    world.read();
    world.take();
    let path = world.path("a.jsonl");
    let hinted = |world: &mut TailFixture, hint| {
        world.tail.schedule.is_watching = true;
        world.tail.hints.add(path.clone(), hint);
        world.read_on();
        world.take()
    };
    world.append("a.jsonl", "two\n");
    assert_eq!(hinted(&mut world, Hint::Data), lines(["two"]));
    world.write("new", "one\ntwo\nthree\n");
    fs::rename(world.path("new"), &path).unwrap();
    assert_eq!(hinted(&mut world, Hint::Data), lines([]));
    assert_eq!(hinted(&mut world, Hint::Any), lines(["three"]));
    world.append("a.jsonl", "four\n");
    assert_eq!(hinted(&mut world, Hint::Data), lines(["four"]));
}

#[test]
fn watcher_wakes_the_reader() {
    let (sender, woken) = std::sync::mpsc::channel();
    let mut world = TailFixture::with(TailOptions::default());
    let wake = Arc::new(move || sender.send(()).unwrap_or_default());
    world.tail =
        Tail::new(world.options.clone(), world.clock.clone(), Box::new(fresh_generation), wake);
    world.write("a.jsonl", "one\n");
    world.read();
    if !world.tail.survey().is_watching {
        return; // no watches to be had here
    }
    world.take();
    let sweeps = world.tail.survey().sweeps;
    world.append("a.jsonl", "two\n");
    world.write("p/q/new.jsonl", "new\n");
    let started = Instant::now();
    while world.store.got.len() < 2 {
        let left = Duration::from_secs(20).saturating_sub(started.elapsed());
        let next = match world.tail.read(&mut world.store) {
            Progress::Idle { next } => next.min(left),
            Progress::More => Duration::ZERO,
        };
        world.store.commit();
        world.tail.sealed();
        world.tail.committed();
        assert!(!left.is_zero(), "the watcher did not wake the reader");
        let _woken_or_due = woken.recv_timeout(next);
    }
    let (mut came, events) = world.take();
    came.sort();
    assert_eq!((came, events), lines(["new", "two"]));
    assert_eq!(world.tail.survey().sweeps, sweeps);
}

/// Regression: after the clock was set back, files with future modification times were checked and read
/// every few seconds without end.
#[test]
fn file_with_a_future_time_becomes_quiet() {
    for ahead in [Duration::from_secs(300), Duration::from_secs(365 * 24 * 3600)] {
        let mut world = TailFixture::new();
        world.write("a.jsonl", "one\n");
        world.read();
        let file = OpenOptions::new().append(true).open(world.path("a.jsonl")).unwrap();
        let later = Duration::from_millis(world.clock.now().0) + ahead;
        file.set_modified(std::time::UNIX_EPOCH + later).unwrap();
        for _ in 0..3 {
            world.pass(Duration::from_secs(500));
            world.read_on();
        }
        world.tail.schedule.is_watching = true;
        let Progress::Idle { next } = world.tail.read(&mut world.store) else { panic!("no room") };
        assert!(next > Duration::from_secs(20), "{next:?}");
        world.append("a.jsonl", "two\n");
        world.read();
        assert_eq!(world.store.lines(), ["one", "two"]);
    }
}

/// Regression: the idle cost grew with the number of files, because each was checked repeatedly.
#[test]
fn quiet_files_are_not_checked_between_sweeps() {
    let mut world = TailFixture::new();
    for n in 0..300 {
        world.write(&format!("p{}/{n}.jsonl", n % 7), format!("line {n}\n"));
    }
    world.read();
    world.tail.schedule.is_watching = true;
    // Until they are no longer hot.
    world.pass(Duration::from_secs(1200));
    world.read_on();
    assert_eq!(world.take().0.len(), 300);
    let sweeps = world.tail.survey().sweeps;
    let Progress::Idle { next } = world.tail.read(&mut world.store) else { panic!("not idle") };
    assert!(next > Duration::from_secs(25), "{next:?}");
    world.pass(next / 2);
    world.read_on();
    assert_eq!(world.tail.survey().sweeps, sweeps);
    assert_eq!(world.tail.survey().files_open, 0);
}

/// Regression: after a backlog of 10,000 files, which all seemed to be live, each was checked every
/// five seconds: 1 % of a core for ten minutes.
#[test]
fn number_of_hot_files_is_limited() {
    let mut world = TailFixture::new();
    for n in 0..1000 {
        world.write(&format!("p/{n}.jsonl"), format!("line {n}\n"));
    }
    world.read();
    assert_eq!(world.take().0.len(), 1000);
    world.pass(Duration::from_secs(60));
    let hot = world.tail.schedule.due_hot_files().unwrap();
    assert!((1..600).contains(&hot.len()), "{}", hot.len());
}

/// Regression: with 50,000 known files, a new record waited until all of them were checked.
#[test]
fn new_line_after_a_restart_does_not_wait_for_the_sweep() {
    let mut world = TailFixture::new();
    for n in 0..1000 {
        world.write(&format!("p{n}/a.jsonl"), "one\n");
    }
    world.read();
    assert_eq!(world.take().0.len(), 1000);
    world.restart();
    world.append("p500/a.jsonl", "two\n");
    assert_eq!(world.tail.read(&mut world.store), Progress::More);
    world.store.commit();
    assert_eq!(world.take(), lines(["two"]));
    assert!(!world.tail.schedule.has_swept);
    world.read_on();
    assert_eq!((world.take(), world.tail.survey().files), (lines([]), 1000));
}
