//! Files that no program should create, in all places that the agent reads.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStringExt as _,
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use fastrand::Rng;
use rustix::fs::{CWD, FileType, Mode};

use super::home::Home;

/// Size of a file without content: the largest that most file systems take.
const SPARSE: u64 = 1 << 43;

/// A kind of file.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    make: fn(&mut Scene) -> io::Result<()>,
}

const fn kind(name: &'static str, make: fn(&mut Scene) -> io::Result<()>) -> Kind {
    Kind { name, make }
}

/// Where a file is created.
struct Scene<'a> {
    home: &'a Path,
    path: PathBuf,
    random: &'a mut Rng,
    /// Handles that stay open until the file is removed.
    open: Vec<File>,
    sockets: Vec<UnixListener>,
}

/// A file that was created. It is removed when dropped.
pub(crate) struct HostileFile {
    path: PathBuf,
    /// Content that was there before.
    before: Option<Vec<u8>>,
    _open: Vec<File>,
    _sockets: Vec<UnixListener>,
}

impl Kind {
    /// Creates a file in one of the places, in place of the one that is there.
    ///
    /// # Errors
    /// The error of the system, for example because devices can be created by root only.
    pub(crate) fn create(
        self,
        place: Place,
        home: &Home,
        random: &mut Rng,
    ) -> io::Result<HostileFile> {
        let path = place.path(home, random);
        fs::create_dir_all(path.parent().expect("it is in the home"))?;
        // An endless device may be there, from the case before.
        let is_file =
            fs::symlink_metadata(&path).is_ok_and(|it| it.is_file() && it.len() < 1 << 20);
        let before = is_file.then(|| fs::read(&path)).and_then(Result::ok);
        remove(&path);
        let mut scene =
            Scene { home: home.path(), path, random, open: Vec::new(), sockets: Vec::new() };
        let made = (self.make)(&mut scene);
        let Scene { path, open, sockets, .. } = scene;
        let file = HostileFile { path, before, _open: open, _sockets: sockets };
        made.map(|()| file)
    }
}

impl Drop for HostileFile {
    fn drop(&mut self) {
        remove(&self.path);
        if let Some(before) = &self.before {
            drop(fs::write(&self.path, before));
        }
    }
}

/// Removes whatever is at a path.
fn remove(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        drop(fs::set_permissions(path, fs::Permissions::from_mode(0o700)));
        drop(fs::remove_dir_all(path));
    } else {
        drop(fs::remove_file(path));
    }
}

/// A place that the agent, its commands or its hooks read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A session file.
    Session,
    /// A session file of a sub-agent.
    SubAgent,
    /// A directory of a project.
    Project,
    /// A report of a hook.
    HookReport,
    /// A file with the account, or the settings of the client.
    Account,
    /// A file of the agent's state that it reads while it runs.
    State,
    /// A configuration file of the user.
    Config,
}

impl Place {
    pub(crate) const ALL: [Self; 7] = [
        Self::Session,
        Self::SubAgent,
        Self::Project,
        Self::HookReport,
        Self::Account,
        Self::State,
        Self::Config,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Session => "as a session",
            Self::SubAgent => "as a session of a sub-agent",
            Self::Project => "as a directory of a project",
            Self::HookReport => "as a report of a hook",
            Self::Account => "as a file of an account or of the client's settings",
            Self::State => "as a file of the agent's state",
            Self::Config => "as a configuration file",
        }
    }

    fn path(self, home: &Home, random: &mut Rng) -> PathBuf {
        let number = random.u32(..);
        match self {
            Self::Session => home.projects().join(format!("-p{}/{number}.jsonl", number % 4)),
            Self::SubAgent => {
                home.projects().join(format!("-p{}/{number}/subagents/agent-1.jsonl", number % 4))
            }
            Self::Project => home.projects().join(format!("-q{number}")),
            Self::HookReport => {
                let name = format!("01ARZ3NDEKTSV4RRFF{:08}.json", number % 100_000_000);
                home.state_dir().join("spool").join(name)
            }
            Self::Account => {
                let names = [
                    ".claude.json",
                    ".claude/settings.json",
                    ".claude/.credentials.json",
                    ".config/Claude/config.json",
                    ".config/Claude/local-agent-mode-sessions",
                    ".config/Claude/claude-code-sessions",
                ];
                home.path().join(names[random.usize(..names.len())])
            }
            Self::State => {
                let names =
                    ["policy.json", "managed.json", "state-dir", "compliance.json", "spool"];
                home.state_dir().join(names[random.usize(..names.len())])
            }
            Self::Config => home.path().join(".config/ai-agent/config.toml"),
        }
    }
}

