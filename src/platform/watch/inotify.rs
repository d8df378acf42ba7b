//! inotify: each directory by itself, and of it no more than what may bring new bytes. Telling of
//! every file that is opened, our own looks among them, would cost more than the looks.

use std::{
    collections::HashMap,
    ffi::OsStr,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};

use super::{Told, WatchError};

pub(super) struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inotify: OwnedFd,
    /// Readable when it is the end.
    stop: OwnedFd,
    /// The directories by their watches' numbers, which are never used again.
    directories: Mutex<HashMap<i32, Box<Path>>>,
}

impl Watcher {
    pub(super) fn new(mut tell: impl FnMut(Told) + Send + 'static) -> Result<Self, WatchError> {
        let shared = Arc::new(Shared {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
                .map_err(failure)?,
            stop: eventfd(0, EventfdFlags::CLOEXEC).map_err(failure)?,
            directories: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("watcher".to_owned()).spawn(move || {
            if let Err(error) = theirs.run(&mut tell) {
                tell(Told::Failed(failure(error)));
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "other systems do this")]
    pub(super) fn watch_roots(&mut self, _roots: &[&Path]) -> Result<(), WatchError> {
        Ok(())
    }

    pub(super) fn watch(&self, directory: &Path) -> Result<(), WatchError> {
        let what = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        // Held over both, or the directory could be told of before it is known.
        let mut directories = self.shared.directories();
        match inotify::add_watch(&self.shared.inotify, directory, what) {
            Ok(number) => {
                // A directory that was moved keeps its number.
                if directories.get(&number).is_none_or(|known| **known != *directory) {
                    directories.insert(number, directory.into());
                }
                Ok(())
            }
            Err(Errno::NOSPC) => Err(WatchError::Limit),
            Err(Errno::NOMEM) => Err(failure(Errno::NOMEM)),
            // It is gone, or not for us to read: then it can't be listed either.
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let told = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take().filter(|_| told.is_ok()) {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn directories(&self) -> MutexGuard<'_, HashMap<i32, Box<Path>>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, tell: &mut dyn FnMut(Told)) -> Result<(), Errno> {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        loop {
            let mut ready =
                [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            if !ready[1].revents().is_empty() {
                return Ok(());
            }
            let mut events = Reader::new(&self.inotify, &mut buffer);
            loop {
                match events.next() {
                    Ok(event) => {
                        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                        self.pass_on(event.wd(), event.events(), name, tell);
                    }
                    Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    fn pass_on(
        &self,
        number: i32,
        what: ReadFlags,
        name: Option<&OsStr>,
        tell: &mut dyn FnMut(Told),
    ) {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return tell(Told::Lost);
        }
        let mut directories = self.directories();
        if what.contains(ReadFlags::IGNORED) {
            directories.remove(&number);
            return;
        }
        let Some(directory) = directories.get(&number) else { return };
        let path = name.map_or_else(|| directory.to_path_buf(), |name| directory.join(name));
        if what.contains(ReadFlags::MOVED_FROM | ReadFlags::ISDIR) {
            self.unwatch(&mut directories, &path);
        }
        drop(directories);
        tell(Told::Changed { path, is_metadata: what.contains(ReadFlags::ATTRIB) });
    }

    /// Lets go of a directory that was moved away, and all below it. Where it is by now, it is
    /// watched again under that name; what already is, is kept.
    fn unwatch(&self, directories: &mut HashMap<i32, Box<Path>>, moved: &PathBuf) {
        directories.retain(|number, directory| {
            let is_kept = !directory.starts_with(moved);
            if !is_kept {
                // It fails when the directory is gone, and then there is nothing to do.
                let _gone = inotify::remove_watch(&self.inotify, *number);
            }
            is_kept
        });
    }
}

fn failure(error: Errno) -> WatchError {
    WatchError::from(std::io::Error::from(error))
}
