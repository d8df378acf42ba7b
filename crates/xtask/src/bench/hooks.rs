//! Cost of a hook for each prompt: the hook process, called alternately with one that does nothing.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use super::runner::Runs;
use crate::Failure;

/// An account file of common size.
pub(super) const SMALL: &str = "hook";
/// The same, with 20 MB of other data before the account.
pub(super) const LARGE: &str = "hook-20mb";

const CALLS: usize = 1000;
/// Response of the hook to an account that is not permitted: the longest path.
const BLOCKED: i32 = 2;
const CALL: &str = r#"{"session_id":"s","transcript_path":"/nowhere/s.jsonl","cwd":"/","prompt":"p"}
"#;

/// Calls `agent` as a hook below `bench`, and returns how much longer that takes than doing
/// nothing.
pub(super) fn measure(agent: &Path, bench: &Path) -> Result<Runs, Failure> {
    let mut runs = Vec::new();
    for (name, padding) in [(SMALL, 0), (LARGE, 20 << 20)] {
        println!("── {name}: {CALLS} calls in turn with `true`");
        let home = bench.join("hook-home");
        let state = home.join(".local/state/ai-agent");
        if home.try_exists()? {
            fs::remove_dir_all(&home)?;
        }
        let mut private = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
        private.recursive(true).create(&state)?;
        let policy = json!({ "permitted_email_domains": ["company.com"], "action": "block" });
        let kept = json!({ "compliance": policy, "config_hash": "0".repeat(64), "at": 1 });
        fs::write(state.join("policy.json"), kept.to_string())?;
        let account = json!({ "emailAddress": "me@example.com" });
        let account = format!(r#"{{"p":"{}","oauthAccount":{account}}}"#, "p".repeat(padding));
        let mut file = File::create(home.join(".claude.json"))?;
        file.write_all(account.as_bytes())?;
        drop(file);
        // A file that was changed a moment ago is not cached.
        thread::sleep(Duration::from_secs(3));

        let (mut nothing, mut hook) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            nothing.push(call(Command::new("true"), &home, 0)?);
            let mut command = Command::new(agent);
            command.args(["check", "--hook", "UserPromptSubmit"]);
            hook.push(call(command, &home, BLOCKED)?);
            // No agent is running that would collect the reports.
            if let Ok(reports) = fs::read_dir(state.join("spool")) {
                for report in reports {
                    fs::remove_file(report?.path())?;
                }
            }
        }
        nothing.sort();
        hook.sort();
        let above = |percent: usize| {
            let at = |times: &[Duration]| times[times.len() * percent / 100].as_secs_f64() * 1e3;
            at(&hook) - at(&nothing)
        };
        let mut run = Map::new();
        run.insert("peer".into(), name.into());
        run.insert("p50_ms".into(), Value::from(above(50)));
        run.insert("p99_ms".into(), Value::from(above(99)));
        println!("{}", Value::from(run.clone()));
        runs.push(run);
        fs::remove_dir_all(&home)?;
    }
    Ok(Runs(runs))
}

fn call(mut command: Command, home: &Path, code: i32) -> Result<Duration, Failure> {
    command.env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn()?;
    // `true` may exit without reading its input.
    drop(child.stdin.take().map(|mut stdin| stdin.write_all(CALL.as_bytes())));
    let status = child.wait()?;
    let took = begun.elapsed();
    if status.code() == Some(code) {
        Ok(took)
    } else {
        Err(format!("{command:?} ended with {status}, not {code}").into())
    }
}
