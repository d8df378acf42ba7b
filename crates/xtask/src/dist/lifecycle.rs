//! Life of the packages in a running system: installed, upgraded while their services run, removed, purged.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Dist,
    package::{self, Compression},
    receiver,
};
use crate::{
    Failure,
    machine::{self, Machine},
    sh,
};

/// Version of the packages to upgrade to: higher than any release.
const HIGHER: &str = "9999.0.0";
/// A user whose agent is that of the package.
const USER: &str = "dev-packaged";
/// A user who has installed an agent below the home directory, by `ai-agent install`.
const OTHER_USER: &str = "dev-own";
const AGENT: &str = "ai-agent.service";
const RECEIVER: &str = "siem-server.service";
/// File that the agents of the test deliver to, below the home directory.
const DELIVERED: &str = "delivered.ndjson";

/// Format of packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Deb,
    Rpm,
}

impl Format {
    fn install(self, machine: &Machine, file: &str) -> Result<(), Failure> {
        match self {
            Self::Deb => machine.run(&["dpkg", "--install", file]),
            // The database of the machine has no other packages.
            Self::Rpm => machine.run(&["rpm", "--upgrade", "--nodeps", "--replacefiles", file]),
        }
    }

    fn remove(self, machine: &Machine, name: &str) -> Result<(), Failure> {
        match self {
            Self::Deb => machine.run(&["dpkg", "--remove", name]),
            Self::Rpm => machine.run(&["rpm", "--erase", name]),
        }
    }

    /// Removes what a removal keeps; an `.rpm` keeps nothing.
    fn purge(self, machine: &Machine, name: &str) -> Result<(), Failure> {
        match self {
            Self::Deb => machine.run(&["dpkg", "--purge", name]),
            Self::Rpm => self.remove(machine, name),
        }
    }

    fn knows(self, machine: &Machine, name: &str) -> bool {
        match self {
            Self::Deb => machine.works(&["dpkg", "--status", name]),
            Self::Rpm => machine.works(&["rpm", "--query", name]),
        }
    }

    fn is_installable(self) -> bool {
        match self {
            Self::Deb => sh::has_program("dpkg") && sh::has_program("dpkg-deb"),
            Self::Rpm => sh::has_program("rpm") && sh::has_program("rpmbuild"),
        }
    }
}

/// Trees of the packages, and the version to upgrade from.
pub(super) struct Trees<'a> {
    pub(super) agent: &'a Path,
    pub(super) receiver: &'a Path,
    pub(super) version: &'a str,
    /// Folder for files of this check.
    pub(super) parts: &'a Path,
}

impl Trees<'_> {
    /// Runs the checks of the formats whose tools are there, and returns these formats.
    pub(super) fn check(&self, formats: &[Format]) -> Result<Vec<Format>, Failure> {
        let formats: Vec<_> = formats.iter().copied().filter(|it| it.is_installable()).collect();
        let packages = self.parts.join("lifecycle");
        if packages.try_exists()? {
            fs::remove_dir_all(&packages)?;
        }
        fs::create_dir_all(&packages)?;
        fs::copy(self.agent.join("usr/bin/ai-agent"), packages.join("ai-agent"))?;
        for format in &formats {
            self.make_packages(*format, &packages)?;
        }
        let machine = Machine::boot(&self.parts.join("machine"), &packages)?;
        let checked = check_on(&machine, &formats);
        if checked.is_err() {
            drop(machine.run(&["journalctl", "--no-pager", "--lines=60"]));
        }
        drop(machine);
        checked?;
        fs::remove_dir_all(packages)?;
        Ok(formats)
    }

    /// Makes the packages `ai-agent-old`, `ai-agent-new` and those of the receiver.
    fn make_packages(&self, format: Format, to: &Path) -> Result<(), Failure> {
        let packages = [(&package::AGENT, self.agent), (&package::RECEIVER, self.receiver)];
        for (age, version) in [("old", self.version), ("new", HIGHER)] {
            for (package, tree) in packages {
                let tree = if age == "new" { self.newer(package.name, tree)? } else { tree.into() };
                let name = to.join(format!("{}-{age}", package.name));
                match format {
                    Format::Deb => {
                        let file = name.with_extension("deb");
                        package::deb(
                            package,
                            &tree,
                            self.parts,
                            version,
                            Compression::None,
                            &file,
                        )?;
                    }
                    Format::Rpm if package.name == package::AGENT.name => {
                        let file = package::rpm(&tree, self.parts, version, Compression::None)?;
                        fs::copy(file, name.with_extension("rpm"))?;
                    }
                    Format::Rpm => {}
                }
            }
        }
        Ok(())
    }

    /// Copies a tree, with a program of other bytes that does the same, and without the copyright.
    fn newer(&self, name: &str, tree: &Path) -> Result<PathBuf, Failure> {
        let newer = self.parts.join(format!("{name}-newer"));
        if newer.try_exists()? {
            fs::remove_dir_all(&newer)?;
        }
        sh::succeed(Command::new("cp").arg("-a").arg(tree).arg(&newer))?;
        let program = newer.join("usr/bin").join(name);
        fs::OpenOptions::new().append(true).open(program)?.write_all(b"newer")?;
        fs::remove_file(newer.join("usr/share/doc").join(name).join("copyright"))?;
        Ok(newer)
    }
}

