//! Options of every sink.

use super::*;

fn sink_settings(text: &str) -> Result<SinkSettings, String> {
    let machine = user(&format!("[sink.siem]\n{text}"));
    let loaded = machine.load().map_err(|error| machine.plain(&error.to_string()))?;
    Ok(stage(&loaded.settings.pipeline.sinks, "siem").sink_settings)
}

#[test]
fn sinks_start_with_the_oldest_entry_without_a_rate_limit() {
    assert_eq!(
        sink_settings(""),
        Ok(SinkSettings { start: Start::Oldest, max_bytes_per_second: None })
    );
    let custom = SinkSettings { start: Start::Now, max_bytes_per_second: Some(1 << 20) };
    assert_eq!(sink_settings("start = \"now\"\nmax_bytes_per_second = \"1 MiB\""), Ok(custom));
    let of_any_type = "type = \"stdout\"\nstart = \"now\"\nmax_bytes_per_second = 1048576";
    assert_eq!(sink_settings(of_any_type), Ok(custom));
}

#[test]
fn invalid_sink_option_is_an_error() {
    for (text, expected) in [
        (
            "start = \"no\"",
            "`sink.siem.start` in FILE is \"no\", expected `oldest` or `now`: did you mean `now`?",
        ),
        ("start = 1", "`sink.siem.start` in FILE is the number 1, expected a string in quotes"),
        (
            "max_bytes_per_second = \"fast\"",
            "`sink.siem.max_bytes_per_second` in FILE is invalid: `fast` is not a size such as \
             \"4 MiB\"",
        ),
        (
            "max_bytes_per_second = 0",
            "`sink.siem.max_bytes_per_second` in FILE is 0 B, must be at least 1 KiB; omit it for no limit",
        ),
    ] {
        let expected = expected.replace("FILE", "the user's file `DIR/home/config.toml:2`");
        assert_eq!(sink_settings(text).unwrap_err(), expected, "{text}");
    }
}

/// The options belong to sinks: another stage may have options of the same names.
#[test]
fn sink_options_are_hidden_from_the_stage() {
    let text = "pipeline.filters = [\"mine\"]\n[filter.mine]\nstart = \"x\"\n[sink.siem]\n\
                start = \"now\"";
    let loaded = user(text).load().unwrap();
    assert!(stage(&loaded.settings.pipeline.filters, "mine").options.get("start").is_some());
    assert!(stage(&loaded.settings.pipeline.sinks, "siem").options.get("start").is_none());
}
