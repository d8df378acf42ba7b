//! Secrets: their sources, and that no output contains them.

use proptest::prelude::*;

use ai_agent_stage::OptionError;

use super::*;

const MARKER: &str = "S3CR3T-MARKER";

/// Correct and incorrect ways to write a secret; `@` stands for it.
const PLACES: [&str; 16] = [
    "[sink.siem]\ntoken = \"@\"",
    "[sink.siem]\nhmac_secret = \"@\"",
    "[sink.siem]\ntoken = [\"@\"]",
    "[sink.siem]\ntoken = { value = \"@\" }",
    "[sink.siem]\ntoken = @",
    "[sink.siem]\ntoken = \"@",
    "[sink.siem]\ntoken = '@\"",
    "[sink.siem]\ntoken = \"@\" \"@\"",
    "[sink.siem]\ntoken = \"\\@\"",
    "[sink.siem]\ntokn = \"@\"",
    "[sink]\ntoken = \"@\"",
    "token = \"@\"",
    "[agent]\ntoken = \"@\"",
    "[filter.meta]\napi_key = \"@\"",
    "[sink.other]\npassword = \"@\"",
    "[sink.siem]\ntoken = \"@\"\ntoken = \"@\"",
];

#[derive(Debug, serde::Deserialize)]
struct Sink {
    #[serde(rename = "token")]
    _token: Secret,
    #[serde(rename = "hmac_secret")]
    _hmac_secret: u64,
}

/// Options that are not a [`Secret`], although their name says that they contain one.
#[test]
fn type_error_of_a_secret_does_not_print_it() {
    #[derive(Debug, serde::Deserialize)]
    enum Choice {}
    type Parse = fn(&OptionTable) -> OptionError;
    fn read<T: serde::de::DeserializeOwned>(options: &OptionTable) -> OptionError {
        options.to_options().parse::<std::collections::BTreeMap<String, T>>().err().unwrap()
    }
    let reads: [(&str, Parse); 4] = [
        ("is a string, expected a whole number, 0 or more", read::<u64>),
        ("is a string, expected a list in brackets", read::<Vec<u8>>),
        ("is invalid: `***` is not a duration such as \"300s\"", read::<config_text::Time>),
        ("is invalid, expected ", read::<Choice>),
    ];
    let text = format!("pipeline.filters = [\"mine\"]\n[filter.mine]\napi_key = \"{MARKER}\"");
    let loaded = user(&text).load().unwrap();
    let stage = stage(&loaded.settings.pipeline.filters, "mine");
    for (expected, read) in reads {
        let error = loaded.explain_error(stage, "filter", &read(&stage.options));
        let text = error.to_string();
        assert!(
            text.starts_with("`filter.mine.api_key` in ") && text.ends_with(expected),
            "{text}"
        );
        assert!(!format!("{text} {error:?}").contains(MARKER), "{text}");
    }
}

/// Returns everything that can be printed about a configuration.
fn all_output(machine: &Machine) -> String {
    use std::fmt::Write as _;

    let mut output = format!("{:?}", machine.variables.iter().cloned().collect::<Environment>());
    match machine.load() {
        Err(error) => write!(output, "{error} {error:?} {:?}", error_source(&error)).unwrap(),
        Ok(loaded) => {
            write!(output, "{loaded:?} {:?}", loaded.settings).unwrap();
            if let Some(error) = loaded.missing_for_delivery() {
                write!(output, "{error} {error:?}").unwrap();
            }
            for sink in &loaded.settings.pipeline.sinks {
                match sink.options.to_options().parse::<Sink>() {
                    Ok(options) => write!(output, "{options:?}").unwrap(),
                    Err(error) => {
                        let error = loaded.explain_error(sink, "sink", &error);
                        write!(output, "{error} {error:?}").unwrap();
                    }
                }
            }
        }
    }
    output
}

fn error_source(error: &ConfigError) -> Option<String> {
    std::error::Error::source(error).map(ToString::to_string)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn secrets_are_in_no_output(
        places in proptest::collection::vec(0..PLACES.len(), 1..3),
        by_variable in any::<bool>(),
    ) {
        let mut machine = Machine::new();
        if let Some(location) = places.first() {
            machine = machine.machine(&PLACES[*location].replace('@', MARKER));
        }
        if let Some(location) = places.get(1) {
            machine = machine.user(&PLACES[*location].replace('@', MARKER));
        }
        if by_variable {
            machine = machine
                .variable("CLAUDE_SIEM_TOKEN", MARKER)
                .variable("CLAUDE_SIEM_HMAC_SECRET", MARKER)
                .variable("CLAUDE_SIEM_TOKN", MARKER);
        }
        let output = all_output(&machine);
        prop_assert!(!output.is_empty() && !output.contains(MARKER), "{output}");
    }
}

#[test]
fn secret_values_contain_files_headers_and_urls() {
    let machine = Machine::new()
        .write("home/headers", "Authorization:Bearer file-token\n")
        .write("home/endpoint", "https://intake.test/receiver/file-key\n")
        .user(
            "pipeline.sinks = [\"one\", \"two\"]\n\
             [sink.one]\ntype = \"http\"\nendpoint = \"https://intake.test/receiver/path-key\"\n\
             headers_file = \"~/headers\"\nproxy = \"http://proxy.test/?sig=query-key\"\n\
             [sink.two]\ntype = \"http\"\nendpoint_file = \"~/endpoint\"\n\
             headers = { Authorization = \"Bearer plain-token\" }\n",
        );
    let secrets = machine.load().unwrap().secret_values(&machine.paths);
    for secret in [
        "file-token",
        "Bearer file-token",
        "https://intake.test/receiver/file-key",
        "receiver/file-key",
        "https://intake.test/receiver/path-key",
        "receiver/path-key",
        "sig=query-key",
        "plain-token",
    ] {
        assert!(secrets.iter().any(|it| it == secret), "{secret}: {secrets:?}");
    }
}

#[test]
fn secret_values_of_broken_layers_are_found() {
    let secret_values = |machine: &Machine| {
        let environment: Environment = machine.variables.iter().cloned().collect();
        let (paths, environment) = (&machine.paths, &environment);
        ConfigInputs { paths, environment, explicit: None, managed: None }.secret_values()
    };
    let token = "a-secret".to_owned();
    let machine = user("[sink.siem]\ntoken = \"a-secret\"\nwrong = 1\n[agent]\nwrong = 1");
    assert!(machine.load().is_err());
    let (secrets, is_complete) = secret_values(&machine);
    assert!(is_complete && secrets.contains(&token), "{secrets:?}");
    let (secrets, is_complete) = secret_values(&machine.machine("[agent"));
    assert!(!is_complete && secrets.contains(&token), "{secrets:?}");
}

/// Each way alone, so that no error hides another.
#[test]
fn no_output_of_one_layer_contains_a_secret() {
    for location in PLACES {
        let output = all_output(&user(&location.replace('@', MARKER)));
        assert!(!output.contains(MARKER), "{location}: {output}");
    }
}