fn check_on(machine: &Machine, formats: &[Format]) -> Result<(), Failure> {
    for user in [USER, OTHER_USER] {
        log_in(machine, user)?;
    }
    install_own(machine)?;
    for format in formats {
        agent(machine, *format).map_err(|error| format!("{format:?} of the agent: {error}"))?;
    }
    if formats.contains(&Format::Deb) {
        receiver(machine).map_err(|error| format!("Deb of the receiver: {error}"))?;
    }
    Ok(())
}

/// Makes a user whose services run without a login.
fn log_in(machine: &Machine, user: &str) -> Result<(), Failure> {
    machine.run(&["useradd", "--create-home", "--shell", "/bin/sh", user])?;
    machine.run(&["loginctl", "enable-linger", user])?;
    let id = machine.output(&["id", "-u", user])?;
    machine.run(&["systemctl", "start", &format!("user@{id}.service")])?;
    let configuration = format!(
        "pipeline.sinks = [\"file\"]\nshipping.flush_interval = \"1s\"\n\
         [sink.file]\ntype = \"file\"\npath = \"/home/{user}/{DELIVERED}\"\n"
    );
    // Each directory belongs to the user.
    for folder in [".config", ".claude", ".claude/projects"] {
        machine.run(&["install", "-d", "-o", user, &format!("/home/{user}/{folder}")])?;
    }
    machine.write(&format!("/home/{user}/.config/ai-agent/config.toml"), user, &configuration)
}

/// A unit, in the system or in the manager of a user.
struct Service<'a> {
    machine: &'a Machine,
    user: Option<&'a str>,
    unit: &'a str,
}

