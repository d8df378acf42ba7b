//! Installs and probes the prerequisites of the tests of the real client, the service, auditd and
//! the servers of SIEMs.
//!
//! The tests themselves run in the step `tests`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Outcome, missing};
use crate::{Failure, sh, shared};

/// Installs the prerequisites of the tests of the real client.
pub(super) fn real_client() -> Outcome {
    if !cfg!(target_os = "linux") {
        return Outcome::Skipped("the client runs on Linux only".to_owned());
    }
    let client = match shared::find() {
        Err(reason) => return Outcome::Skipped(reason),
        Ok(shared) if !shared.join("realclient/run.sh").is_file() => {
            return Outcome::Skipped(format!("no realclient in `{}`", shared.display()));
        }
        Ok(shared) => shared.join("realclient"),
    };
    let needed = ["npm", "python3", "tmux", "strace"];
    let lacking = || needed.into_iter().filter(|name| !sh::has_program(name)).collect::<Vec<_>>();
    let before = lacking();
    if !before.is_empty() && sh::apt_install(&before) {
        println!("installed {}", before.join(", "));
    }
    match lacking().as_slice() {
        [] => {
            let (cache, is_cached) = client_cache();
            if !is_cached && !registry_answers() {
                return Outcome::Skipped(
                    "the npm registry, which provides the client, is unavailable".into(),
                );
            }
            let installed = if is_cached { Ok(()) } else { download_client(&client, &cache) };
            match installed {
                Ok(()) => {
                    Outcome::Ok(Some("the client is installed, its tests run below".to_owned()))
                }
                Err(error) => Outcome::Failed(error.to_string()),
            }
        }
        lacking => missing(&format!("{} not installed", lacking.join(" and "))),
    }
}

/// Returns the directory in which the tests keep the client, and whether it is there.
fn client_cache() -> (PathBuf, bool) {
    let cache = env::var_os("RC_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = env::var_os("HOME").map_or_else(env::temp_dir, PathBuf::from);
        home.join(".cache/ai-agent-realclient")
    });
    let files = sh::files_below(&cache).unwrap_or_default();
    (cache, files.iter().any(|path| path.ends_with("claude")))
}

/// Downloads the client into `cache`, by running it once.
fn download_client(client: &Path, cache: &Path) -> Result<(), Failure> {
    let work = sh::target_directory()?.join("realclient");
    let mut run = Command::new(client.join("run.sh"));
    run.arg(client.join("scenarios/text.json")).env("RC_CACHE", cache).env("RC_WORK", &work);
    sh::succeed(run.stdout(Stdio::null()).stderr(Stdio::null()))?;
    fs::remove_dir_all(work)?;
    probe_again()
}

/// Makes `test-requires` probe the machine again, after something was installed.
fn probe_again() -> Result<(), Failure> {
    let probe = sh::workspace().join("crates/test-requires/build.rs");
    Ok(fs::write(&probe, fs::read(&probe)?)?)
}

/// Installs the prerequisite of the test of the service: a real systemd.
pub(super) fn service() -> Outcome {
    if !cfg!(target_os = "linux") {
        return Outcome::Skipped("systemd exists on Linux only".to_owned());
    }
    if !sh::is_root() {
        return Outcome::Skipped("only root can create a user with its own systemd".to_owned());
    }
    match shared::find() {
        Err(reason) => return Outcome::Skipped(reason),
        Ok(shared) if !shared.join("tools/with-systemd-user").is_file() => {
            let shared = shared.display();
            return Outcome::Skipped(format!("no tools/with-systemd-user in `{shared}`"));
        }
        Ok(_) => {}
    }
    let needed = ["systemctl", "dbus-run-session", "setpriv"];
    let lacking = || needed.into_iter().filter(|name| !sh::has_program(name)).collect::<Vec<_>>();
    if !lacking().is_empty() {
        sh::apt_install(&["systemd", "dbus", "dbus-user-session", "util-linux"]);
    }
    match lacking().as_slice() {
        [] => Outcome::Ok(Some("systemd is installed, the test runs below".to_owned())),
        lacking => missing(&format!("{} not installed", lacking.join(" and "))),
    }
}

