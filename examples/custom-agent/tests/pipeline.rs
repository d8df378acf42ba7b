//! The binary with the filter in a pipeline, as an administrator would roll it out.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const KEPT: &str = r#"{"type":"user","uuid":"0b8f3f0e-0001-4000-8000-000000000001"}"#;
const SKIPPED: &str = r#"{"type":"user","uuid":"0b8f3f0e-0002-4000-8000-000000000002"}"#;

/// A home directory with sessions of two projects; one project has a session of a sub-agent.
struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Self {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Left by an earlier run.
        drop(fs::remove_dir_all(&home));
        let home = Self(home);
        home.write(".claude/projects/-home-dev-shop/a.jsonl", &format!("{KEPT}\n"));
        home.write(".claude/projects/-home-dev-diary/b.jsonl", &format!("{SKIPPED}\n"));
        let agent = ".claude/projects/-home-dev-diary/b/subagents/agent-1.jsonl";
        home.write(agent, &format!("{SKIPPED}\n"));
        home
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn out(&self) -> PathBuf {
        self.0.join("out.ndjson")
    }

    /// Runs the binary without the configuration of this machine.
    fn run(&self, arguments: &[&str]) -> Output {
        let config = self.write(
            "config.toml",
            &format!(
                r#"
                [agent]
                state_dir = '{state}'
                [pipeline]
                filters = ["diary"]
                sinks = ["out"]
                [filter.diary]
                type = "skip-project"
                projects = ["-home-dev-diary"]
                [sink.out]
                type = "file"
                path = '{out}'
                "#,
                state = self.0.join("state").display(),
                out = self.out().display(),
            ),
        );
        let mut command = Command::new(env!("CARGO_BIN_EXE_custom-agent"));
        command.args(arguments).arg("--config").arg(config).current_dir(&self.0);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let of_agent = ["CLAUDE_", "XDG_", "RUST_LOG"];
            if of_agent.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.env("HOME", &self.0).env("USERPROFILE", &self.0).output().unwrap()
    }
}

fn stdout(output: &Output) -> String {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{log}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn dry_run_names_the_filter_that_dropped() {
    let lines = stdout(&Home::new("dry-run").run(&["run", "--test", "--json"]));
    let dropped = |line: &&str| {
        line.contains(r#""stage":"diary""#) && line.contains(r#""reason":"skipped_project""#)
    };
    assert_eq!(lines.lines().filter(dropped).count(), 2, "{lines}");
    assert_eq!(lines.matches(r#""verdict":"keep""#).count(), 1, "{lines}");
}

#[test]
fn run_delivers_only_kept_records() {
    let home = Home::new("once");
    stdout(&home.run(&["run", "--once"]));
    let arrived = fs::read_to_string(home.out()).unwrap();
    assert_eq!(arrived.matches(KEPT).count(), 1, "{arrived}");
    assert!(!arrived.contains(SKIPPED), "{arrived}");
}

#[test]
fn stages_lists_the_filter() {
    let home = Home::new("list");
    let lines = stdout(&home.run(&["stages"]));
    assert!(lines.contains("skip-project"), "{lines}");
}

#[test]
fn schema_and_explain_know_the_filter() {
    let home = Home::new("schema");
    let schema = stdout(&home.run(&["config", "schema"]));
    assert!(schema.contains("\"filter.skip-project\""), "{schema}");
    let explained = stdout(&home.run(&["config", "explain", "filter.diary.projects"]));
    assert!(explained.contains("projects = [\"-home-dev-diary\"]"), "{explained}");
}

/// The filter uses the path, which the test sets.
#[test]
fn test_in_toml_runs_the_filter() {
    let home = Home::new("test-in-toml");
    let file = home.write(
        "roll-out.toml",
        r#"
        pipeline.filters = ["diary"]
        [filter.diary]
        type = "skip-project"
        projects = ["-home-dev-diary"]
        [[test]]
        name = "the diary stays here"
        path = "/home/dev/.claude/projects/-home-dev-diary/a.jsonl"
        lines = [{ input = '{"type":"user"}', expect = "drop", by = "diary" }]
        [[test]]
        name = "the rest is shipped"
        lines = [{ input = '{"type":"user"}', expect = "keep" }]
        "#,
    );
    let passed = stdout(&home.run(&["test", file.to_str().unwrap()]));
    assert!(passed.ends_with("2 tests passed\n"), "{passed}");
}
