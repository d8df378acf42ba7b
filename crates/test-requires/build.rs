//! Probes the machine for the requirements of tests.
//!
//! Runs again when a probed variable or program changes, and when this file is touched, which
//! `cargo xtask test` does after it has installed something.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Programs that CI must have on Linux: there a test that needs one fails without it.
const EXPECTED_IN_CI: [&str; 9] =
    ["jq", "minisign", "npm", "promtool", "python3", "tmux", "strace", "systemctl", "rsyslogd"];
const VARIABLES: [&str; 9] = [
    "AI_AGENT_RELEASE_0_1",
    "AI_AGENT_SERVERS",
    "AI_AGENT_SHARED",
    "AI_AGENT_WINE",
    "CI",
    "HOME",
    "PATH",
    "RC_CACHE",
    "TMPDIR",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for variable in VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let shared = shared();
    let root = is_root(&out);
    let tool = |name: &str| shared.as_ref().is_some_and(|shared| is_file(&shared.join(name)));
    let client = tool("realclient/run.sh") && program("npm") && program("python3");
    let requirements = [
        ("root", "root", root),
        ("mount", "the right to mount file systems", root && succeeds("unshare", &["-m", "true"])),
        (
            "unprivileged",
            "a user other than root that can start the agent",
            !root || nobody_reads(&out),
        ),
        ("user_namespaces", "user namespaces", user_namespaces()),
        ("reused_ids", "a file system that uses the ids of deleted files again", reused_ids()),
        ("not_wine", "a system other than wine", env::var_os("AI_AGENT_WINE").is_none()),
        (
            "socket_filter",
            "a system with socket filters: Linux",
            cfg!(target_os = "linux") && env::var_os("AI_AGENT_WINE").is_none(),
        ),
        ("shared", "the corpus of ../shared or AI_AGENT_SHARED", shared.is_some()),
        (
            "client",
            "npm, python3 and the client that `cargo xtask test` downloads",
            client && is_client_cached(),
        ),
        ("tmux", "tmux", program("tmux")),
        ("jq", "jq, which `cargo xtask test` installs", program("jq")),
        (
            "preload",
            "Linux, and a C compiler for a library that is loaded before others",
            cfg!(all(target_os = "linux", target_env = "gnu")) && program("cc"),
        ),
        ("strace", "strace", program("strace")),
        ("minisign", "minisign, which `cargo xtask test` installs", program("minisign")),
        (
            "promtool",
            "promtool of Prometheus, which `cargo xtask test` installs",
            program("promtool"),
        ),
        ("python3", "python3", program("python3")),
        ("pyyaml", "Python's yaml", succeeds("python3", &["-c", "import yaml"])),
        ("pwsh", "pwsh", program("pwsh")),
        ("systemd_analyze", "systemd-analyze", program("systemd-analyze")),
        (
            "systemd_user",
            "root, systemd and tools/with-systemd-user of ../shared",
            root && program("systemctl") && tool("tools/with-systemd-user"),
        ),
        (
            "auditd",
            "root, auditd, an audit system in the kernel and tools/with-auditd of ../shared",
            root && tool("tools/with-auditd") && succeeds("auditctl", &["-s"]),
        ),
        ("curl", "curl", program("curl")),
        ("openssl", "openssl", program("openssl")),
        (
            "release_0_1",
            "the programs of release 0.1, which `cargo xtask test --full` builds",
            env::var_os("AI_AGENT_RELEASE_0_1").is_some_and(|it| Path::new(&it).is_dir()),
        ),
        ("rsyslog", "rsyslogd, which `cargo xtask test` installs", program("rsyslogd")),
        ("landlock", "a kernel with Landlock of Linux 6.2", has_landlock()),
        (
            "servers",
            "the Python environment with servers that `cargo xtask test` installs",
            are_servers_installed(),
        ),
    ];
    let text = format!("&{requirements:?}");
    fs::write(out.join("requirements.rs"), text).expect("OUT_DIR can be written");
}

/// The folder with real sessions and tools, where it exists.
fn shared() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = env::var_os("AI_AGENT_SHARED").filter(|it| !it.is_empty());
    let folder = folder.map_or(beside, PathBuf::from);
    folder.join("corpus").is_dir().then_some(folder)
}

