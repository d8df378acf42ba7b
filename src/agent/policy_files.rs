//! Files that hooks and the next start of the agent rely on, and the watch over them: the policy, the
//! managed configuration, and the pointer to the state directory.
//!
//! They belong to the user, who can change them. A change by another program is undone and reported.
//! What the agent wrote is remembered in the outbox, so that a change while no agent runs is found
//! too. A file is written between two such memos, the first of which has both contents: an agent that
//! is killed in between has not tampered with its own file.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use siem_protocol::{
    AgentEvent, Digest,
    agent_event::{PolicyFile, PolicyTampering},
};
use tracing::warn;

use crate::{
    compliance::policy_file::StoredPolicy,
    event::Event,
    pipeline::outbox::Outbox,
    platform::{
        LockRole, Paths, Sandbox, StateLock,
        file::{self, FileKind, Stamp},
        secure_file,
    },
    siem::SignedConfig,
};

/// Name of the memo in the outbox.
const MEMO: &str = "policy-files";
/// Maximum number of bytes that are read of a file.
const MOST: u64 = 64 << 20;

/// Digests that each file may have: that of the last content, and of one that is being written.
type Memo = BTreeMap<String, Vec<Digest>>;

/// The files, and the watch over them.
pub(super) struct PolicyFiles {
    files: [WatchedFile; 3],
    /// `None` until a pipeline runs; until then nothing is written.
    outbox: Option<Arc<Outbox>>,
}

struct WatchedFile {
    file: PolicyFile,
    path: PathBuf,
    /// Content that the agent has put there; `None` if it has not.
    expected: Option<Vec<u8>>,
    /// Content that could not be written, which is tried again.
    unwritten: Option<Vec<u8>>,
    /// Stamp of the file with that content; `None` if it has to be compared.
    stamp: Option<Stamp>,
    /// State of the file when this process started, until it is compared with the memo.
    at_start: Option<Result<Digest, Difference>>,
    /// Change that could not be undone, which is reported once.
    reported: Option<Difference>,
    /// What the process may write.
    sandbox: Sandbox,
}

/// Difference between a file and what the agent wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Difference {
    tampering: PolicyTampering,
    /// Digest of the content found; `None` if there is none to read.
    found: Option<Digest>,
}

impl PolicyFiles {
    /// Takes note of the files as they are, before anything is written.
    pub(super) fn new(state_dir: &Path, paths: &Paths, sandbox: &Sandbox) -> Self {
        let watched = |file, path: PathBuf| {
            let at_start = read(&path).map(|(bytes, _)| Digest::of(&bytes));
            let at_start = Some(at_start);
            WatchedFile {
                file,
                path,
                expected: None,
                unwritten: None,
                stamp: None,
                at_start,
                reported: None,
                sandbox: sandbox.clone(),
            }
        };
        let files = [
            watched(PolicyFile::Policy, StoredPolicy::path(state_dir)),
            watched(PolicyFile::Managed, SignedConfig::path(state_dir)),
            watched(PolicyFile::Pointer, paths.pointer.clone()),
        ];
        Self { files, outbox: None }
    }

    /// Uses the outbox of a pipeline that is about to run: compares the files with what the previous
    /// agent wrote, and writes those that were given before. Returns the events to report.
    pub(super) fn attach(&mut self, outbox: &Arc<Outbox>) -> Vec<Event> {
        let memo: Option<Memo> = outbox.memo(MEMO).unwrap_or_else(|error| {
            warn!(code = "policy_memo_failed", %error, "cannot read what the previous agent wrote");
            None
        });
        let memo = memo.unwrap_or_default();
        let files = self.files.iter_mut();
        let events: Vec<_> = files.filter_map(|file| file.compare_with(&memo)).collect();
        self.outbox = Some(Arc::clone(outbox));
        let given = |watched: &mut WatchedFile| Some((watched.file, watched.expected.take()?));
        let given: Vec<_> = self.files.iter_mut().filter_map(given).collect();
        // From now on the changes count as known, so their events are stored with that.
        self.remember(None, &events);
        for (file, bytes) in given {
            if let Err(error) = self.write(file, bytes) {
                warn!(
                    code = "policy_file_write_failed",
                    %error,
                    ?file,
                    "cannot write a file of the policy"
                );
            }
        }
        events.into_iter().map(Event::from).collect()
    }