/// Targets of links outside the home directory.
const TARGETS: [&str; 14] = [
    "/dev/zero",
    "/dev/urandom",
    "/dev/full",
    "/dev/null",
    "/dev/tty",
    "/dev/stdin",
    "/proc/self/mem",
    "/proc/self/fd/0",
    "/proc/kmsg",
    "/proc",
    "/sys",
    "/dev",
    "/",
    "/root/nowhere/at/all",
];

/// All kinds.
pub(crate) const KINDS: &[Kind] = &[
    kind("FIFO", |scene| Ok(rustix::fs::mknodat(CWD, &scene.path, FileType::Fifo, Mode::RWXU, 0)?)),
    kind("FIFO with a writer", |scene| {
        rustix::fs::mknodat(CWD, &scene.path, FileType::Fifo, Mode::RWXU, 0)?;
        let file = File::options().read(true).write(true).open(&scene.path)?;
        io::Write::write_all(&mut &file, &[b'\n'; 4096])?;
        scene.open.push(file);
        Ok(())
    }),
    kind("socket", |scene| {
        // The path may be too long for a socket.
        let short = scene.home.join("s");
        drop(fs::remove_file(&short));
        scene.sockets.push(UnixListener::bind(&short)?);
        fs::rename(short, &scene.path)
    }),
    kind("device", |scene| {
        let minor = *pick(scene.random, &[3, 5, 7, 8, 9]);
        let device = rustix::fs::makedev(1, minor);
        Ok(rustix::fs::mknodat(CWD, &scene.path, FileType::CharacterDevice, Mode::RWXU, device)?)
    }),
    kind("link to a special file or directory", |scene| {
        symlink(pick(scene.random, &TARGETS), &scene.path)
    }),
    kind("link to itself", |scene| symlink(&scene.path, &scene.path)),
    kind("links in a circle", |scene| {
        let other = scene.home.join(format!("link-{}", scene.random.u32(..)));
        symlink(&scene.path, &other)?;
        symlink(other, &scene.path)
    }),
    kind("long chain of links", |scene| {
        let end = scene.home.join(format!("chain-{}", scene.random.u32(..)));
        fs::write(&end, "{\"end\":1}\n")?;
        let mut to = end.clone();
        for n in 0..50 {
            let link = end.with_extension(n.to_string());
            symlink(&to, &link)?;
            to = link;
        }
        symlink(to, &scene.path)
    }),
    kind("link to a directory above", |scene| {
        let above = *pick(scene.random, &["..", "../..", "../../..", "."]);
        symlink(above, &scene.path)
    }),
    kind("link to the home directory", |scene| symlink(scene.home, &scene.path)),
    kind("directory", |scene| fs::create_dir(&scene.path)),
    kind("directories below each other", |scene| {
        let mut path = scene.path.clone();
        for _ in 0..scene.random.usize(10..300) {
            path.push("d.jsonl");
        }
        fs::create_dir_all(&path)?;
        fs::write(path.join("deep.jsonl"), "{\"deep\":1}\n")
    }),
    kind("directory with thousands of files", |scene| {
        fs::create_dir(&scene.path)?;
        for n in 0..2000 {
            fs::write(scene.path.join(format!("{n}.jsonl")), format!("{{\"n\":{n}}}\n"))?;
        }
        Ok(())
    }),
    kind("unreadable file", |scene| {
        fs::write(&scene.path, "{\"unreadable\":1}\n")?;
        fs::set_permissions(&scene.path, fs::Permissions::from_mode(0o000))
    }),
    kind("unreadable directory", |scene| {
        fs::create_dir(&scene.path)?;
        fs::write(scene.path.join("inside.jsonl"), "{\"unreadable\":1}\n")?;
        fs::set_permissions(&scene.path, fs::Permissions::from_mode(0o000))
    }),
    kind("empty file", |scene| fs::write(&scene.path, "")),
    kind("file of holes", |scene| sparse(&scene.path, b"")),
    kind("file of holes with a record", |scene| sparse(&scene.path, b"\n{\"behind\":1}\n")),
    kind("NULs", |scene| {
        let length = scene.random.usize(1..4 << 20);
        fs::write(&scene.path, [&*vec![0; length], b"\n{\"behind\":1}\n"].concat())
    }),
    kind("random bytes", |scene| {
        let length = scene.random.usize(1..1 << 20);
        fs::write(&scene.path, random_bytes(scene.random, length))
    }),
    kind("line without an end", |scene| fs::write(&scene.path, "x".repeat(9 << 20))),
    kind("blank lines", |scene| fs::write(&scene.path, "\n".repeat(1 << 20))),
    kind("carriage returns", |scene| fs::write(&scene.path, "\r".repeat(1 << 20))),
    kind("short lines", |scene| fs::write(&scene.path, "{}\n".repeat(20_000))),
    kind("deep nesting", |scene| {
        let open = *pick(
            scene.random,
            &["[", "{\"a\":", "{\"oauthAccount\":", "[[filter]]\n", "a.", "a=[", "a={b="],
        );
        fs::write(&scene.path, open.repeat(1 << 18) + "\n")
    }),
    kind("invalid UTF-8", |scene| {
        fs::write(&scene.path, b"{\"a\":\"\xff\xfe\xed\xa0\x80\"}\n\xff = 1\n")
    }),
    kind("byte order mark and UTF-16", |scene| fs::write(&scene.path, b"\xff\xfe{\0}\0\n\0")),
    kind("large JSON", |scene| {
        fs::write(&scene.path, format!("{{\"a\":[{}0]}}\n", "{},".repeat(1 << 20)))
    }),
    kind("name that is not UTF-8", |scene| {
        scene.renamed(|random| {
            let name = random_bytes(random, 20)
                .into_iter()
                .map(|byte| if byte % 8 == 0 { 0xff } else { byte | 0x41 });
            name.filter(|byte| *byte != b'/').collect()
        })
    }),
    kind("name with line feeds and control characters", |scene| {
        scene.renamed(|random| {
            let parts = [
                "\n", "\r", "\x1b[2J", "\x07", "\t", "\u{202e}", "\"", "\\", "'", "`", "$(x)", "*",
                "\u{85}",
            ];
            (0..12).flat_map(|_| pick(random, &parts).bytes()).collect()
        })
    }),
    kind("name of 255 bytes", |scene| scene.renamed(|random| vec![random.lowercase() as u8; 249])),
    kind("many names of one file", |scene| {
        fs::write(&scene.path, "{\"linked\":1}\n")?;
        for _ in 0..50 {
            let name = scene.path.with_file_name(format!("{}.jsonl", scene.random.u64(..)));
            fs::hard_link(&scene.path, name)?;
        }
        Ok(())
    }),
    kind("one kind after the other", |scene| {
        for _ in 0..100 {
            remove(&scene.path);
            match scene.random.u8(..5) {
                0 => fs::write(&scene.path, "{\"kind\":1}\n")?,
                1 => fs::create_dir(&scene.path)?,
                2 => rustix::fs::mknodat(CWD, &scene.path, FileType::Fifo, Mode::RWXU, 0)?,
                3 => symlink("/dev/zero", &scene.path)?,
                _ => {}
            }
        }
        Ok(())
    }),
    kind("file that grows and shrinks", |scene| {
        let file = File::create(&scene.path)?;
        for _ in 0..200 {
            file.set_len(scene.random.u64(..1 << 20))?;
        }
        Ok(())
    }),
    kind("file that another process has locked", |scene| {
        fs::write(&scene.path, "{\"locked\":1}\n")?;
        let file = File::open(&scene.path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        scene.open.push(file);
        Ok(())
    }),
];

impl Scene<'_> {
    /// Creates a file with another name beside the path.
    fn renamed(&mut self, name: fn(&mut Rng) -> Vec<u8>) -> io::Result<()> {
        let name = [name(self.random), b".jsonl".to_vec()].concat();
        self.path.set_file_name(OsString::from_vec(name));
        fs::write(&self.path, "{\"name\":1}\n")
    }
}

fn sparse(path: &Path, end: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_len(SPARSE)?;
    io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    io::Write::write_all(&mut file, end)
}

fn pick<'a, T>(random: &mut Rng, from: &'a [T]) -> &'a T {
    &from[random.usize(..from.len())]
}

fn random_bytes(random: &mut Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.u8(..)).collect()
}
