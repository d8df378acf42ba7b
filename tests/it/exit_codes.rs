//! Exit codes of the commands, as docs/scripts.md lists them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::support::home::Home;

/// A command with a mistyped `--config` answered for the agent of the default configuration.
#[test]
fn unreadable_explicit_config_exits_2_and_is_named() {
    let home = Home::new();
    let missing = home.path().join("missing.toml");
    for path in [missing.as_path(), home.path()] {
        for arguments in [
            &["status"][..],
            &["status", "--json"],
            &["status", "--watch"],
            &["check"],
            &["check", "--strict"],
            &["flush"],
            &["reload"],
            &["log-level"],
            &["outbox", "status"],
            &["deadletter", "list"],
            &["device", "show"],
            &["config", "show"],
            &["test"],
            &["run"],
        ] {
            let error = home.agent(arguments).arg("--config").arg(path).fail(2);
            let name = path.display().to_string();
            assert!(error.contains(&name), "{arguments:?}: {error}");
        }
    }
}

/// The mistake of another layer must not hide that the file is missing.
#[test]
fn unreadable_explicit_config_is_named_beside_a_broken_layer() {
    let home = Home::new();
    let user = home.path().join(".config/ai-agent/config.toml");
    fs::create_dir_all(user.parent().unwrap()).unwrap();
    fs::write(&user, "= broken").unwrap();
    home.agent(&["status"]).fail(1);
    let missing = home.path().join("missing.toml");
    let error = home.agent(&["status"]).arg("--config").arg(&missing).fail(2);
    assert!(error.contains("missing.toml"), "{error}");
}

/// Names of the commands that have no commands of their own, with whether they accept `--json`.
fn commands(command: &clap::Command, before: &str) -> BTreeMap<String, bool> {
    let below = command.get_subcommands().filter(|it| it.get_name() != "help");
    let mut found: BTreeMap<String, bool> = below
        .flat_map(|below| commands(below, &format!("{before} {}", below.get_name())))
        .collect();
    // `stages` works without a command too.
    if found.is_empty() || !command.is_subcommand_required_set() && !before.is_empty() {
        let json = command.get_arguments().any(|argument| argument.get_id() == "json");
        found.insert(before.trim().to_owned(), json);
    }
    found
}

/// The commands in the first column of the table below `heading` in docs/scripts.md.
fn listed(heading: &str) -> BTreeSet<String> {
    let page = fs::read_to_string(format!("{}/docs/scripts.md", env!("CARGO_MANIFEST_DIR")));
    let page = page.unwrap();
    let (_, section) = page.split_once(heading).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" |"));
    let names = rows.flat_map(|(cell, _)| cell.trim_end_matches('`').split("`, `"));
    // Without options.
    names.map(|name| name.split(" --").next().unwrap().to_owned()).collect()
}

#[test]
fn page_lists_exit_codes_of_every_command() {
    let commands: BTreeSet<_> = commands(&ai_agent::command_line(), "").into_keys().collect();
    assert!(commands.len() > 40, "{commands:?}");
    assert_eq!(listed("\n## Exit codes\n"), commands);
}

#[test]
fn page_lists_every_command_with_json() {
    let commands = commands(&ai_agent::command_line(), "");
    let with_json: BTreeSet<_> =
        commands.into_iter().filter_map(|(name, json)| json.then_some(name)).collect();
    let heading = "\n## JSON\n";
    let page: BTreeSet<_> = listed(heading).into_iter().filter(|it| !it.contains('[')).collect();
    let missing: Vec<_> = with_json.difference(&page).collect();
    assert!(missing.is_empty(), "not described: {missing:?}");
}

#[test]
fn commands_exit_as_the_page_says() {
    let home = Home::new();
    let invalid = home.path().join("invalid.toml");
    fs::write(&invalid, "unknown = 1\n").unwrap();
    let failing = home.path().join("failing.toml");
    let test = "[[test]]\nname = \"t\"\nlines = [{ input = '{}', expect = \"drop\" }]\n";
    fs::write(&failing, test).unwrap();
    let (invalid, failing) = (invalid.to_str().unwrap(), failing.to_str().unwrap());
    for (code, arguments) in [
        (0, &["stages"][..]),
        (0, &["stages", "show", "compact"]),
        (0, &["config", "schema"]),
        (0, &["config", "show"]),
        (0, &["test"]),
        (0, &["completions", "bash"]),
        (0, &["man"]),
        (0, &["man", "config", "show"]),
        (0, &["--help"]),
        (1, &["check"]),
        (1, &["check", "--strict"]),
        (1, &["status"]),
        (1, &["flush"]),
        (1, &["reload"]),
        (1, &["log-level"]),
        (1, &["logs"]),
        (1, &["doctor"]),
        (1, &["doctor", "--json"]),
        (1, &["hooks", "status"]),
        (1, &["config", "check", invalid]),
        (1, &["test", failing]),
        (1, &["test", failing, "--json"]),
        (1, &["deadletter", "list"]),
        (1, &["outbox", "status"]),
        (1, &["check", "--hook"]),
        (2, &["config", "show", "--config", invalid]),
        (2, &["run", "--config", invalid]),
        (2, &["stages", "show", "walk"]),
        (2, &["man", "walk"]),
        (2, &["completions", "cmd"]),
        (2, &["deadletter", "show"]),
        (2, &["status", "--colour"]),
        (2, &[]),
    ] {
        let ended = home.agent(arguments).run();
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.text(), ended.stderr);
    }
}

#[test]
fn help_and_man_page_list_the_exit_codes() {
    let home = Home::new();
    for arguments in [["--help"], ["man"]] {
        let text = home.agent(&arguments).succeed().text().to_owned();
        for line in ["Exit codes:", "0  success", "1  the command has failed", "2  the arguments"] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