    /// Sets the content of a file, and writes it unless it is there. Before a pipeline runs it is
    /// only noted.
    ///
    /// # Errors
    /// The error of the system: the previous file is unchanged, and is not watched until
    /// [`inspect`](Self::inspect) has written it.
    pub(super) fn write(&mut self, file: PolicyFile, bytes: Vec<u8>) -> io::Result<()> {
        let is_attached = self.outbox.is_some();
        let watched = self.watched(file);
        if !is_attached {
            watched.expected = Some(bytes);
            return Ok(());
        }
        if let Ok((found, stamp)) = read(&watched.path)
            && found == bytes
        {
            (watched.expected, watched.stamp) = (Some(bytes), Some(stamp));
            watched.unwritten = None;
            return Ok(());
        }
        self.remember(Some((file, Digest::of(&bytes))), &[]);
        let watched = self.watched(file);
        (watched.expected, watched.stamp, watched.reported) = (None, None, None);
        if let Err(error) = watched.put(&bytes) {
            watched.unwritten = Some(bytes);
            return Err(error);
        }
        (watched.expected, watched.unwritten) = (Some(bytes), None);
        self.remember(None, &[]);
        Ok(())
    }

    /// Compares the files with what was written, and restores them; writes those that could not be
    /// written before. Returns the events to report.
    pub(super) fn inspect(&mut self) -> Vec<Event> {
        let unwritten = |watched: &mut WatchedFile| Some((watched.file, watched.unwritten.take()?));
        let unwritten: Vec<_> = self.files.iter_mut().filter_map(unwritten).collect();
        for (file, bytes) in unwritten {
            // The first failure was logged.
            drop(self.write(file, bytes));
        }
        self.files.iter_mut().filter_map(WatchedFile::inspect).collect()
    }

    fn watched(&mut self, file: PolicyFile) -> &mut WatchedFile {
        let watched = self.files.iter_mut().find(|watched| watched.file == file);
        watched.expect("every file is watched")
    }

    /// Stores the digests of the files in the outbox, with one that is about to be written, and events
    /// about changes that are found.
    fn remember(&self, next: Option<(PolicyFile, Digest)>, events: &[AgentEvent]) {
        let Some(outbox) = &self.outbox else { return };
        let memo: Memo = self.files.iter().map(|watched| watched.memo(next)).collect();
        let is_known = |stored: Option<Memo>| match stored {
            Some(stored) => stored == memo,
            // Nothing to remember yet: a first start does not wait for another sync.
            None => memo.values().all(Vec::is_empty),
        };
        if events.is_empty() && outbox.memo(MEMO).is_ok_and(is_known) {
            return;
        }
        if let Err(error) = outbox.set_memo_with_events(MEMO, &memo, events) {
            warn!(
                code = "policy_memo_failed",
                %error,
                "cannot remember the files of the policy: a change while no agent runs may be missed"
            );
        }
    }
}

impl WatchedFile {
    /// Name and digests in the memo.
    fn memo(&self, next: Option<(PolicyFile, Digest)>) -> (String, Vec<Digest>) {
        let current = match &self.expected {
            Some(expected) => Some(Digest::of(expected)),
            // Not a file of this agent: its state is reported once.
            None => read(&self.path).ok().map(|(bytes, _)| Digest::of(&bytes)),
        };
        let next = next.filter(|(file, _)| *file == self.file).map(|(_, digest)| digest);
        (name(self.file).to_owned(), current.into_iter().chain(next).collect())
    }

    /// Compares the state at the start of the process with what the previous agent wrote.
    fn compare_with(&mut self, memo: &Memo) -> Option<AgentEvent> {
        let at_start = self.at_start.take()?;
        let known = memo.get(name(self.file)).filter(|known| !known.is_empty())?;
        let difference = match at_start {
            Ok(found) if known.contains(&found) => return None,
            Ok(found) => Difference { tampering: PolicyTampering::Edited, found: Some(found) },
            Err(difference) => difference,
        };
        // The policy and the pointer are always written; the managed configuration if one is in force.
        let restored = self.file != PolicyFile::Managed || self.expected.is_some();
        Some(self.event(difference, *known.last()?, restored))
    }

