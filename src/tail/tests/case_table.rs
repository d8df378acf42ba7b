//! Test cases of steps on a real directory with an expected outcome.
//!
//! Each case runs with every kind of watcher and must have the same outcome.

use std::collections::BTreeSet;

use super::*;

/// Behaviour of the watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watching {
    /// No watcher.
    Off,
    /// Every change causes a hint at once; sweeps are rare.
    On,
    /// The watcher of the operating system.
    Real,
    /// A watcher that reports nothing.
    Dropped,
    /// Hints that arrive after the next read.
    Late,
    /// A watcher that reaches the limit of watches.
    Limited,
}

impl Watching {
    pub(super) const ALL: [Self; 6] =
        [Self::Off, Self::On, Self::Real, Self::Dropped, Self::Late, Self::Limited];
}

/// Operation on files below the root, or on the tail.
#[derive(Clone, Debug)]
pub(super) enum FileStep {
    /// Overwrites a file in place.
    Write(&'static str, Vec<u8>),
    Append(&'static str, Vec<u8>),
    /// Replaces a file by another.
    Replace(&'static str, Vec<u8>),
    /// Truncates a file in place.
    Cut(&'static str, u64),
    Rename(&'static str, &'static str),
    Copy(&'static str, &'static str),
    Link(&'static str, &'static str),
    Delete(&'static str),
    /// Sets the modification time, in seconds since 1970.
    Touch(&'static str, u64),
    /// Creates something other than a regular file.
    #[cfg(unix)]
    Special(&'static str, SpecialFile),
    /// Makes the tail find changes, and stores the chunks that it hands over.
    Read,
    /// Makes the tail find changes, and makes the store fail.
    FailCommit,
    /// Restarts the agent.
    Restart,
    /// Advances the time.
    Pass(Duration),
    /// Moves the wall clock by a number of seconds.
    Jump(i64),
}

/// Kind of a file that is not regular.
#[cfg(unix)]
#[derive(Clone, Copy, Debug)]
pub(super) enum SpecialFile {
    Fifo,
    Socket,
    Directory,
}

/// A generation as it was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    /// Its paths in order.
    pub(super) paths: Vec<String>,
    /// Offset of its first line.
    pub(super) from: u64,
    /// Size of its lines, including the endings.
    pub(super) bytes: u64,
    pub(super) lines: Vec<String>,
}

/// A generation that starts at the beginning of its file.
pub(super) fn generation(path: &str, bytes: u64, lines: &[&str]) -> Generation {
    generation_from(path, 0, bytes, lines)
}

/// A generation whose first line starts at `from`.
pub(super) fn generation_from(path: &str, from: u64, bytes: u64, lines: &[&str]) -> Generation {
    let paths = path.split(" > ").map(str::to_owned).collect();
    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
    Generation { paths, from, bytes, lines }
}

/// Outcome of a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CaseOutcome {
    /// Generations with lines, ordered by path and then by time.
    pub(super) generations: Vec<Generation>,
    /// Names of the events in order.
    pub(super) events: Vec<&'static str>,
    /// Number of bytes that were deleted unread according to the events.
    pub(super) unread: u64,
}

/// Runs the steps with every kind of watcher.
#[track_caller]
pub(super) fn check(name: &str, steps: &[FileStep], expected: &CaseOutcome) {
    for watching in Watching::ALL {
        let mut scene = Scene::new(watching);
        for step in steps {
            scene.step(step);
        }
        let outcome = scene.outcome();
        assert_eq!(&outcome, expected, "{name}, {watching:?}");
        scene.step(&FileStep::Restart);
        scene.step(&FileStep::Read);
        assert_eq!(scene.outcome(), outcome, "{name}, {watching:?}: more was read after a restart");
    }
}

/// A world with a kind of watcher.
struct Scene {
    world: TailFixture,
    watching: Watching,
    /// Hints that will arrive later.
    hints: Vec<PathBuf>,
    #[cfg_attr(not(unix), allow(dead_code, reason = "sockets exist on Unix only"))]
    sockets: Vec<Box<dyn Send>>,
}

impl Scene {
    fn new(watching: Watching) -> Self {
        let watch = watching == Watching::Real;
        // Each read advances the time by minutes, more than the limit for deleted files.
        let drain_time = Duration::from_secs(3600);
        let world = TailFixture::with(TailOptions { watch, drain_time, ..TailOptions::default() });
        Self { world, watching, hints: Vec::new(), sockets: Vec::new() }
    }

    fn step(&mut self, step: &FileStep) {
        let world = &self.world;
        match *step {
            FileStep::Write(name, ref bytes) => self.write(name, bytes),
            FileStep::Append(name, ref bytes) => {
                fs::create_dir_all(world.path(name).parent().unwrap()).unwrap();
                world.append(name, bytes);
                self.hint(&[name]);
            }
            FileStep::Replace(name, ref bytes) => {
                let new = world.directory.path().join("new");
                fs::write(&new, bytes).unwrap();
                fs::rename(new, world.path(name)).unwrap();
                self.hint(&[name]);
            }
            FileStep::Cut(name, len) => {
                let file = OpenOptions::new().write(true).open(world.path(name)).unwrap();
                file.set_len(len).unwrap();
                self.hint(&[name]);
            }
            FileStep::Rename(from, to) => {
                fs::create_dir_all(world.path(to).parent().unwrap()).unwrap();
                fs::rename(world.path(from), world.path(to)).unwrap();
                self.hint(&[from, to]);
            }
            FileStep::Copy(from, to) => {
                fs::copy(world.path(from), world.path(to)).unwrap();
                self.hint(&[to]);
            }
            FileStep::Link(from, to) => {
                fs::hard_link(world.path(from), world.path(to)).unwrap();
                self.hint(&[to]);
            }
            FileStep::Delete(name) => {
                fs::remove_file(world.path(name)).unwrap();
                self.hint(&[name]);
            }
            FileStep::Touch(name, seconds) => {
                let file = OpenOptions::new().append(true).open(world.path(name)).unwrap();
                let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
                file.set_modified(time).unwrap();
                self.hint(&[name]);
            }
            #[cfg(unix)]
            FileStep::Special(name, special) => self.create_special(name, special),
            FileStep::Read => self.read(),
            FileStep::FailCommit => {
                self.advance_to_next_check();
                let _any = self.world.tail.read(&mut self.world.store);
                self.world.lose_group();
            }
            FileStep::Restart => self.world.restart(),
            FileStep::Pass(time) => self.world.pass(time),
            FileStep::Jump(seconds) => world.clock.jump(seconds),
        }
    }

    /// Overwrites a file so that its stamp changes even if the system's clock is coarse.
    fn write(&mut self, name: &str, bytes: &[u8]) {
        let path = self.world.path(name);
        let before = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
        self.world.write(name, bytes);
        if fs::metadata(&path).unwrap().modified().ok() == before {
            let file = OpenOptions::new().append(true).open(path).unwrap();
            file.set_modified(before.unwrap() + Duration::from_millis(5)).unwrap();
        }
        self.hint(&[name]);
    }

    #[cfg(unix)]
    fn create_special(&mut self, name: &str, special: SpecialFile) {
        let path = self.world.path(name);
        match special {
            SpecialFile::Fifo => {
                let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
                assert!(made.success());
            }
            SpecialFile::Socket => {
                let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
                self.sockets.push(Box::new(socket));
            }
            SpecialFile::Directory => fs::create_dir(&path).unwrap(),
        }
        self.hint(&[name]);
    }

    fn hint(&mut self, names: &[&str]) {
        let paths = names.iter().map(|name| self.world.path(name));
        match self.watching {
            Watching::On => paths.for_each(|path| self.world.tail.hints.add(path, Hint::Any)),
            Watching::Late => self.hints.extend(paths),
            _ => {}
        }
    }

    fn read(&mut self) {
        self.advance_to_next_check();
        self.world.read_on();
        for path in std::mem::take(&mut self.hints) {
            self.world.tail.hints.add(path, Hint::Any);
        }
    }

    /// Advances the time until changes are found.
    fn advance_to_next_check(&mut self) {
        let has_swept = self.world.tail.schedule.has_swept;
        match self.watching {
            Watching::Off | Watching::Real => self.world.pass(Duration::from_secs(400)),
            Watching::On => {
                self.world.tail.schedule.is_watching = has_swept;
                self.world.pass(Duration::from_secs(5));
            }
            Watching::Dropped | Watching::Late => {
                self.world.tail.schedule.is_watching = has_swept;
                self.world.pass(Duration::from_secs(400));
            }
            Watching::Limited => {
                self.world.tail.schedule.is_watching = has_swept;
                self.world.tail.hints.add_failure();
                self.world.pass(Duration::from_secs(400));
            }
        }
    }

    /// Returns the outcome; checks that lines have no gaps and are not repeated.
    fn outcome(&self) -> CaseOutcome {
        let (store, root) = (&self.world.store, self.world.path(""));
        let mut generations: Vec<(GenerationId, Generation)> = Vec::new();
        for got in &store.got {
            let path = got.path.strip_prefix(&root).unwrap().to_str().unwrap();
            let path = path.replace(std::path::MAIN_SEPARATOR, "/");
            let found =
                generations.iter().position(|(generation, _)| *generation == got.generation);
            let index = found.unwrap_or_else(|| {
                let generation = generation_from(&path, got.offset, 0, &[]);
                generations.push((got.generation.clone(), generation));
                generations.len() - 1
            });
            let generation = &mut generations[index].1;
            if generation.paths.last() != Some(&path) {
                generation.paths.push(path);
            }
            let text = String::from_utf8_lossy(&got.content()).into_owned();
            match (got.part, generation.lines.last_mut()) {
                (Some(2..), Some(line)) => line.push_str(&text),
                _ => {
                    assert_eq!(generation.from + generation.bytes, got.offset, "gap or repetition");
                    generation.lines.push(if got.incomplete { format!("{text}…") } else { text });
                }
            }
            generation.bytes += got.size;
        }
        let mut generations: Vec<Generation> =
            generations.into_iter().map(|(_, generation)| generation).collect();
        generations.sort_by(|one, other| one.paths.cmp(&other.paths));
        let unread = |event: &crate::event::Event| {
            let number = |name: &str| event.data[name].as_u64().unwrap_or_default();
            number("to") - number("from")
        };
        let unread = store.events.iter().map(unread).sum();
        CaseOutcome { generations, events: store.event_names(), unread }
    }
}

#[test]
fn wrong_expectation_is_detected() {
    let steps = [FileStep::Write("a.jsonl", b"one\n".to_vec()), FileStep::Read];
    let mut wrong = BTreeSet::new();
    for generations in
        [vec![], vec![generation("a.jsonl", 4, &["two"])], vec![generation("a.jsonl", 5, &["one"])]]
    {
        let expected = CaseOutcome { generations, ..CaseOutcome::default() };
        let run = || check("wrong", &steps, &expected);
        wrong.insert(std::panic::catch_unwind(run).is_err());
    }
    assert_eq!(wrong, [true].into());
}
