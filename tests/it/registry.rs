//! Rules for every registered stage: names, samples, options and documentation agree. Adding a stage
//! needs no change here.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ai_agent::internals::{
    platform::{Environment, Os, Paths, SystemClock, SystemPower},
    stages::{self, AgentContext, BuildError, Sessions, StageKind, StageOptions},
};
use ai_agent_stage::Plugin;

fn context() -> AgentContext {
    let home = if cfg!(windows) { r"C:\Users\you" } else { "/home/you" };
    let environment = Environment::from_iter([("HOME", home), ("USERPROFILE", home)]);
    AgentContext {
        identity: ai_agent_stage::testing::context().identity,
        paths: Paths::on(Os::CURRENT, &environment).unwrap(),
        environment,
        clock: Arc::new(SystemClock),
        calls: ai_agent::internals::platform::bounded::BoundedCalls::new(Arc::new(SystemClock)),
        power: Arc::new(SystemPower),
        revision: ai_agent::internals::siem::Revision::default(),
        device: ai_agent::internals::siem::Device::without_key("instance".to_owned()),
        trust: ai_agent::internals::siem::TrustStates::default(),
        organisation_keys: Vec::new(),
        state_dir: None,
        sandbox: ai_agent::internals::platform::Sandbox::default(),
        sessions: Sessions::default(),
        once: false,
        poll_interval: Duration::from_secs(300),
    }
}

/// Builds a stage of any kind.
fn build(kind: StageKind, name: &str, options: &str) -> Result<(), BuildError> {
    let options: StageOptions = options.parse()?;
    let context = &context();
    match kind {
        StageKind::Source => {
            stages::source::build(name, &options, context, Arc::new(|| ())).map(|_| ())
        }
        StageKind::Filter => stages::filter::build(name, &options).map(|_| ()),
        StageKind::Enricher => stages::enricher::build(name, &options, context).map(|_| ()),
        StageKind::Sink => stages::sink::build(name, &options, context).map(|_| ()),
    }
}

fn sample(stage: &Plugin) -> toml::Table {
    stage.sample.parse().unwrap_or_else(|error| panic!("the sample of {stage:?}: {error}"))
}

#[test]
fn names_are_unique_and_in_kebab_case() {
    let mut names = BTreeSet::new();
    for stage in stages::all() {
        assert!(names.insert((stage.kind, stage.name)), "{stage:?} is registered twice");
        let is_word = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        assert!(stage.name.split('-').all(is_word), "{stage:?}");
    }
}

/// A stage file without its `mod` line, or a stage crate that the binary does not name, compiles and
/// registers nothing.
#[test]
fn every_registration_in_the_source_is_in_the_binary() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = rust_files(&root.join("src"));
    for directory in fs::read_dir(root.join("crates")).unwrap().map(Result::unwrap) {
        if directory.file_name().to_string_lossy().starts_with("ai-agent-") {
            sources.extend(rust_files(&directory.path().join("src")));
        }
    }
    let registered: BTreeSet<&str> = stages::all().iter().map(|stage| stage.name).collect();
    let mut found = 0;
    for path in sources {
        let text = fs::read_to_string(&path).unwrap();
        for (_, registration) in
            text.match_indices("\ninventory::submit!").map(|(at, _)| text.split_at(at))
        {
            let name = registration.split('"').nth(1).unwrap();
            assert!(registered.contains(name), "`{name}` of {} is not registered", path.display());
            found += 1;
        }
    }
    assert_eq!(found, registered.len(), "{registered:?}");
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn summary_is_one_sentence() {
    for stage in stages::all() {
        let summary = stage.summary;
        assert!(summary.ends_with('.') && !summary.contains('\n'), "{stage:?}: {summary}");
        assert!(summary.starts_with(char::is_uppercase), "{stage:?}: {summary}");
    }
}

/// Wine lacks the certificates of the system that the sink `syslog` needs for TLS.
#[test_requires::requires(not_wine)]
#[test]
fn sample_builds() {
    for stage in stages::all() {
        let mut options = sample(stage);
        // The files named by options do not exist.
        options.retain(|option, _| !option.ends_with("_file"));
        if cfg!(windows) && stage.name == "file" {
            options.insert("path".into(), r"C:\ai-agent.ndjson".into());
        }
        build(stage.kind, stage.name, &options.to_string())
            .unwrap_or_else(|error| panic!("the sample of {stage:?}: {error}"));
    }
}

/// A stage whose options all have defaults builds from an empty table. One whose options are required
/// in combination says which one is missing.
#[test]
fn options_with_defaults_can_be_omitted() {
    for stage in stages::all() {
        let schema = (stage.schema)().to_value();
        if schema["required"].as_array().is_some_and(|required| !required.is_empty()) {
            continue;
        }
        match build(stage.kind, stage.name, "") {
            Ok(()) => {}
            Err(BuildError::Invalid { option, .. }) => {
                assert!(sample(stage).contains_key(option), "{stage:?}: {option}");
            }
            Err(error) => panic!("{stage:?}: {error}"),
        }
    }
}

#[test]
fn sample_has_every_option_with_a_comment() {
    for stage in stages::all() {
        let schema = (stage.schema)().to_value();
        let options: BTreeSet<String> = schema["properties"]
            .as_object()
            .map(|properties| properties.keys().cloned().collect())
            .unwrap_or_default();
        let sampled: BTreeSet<String> = sample(stage).keys().cloned().collect();
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
fn unknown_option_is_refused_by_name() {
    for stage in stages::all() {
        let mut options = sample(stage);
        options.retain(|option, _| !option.ends_with("_file"));
        options.insert("no_such_option".into(), 1.into());
        let built = build(stage.kind, stage.name, &options.to_string());
        let error = built.expect_err("an unknown option is refused");
        assert!(error.to_string().contains("no_such_option"), "{stage:?}: {error}");
    }
}

#[test]
fn unknown_stage_is_refused_with_the_known_ones() {
    for known in stages::all() {
        let error = build(known.kind, "xyzzy", "").unwrap_err().to_string();
        assert!(error.contains("xyzzy") && error.contains(known.name), "{error}");
    }
}

#[test]
fn readme_lists_every_stage() {
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
