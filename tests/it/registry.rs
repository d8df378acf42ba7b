//! Rules that hold for every stage, so that adding one needs no second edit: names, samples,
//! options and documentation agree.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use ai_agent::{
    platform::{Environment, Os, Paths, SystemClock, SystemPower},
    protocol::Identity,
    stages::{self, BuildError, Context, Descriptor, Sessions, StageKind, StageOptions},
};

fn context() -> Context {
    let home = if cfg!(windows) { r"C:\Users\you" } else { "/home/you" };
    let environment = Environment::from_iter([("HOME", home), ("USERPROFILE", home)]);
    let unknown = || "unknown".to_owned();
    Context {
        identity: Identity {
            machine_id: unknown(),
            hostname: unknown(),
            user: unknown(),
            os: unknown(),
            arch: unknown(),
            agent_version: unknown(),
        },
        paths: Paths::on(Os::CURRENT, &environment).unwrap(),
        environment,
        clock: Arc::new(SystemClock),
        power: Arc::new(SystemPower),
        revision: ai_agent::siem::Revision::default(),
        state_dir: None,
        sessions: Sessions::default(),
        once: false,
        poll_interval: Duration::from_secs(300),
    }
}

/// Builds a stage of any kind.
fn build(stage: &Descriptor, options: &str) -> Result<(), BuildError> {
    let options = StageOptions::from_toml(options)?;
    let (name, context) = (stage.name, &context());
    match stage.kind {
        StageKind::Source => {
            stages::source::build(name, &options, context, Arc::new(|| ())).map(|_| ())
        }
        StageKind::Filter => stages::filter::build(name, &options).map(|_| ()),
        StageKind::Enricher => stages::enricher::build(name, &options, context).map(|_| ()),
        StageKind::Sink => stages::sink::build(name, &options, context).map(|_| ()),
    }
}

fn sample(stage: &Descriptor) -> toml::Table {
    stage.sample.parse().unwrap_or_else(|error| panic!("the sample of {stage:?}: {error}"))
}

#[test]
fn names_are_unique_and_in_kebab_case() {
    let all = stages::all();
    assert!(all.len() >= 12, "{all:?}");
    let mut names = BTreeSet::new();
    for stage in &all {
        assert!(names.insert((stage.kind, stage.name)), "{stage:?} is registered twice");
        let right = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        assert!(stage.name.split('-').all(right), "{stage:?}");
    }
    let expected = [
        (StageKind::Source, "auditd"),
        (StageKind::Source, "claude-sessions"),
        (StageKind::Filter, "compact"),
        (StageKind::Filter, "dedupe"),
        (StageKind::Filter, "ignore-types"),
        (StageKind::Filter, "sidechain"),
        (StageKind::Filter, "meta"),
        (StageKind::Filter, "tool-call"),
        (StageKind::Filter, "path"),
        (StageKind::Filter, "expression"),
        (StageKind::Filter, "mask"),
        (StageKind::Enricher, "host"),
        (StageKind::Enricher, "labels"),
        (StageKind::Sink, "http-siem"),
        (StageKind::Sink, "stdout"),
        (StageKind::Sink, "file"),
    ];
    for stage in expected {
        assert!(names.contains(&stage), "{stage:?} is missing");
    }
}

#[test]
fn a_summary_is_one_sentence() {
    for stage in stages::all() {
        let summary = stage.summary;
        assert!(summary.ends_with('.') && !summary.contains('\n'), "{stage:?}: {summary}");
        assert!(summary.starts_with(char::is_uppercase), "{stage:?}: {summary}");
    }
}

#[test]
fn every_sample_builds() {
    for stage in stages::all() {
        let mut options = sample(&stage);
        // The files that they name are not there.
        options.retain(|option, _| !option.ends_with("_file"));
        if cfg!(windows) && stage.name == "file" {
            options.insert("path".into(), r"C:\ai-agent.ndjson".into());
        }
        build(&stage, &options.to_string())
            .unwrap_or_else(|error| panic!("the sample of {stage:?}: {error}"));
    }
}

/// A stage that can do without options does without.
#[test]
fn what_has_a_default_may_be_left_out() {
    for stage in stages::all() {
        if !["http-siem", "file"].contains(&stage.name) {
            build(&stage, "").unwrap_or_else(|error| panic!("{stage:?}: {error}"));
        }
    }
}

#[test]
fn every_option_stands_in_the_sample_with_a_comment() {
    for stage in stages::all() {
        let schema = stage.schema().to_value();
        let options: BTreeSet<String> = schema["properties"]
            .as_object()
            .map(|properties| properties.keys().cloned().collect())
            .unwrap_or_default();
        let sampled: BTreeSet<String> = sample(&stage).keys().cloned().collect();
        assert_eq!(options, sampled, "options and sample of {stage:?}");
        for option in &options {
            let described = schema["properties"][option]["description"].as_str();
            assert!(described.is_some_and(|text| !text.is_empty()), "{option} of {stage:?}");
            let line = stage.sample.lines().position(|line| {
                line.strip_prefix(&**option).is_some_and(|rest| rest.trim_start().starts_with('='))
            });
            let above = stage.sample.lines().nth(line.unwrap() - 1).unwrap();
            assert!(above.starts_with("## "), "{option} of {stage:?} has no comment: {above:?}");
        }
    }
}

#[test]
fn an_unknown_option_is_refused_by_its_name() {
    for stage in stages::all() {
        let mut options = sample(&stage);
        options.retain(|option, _| !option.ends_with("_file"));
        options.insert("no_such_option".into(), 1.into());
        let error = build(&stage, &options.to_string()).expect_err("an unknown option is refused");
        assert!(error.to_string().contains("no_such_option"), "{stage:?}: {error}");
    }
}

#[test]
fn an_unknown_stage_is_refused_with_those_that_there_are() {
    let all = stages::all();
    for kind in StageKind::ALL {
        let mut stage = *all.iter().find(|stage| stage.kind == kind).unwrap();
        let known = stage.name;
        stage.name = "xyzzy";
        let error = build(&stage, "").unwrap_err().to_string();
        assert!(error.contains("xyzzy") && error.contains(known), "{error}");
    }
}

#[test]
fn the_readme_lists_every_stage() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(&readme).unwrap();
    let plain = |text: &str| text.replace(['`', '\\'], "");
    for stage in stages::all() {
        let row = text.lines().find(|line| {
            let mut cells = line.split('|').map(|cell| plain(cell.trim()));
            line.starts_with('|') && cells.any(|cell| cell == stage.name)
        });
        let row = row.unwrap_or_else(|| panic!("{stage:?} is not in the table of README.md"));
        assert!(plain(row).contains(&plain(stage.summary)), "{stage:?}: {row}");
    }
}

#[test]
fn the_docs_tell_of_every_event() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = fs::read_to_string(root.join("crates/siem-protocol/src/names.rs")).unwrap();
    let docs = fs::read_to_string(root.join("docs/events.md")).unwrap();
    let (_, events) = names.split_once("pub mod event {").unwrap();
    let events = &events[..events.find("\n}").unwrap()];
    let names: Vec<_> = events.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(names.contains(&"heartbeat"), "{names:?}");
    for name in names {
        assert!(docs.contains(&format!("`{name}`")), "docs/events.md does not tell of {name}");
    }
}
