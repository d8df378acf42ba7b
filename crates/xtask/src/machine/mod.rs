//! A copy of this system with a systemd of its own, for tests that would change the system.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Failure, sh};

/// Time for systemd to start, and for each command inside to end.
const LIMIT: Duration = Duration::from_secs(60);
/// Time between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(50);
/// Name of the control groups that `boot.sh` makes, which its process id follows.
const GROUP: &str = "packages-test";
/// Files that a machine needs, and the packages of Debian that contain them.
const NEEDED: [(&str, &str); 3] = [
    ("/lib/systemd/systemd-logind", "systemd"),
    ("/lib/systemd/system/dbus.socket", "dbus"),
    ("/usr/lib/systemd/user/dbus.socket", "dbus-user-session"),
];

/// Running copy of this system. Dropping it ends all of its processes and discards its changes.
pub(crate) struct Machine {
    namespaces: Child,
    /// Its first process, as seen from outside.
    systemd: String,
    /// Messages of `boot.sh`.
    log: PathBuf,
}

/// Returns why a machine cannot be booted here, after an attempt to install what it needs.
pub(crate) fn lacking() -> Option<&'static str> {
    if !cfg!(target_os = "linux") {
        return Some("systemd exists on Linux only");
    }
    if !sh::is_root() {
        return Some("only root can boot a copy of this system");
    }
    let mut overlay = Command::new("unshare");
    overlay.args(["--mount", "--pid", "--cgroup", "--net", "--fork", "sh", "-c"]);
    overlay.arg(
        "mount -t tmpfs m /media && mkdir /media/u /media/w && \
         mount -t overlay -o lowerdir=/,upperdir=/media/u,workdir=/media/w o /mnt",
    );
    if !sh::works(&mut overlay) {
        return Some("the system does not allow namespaces or overlays");
    }
    let missing = || -> Vec<_> {
        let missing = NEEDED.iter().filter(|(file, _)| !Path::new(file).is_file());
        missing.map(|(_, package)| *package).collect()
    };
    let packages = missing();
    if !packages.is_empty() {
        sh::apt_install(&packages);
    }
    if missing().is_empty() {
        None
    } else {
        Some("systemd, dbus or the dbus of users is not installed")
    }
}

impl Machine {
    /// Boots a copy that sees `shared` as `/media`, and uses `folder` to mount it on.
    pub(crate) fn boot(folder: &Path, shared: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(folder)?;
        let script = folder.with_extension("sh");
        fs::write(&script, include_str!("boot.sh"))?;
        // If this process is killed, all of the machine ends too.
        let mut boot = Command::new("setpriv");
        boot.args(["--pdeathsig", "KILL", "sh"]);
        let log = folder.with_extension("log");
        boot.arg(script).arg(folder).arg(shared).stdin(Stdio::null()).stderr(File::create(&log)?);
        let mut machine = Self { namespaces: boot.spawn()?, systemd: String::new(), log };
        wait("the first process", || machine.find_systemd())?;
        wait("the start of systemd", || {
            let state = machine.output(&["systemctl", "is-system-running"]).unwrap_or_default();
            // The exit code tells `running` from `degraded`, which is as good here.
            Ok(state == "running"
                || machine.works(&["systemctl", "is-active", "packages-test.target"]))
        })?;
        Ok(machine)
    }

    fn find_systemd(&mut self) -> Result<bool, Failure> {
        if let Some(status) = self.namespaces.try_wait()? {
            let log = fs::read_to_string(&self.log)?;
            return Err(format!("cannot boot a copy of this system: {status}: {log}").into());
        }
        let id = self.namespaces.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        children.trim().clone_into(&mut self.systemd);
        let name = fs::read_to_string(format!("/proc/{}/comm", self.systemd)).unwrap_or_default();
        Ok(name.trim() == "systemd")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg(LIMIT.as_secs().to_string());
        command.args(["nsenter", "--target", &self.systemd, "--mount", "--pid", "--net", "--ipc"]);
        command.args(["--uts", "--cgroup", "env", "-i", "LC_ALL=C.UTF-8"]);
        command.arg("PATH=/usr/sbin:/usr/bin:/sbin:/bin").args(arguments);
        command
    }

    /// Runs a command inside; its output goes to the terminal.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<(), Failure> {
        println!("   {}", arguments.join(" "));
        sh::succeed(&mut self.command(arguments))
    }

    /// Reports whether a command inside succeeds. Its output is discarded.
    pub(crate) fn works(&self, arguments: &[&str]) -> bool {
        sh::works(&mut self.command(arguments))
    }

    /// Returns what a command inside prints, without the last newline.
    pub(crate) fn output(&self, arguments: &[&str]) -> Result<String, Failure> {
        let output = self.command(arguments).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`{}`: {}", arguments.join(" "), errors.trim()).into());
        }
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// Writes a file inside, which belongs to `owner`.
    pub(crate) fn write(&self, path: &str, owner: &str, text: &str) -> Result<(), Failure> {
        let outside = self.path(path);
        if let Some(folder) = Path::new(path).parent().and_then(Path::to_str) {
            sh::succeed(&mut self.command(&["install", "-d", "-o", owner, folder]))?;
        }
        fs::write(outside, text)?;
        sh::succeed(&mut self.command(&["chown", owner, path]))
    }

    /// Returns the path of a file inside, as seen from outside. Absolute links lead outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.systemd))
    }

    /// Waits until a condition holds; fails with `what` after a minute.
    pub(crate) fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
        wait(what, || Ok(holds()))
    }
}

/// Waits until a condition holds.
fn wait(what: &str, mut holds: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    let deadline = Instant::now() + LIMIT;
    while !holds()? {
        if Instant::now() > deadline {
            return Err(format!("waited in vain for {what}").into());
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The end of its first process ends all others. systemd would ignore most other signals.
        let killed = !self.systemd.is_empty()
            && sh::works(Command::new("kill").args(["-KILL", &self.systemd]));
        if !killed {
            drop(self.namespaces.kill());
        }
        drop(self.namespaces.wait());
        for group in groups(self.namespaces.id()) {
            remove_group(&group);
        }
    }
}

/// Returns the control groups that `boot.sh` has made, as the process `boot`.
fn groups(boot: u32) -> Vec<PathBuf> {
    let name = format!("{GROUP}-{boot}");
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup").then(|| Path::new(place).join(&name))
    });
    places.filter(|place| place.is_dir()).collect()
}

/// Removes a control group with the groups below it, which have no processes any more.
fn remove_group(group: &Path) {
    let Ok(entries) = fs::read_dir(group) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir())) {
        remove_group(&entry.path());
    }
    // The kernel reports processes of a group for a moment after their end.
    for _ in 0..20 {
        if fs::remove_dir(group).is_ok() {
            return;
        }
        thread::sleep(PAUSE);
    }
}
