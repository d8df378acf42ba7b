//! One case of the table: steps on a real directory, and what must have come of them.
//!
//! Each case runs with every kind of watcher, and must come to the same.

use std::collections::BTreeSet;

use super::*;

/// What the system says of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watching {
    /// It is not asked.
    Off,
    /// Every change is hinted at, at once; sweeps are rare.
    On,
    /// The system's own watcher, whenever it wakes.
    Real,
    /// It seems to watch, and says nothing.
    Dropped,
    /// Hints come after the next reading.
    Late,
    /// The limit of watches is reached while it runs.
    Limited,
}

impl Watching {
    pub(super) const ALL: [Self; 6] =
        [Self::Off, Self::On, Self::Real, Self::Dropped, Self::Late, Self::Limited];
}

/// What happens to the files below the root, or to the tail.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Writes a file from its beginning, in place.
    Write(&'static str, Vec<u8>),
    Append(&'static str, Vec<u8>),
    /// Puts another file in its place.
    Replace(&'static str, Vec<u8>),
    /// Cuts it to a length, in place.
    Cut(&'static str, u64),
    Rename(&'static str, &'static str),
    Copy(&'static str, &'static str),
    Link(&'static str, &'static str),
    Delete(&'static str),
    /// Changes the time of its last change alone, to so many seconds after 1970.
    Touch(&'static str, u64),
    /// Puts what is no regular file there.
    #[cfg(unix)]
    Odd(&'static str, Odd),
    /// Lets the tail find out what changed, and stores what it hands over.
    Read,
    /// The same, and the store fails.
    FailCommit,
    /// The agent ends and starts again.
    Restart,
    /// Time passes.
    Pass(Duration),
    /// The wall clock jumps, by so many seconds.
    Jump(i64),
}

/// What is no regular file.
#[cfg(unix)]
#[derive(Clone, Copy, Debug)]
pub(super) enum Odd {
    Fifo,
    Socket,
    /// To a file outside of the root.
    Symlink,
    Directory,
}

/// One generation, as it must have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Life {
    /// The paths that it had, one after the other.
    pub(super) paths: Vec<String>,
    /// Where its first line begins.
    pub(super) from: u64,
    /// How many bytes its lines take, endings and all.
    pub(super) bytes: u64,
    pub(super) lines: Vec<String>,
}

/// A life of a file from its beginning.
pub(super) fn life(path: &str, bytes: u64, lines: &[&str]) -> Life {
    life_from(path, 0, bytes, lines)
}

/// A life of a file whose first line begins at `from`.
pub(super) fn life_from(path: &str, from: u64, bytes: u64, lines: &[&str]) -> Life {
    let paths = path.split(" > ").map(str::to_owned).collect();
    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
    Life { paths, from, bytes, lines }
}

/// What must have come of a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// All lives of which lines came, by their paths and then in their order.
    pub(super) lives: Vec<Life>,
    /// The names of the events, in their order.
    pub(super) events: Vec<&'static str>,
    /// How many bytes the events say were deleted unread.
    pub(super) unread: u64,
}

/// Runs the steps with every kind of watcher.
#[track_caller]
pub(super) fn check(name: &str, steps: &[Step], expected: &Outcome) {
    for watching in Watching::ALL {
        let mut scene = Scene::new(watching);
        for step in steps {
            scene.step(step);
        }
        let outcome = scene.outcome();
        assert_eq!(&outcome, expected, "{name}, {watching:?}");
        scene.step(&Step::Restart);
        scene.step(&Step::Read);
        assert_eq!(scene.outcome(), outcome, "{name}, {watching:?}: more came after a restart");
    }
}

/// A world with a watcher of a kind.
struct Scene {
    world: World,
    watching: Watching,
    /// Hints that are to come.
    hints: Vec<PathBuf>,
    #[cfg_attr(not(unix), allow(dead_code, reason = "there are none"))]
    sockets: Vec<Box<dyn Send>>,
}

impl Scene {
    fn new(watching: Watching) -> Self {
        let watch = watching == Watching::Real;
        // A reading lets minutes pass, which would be too long for a file that is gone.
        let drain_time = Duration::from_secs(3600);
        let world = World::with(TailOptions { watch, drain_time, ..TailOptions::default() });
        Self { world, watching, hints: Vec::new(), sockets: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        let world = &self.world;
        match *step {
            Step::Write(name, ref bytes) => self.write(name, bytes),
            Step::Append(name, ref bytes) => {
                fs::create_dir_all(world.path(name).parent().unwrap()).unwrap();
                world.append(name, bytes);
                self.hint(&[name]);
            }
            Step::Replace(name, ref bytes) => {
                let new = world.directory.path().join("new");
                fs::write(&new, bytes).unwrap();
                fs::rename(new, world.path(name)).unwrap();
                self.hint(&[name]);
            }
            Step::Cut(name, len) => {
                let file = OpenOptions::new().write(true).open(world.path(name)).unwrap();
                file.set_len(len).unwrap();
                self.hint(&[name]);
            }
            Step::Rename(from, to) => {
                fs::create_dir_all(world.path(to).parent().unwrap()).unwrap();
                fs::rename(world.path(from), world.path(to)).unwrap();
                self.hint(&[from, to]);
            }
            Step::Copy(from, to) => {
                fs::copy(world.path(from), world.path(to)).unwrap();
                self.hint(&[to]);
            }
            Step::Link(from, to) => {
                fs::hard_link(world.path(from), world.path(to)).unwrap();
                self.hint(&[to]);
            }
            Step::Delete(name) => {
                fs::remove_file(world.path(name)).unwrap();
                self.hint(&[name]);
            }
            Step::Touch(name, seconds) => {
                let file = OpenOptions::new().append(true).open(world.path(name)).unwrap();
                let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
                file.set_modified(time).unwrap();
                self.hint(&[name]);
            }
            #[cfg(unix)]
            Step::Odd(name, odd) => self.make_odd(name, odd),
            Step::Read => self.read(),
            Step::FailCommit => {
                self.bring_about_a_look();
                let _any = self.world.tail.read(&mut self.world.store);
                self.world.lose_group();
            }
            Step::Restart => self.world.restart(),
            Step::Pass(time) => self.world.pass(time),
            Step::Jump(seconds) => world.clock.jump(seconds),
        }
    }

    /// Writes a file in place, so that its stamp shows it: the system's clock may be coarse.
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
    fn make_odd(&mut self, name: &str, odd: Odd) {
        let path = self.world.path(name);
        match odd {
            Odd::Fifo => {
                let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
                assert!(made.success());
            }
            Odd::Socket => {
                let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
                self.sockets.push(Box::new(socket));
            }
            Odd::Symlink => {
                let outside = self.world.directory.path().join("outside");
                fs::write(&outside, "outside\n").unwrap();
                std::os::unix::fs::symlink(outside, &path).unwrap();
            }
            Odd::Directory => fs::create_dir(&path).unwrap(),
        }
        self.hint(&[name]);
    }

    fn hint(&mut self, names: &[&str]) {
        let paths = names.iter().map(|name| self.world.path(name));
        match self.watching {
            Watching::On => paths.for_each(|path| self.world.tail.hints.add(path)),
            Watching::Late => self.hints.extend(paths),
            _ => {}
        }
    }

    fn read(&mut self) {
        self.bring_about_a_look();
        self.world.read_on();
        for path in std::mem::take(&mut self.hints) {
            self.world.tail.hints.add(path);
        }
    }

    /// Lets so much time pass that whatever finds changes has done so.
    fn bring_about_a_look(&mut self) {
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
                self.world.tail.hints.fail();
                self.world.pass(Duration::from_secs(400));
            }
        }
    }

    /// What came, with the whole of it in place: no line twice, and no gap between two.
    fn outcome(&self) -> Outcome {
        let (store, root) = (&self.world.store, self.world.path(""));
        let mut lives: Vec<(GenerationId, Life)> = Vec::new();
        for got in &store.got {
            let path = got.path.strip_prefix(&root).unwrap().to_str().unwrap();
            let path = path.replace(std::path::MAIN_SEPARATOR, "/");
            let found = lives.iter().position(|(generation, _)| *generation == got.generation);
            let index = found.unwrap_or_else(|| {
                let life = life_from(&path, got.offset, 0, &[]);
                lives.push((got.generation.clone(), life));
                lives.len() - 1
            });
            let life = &mut lives[index].1;
            if life.paths.last() != Some(&path) {
                life.paths.push(path);
            }
            let text = String::from_utf8_lossy(&got.bytes).into_owned();
            match (got.part, life.lines.last_mut()) {
                (Some(2..), Some(line)) => line.push_str(&text),
                _ => {
                    assert_eq!(life.from + life.bytes, got.offset, "no gap, and nothing twice");
                    life.lines.push(if got.incomplete { format!("{text}…") } else { text });
                }
            }
            life.bytes += got.size;
        }
        let mut lives: Vec<Life> = lives.into_iter().map(|(_, life)| life).collect();
        lives.sort_by(|one, other| one.paths.cmp(&other.paths));
        let unread = |event: &crate::event::Event| {
            let number = |name: &str| event.data[name].as_u64().unwrap_or_default();
            number("to") - number("from")
        };
        let unread = store.events.iter().map(unread).sum();
        Outcome { lives, events: store.event_names(), unread }
    }
}

#[test]
fn a_case_that_did_not_come_out_is_found() {
    let steps = [Step::Write("a.jsonl", b"one\n".to_vec()), Step::Read];
    let mut wrong = BTreeSet::new();
    for lives in [vec![], vec![life("a.jsonl", 4, &["two"])], vec![life("a.jsonl", 5, &["one"])]] {
        let expected = Outcome { lives, ..Outcome::default() };
        let run = || check("wrong", &steps, &expected);
        wrong.insert(std::panic::catch_unwind(run).is_err());
    }
    assert_eq!(wrong, [true].into());
}
