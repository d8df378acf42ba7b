//! Options of stages, as their own types deserialize them.

use serde::Deserialize;

use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(rename = "types")]
    _types: Vec<String>,
    #[serde(rename = "mode")]
    _mode: Mode,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Keep,
    Drop,
}

fn explained(text: &str) -> String {
    let machine = user(&format!("pipeline.filters = [\"mine\"]\n[filter.mine]\n{text}"));
    let loaded = machine.load().unwrap();
    let stage = stage(&loaded.settings.pipeline.filters, "mine");
    let error = stage.options.to_options().parse::<Options>().unwrap_err();
    machine.plain(&loaded.explain_error(stage, "filter", &error).to_string())
}

#[test]
fn option_error_names_layer_and_full_key() {
    let cases = [
        ("typs = []", "unknown key `filter.mine.typs` in FILE: did you mean `types`?"),
        (
            "types = [\"a\", 1]",
            "`filter.mine.types[1]` in FILE is the number 1, expected a string in quotes",
        ),
        (
            "types = \"a\"",
            "`filter.mine.types` in FILE is the string \"a\", expected a list in brackets",
        ),
        (
            "types = []\nmode = \"kep\"",
            "`filter.mine.mode` in FILE is \"kep\", expected `keep` or `drop`: did you \
                 mean `keep`?",
        ),
        ("types = []", "`filter.mine.mode` is missing: add it under `[filter.mine]`"),
    ];
    for (text, expected) in cases {
        let line = if text.contains("\nmode") { 4 } else { 3 };
        let file = format!("the user's file `DIR/home/config.toml:{line}`");
        let expected = expected.replace("FILE", &file);
        assert_eq!(explained(text), expected, "{text}");
    }
    let _ = (Mode::Keep, Mode::Drop);
}

#[test]
fn option_error_names_the_layer_that_set_it() {
    let machine = Machine::new()
        .machine("[filter.ignore-types]\ntyps = [1]")
        .user("[filter.ignore-types]\ntypes = []");
    let loaded = machine.load().unwrap();
    let stage = stage(&loaded.settings.pipeline.filters, "ignore-types");
    let error = stage.options.to_options().parse::<Options>().unwrap_err();
    assert_eq!(
        machine.plain(&loaded.explain_error(stage, "filter", &error).to_string()),
        "unknown key `filter.ignore-types.typs` in the machine's file `DIR/etc/config.toml:2`: \
             did you mean `types`?"
    );
}

#[test]
fn value_error_is_available_to_other_modules() {
    let machine = user("pipeline.filters = [\"mine\"]\n[filter.mine]\ntype = \"ignore-type\"");
    let loaded = machine.load().unwrap();
    let error = loaded.value_error("filter.mine.type", "is \"ignore-type\", which no stage is");
    assert_eq!(
        machine.plain(&error.to_string()),
        "`filter.mine.type` in the user's file `DIR/home/config.toml:3` is \"ignore-type\", \
             which no stage is"
    );
}
