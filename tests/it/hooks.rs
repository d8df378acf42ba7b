//! The hooks of Claude Code, answered by the real binary without a daemon, whatever the files
//! contain.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::support::within;
use ai_agent::internals::{
    compliance::{policy_file::StoredPolicy, spool::Spool},
    platform::Timestamp,
    protocol::{Digest, managed::Compliance},
};
use serde_json::{Value, json};
#[cfg(unix)]
use test_requires::requires;

const HOME: &str = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
const STATE: &str =
    if cfg!(windows) { "AppData/Local/ai-agent/state" } else { ".local/state/ai-agent" };
const MESSAGE: &str = "Personal accounts are not permitted on company devices.";
const CALL: &str = r#"{"session_id":"s-1","transcript_path":"/h/.claude/projects/p/s-1.jsonl","cwd":"/w","hook_event_name":"SessionStart","source":"startup"}"#;

/// A user with Claude Code, and a policy left by a daemon.
struct User {
    home: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl User {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    fn state_dir(&self) -> PathBuf {
        self.home.path().join(STATE)
    }

    fn policy(self, policy: Value) -> Self {
        let compliance: Compliance = serde_json::from_value(policy).unwrap();
        fs::create_dir_all(self.state_dir()).unwrap();
        let kept =
            StoredPolicy { compliance, config_hash: Digest::ZERO, at: Timestamp(1), managed: None };
        fs::write(StoredPolicy::path(&self.state_dir()), kept.to_file()).unwrap();
        self
    }

    fn account(self, email: &str) -> Self {
        let account = json!({ "numStartups": 1, "oauthAccount": { "emailAddress": email } });
        fs::write(self.home.path().join(".claude.json"), account.to_string()).unwrap();
        self
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ai-agent"));
        command.args(arguments).env_clear().env(HOME, self.home.path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A hook that a shell starts after `limit`.
    #[cfg(unix)]
    fn limited(&self, limit: &str) -> Command {
        let mut command = Command::new("sh");
        let hook = "check --hook UserPromptSubmit";
        command.arg("-c").arg(format!("{limit}; exec \"$0\" {hook}"));
        command.arg(env!("CARGO_BIN_EXE_ai-agent")).env_clear().env(HOME, self.home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn hook(&self, name: &str, input: &[u8]) -> HookResponse {
        let mut child = self.command(&["check", "--hook", name]).spawn().unwrap();
        // The hook may exit before it has read everything.
        drop(child.stdin.take().unwrap().write_all(input));
        HookResponse::of(&child.wait_with_output().unwrap())
    }

    fn start(&self) -> HookResponse {
        self.hook("SessionStart", format!("{CALL}\n").as_bytes())
    }

    fn prompt(&self) -> HookResponse {
        self.hook("UserPromptSubmit", format!("{CALL}\n").as_bytes())
    }
}

#[derive(Debug, PartialEq, Eq)]
struct HookResponse {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl HookResponse {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_default()
    }

    fn is_silent(&self) -> bool {
        *self == Self { code: Some(0), stdout: String::new(), stderr: String::new() }
    }
}

fn policy(action: &str) -> Value {
    json!({
        "permitted_email_domains": ["company.com"],
        "banner": "This session is logged.",
        "action": action,
        "violation_message": MESSAGE,
    })
}

#[test]
fn hook_responses_follow_account_and_policy() {
    let user = User::new().policy(policy("block")).account("me@company.com");
    assert_eq!(user.start().json(), json!({ "systemMessage": "This session is logged." }));
    assert!(user.prompt().is_silent());

    let user = user.account("me@gmail.com");
    for response in [user.start(), user.prompt()] {
        assert_eq!((response.code, response.stdout.as_str()), (Some(2), ""));
        assert!(response.stderr.starts_with(MESSAGE), "{response:?}");
        for token in ["me@gmail.com", "company.com", "`/login`"] {
            assert!(response.stderr.contains(token), "{token}: {response:?}");
        }
    }

    let user = user.policy(policy("warn"));
    let (start, prompt) = (user.start(), user.prompt());
    assert_eq!((start.code, prompt.code), (Some(0), Some(0)));
    let seen = start.json()["systemMessage"].as_str().unwrap().to_owned();
    assert!(seen.starts_with(&format!("This session is logged.\n\n{MESSAGE}")), "{seen}");
    let context = &prompt.json()["hookSpecificOutput"];
    assert_eq!(context["hookEventName"], "UserPromptSubmit");
    assert!(context["additionalContext"].as_str().unwrap().starts_with(MESSAGE));
}

#[test]
fn api_key_in_place_of_an_account_is_named_but_never_shown() {
    let required = json!({ "require_account": true, "action": "block" });
    let user = User::new().policy(required).account("me@gmail.com");
    assert!(user.prompt().is_silent());
    let user = user.with("ANTHROPIC_API_KEY", "sk-ant-very-secret");
    let response = user.prompt();
    assert_eq!(response.code, Some(2));
    assert!(response.stderr.contains("ANTHROPIC_API_KEY"), "{response:?}");
    let spool = Spool::of(&user.state_dir());
    for name in spool.list().unwrap().names {
        let report = format!("{response:?}{:?}", spool.read(&name).unwrap());
        assert!(!report.contains("very-secret"), "{report}");
    }
}

#[test]
fn hook_reports_wait_in_the_spool() {
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    user.start();
    user.prompt();
    let spool = Spool::of(&user.state_dir());
    let names = spool.list().unwrap().names;
    let reports: Vec<_> = names.iter().map(|name| spool.read(name).unwrap().unwrap()).collect();
    assert_eq!(reports.len(), 2);
    assert_eq!([&*reports[0].hook, &*reports[1].hook], ["SessionStart", "UserPromptSubmit"]);
    assert_eq!(reports[0].session_id.as_deref(), Some("s-1"));
    assert_eq!(
        reports[0].transcript_path.as_deref(),
        Some(Path::new("/h/.claude/projects/p/s-1.jsonl"))
    );
    assert_eq!(reports[0].source.as_deref(), Some("startup"));
    assert_eq!(reports[1].decision, "blocked");
    assert_eq!(reports[1].violations[0].found, "me@gmail.com");
    assert!(reports[1].latency_us > 0);
}

/// Whatever the input contains, the response is the same and quick.
#[test]
fn malformed_input_does_not_change_the_response() {
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    let expected = user.prompt();
    assert_eq!(expected.code, Some(2));
    let huge = vec![b'x'; 100 << 20];
    let prompt = format!(r#"{{"session_id":"s-9","cwd":"/w","prompt":"{}"}}"#, "y".repeat(5 << 20));
    let inputs: [&[u8]; 8] =
        [b"", b"null", b"\xff\xfe\x00", b"{", b"[[[[", b"\n\n\n", &huge, prompt.as_bytes()];
    for input in inputs {
        let started_at = Instant::now();
        assert_eq!(user.hook("UserPromptSubmit", input), expected);
        // Not a performance limit: the client lets the prompt through if a hook hangs.
        assert!(started_at.elapsed() < Duration::from_secs(20));
    }
    let spool = Spool::of(&user.state_dir());
    let last = spool.list().unwrap().names.pop().unwrap();
    assert_eq!(spool.read(&last).unwrap().unwrap().session_id.as_deref(), Some("s-9"));
}

#[test]
fn open_input_does_not_delay_the_response() {
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    let mut child: Child = user.command(&["check", "--hook", "SessionStart"]).spawn().unwrap();
    let kept_open = child.stdin.take();
    let limit = Duration::from_secs(20);
    let status = within(limit, "the end of the hook", || child.try_wait().unwrap());
    drop(kept_open);
    let mut response = String::new();
    child.stderr.take().unwrap().read_to_string(&mut response).unwrap();
    assert_eq!(status.code(), Some(2));
    assert!(response.starts_with(MESSAGE), "{response}");
}

/// Only a violation may block a prompt.
#[test]
fn unknown_policy_or_account_blocks_nothing() {
    let blocking = || User::new().policy(policy("block"));
    assert!(User::new().account("me@gmail.com").prompt().is_silent(), "no policy");
    assert!(blocking().prompt().is_silent(), "no account");
    let half = blocking();
    fs::write(half.home.path().join(".claude.json"), r#"{"oauthAccount":{"emailAdd"#).unwrap();
    assert!(half.prompt().is_silent(), "half an account");
    let folder = blocking();
    fs::create_dir(folder.home.path().join(".claude.json")).unwrap();
    assert!(folder.prompt().is_silent(), "a folder");
    let broken = blocking().account("me@gmail.com");
    fs::write(broken.state_dir().join("policy.json"), r#"{"compliance":{"act"#).unwrap();
    let response = broken.prompt();
    assert_eq!((response.code, response.stdout.as_str()), (Some(0), ""));
    assert!(response.stderr.contains("policy.json`"), "{response:?}");
    let unknown = blocking().account("me@gmail.com").hook("PreToolUse", b"");
    assert_eq!((unknown.code, unknown.stdout.as_str()), (Some(0), ""));
    assert_eq!(unknown.stderr.lines().count(), 1);
}

/// Wrong usage exits with 2 elsewhere, but 2 from a hook would block each prompt.
#[test]
fn wrong_hook_usage_exits_1_and_does_not_block() {
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    for arguments in [&["check", "--hook"][..], &["check", "--hook", "SessionStart", "--nonsense"]]
    {
        let output = user.command(arguments).output().unwrap();
        assert_eq!(HookResponse::of(&output).code, Some(1), "{arguments:?}");
    }
}

#[test]
fn policy_is_found_from_a_session_with_other_variables() {
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    let user = user.with("XDG_STATE_HOME", "/nowhere").with("XDG_CONFIG_HOME", "relative");
    assert_eq!(user.prompt().code, Some(2));
    // Another configuration directory has its own account.
    let other = tempfile::tempdir().unwrap();
    let account = json!({ "oauthAccount": { "emailAddress": "me@company.com" } });
    fs::write(other.path().join(".claude.json"), account.to_string()).unwrap();
    let user = user.with("CLAUDE_CONFIG_DIR", &other.path().display().to_string());
    assert!(user.prompt().is_silent());
}

#[cfg(unix)]
#[test]
fn hook_without_home_uses_the_system_user_database() {
    let user = User::new();
    let mut command = user.command(&["check", "--hook", "UserPromptSubmit"]);
    let output = command.env_remove("HOME").stdin(Stdio::null()).output().unwrap();
    assert_eq!(HookResponse::of(&output).code, Some(0));
}

/// A hook with a relative home directory ended without an answer, so that `HOME=. claude` passed every
/// policy, also one that the machine's file locks.
#[test]
fn relative_home_is_below_the_working_directory() {
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    let mut command = user.command(&["check", "--hook", "UserPromptSubmit"]);
    command.env(HOME, ".").current_dir(user.home.path()).stdin(Stdio::null());
    assert_eq!(HookResponse::of(&command.output().unwrap()).code, Some(2));
}

/// A signal ended a hook that wrote its report under `ulimit -f 0`, and the prompt passed.
#[cfg(unix)]
#[test]
fn limit_of_file_sizes_lets_no_prompt_pass() {
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    let output = user.limited("ulimit -f 0").output().unwrap();
    assert_eq!(HookResponse::of(&output).code, Some(2), "{output:?}");
}

/// Without another thread the account was not read, and a prompt passed whose account is unknown.
#[cfg(unix)]
#[requires(root)]
#[test]
fn limit_of_processes_lets_no_prompt_pass() {
    use std::os::unix::{fs::chown, process::CommandExt as _};

    /// Root has no such limit.
    const OTHER_USER: u32 = 65534;
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    chown(user.home.path(), Some(OTHER_USER), None).unwrap();
    // Some shells name it otherwise.
    let mut command = user.limited("ulimit -u 0 2>/dev/null || ulimit -p 0");
    let output = command.uid(OTHER_USER).output().unwrap();
    assert_eq!(HookResponse::of(&output).code, Some(2), "{output:?}");
}

/// Without a writable spool only the report is lost.
#[test]
fn unwritable_report_does_not_change_the_response() {
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    fs::write(user.state_dir().join("spool"), "no folder").unwrap();
    assert_eq!(user.prompt().code, Some(2));
}

#[test]
fn explain_shows_the_response_and_its_reason() {
    let explain = |user: &User, hook| {
        let output = user.command(&["check", "--hook", hook, "--explain"]).output().unwrap();
        assert!(output.status.success());
        HookResponse::of(&output).stdout
    };
    let user = User::new();
    assert!(!explain(&user, "SessionStart").contains("company.com"));
    let user = user.policy(policy("block")).account("me@gmail.com");
    for hook in ["UserPromptSubmit", "SessionStart"] {
        let response = explain(&user, hook);
        for token in ["email_domain", "me@gmail.com", "company.com"] {
            assert!(response.contains(token), "{token}: {response}");
        }
    }
    assert_eq!(Spool::of(&user.state_dir()).list().unwrap().names, [""; 0], "nothing is reported");
}

/// Users have hooks of their own, which must be kept.
#[test]
fn hooks_install_keeps_others_and_uninstall_leaves_no_trace() {
    let user = User::new();
    let run = |arguments: &[&str]| HookResponse::of(&user.command(arguments).output().unwrap());
    let settings = user.home.path().join(".claude/settings.json");
    let status = run(&["hooks", "status"]);
    assert_eq!(status.code, Some(1));
    for hook in ["SessionStart", "UserPromptSubmit"] {
        assert!(status.stderr.contains(hook), "{status:?}");
    }

    fs::create_dir(user.home.path().join(".claude")).unwrap();
    let own = "{\n  \"hooks\": {\n    \"Stop\": [\n      { \"hooks\": [] }\n    ]\n  }\n}\n";
    fs::write(&settings, own).unwrap();
    assert_eq!(run(&["hooks", "install"]).code, Some(0));
    let status = run(&["hooks", "status"]);
    assert_eq!(status.code, Some(0), "{status:?}");
    let before = fs::read(&settings).unwrap();
    assert_eq!(run(&["hooks", "install", "--user"]).code, Some(0));
    assert_eq!(fs::read(&settings).unwrap(), before);

    // The command that the client would run answers.
    let text: Value = serde_json::from_slice(&fs::read(&settings).unwrap()).unwrap();
    let command = text["hooks"]["SessionStart"][0]["hooks"][0]["command"].as_str().unwrap();
    assert!(command.ends_with(" check --hook SessionStart"), "{command}");
    assert_eq!(run(&["hooks", "uninstall"]).code, Some(0));
    assert_eq!(fs::read_to_string(&settings).unwrap(), own);

    fs::write(&settings, "{ broken").unwrap();
    let refused = run(&["hooks", "install"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("settings.json`"), "{refused:?}");
    assert_eq!(fs::read_to_string(&settings).unwrap(), "{ broken");
}

/// The formatting of a file is its owner's, too.
#[test]
fn hooks_uninstall_restores_the_file_byte_for_byte() {
    let user = User::new();
    let run = |arguments: &[&str]| HookResponse::of(&user.command(arguments).output().unwrap());
    let dir = user.home.path().join(".claude");
    let settings = dir.join("settings.json");
    assert_eq!(run(&["hooks", "install"]).code, Some(0));
    assert_eq!(run(&["hooks", "uninstall"]).code, Some(0));
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "the file did not exist");
    for own in [
        "",
        "{}",
        "{ }\n\n",
        "{\"model\":\"opus\"}",
        "{\r\n\t\"model\" : \"opus\"\r\n}\r\n",
        "{\"hooks\": {}}\n",
        "{\"hooks\": { \"SessionStart\": [ ] }, \"a\": 1}",
        "{\n   \"a\": [1,\n 2]\n}",
    ] {
        fs::write(&settings, own).unwrap();
        assert_eq!(run(&["hooks", "install"]).code, Some(0));
        // The program moves, and the hooks are installed again.
        let text = fs::read_to_string(&settings).unwrap();
        fs::write(&settings, text.replace("ai-agent check", "ai-agent.exe check")).unwrap();
        assert_eq!(run(&["hooks", "install"]).code, Some(0));
        assert_eq!(run(&["hooks", "uninstall"]).code, Some(0));
        assert_eq!(fs::read_to_string(&settings).unwrap(), own, "{own:?}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "{own:?}: no copy is left");
    }
    // A setting that was changed meanwhile is kept, and the rest is as before.
    fs::write(&settings, "{\n  \"model\": \"opus\"\n}\n").unwrap();
    assert_eq!(run(&["hooks", "install"]).code, Some(0));
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, text.replace("opus", "sonnet")).unwrap();
    assert_eq!(run(&["hooks", "uninstall"]).code, Some(0));
    let expected = "{\n  \"model\": \"sonnet\"\n}\n";
    assert_eq!(fs::read_to_string(&settings).unwrap(), expected);
}

#[cfg(unix)]
#[test]
fn hooks_status_reports_hooks_that_are_never_called() {
    let user = User::new();
    let status = |text: &str| {
        fs::create_dir_all(user.home.path().join(".claude")).unwrap();
        fs::write(user.home.path().join(".claude/settings.json"), text).unwrap();
        HookResponse::of(&user.command(&["hooks", "status"]).output().unwrap()).stdout
    };
    let hook = |command: &str, more: &str| {
        format!(
            r#"{{{more}"hooks":{{"SessionStart":[{{"matcher":"startup","hooks":[{{"type":"command","command":"{command} check --hook SessionStart"}}]}}]}}}}"#
        )
    };
    assert!(status(&hook("/nowhere/ai-agent", "")).contains("/nowhere/ai-agent"));
    let binary = user.home.path().join("ai-agent");
    fs::copy(env!("CARGO_BIN_EXE_ai-agent"), &binary).unwrap();
    assert!(status(&hook("$HOME/ai-agent", "")).contains("`startup`"));
    let off = status(&hook("$HOME/ai-agent", r#""disableAllHooks":true,"#));
    assert!(off.contains("`disableAllHooks`"), "{off}");
}

/// A hook starts no thread and no child, opens no socket, and writes only its report and its cache
/// of a long account file.
#[cfg(target_os = "linux")]
#[requires(strace)]
#[test]
fn hook_writes_only_its_report_and_starts_no_process() {
    let user = User::new().policy(policy("block"));
    let account = user.home.path().join(".claude.json");
    let long = format!(
        r#"{{"p":"{}","oauthAccount":{{"emailAddress":"me@gmail.com"}}}}"#,
        "p".repeat(1 << 20)
    );
    fs::write(&account, long).unwrap();
    let seen = tempfile::tempdir().unwrap();
    let trace = seen.path().join("trace");
    let calls = "trace=process,network,clone,clone3,open,openat,openat2,creat,rename,renameat,renameat2,\
                 mkdir,mkdirat,link,linkat,symlink,symlinkat,unlink,unlinkat,truncate,chmod,fchmodat";
    let hook = user.command(&["check", "--hook", "UserPromptSubmit"]);
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-s", "4096", "-e", calls, "-o"]).arg(&trace).arg(hook.get_program());
    command.args(hook.get_args()).env_clear().env("HOME", user.home.path());
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let state = user.state_dir();
    let (spool, cache) = (state.join("spool"), state.join("account."));
    let started_at = Instant::now();
    // A file changed a moment ago is not cached.
    while !fs::exists(state.join("account.json")).unwrap() {
        assert!(started_at.elapsed() < Duration::from_secs(60), "it never remembers the account");
        assert_eq!(command.status().unwrap().code(), Some(2));
    }

    let trace = fs::read_to_string(&trace).unwrap();
    let mut writes = 0;
    for line in trace.lines() {
        let call = line.split_once(' ').unwrap().1.trim_start();
        // The account file is read on a thread, so that a file system that hangs does not stop the hook.
        let is_thread = call.starts_with("clone") && call.contains("CLONE_THREAD");
        // A call without a name is of a thread that ended with the process before strace had read it.
        let harmless = ["execve(", "exit_group(", "exit(", "+++ exited", "<... ", "???("];
        let is_harmless = is_thread || harmless.iter().any(|it| call.starts_with(it));
        let reads =
            call.starts_with("open") && call.contains("O_RDONLY") && !call.contains("O_CREAT");
        if is_harmless || reads {
            continue;
        }
        let is_its_own =
            call.contains(spool.to_str().unwrap()) || call.contains(cache.to_str().unwrap());
        let is_of_files =
            ["open", "rename", "mkdir", "unlink", "link"].iter().any(|it| call.starts_with(it));
        assert!(is_of_files && is_its_own, "{call}");
        writes += 1;
    }
    assert!(writes >= 4, "a report and what is remembered:\n{trace}");
}

/// A user who could leave a policy for another user could block their work.
#[cfg(unix)]
#[requires(root)]
#[test]
fn policy_file_of_another_user_is_ignored() {
    let user = User::new().policy(policy("block")).account("me@gmail.com");
    std::os::unix::fs::chown(user.state_dir().join("policy.json"), Some(1234), None).unwrap();
    let response = user.prompt();
    assert_eq!((response.code, response.stdout.as_str()), (Some(0), ""));
    assert!(response.stderr.contains("policy.json"), "{response:?}");
}
