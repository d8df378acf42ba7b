//! Restriction of what the process may write and execute: Landlock on Linux.
//!
//! A mistake in the agent, or in a library, then cannot change the user's files or start their programs.
//! Reading and the network are not restricted. <https://docs.kernel.org/userspace-api/landlock.html>

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::file::{self, FileId};

/// State of the restriction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxStatus {
    /// True if the process is restricted.
    pub active: bool,
    /// Version of Landlock's interface in the kernel; `None` if the kernel has none.
    pub abi: Option<i32>,
    /// Reason why the process is not restricted, or not entirely.
    pub reason: Option<String>,
}

/// Restriction of this process. The default is none.
#[derive(Clone, Debug, Default)]
pub struct Sandbox(Option<Arc<Applied>>);

#[derive(Debug)]
struct Applied {
    status: SandboxStatus,
    /// Directories and files that may be written. A rule is about a directory and not about its path: one
    /// that is deleted and created again stays forbidden. The kernel does not reuse the ids.
    writable: Vec<FileId>,
}

impl Sandbox {
    /// Restricts this thread, and those that it starts, to writing below `dirs` and to the directories
    /// of `files`, and to programs of the system and below `programs`. Paths that do not exist stay
    /// forbidden, even if they are created later, and so do directories that are replaced by others.
    ///
    /// Without Landlock nothing changes, and the status says why.
    #[must_use]
    pub fn apply(dirs: &[PathBuf], files: &[PathBuf], programs: &[PathBuf]) -> Self {
        let all = dirs.iter().cloned().chain(files.iter().map(|file| place_of(file)));
        let writable: Vec<PathBuf> = all.filter_map(|path| path.canonicalize().ok()).collect();
        let status = system::restrict(&writable, programs);
        let writable = writable.iter().filter_map(|path| id_of(path)).collect();
        Self(status.map(|status| Arc::new(Applied { status, writable })))
    }

    /// State of the restriction; `None` if this process does not use it, or on other systems.
    #[must_use]
    pub fn status(&self) -> Option<SandboxStatus> {
        self.0.as_ref().map(|applied| applied.status.clone())
    }

    /// Returns whether the file at `path` may be created and written.
    #[must_use]
    pub fn may_write(&self, path: &Path) -> bool {
        let Some(applied) = self.0.as_ref().filter(|applied| applied.status.active) else {
            return true;
        };
        let Ok(place) = place_of(path).canonicalize() else { return false };
        place.ancestors().filter_map(id_of).any(|id| applied.writable.contains(&id))
    }

    /// Returns the end of a message about an error of writing `path`: what to do if the restriction is the
    /// reason, or else nothing.
    #[must_use]
    pub fn remedy(&self, path: &Path, error: &io::Error) -> &'static str {
        match error.kind() == io::ErrorKind::PermissionDenied && !self.may_write(path) {
            true => {
                ": the agent may write only to directories that have existed since it started, restart \
                 needed (`ai-agent restart`)"
            }
            false => "",
        }
    }
}

fn id_of(path: &Path) -> Option<FileId> {
    file::inspect(path).ok()?.stamp.id
}

/// Restricts this thread, and those that it starts, to files that are open already, and to programs of
/// the system, where the system can do that.
pub fn forbid_all() {
    system::restrict(&[], &[]);
}

/// Tests whether the kernel would restrict a process, without restricting this one; `None` on other
/// systems.
#[must_use]
pub fn probe() -> Option<SandboxStatus> {
    // A thread can be restricted alone, and ends here.
    std::thread::spawn(|| system::restrict(&[], &[])).join().unwrap_or_default()
}

/// Returns the directory in which a file is written, or the file itself if it is a device.
fn place_of(file: &Path) -> PathBuf {
    let target = file.canonicalize();
    let target = target.as_deref().unwrap_or(file);
    let is_special = target.metadata().is_ok_and(|found| !found.is_file());
    if is_special { target.to_owned() } else { target.parent().unwrap_or(target).to_owned() }
}

#[cfg(target_os = "linux")]
mod system {
    use std::path::{Path, PathBuf};

    use landlock::{
        ABI, AccessFs, BitFlags, LandlockStatus, RestrictionStatus, Ruleset, RulesetAttr as _,
        RulesetCreatedAttr as _, RulesetError, RulesetStatus, make_bitflags, path_beneath_rules,
    };

    use super::SandboxStatus;

    /// Version whose rights to write are restricted. Later versions add none that count here.
    const RESTRICTED: ABI = ABI::V3;

    /// Directories with programs of the system, and the loaders that start them.
    const SYSTEM_PROGRAMS: [&str; 10] = [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib32",
        "/lib64",
        "/nix/store",
        "/gnu/store",
        "/app",
        "/snap",
    ];

    pub(super) fn restrict(writable: &[PathBuf], programs: &[PathBuf]) -> Option<SandboxStatus> {
        let status = match apply(writable, programs) {
            Ok(status) => status,
            Err(error) => {
                let reason = Some(error.to_string());
                return Some(SandboxStatus { reason, ..SandboxStatus::default() });
            }
        };
        let (abi, missing) = match status.landlock {
            LandlockStatus::Available { effective_abi, kernel_abi } => {
                (Some(kernel_abi.unwrap_or(effective_abi as i32)), None)
            }
            LandlockStatus::NotEnabled => (None, Some("Landlock is not enabled in the kernel")),
            LandlockStatus::NotImplemented => (None, Some("the kernel has no Landlock")),
        };
        let reason = match status.ruleset {
            RulesetStatus::FullyEnforced => None,
            RulesetStatus::PartiallyEnforced => {
                Some("the kernel is older than 6.2, so that files can be truncated")
            }
            RulesetStatus::NotEnforced => missing.or(Some("the kernel did not apply it")),
        };
        Some(SandboxStatus {
            active: status.ruleset != RulesetStatus::NotEnforced,
            abi,
            reason: reason.map(str::to_owned),
        })
    }

