//! `ai-agent completions` and `ai-agent man`, as a package or a shell runs them.

use crate::support::home::Home;

#[test]
fn completions_are_those_of_the_named_shell() {
    let home = Home::new();
    for (shell, marker) in [
        ("bash", "complete -F _ai__agent"),
        ("zsh", "#compdef ai-agent"),
        ("fish", "complete -c ai-agent"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion:arg-completer[ai-agent]"),
    ] {
        let script = home.agent(&["completions", shell]).succeed();
        let script = String::from_utf8(script.stdout).unwrap();
        assert!(script.contains(marker) && script.contains("support-bundle"), "{shell}: {script}");
    }
    home.agent(&["completions", "csh"]).fail(2);
}

#[test]
fn man_prints_the_page_of_the_named_command() {
    let home = Home::new();
    let page = |arguments: &[&str]| {
        let ended = home.agent(&[&["man"], arguments].concat()).succeed();
        String::from_utf8(ended.stdout).unwrap()
    };
    for (arguments, title) in [
        (&[][..], ".TH ai-agent 1"),
        (&["run"], ".TH ai-agent-run 1"),
        (&["config", "check"], ".TH ai-agent-config-check 1"),
    ] {
        let page = page(arguments);
        assert!(page.contains(title), "{arguments:?}: {page}");
        // The footer of a page.
        let header = page.lines().find(|line| line.starts_with(".TH")).unwrap();
        let version = format!("\"ai-agent {}\"", env!("CARGO_PKG_VERSION"));
        assert!(header.contains(&version), "{arguments:?}: {header}");
    }
    home.agent(&["man", "nope"]).fail(2);
    let pages = home.path().join("pages");
    home.agent(&["man", "--to", pages.to_str().unwrap()]).succeed();
    let written = std::fs::read_to_string(pages.join("ai-agent-config-check.1")).unwrap();
    assert_eq!(written, page(&["config", "check"]));
}