fn is_file(path: &Path) -> bool {
    let found = path.is_file();
    if found {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    found
}

/// Returns whether a program is on the PATH. A change to it, or to the directories that lack it, runs the
/// probe again.
fn program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = env::split_paths(&path).filter(|it| it.is_dir()).collect();
    match directories.iter().map(|directory| directory.join(name)).find(|path| is_file(path)) {
        Some(_) => true,
        None => {
            for directory in directories {
                println!("cargo::rerun-if-changed={}", directory.display());
            }
            is_equipped_ci() && EXPECTED_IN_CI.contains(&name)
        }
    }
}

fn succeeds(name: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    program(name) && command.status().is_ok_and(|status| status.success())
}

/// Returns whether the limit of watches can be set in a namespace of our own.
fn user_namespaces() -> bool {
    let script = "echo 3 > /proc/sys/user/max_inotify_watches";
    succeeds("unshare", &["-Ur", "/bin/sh", "-c", script])
}

/// Returns whether the Python environment with servers exists. CI must have it.
fn are_servers_installed() -> bool {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folder = env::var_os("AI_AGENT_SERVERS").map(PathBuf::from);
    let folder = folder.or_else(|| home().map(|cache| cache.join("ai-agent-servers")));
    folder.is_some_and(|folder| is_file(&folder.join("installed"))) || is_equipped_ci()
}

/// Returns whether this is CI on Linux, where `cargo xtask test` installs programs and servers.
fn is_equipped_ci() -> bool {
    cfg!(target_os = "linux") && env::var_os("CI").is_some_and(|value| value == "true")
}

/// Returns whether the real client has been downloaded before.
fn is_client_cached() -> bool {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = env::var_os("RC_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| home().map(|cache| cache.join("ai-agent-realclient")));
    cache.is_some_and(|cache| holds_client(&cache, 5))
}

fn holds_client(folder: &Path, depth: u32) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        (entry.file_name() == "claude" && is_file(&path))
            || (depth > 0 && path.is_dir() && holds_client(&path, depth - 1))
    })
}

/// Returns whether the kernel restricts a thread, which ends then.
#[cfg(target_os = "linux")]
fn has_landlock() -> bool {
    use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _, RulesetStatus};

    let restrict = || {
        let rules = Ruleset::default().handle_access(AccessFs::from_write(ABI::V3)).ok()?;
        let status = rules.create().ok()?.restrict_self().ok()?;
        Some(status.ruleset == RulesetStatus::FullyEnforced)
    };
    std::thread::spawn(restrict).join().is_ok_and(|restricted| restricted == Some(true))
}

#[cfg(not(target_os = "linux"))]
fn has_landlock() -> bool {
    false
}

#[cfg(unix)]
fn is_root(out: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;

    let file = out.join("owner");
    drop(fs::remove_file(&file));
    fs::write(&file, "").is_ok() && fs::metadata(file).is_ok_and(|file| file.uid() == 0)
}

#[cfg(not(unix))]
fn is_root(_: &Path) -> bool {
    false
}

/// Returns whether the user `nobody` reaches the directory that the programs are built in.
#[cfg(unix)]
fn nobody_reads(out: &Path) -> bool {
    use std::os::unix::process::CommandExt as _;

    const NOBODY: u32 = 65_534;

    let mut command = Command::new("/bin/ls");
    command.arg(out).uid(NOBODY).gid(NOBODY).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(not(unix))]
fn nobody_reads(_: &Path) -> bool {
    true
}

#[cfg(unix)]
fn reused_ids() -> bool {
    use std::os::unix::fs::MetadataExt as _;

    let folder = env::temp_dir().join(format!("test-requires-{}", std::process::id()));
    let id = |name: &str| {
        fs::write(folder.join(name), "").ok()?;
        fs::metadata(folder.join(name)).ok().map(|file| file.ino())
    };
    let probe = || {
        let before = id("deleted")?;
        fs::remove_file(folder.join("deleted")).ok()?;
        Some((0..100).any(|n| id(&n.to_string()) == Some(before)))
    };
    let found = fs::create_dir_all(&folder).ok().and_then(|()| probe());
    drop(fs::remove_dir_all(&folder));
    found.unwrap_or(false)
}

#[cfg(not(unix))]
fn reused_ids() -> bool {
    false
}