    fn apply(
        writable: &[PathBuf],
        programs: &[PathBuf],
    ) -> Result<RestrictionStatus, RulesetError> {
        let write = AccessFs::from_write(RESTRICTED);
        let unused: BitFlags<AccessFs> =
            make_bitflags!(AccessFs::{MakeChar | MakeBlock | MakeFifo | MakeSym});
        let system = SYSTEM_PROGRAMS.map(Path::new);
        let programs = system.into_iter().chain(programs.iter().map(PathBuf::as_path));
        Ruleset::default()
            .handle_access(write | AccessFs::Execute)?
            .create()?
            .add_rules(path_beneath_rules(writable, write & !unused))?
            // Programs are started with it as their input.
            .add_rules(path_beneath_rules(["/dev/null"], AccessFs::WriteFile))?
            .add_rules(path_beneath_rules(programs, AccessFs::Execute))?
            .restrict_self()
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::path::PathBuf;

    use super::SandboxStatus;

    pub(super) fn restrict(_: &[PathBuf], _: &[PathBuf]) -> Option<SandboxStatus> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{
        fs, io,
        os::unix::fs::{PermissionsExt as _, symlink},
        process::{Command, Stdio},
        sync::mpsc,
        thread,
    };

    use test_requires::requires;

    use super::*;

    #[requires(landlock)]
    #[test]
    fn restricted_thread_writes_and_starts_only_what_is_permitted() {
        let dir = tempfile::tempdir().unwrap();
        let [state, sinks, other] = ["state", "sinks", "other"].map(|name| dir.path().join(name));
        for dir in [&state, &sinks, &other] {
            fs::create_dir(dir).unwrap();
        }
        let program = |dir: &Path| {
            let path = dir.join("program");
            fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let (updated, planted) = (program(&sinks), program(&state));
        fs::write(other.join("file"), "precious").unwrap();
        symlink(&other, state.join("link")).unwrap();
        let denied = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        };
        let start = |program: &Path| {
            let mut command = Command::new(program);
            command.stdin(Stdio::null()).stdout(Stdio::null()).status().map(drop)
        };
        thread::scope(|scope| {
            let restricted = scope.spawn(|| {
                let file = sinks.join("out.ndjson");
                let [dirs, files, programs] = [&state, &file, &updated].map(std::slice::from_ref);
                let sandbox = Sandbox::apply(dirs, files, programs);
                let status = sandbox.status().unwrap();
                assert!(status.active && status.abi.is_some_and(|abi| abi > 0), "{status:?}");

                fs::write(state.join("a"), "1").unwrap();
                fs::rename(state.join("a"), state.join("b")).unwrap();
                fs::create_dir(state.join("logs")).unwrap();
                fs::write(&file, "1").unwrap();
                fs::write("/dev/null", "1").unwrap();
                denied(fs::write(other.join("new"), "1"));
                denied(fs::write(other.join("file"), "1"));
                denied(fs::write(state.join("link/file"), "1"));
                denied(fs::remove_file(other.join("file")));
                assert_eq!(fs::read(other.join("file")).unwrap(), b"precious");

                start(Path::new("/bin/sh")).unwrap();
                start(&updated).unwrap();
                denied(start(&planted));

                assert!(sandbox.may_write(&file) && sandbox.may_write(&state.join("x")));
                assert!(!sandbox.may_write(&other.join("out.ndjson")));
                assert!(!sandbox.may_write(&state.join("link/out.ndjson")));
                assert!(!sandbox.may_write(&dir.path().join("none/out.ndjson")));
            });
            restricted.join().unwrap();
        });
        fs::write(other.join("new"), "the other threads are not restricted").unwrap();
    }

    /// A message without a remedy, since the path is the same, left an administrator to guess.
    #[requires(landlock)]
    #[test]
    fn replaced_directory_is_forbidden_and_the_remedy_says_restart() {
        let dir = tempfile::tempdir().unwrap();
        let sinks = dir.path().join("sinks");
        fs::create_dir(&sinks).unwrap();
        let file = sinks.join("out.ndjson");
        let (written, is_written) = mpsc::channel();
        let (replaced, is_replaced) = mpsc::channel();
        thread::scope(|scope| {
            let file = &file;
            let restricted = scope.spawn(move || {
                let sandbox = Sandbox::apply(&[], std::slice::from_ref(file), &[]);
                fs::write(file, "1").unwrap();
                assert!(sandbox.may_write(file));
                written.send(()).unwrap();
                is_replaced.recv().unwrap();
                let error = fs::write(file, "1").unwrap_err();
                assert!(!sandbox.may_write(file));
                let remedy = sandbox.remedy(file, &error);
                assert!(remedy.contains("restart needed"), "{error}{remedy}");
                assert_eq!(sandbox.remedy(file, &io::ErrorKind::StorageFull.into()), "");
            });
            is_written.recv().unwrap();
            fs::remove_dir_all(&sinks).unwrap();
            fs::create_dir(&sinks).unwrap();
            replaced.send(()).unwrap();
            restricted.join().unwrap();
        });
    }

    #[test]
    fn process_without_restriction_may_write_everywhere() {
        let sandbox = Sandbox::default();
        assert_eq!(sandbox.status(), None);
        assert!(sandbox.may_write(Path::new("/none/out.ndjson")));
    }

    #[requires(landlock)]
    #[test]
    fn probe_restricts_nothing() {
        assert!(probe().unwrap().active);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "1").unwrap();
    }
}