impl Service<'_> {
    fn command(&self, verb: &str, rest: &[&str]) -> Vec<String> {
        let manager = self.user.map(|user| format!("--machine={user}@"));
        let scope = if manager.is_some() { "--user" } else { "--system" };
        let parts = ["systemctl", scope].into_iter().chain(manager.as_deref()).chain([verb]);
        parts.chain(rest.iter().copied()).chain([self.unit]).map(str::to_owned).collect()
    }

    fn run(&self, verb: &str) -> Result<(), Failure> {
        let command = self.command(verb, &[]);
        self.machine.run(&command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn show(&self, property: &str) -> Result<String, Failure> {
        let command = self.command("show", &["--value", &format!("--property={property}")]);
        self.machine.output(&command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn is(&self, state: &str) -> bool {
        self.show("ActiveState").is_ok_and(|found| found == state)
    }

    /// Returns its process; 0 if there is none.
    fn process(&self) -> Result<u32, Failure> {
        Ok(self.show("MainPID")?.parse()?)
    }

    /// Waits until the service runs the program at `path`, in another process than before.
    fn wait_for_program(&self, path: &str, before: u32) -> Result<(), Failure> {
        let runs = || {
            let process = self.process()?;
            let exe = self.machine.output(&["readlink", &format!("/proc/{process}/exe")])?;
            // After a file was replaced, its name ends with ` (deleted)`.
            Ok::<_, Failure>(process != before && exe == path && self.is("active"))
        };
        self.machine.wait(&format!("`{path}` in `{}`", self.unit), || runs().unwrap_or(false))
    }
}

fn ensure(holds: bool, what: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// Installs the agent, upgrades it while it runs, removes it, and installs and purges it again.
fn agent(machine: &Machine, format: Format) -> Result<(), Failure> {
    let extension = if format == Format::Deb { "deb" } else { "rpm" };
    let file = |age| format!("/media/ai-agent-{age}.{extension}");
    let service = Service { machine, user: Some(USER), unit: AGENT };
    let other = Service { machine, user: Some(OTHER_USER), unit: AGENT };
    let program = "/usr/bin/ai-agent";
    let enabled = "/etc/systemd/user/default.target.wants/ai-agent.service";

    format.install(machine, &file("old"))?;
    ensure(service.is("inactive"), "the package started an agent")?;
    ensure(!machine.works(&["test", "-L", enabled]), "the package enabled the agent")?;
    machine.write("/etc/ai-agent/token", "root", "of the administrator\n")?;
    machine.run(&["systemctl", "--global", "enable", AGENT])?;
    service.run("start")?;
    let records = Records::new(machine, &format!("{format:?}"))?;
    records.deliver("installed")?;

    let (before, others) = (service.process()?, other.process()?);
    format.install(machine, &file("new"))?;
    service.wait_for_program(program, before)?;
    ensure(other.process()? == others, "the upgrade restarted an agent of another program")?;
    records.deliver("upgraded")?;

    format.remove(machine, "ai-agent")?;
    ensure(service.show("LoadState")? == "not-found", "the unit is still loaded")?;
    ensure(service.process()? == 0, "the removal left the agent running")?;
    ensure(!machine.works(&["pgrep", "-u", USER, "ai-agent"]), "the agent still runs")?;
    ensure(!machine.works(&["test", "-L", enabled]), "the removal left the agent enabled")?;
    ensure(!machine.works(&["test", "-e", program]), "the removal left the program")?;
    ensure(other.process()? == others, "the removal stopped an agent of another program")?;
    records.append("removed")?;

    format.install(machine, &file("old"))?;
    service.run("start")?;
    records.wait_for("removed")?;
    format.purge(machine, "ai-agent")?;
    ensure(service.process()? == 0, "the purge left the agent running")?;
    ensure(!format.knows(machine, "ai-agent"), "the package is still known")?;
    ensure(machine.works(&["test", "-e", "/etc/ai-agent/token"]), "a file of others was removed")?;
    let state = format!("/home/{USER}/.local/state/ai-agent");
    ensure(machine.works(&["test", "-d", &state]), "the state was removed")?;
    ensure(other.process()? == others, "the purge stopped an agent of another program")?;
    let left =
        machine.output(&["find", "/usr", "-name", "*ai-agent*", "-newer", "/etc/machine-id"])?;
    ensure(left.is_empty(), &format!("left behind: {left}"))
}

/// Installs an agent below a home directory as its user would, before the machine has a package.
fn install_own(machine: &Machine) -> Result<(), Failure> {
    let id = machine.output(&["id", "-u", OTHER_USER])?;
    let home = format!("HOME=/home/{OTHER_USER}");
    let runtime = format!("XDG_RUNTIME_DIR=/run/user/{id}");
    let user = ["runuser", "-u", OTHER_USER, "--", "env", &home, &runtime];
    machine.run(&[&user[..], &["/media/ai-agent", "install"]].concat())
}

/// Records in a session file of [`USER`], which must arrive once each.
struct Records<'a> {
    machine: &'a Machine,
    session: String,
}

impl<'a> Records<'a> {
    fn new(machine: &'a Machine, session: &str) -> Result<Self, Failure> {
        let records = Self { machine, session: session.to_owned() };
        let folder = format!("/home/{USER}/.claude/projects/p");
        machine.run(&["install", "-d", "-o", USER, &folder])?;
        Ok(records)
    }

    fn append(&self, name: &str) -> Result<(), Failure> {
        let session = &self.session;
        let line = format!(
            "{{\"type\":\"user\",\"uuid\":\"{session}-{name}\",\"sessionId\":\"{session}\",\
             \"message\":{{\"role\":\"user\",\"content\":\"{name}\"}}}}\n"
        );
        let path = format!("/home/{USER}/.claude/projects/p/{session}.jsonl");
        let file = self.machine.path(&path);
        fs::OpenOptions::new().append(true).create(true).open(file)?.write_all(line.as_bytes())?;
        self.machine.run(&["chown", USER, &path])
    }

    fn deliver(&self, name: &str) -> Result<(), Failure> {
        self.append(name)?;
        self.wait_for(name)
    }

    /// Waits for a record, and checks that none of the session's arrived twice.
    fn wait_for(&self, name: &str) -> Result<(), Failure> {
        let file = self.machine.path(&format!("/home/{USER}/{DELIVERED}"));
        let delivered = || fs::read_to_string(&file).unwrap_or_default();
        let id = format!("{}-{name}", self.session);
        self.machine.wait(&format!("the record `{id}`"), || delivered().contains(&id))?;
        let prefix = format!("\"uuid\":\"{}-", self.session);
        let all = delivered();
        let mut ids: Vec<_> =
            all.split(&prefix).skip(1).map(|rest| rest.split('"').next()).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        ensure(ids.len() == count, "a record was delivered twice")
    }
}

/// Installs the receiver, upgrades it while it runs, removes and purges it.
fn receiver(machine: &Machine) -> Result<(), Failure> {
    let format = Format::Deb;
    let service = Service { machine, user: None, unit: RECEIVER };
    let program = "/usr/bin/siem-server";
    format.install(machine, "/media/siem-server-old.deb")?;
    ensure(machine.works(&["id", "siem-server"]), "the package has not made its user")?;
    ensure(service.is("inactive"), "the package started the receiver")?;
    for secret in ["token", "hmac-secret"] {
        let path = format!("/etc/siem-server/{secret}");
        machine.write(&path, "root", "0123456789abcdef0123456789abcdef\n")?;
        machine.run(&["chmod", "600", &path])?;
    }
    let example = "/usr/share/doc/siem-server/examples/config.toml";
    machine.run(&["cp", example, "/etc/siem-server/config.toml"])?;
    machine.run(&["systemctl", "enable", "--now", RECEIVER])?;

    let before = service.process()?;
    format.install(machine, "/media/siem-server-new.deb")?;
    service.wait_for_program(program, before)?;

    format.remove(machine, "siem-server")?;
    ensure(service.process()? == 0, "the removal left the receiver running")?;
    ensure(
        !machine.works(&["systemctl", "is-enabled", RECEIVER]),
        "the receiver is still enabled",
    )?;
    format.purge(machine, "siem-server")?;
    ensure(!machine.works(&["test", "-e", program]), "the removal left the program")?;
    for kept in ["/var/lib/siem-server", "/etc/siem-server/token"] {
        ensure(machine.works(&["test", "-e", kept]), &format!("the purge removed `{kept}`"))?;
    }
    Ok(())
}

/// Checks packages of the release programs, where a systemd can be booted.
pub(super) fn check_release(dist: &mut Dist) -> Result<(), Failure> {
    println!("── packages in a running system");
    if let Some(why) = machine::lacking() {
        dist.skip("packages in a running system", why);
        return Ok(());
    }
    let (agent, receiver) = (dist.parts.join("tree"), dist.parts.join("receiver"));
    let (version, parts) = (&dist.version, &dist.parts);
    let trees = Trees { agent: &agent, receiver: &receiver, version, parts };
    trees.check(&[Format::Deb, Format::Rpm])?;
    Ok(())
}

/// Checks the packages with the programs of a debug build that is there already: the fast part of the check.
pub(crate) fn check_debug_build(formats: &[Format]) -> Result<Vec<Format>, Failure> {
    let target = sh::target_directory()?;
    let parts = target.join("packages-test");
    if parts.try_exists()? {
        fs::remove_dir_all(&parts)?;
    }
    fs::create_dir_all(&parts)?;
    let program = |name: &str| -> Result<PathBuf, Failure> {
        let stripped = parts.join(name);
        // A tenth of the size is left to copy.
        let program = target.join("debug").join(name);
        sh::succeed(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
        Ok(stripped)
    };
    let (agent_program, receiver_program) = (program("ai-agent")?, program("siem-server")?);
    let manual = parts.join("manual");
    super::manual::write(&manual, || Command::new(&agent_program))?;
    let (agent, receiver) = (parts.join("agent"), parts.join("receiver"));
    super::linux::lay_out(&agent, &agent_program, &manual)?;
    receiver::lay_out(&receiver, &receiver_program)?;
    let version = super::version()?;
    let trees = Trees { agent: &agent, receiver: &receiver, version: &version, parts: &parts };
    let checked = trees.check(formats)?;
    fs::remove_dir_all(parts)?;
    Ok(checked)
}