/// Probes whether the test of the real auditd can run.
pub(super) fn real_auditd() -> Outcome {
    if !cfg!(target_os = "linux") {
        return Outcome::Skipped("the audit system exists on Linux only".to_owned());
    }
    let tool = match shared::find() {
        Err(reason) => return Outcome::Skipped(reason),
        Ok(shared) => shared.join("tools/with-auditd"),
    };
    if !tool.is_file() {
        return missing(&format!("`{}` is missing", tool.display()));
    }
    if !sh::is_root() {
        return Outcome::Skipped("the audit system needs root".to_owned());
    }
    // The tool installs auditd, and exits with 77 if the kernel has no audit system.
    match Command::new(tool).arg("true").stdout(Stdio::null()).status().map(|it| it.code()) {
        Ok(Some(0)) => Outcome::Ok(Some("auditd runs, the test runs below".to_owned())),
        Ok(Some(77)) => Outcome::Skipped("this kernel has no audit system".to_owned()),
        Ok(code) => missing(&format!("auditd does not run, with-auditd exited with {code:?}")),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// Programs of Python packages that the tests of the sinks use: OpenSearch's imitation, a collector for
/// OTLP, and the converter of Sigma rules.
const PYTHON_PACKAGES: [&str; 5] =
    ["osmem-server", "rotel", "pysigma", "pysigma-backend-splunk", "pysigma-backend-elasticsearch"];

/// Programs of the system's packages, each named as its package: jq for the commands in `docs/siem`, and
/// minisign for those in `docs/trust.md`.
const PROGRAMS: [&str; 2] = ["jq", "minisign"];

/// Program that checks metrics and alerts.
const PROMTOOL: &str = "promtool";

/// Copies the program out of Debian's package of Prometheus: to install the package would start its server.
fn install_promtool() -> Result<(), Failure> {
    if !cfg!(target_os = "linux") || !sh::is_root() {
        return Err("only root can install it, on Linux".into());
    }
    println!("installing {PROMTOOL}");
    let work = sh::target_directory()?.join(PROMTOOL);
    if work.try_exists()? {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let mut download = Command::new("apt-get");
    download.args(["download", "prometheus"]).current_dir(&work);
    download.stdout(Stdio::null()).stderr(Stdio::null());
    if !download.status()?.success() {
        sh::succeed(Command::new("apt-get").arg("update").stdout(Stdio::null()))?;
        sh::succeed(&mut download)?;
    }
    let packages = sh::files_below(&work)?;
    let package = packages.first().ok_or("apt-get has downloaded nothing")?;
    sh::succeed(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&work))?;
    sh::succeed(
        Command::new("install")
            .args(["-m", "755"])
            .arg(work.join("usr/bin").join(PROMTOOL))
            .arg("/usr/local/bin"),
    )?;
    fs::remove_dir_all(work)?;
    probe_again()
}

/// Installs the servers that the tests of the sinks deliver to, Python packages in an environment of
/// their own and rsyslog, and the programs that commands in the documentation need.
pub(super) fn servers() -> Outcome {
    if !cfg!(target_os = "linux") {
        return Outcome::Skipped("the servers run on Linux only".to_owned());
    }
    let has_rsyslog = || sh::has_program("rsyslogd");
    if !has_rsyslog() {
        sh::apt_install(&["rsyslog", "rsyslog-gnutls"]);
    }
    for program in PROGRAMS {
        if !sh::has_program(program) {
            sh::apt_install(&[program]);
        }
    }
    if !sh::has_program(PROMTOOL)
        && let Err(error) = install_promtool()
    {
        println!("cannot install {PROMTOOL}: {error}");
    }
    let folder = servers_folder();
    let is_lacking = |program: &&str| !sh::has_program(program);
    let mut lacking: Vec<_> = PROGRAMS
        .into_iter()
        .chain([PROMTOOL])
        .filter(is_lacking)
        .map(|program| format!("{program} is not installed"))
        .collect();
    if !has_rsyslog() {
        lacking.push("rsyslog is not installed".to_owned());
    }
    if !has_servers(&folder)
        && let Err(error) = install_servers(&folder)
    {
        lacking.push(format!("cannot install {}: {error}", PYTHON_PACKAGES.join(", ")));
    }
    match lacking.as_slice() {
        [] => Outcome::Ok(Some("the servers are installed, their tests run below".to_owned())),
        lacking => missing(&lacking.join("; ")),
    }
}

/// Returns the Python environment with the servers; the tests look for it in the same place.
fn servers_folder() -> PathBuf {
    env::var_os("AI_AGENT_SERVERS").map(PathBuf::from).unwrap_or_else(|| {
        let home = env::var_os("HOME").map_or_else(env::temp_dir, PathBuf::from);
        home.join(".cache/ai-agent-servers")
    })
}

fn has_servers(folder: &Path) -> bool {
    folder.join("installed").is_file()
}

fn install_servers(folder: &Path) -> Result<(), Failure> {
    if folder.try_exists()? {
        fs::remove_dir_all(folder)?;
    }
    sh::succeed(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    let pip = folder.join("bin/pip");
    let mut install = Command::new(pip);
    install.args(["install", "--quiet", "--disable-pip-version-check"]).args(PYTHON_PACKAGES);
    sh::succeed(&mut install)?;
    link_programs(folder)?;
    fs::write(folder.join("installed"), PYTHON_PACKAGES.join("\n"))?;
    probe_again()
}

/// Links the programs that the packages keep elsewhere into `bin`.
fn link_programs(folder: &Path) -> Result<(), Failure> {
    for (name, path) in
        [("osmem-server", "osmem_server/bin/osmem-server"), ("rotel", "rotel/rotel-agent")]
    {
        let file =
            sh::files_below(&folder.join("lib"))?.into_iter().find(|file| file.ends_with(path));
        let file = file.ok_or_else(|| format!("the package of {name} has no `{path}`"))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;

            fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
            std::os::unix::fs::symlink(file, folder.join("bin").join(name))?;
        }
    }
    Ok(())
}

/// Reports whether the client can be downloaded.
fn registry_answers() -> bool {
    let mut npm = Command::new("npm");
    npm.args(["view", "@anthropic-ai/claude-code", "version"]);
    npm.args(["--fetch-retries=0", "--fetch-timeout=20000"]);
    npm.stdout(Stdio::null()).stderr(Stdio::null());
    npm.status().is_ok_and(|status| status.success())
}