    fn inspect(&mut self) -> Option<Event> {
        let expected = self.expected.as_ref()?;
        let info = file::inspect(&self.path).ok().filter(|info| info.kind == FileKind::File);
        if self.stamp.is_some() && info.map(|info| info.stamp) == self.stamp {
            return None;
        }
        let difference = match read(&self.path) {
            Ok((found, stamp)) if found == *expected => {
                (self.stamp, self.reported) = (Some(stamp), None);
                return None;
            }
            Ok((found, _)) => {
                let found = Some(Digest::of(&found));
                Difference { tampering: PolicyTampering::Edited, found }
            }
            Err(difference) => difference,
        };
        let wanted = Digest::of(expected);
        if self.is_of_another_agent() {
            // Two agents that restored their pointers in turn would never end. It is restored once the
            // other agent has ended.
            if self.reported.replace(difference) == Some(difference) {
                return None;
            }
            return Some(self.event(difference, wanted, false).into());
        }
        let restored = self.put(expected);
        if let Err(error) = &restored {
            if self.reported == Some(difference) {
                return None;
            }
            warn!(
                code = "policy_restore_failed",
                %error,
                path = %self.path.display(),
                "cannot restore a file of the policy"
            );
        }
        self.stamp = None;
        self.reported = restored.is_err().then_some(difference);
        Some(self.event(difference, wanted, restored.is_ok()).into())
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        put(&self.path, bytes).map_err(|error| match self.sandbox.remedy(&self.path, &error) {
            "" => error,
            remedy => io::Error::new(error.kind(), format!("{error}{remedy}")),
        })
    }

    fn event(&self, difference: Difference, expected: Digest, restored: bool) -> AgentEvent {
        let Difference { tampering, found } = difference;
        warn!(
            code = "policy_tampered",
            path = %self.path.display(),
            ?tampering,
            restored,
            "a file of the policy was changed by another program"
        );
        AgentEvent::PolicyTampered {
            path: self.path.to_string_lossy().into_owned(),
            file: self.file,
            tampering,
            expected_sha256: expected,
            found_sha256: found,
            restored,
        }
    }

    /// Returns true if the pointer leads to the state directory of another agent that runs for this
    /// user: the one that started last answers hooks.
    fn is_of_another_agent(&self) -> bool {
        if self.file != PolicyFile::Pointer {
            return false;
        }
        let Ok((found, _)) = read(&self.path) else { return false };
        let dir = PathBuf::from(file::path_from_bytes(found));
        let holder = dir.is_absolute().then(|| StateLock::current_holder(&dir).ok().flatten());
        holder.flatten().is_some_and(|holder| holder.role == LockRole::Agent)
    }
}

/// Reads a regular file of the user or of root.
fn read(path: &Path) -> Result<(Vec<u8>, Stamp), Difference> {
    let difference = |tampering| Difference { tampering, found: None };
    let (mut bytes, unreadable) = (Vec::new(), difference(PolicyTampering::Unreadable));
    let (file, stamp) = match file::open_regular(path) {
        Ok(Some(opened)) => opened,
        Ok(None) => return Err(difference(PolicyTampering::Replaced)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(difference(PolicyTampering::Deleted));
        }
        Err(_) => return Err(unreadable),
    };
    let is_ours = secure_file::has_trusted_owner(&file).map_err(|_| unreadable)?;
    file.take(MOST).read_to_end(&mut bytes).map_err(|_| unreadable)?;
    if !is_ours {
        let found = Some(Digest::of(&bytes));
        return Err(Difference { tampering: PolicyTampering::OtherOwner, found });
    }
    Ok((bytes, stamp))
}

/// Puts a file in place of whatever is there, but for a directory that is not empty.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        secure_file::create_dir(folder)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        fs::remove_dir(path)?;
    }
    secure_file::replace(path, bytes)
}

