//! Configuration files with any content.
//!
//! Up to four texts, separated by lines `%%`: the machine's file, the user's file, the file of the
//! command line, and the managed configuration as JSON.

use std::{cell::LazyCell, error::Error, fs, path::PathBuf, sync::Arc, time::Duration};

use ai_agent::internals::{
    config::{self, ConfigError, ConfigInputs, LayerOrigin, LoadedConfig, ManagedSettings},
    pipeline::assembly,
    platform::{Environment, InstalledPaths, Paths, SystemClock, SystemPower},
    protocol::Identity,
    stages::AgentContext,
};
use tempfile::TempDir;

thread_local! {
    /// Directory of the files, one for each thread.
    static HOME: LazyCell<TempDir> = LazyCell::new(|| tempfile::tempdir().unwrap());
}

/// Fails if an error does not name the wrong key, or if settings are out of range.
pub fn run(data: &[u8]) {
    let mut texts = split(data).into_iter();
    let files = [texts.next(), texts.next(), texts.next()];
    let managed = texts.next().and_then(|text| ManagedSettings::read(text, None).ok());
    HOME.with(|home| {
        let paths = paths(home);
        let explicit = home.path().join("explicit.toml");
        let named = [&paths.machine_config, &paths.user_config, &explicit];
        for (path, text) in named.into_iter().zip(&files) {
            match text {
                Some(text) => fs::write(path, text).unwrap(),
                None => drop(fs::remove_file(path)),
            }
        }
        let inputs = ConfigInputs {
            paths: &paths,
            environment: &Environment::default(),
            explicit: files[2].map(|_| &*explicit),
            managed: managed.as_ref(),
        };
        if let Err(error) = config::load(&inputs).and_then(|loaded| build(&loaded, &paths)) {
            check(&error);
        }
    });
}

/// Splits at lines `%%`.
fn split(data: &[u8]) -> Vec<&[u8]> {
    const BORDER: &[u8] = b"\n%%\n";
    let (mut texts, mut start) = (Vec::new(), 0);
    for at in 0..data.len() {
        if at >= start && data[at..].starts_with(BORDER) {
            texts.push(&data[start..=at]);
            start = at + BORDER.len();
        }
    }
    texts.push(&data[start..]);
    texts
}

fn paths(home: &TempDir) -> Paths {
    let at = |name: &str| home.path().join(name);
    Paths {
        home: at(""),
        machine_config: at("machine.toml"),
        machine_config_dir: at("config.d"),
        user_config: at("user.toml"),
        default_state_dir: at("state"),
        claude_desktop: PathBuf::new(),
        store_packages: None,
        client_settings: "/etc/claude-code".into(),
        pointer: "/home/u/.local/state/ai-agent/state-dir".into(),
        installed: InstalledPaths::default(),
    }
}

/// Builds the stages of a dry run, and checks the settings against the ranges in the default file.
pub(super) fn build(loaded: &LoadedConfig, paths: &Paths) -> Result<(), ConfigError> {
    let day = Duration::from_secs(86_400);
    let config::Settings { agent, shipping, outbox, pipeline, .. } = &loaded.settings;
    assert!(agent.state_dir.is_absolute());
    assert!((Duration::from_secs(60)..=day).contains(&agent.poll_interval));
    assert!((1..=10_000).contains(&shipping.batch_size) && shipping.flush_interval <= day);
    assert!((64 << 10..=32 << 20).contains(&shipping.max_batch_bytes));
    assert!(outbox.max_bytes >= 32 << 20);
    for (index, name) in config::ALWAYS_ON.iter().enumerate() {
        let place = pipeline.filters.iter().position(|filter| filter.name == *name);
        assert!(place.is_some(), "filter {index} does not run");
    }
    let mut names: Vec<_> = pipeline.filters.iter().map(|filter| &filter.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), pipeline.filters.len(), "a filter runs twice");

    let word = || "fuzz".to_owned();
    let context = AgentContext {
        identity: Identity {
            machine_id: word(),
            hostname: word(),
            user: word(),
            os: word(),
            arch: word(),
            agent_version: word(),
        },
        environment: Environment::default(),
        paths: paths.clone(),
        clock: Arc::new(SystemClock),
        calls: ai_agent::internals::platform::bounded::BoundedCalls::new(Arc::new(SystemClock)),
        power: Arc::new(SystemPower),
        revision: ai_agent::internals::siem::Revision::default(),
        device: ai_agent::internals::siem::Device::without_key(String::new()),
        trust: ai_agent::internals::siem::TrustStates::default(),
        organisation_keys: Vec::new(),
        state_dir: None,
        sandbox: ai_agent::internals::platform::Sandbox::default(),
        sessions: ai_agent::internals::stages::Sessions::default(),
        once: true,
        poll_interval: agent.poll_interval,
    };
    assembly::stages(loaded, &context)?;
    assembly::sources(loaded, &context, &(Arc::new(|| ()) as _))?;
    assembly::check_sinks(loaded)
}

/// Checks that an error names the wrong key as it is written in its file.
fn check(error: &ConfigError) {
    let said = error.to_string();
    match error {
        ConfigError::Read { .. } => {
            let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
            assert_eq!(source.unwrap().kind(), std::io::ErrorKind::InvalidData);
        }
        ConfigError::Syntax { origin, syntax } => {
            let text = fs::read_to_string(file(origin)).unwrap();
            assert!(text.parse::<toml::Table>().is_err());
            assert!((1..=text.matches('\n').count() + 1).contains(&syntax.line));
        }
        ConfigError::UnknownKey { key, location, .. } if location.origin.file().is_some() => {
            assert!(keys(&location.origin).contains(key), "{said}");
            assert!(location.line.is_some(), "{said}");
        }
        ConfigError::Value { key, location, .. } if location.origin.file().is_some() => {
            assert!(keys(&location.origin).contains(key), "{said}");
        }
        ConfigError::UnknownKey { key, .. }
        | ConfigError::Value { key, .. }
        | ConfigError::MissingKey { key, .. } => {
            assert!(!key.is_empty() && said.contains(key.as_str()));
        }
        ConfigError::Incomplete(_) => panic!("a dry run needs no sink options: {said}"),
        _ => panic!("unknown kind of error: {said}"),
    }
}

fn file(origin: &LayerOrigin) -> PathBuf {
    origin.file().unwrap().to_owned()
}

/// Returns every key of a file in the notation of errors: `filter.mine.types[1]`.
fn keys(origin: &LayerOrigin) -> Vec<String> {
    let text = fs::read_to_string(file(origin)).unwrap();
    let mut paths = Vec::new();
    let table = toml::Value::Table(text.parse().unwrap());
    collect(&table, &mut Vec::new(), &mut paths);
    paths.iter().map(|path| config::key_text(path)).collect()
}

fn collect(value: &toml::Value, path: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    paths.push(path.clone());
    let mut step = |part: String, value: &toml::Value| {
        path.push(part);
        collect(value, path, paths);
        path.pop();
    };
    match value {
        toml::Value::Table(table) => {
            table.iter().for_each(|(key, value)| step(key.clone(), value));
        }
        toml::Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| step(index.to_string(), value));
        }
        _ => {}
    }
}