fn name(file: PolicyFile) -> &'static str {
    match file {
        PolicyFile::Policy => "policy",
        PolicyFile::Managed => "managed",
        PolicyFile::Pointer => "pointer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{Environment, Os};

    /// A state directory with an outbox, and the files of an agent.
    struct World {
        home: tempfile::TempDir,
        paths: Paths,
        outbox: Arc<Outbox>,
        files: PolicyFiles,
    }

    impl World {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let variable = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
            let environment: Environment = [(variable, home.path())].into_iter().collect();
            let paths = Paths::on(Os::CURRENT, &environment).unwrap();
            let state = home.path().join("state");
            fs::create_dir(&state).unwrap();
            let outbox = Outbox::open(&state.join("outbox.redb"), &[], || "epoch".into()).unwrap();
            let files = PolicyFiles::new(&state, &paths, &Sandbox::default());
            let mut world = Self { home, paths, outbox: Arc::new(outbox), files };
            assert_eq!(world.attach(), []);
            world
        }

        fn attach(&mut self) -> Vec<Event> {
            self.files.attach(&self.outbox)
        }

        fn state(&self) -> PathBuf {
            self.home.path().join("state")
        }

        fn path(&self, file: PolicyFile) -> PathBuf {
            self.files.files.iter().find(|it| it.file == file).unwrap().path.clone()
        }

        fn write(&mut self, file: PolicyFile, text: &str) {
            self.files.write(file, text.as_bytes().to_vec()).unwrap();
        }

        /// Starts another process on the same files.
        fn restart(&mut self) -> Vec<Event> {
            self.files = PolicyFiles::new(&self.state(), &self.paths, &Sandbox::default());
            self.attach()
        }
    }

    #[test]
    fn first_start_remembers_files_that_are_there_and_else_nothing() {
        let mut world = World::new();
        assert_eq!(world.outbox.memo::<Memo>(MEMO).unwrap(), None);
        fs::write(world.path(PolicyFile::Managed), "of another program").unwrap();
        assert_eq!(world.restart(), []);
        let memo: Memo = world.outbox.memo(MEMO).unwrap().unwrap();
        assert_eq!(memo["managed"], [Digest::of(b"of another program")]);
    }

    const ALL: [PolicyFile; 3] = [PolicyFile::Policy, PolicyFile::Managed, PolicyFile::Pointer];

    type Tampering<'a> = (&'static str, Box<dyn Fn() + 'a>);

    fn changes(path: &Path) -> Vec<Tampering<'_>> {
        #[cfg(unix)]
        let link = path.with_extension("elsewhere");
        vec![
            ("deleted", Box::new(move || fs::remove_file(path).unwrap())),
            ("edited", Box::new(move || fs::write(path, "other").unwrap())),
            ("edited", Box::new(move || fs::write(path, "text ").unwrap())),
            (
                "replaced",
                Box::new(move || {
                    fs::remove_file(path).unwrap();
                    fs::create_dir(path).unwrap();
                }),
            ),
            #[cfg(unix)]
            (
                "replaced",
                Box::new(move || {
                    fs::rename(path, &link).unwrap();
                    std::os::unix::fs::symlink(&link, path).unwrap();
                }),
            ),
        ]
    }

    #[test]
    fn change_by_another_program_is_undone_and_reported_once() {
        let mut world = World::new();
        for file in ALL {
            world.write(file, "text");
            let path = world.path(file);
            assert_eq!(world.files.inspect(), [], "the agent's own write");
            for (tampering, change) in changes(&path) {
                change();
                let events = world.files.inspect();
                assert_eq!(events.len(), 1, "{file:?} {tampering}");
                let event = &events[0];
                assert_eq!((event.name, event.severity), ("policy_tampered", "high"));
                assert_eq!(event.data["tampering"], tampering, "{file:?}");
                assert_eq!(event.data["file"], name(file));
                assert_eq!(event.data["restored"], true);
                assert_eq!(fs::read_to_string(&path).unwrap(), "text");
                assert!(fs::symlink_metadata(&path).unwrap().is_file());
                assert_eq!(world.files.inspect(), [], "it is as it was");
            }
        }
        assert_eq!(world.restart(), [], "everything was undone");
    }

    #[test]
    fn change_while_no_agent_runs_is_reported_at_the_start() {
        for file in ALL {
            let count = changes(Path::new("unused")).len();
            for at in 0..count {
                let mut world = World::new();
                world.write(file, "text");
                let path = world.path(file);
                let (tampering, change) = changes(&path).swap_remove(at);
                change();
                let events = world.restart();
                assert_eq!(events.len(), 1, "{file:?} {tampering}");
                assert_eq!(events[0].data["tampering"], tampering);
                let stored = world.outbox.unreported_events().len();
                assert_eq!(stored, 1, "a kill before the event is stored does not lose it");
                assert_eq!(events[0].data["restored"], file != PolicyFile::Managed);
                assert_eq!(world.restart(), [], "once");
            }
        }
    }

    #[test]
    fn change_that_cannot_be_undone_is_reported_once() {
        let mut world = World::new();
        world.write(PolicyFile::Policy, "text");
        let path = world.path(PolicyFile::Policy);
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("not empty")).unwrap();
        let events = world.files.inspect();
        assert_eq!((events.len(), &events[0].data["restored"]), (1, &false.into()));
        assert_eq!(world.files.inspect(), []);
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(world.files.inspect()[0].data["tampering"], "deleted");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }

    #[test]
    fn file_that_could_not_be_written_is_written_later() {
        let mut world = World::new();
        world.write(PolicyFile::Managed, "one");
        let path = world.path(PolicyFile::Managed);
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("not empty")).unwrap();
        world.files.write(PolicyFile::Managed, b"two".to_vec()).unwrap_err();
        assert_eq!(world.files.inspect(), []);
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(world.files.inspect(), [], "the agent's own write");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(world.restart(), []);
    }

    /// Killed after the memo, after the write, or after both: none of it is tampering.
    #[test]
    fn write_of_an_agent_that_is_killed_is_no_tampering() {
        let mut world = World::new();
        world.write(PolicyFile::Policy, "one");
        let path = world.path(PolicyFile::Policy);
        world.files.remember(Some((PolicyFile::Policy, Digest::of(b"two"))), &[]);
        assert_eq!(world.restart(), [], "killed before the write");
        world.write(PolicyFile::Policy, "one");
        world.files.remember(Some((PolicyFile::Policy, Digest::of(b"two"))), &[]);
        fs::write(&path, "two").unwrap();
        assert_eq!(world.restart(), [], "killed after the write");
        world.write(PolicyFile::Policy, "three");
        assert_eq!(world.restart(), []);
        // The content before is not accepted for ever.
        fs::write(&path, "one").unwrap();
        assert_eq!(world.restart().len(), 1);
    }

    #[test]
    fn file_given_before_the_pipeline_runs_is_written_when_it_does() {
        let mut world = World::new();
        world.files = PolicyFiles::new(&world.state(), &world.paths, &Sandbox::default());
        world.write(PolicyFile::Managed, "text");
        let path = world.path(PolicyFile::Managed);
        assert!(!fs::exists(&path).unwrap());
        assert_eq!(world.restart(), [], "killed before that");
        world.files = PolicyFiles::new(&world.state(), &world.paths, &Sandbox::default());
        world.write(PolicyFile::Managed, "text");
        assert_eq!(world.attach(), []);
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        assert_eq!(world.restart(), []);
        // A lost outbox has no memo, and its successor learns the files.
        fs::write(&path, "other").unwrap();
        let lost = world.state().join("outbox-2.redb");
        world.outbox = Arc::new(Outbox::open(&lost, &[], || "epoch-2".into()).unwrap());
        assert_eq!(world.restart(), []);
    }

    #[test]
    fn pointer_to_another_running_agent_is_left_alone() {
        let mut world = World::new();
        world.write(PolicyFile::Pointer, "text");
        let other = world.home.path().join("other");
        fs::create_dir(&other).unwrap();
        let path = world.path(PolicyFile::Pointer);
        fs::write(&path, file::path_to_bytes(&other)).unwrap();
        assert_eq!(world.files.inspect()[0].data["restored"], true, "no agent runs there");
        fs::write(&path, file::path_to_bytes(&other)).unwrap();
        let lock = StateLock::acquire(&other, LockRole::Agent).unwrap();
        assert_eq!(world.files.inspect()[0].data["restored"], false);
        assert_eq!(world.files.inspect(), []);
        assert_eq!(fs::read(&path).unwrap(), file::path_to_bytes(&other));
        // The watch goes on.
        fs::remove_file(&path).unwrap();
        assert_eq!(world.files.inspect()[0].data["tampering"], "deleted");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        fs::write(&path, file::path_to_bytes(&other)).unwrap();
        assert_eq!(world.files.inspect()[0].data["restored"], false);
        drop(lock);
        assert_eq!(world.files.inspect()[0].data["restored"], true, "the other agent has ended");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }
}
