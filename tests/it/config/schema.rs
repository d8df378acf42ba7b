//! `config schema`.

use super::*;

fn as_json(text: &str) -> Value {
    serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap()
}

fn validator() -> jsonschema::Validator {
    let schema: Value = serde_json::from_str(&printed(&home(""), &["config", "schema"])).unwrap();
    jsonschema::meta::validate(&schema).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

#[track_caller]
fn assert_right(validator: &jsonschema::Validator, text: &str) {
    if let Err(error) = validator.validate(&as_json(text)) {
        panic!("{error} at {}:\n{text}", error.instance_path());
    }
}

#[test]
fn schema_accepts_the_defaults_and_every_sample() {
    let validator = validator();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_right(&validator, &fs::read_to_string(root.join("config/default.toml")).unwrap());
    let all = ai_agent::internals::stages::all();
    assert!(all.len() >= 12);
    for stage in all {
        let named = format!("[{}.{}]\n{}", stage.kind, stage.name, stage.sample);
        assert_right(&validator, &named);
        let typed = format!("[{}.mine]\ntype = \"{}\"\n{}", stage.kind, stage.name, stage.sample);
        assert_right(&validator, &typed);
    }
}

#[test]
fn schema_rejects_what_the_agent_rejects() {
    let validator = validator();
    for text in [
        "",
        "shipping.flush_interval = \"5s\"",
        "[sink.siem]\nendpoint = \"https://x\"",
        "[sink.siem]\ntype = \"stdout\"",
        "[filter.mine]\nenabled = false",
        "[filter.mine]\ntype = \"ignore-types\"\ntypes = []",
        "locked = [\"sink\"]\nmanaged.allow = [\"filter.*\"]",
        "[[test]]\nname = \"a\"\nlines = [{ input = \"\", expect = \"keep\" }]",
    ] {
        assert_right(&validator, text);
    }
    let globs = format!("[filter.path]\ndrop_cwd = {:?}", vec!["/a"; 1001]);
    let filters: Vec<_> = (0..257).map(|n| format!("f{n}")).collect();
    let stages = format!("pipeline.filters = {filters:?}");
    for text in [
        &*globs,
        &stages,
        "colour = 1",
        "shipping.bach_size = 1",
        "shipping.batch_size = \"many\"",
        "shipping.flush_interval = true",
        "shipping.flush_interval = 5",
        "shipping.flush_interval = \"5\"",
        "pipeline.sinks = \"siem\"",
        "[filter.mine]\ntype = \"no-such\"",
        "[filter.ignore-types]\ntyps = []",
        "[filter.mine]\ntype = \"ignore-types\"\ntyps = []",
        "[filter.mine]\ntype = \"meta\"\ntypes = []",
        "[filter.tool-call]\non_oversize = \"kep\"",
        "[sink.siem]\nendpont = \"https://x\"",
        "[sink.siem]\ntype = \"stdout\"\nendpoint = \"https://x\"",
        "[filter.meta]\nenabled = \"yes\"",
        "[[test]]\nname = \"a\"",
        "[[test]]\nname = \"a\"\nlines = [{ input = \"\", expect = \"kep\" }]",
    ] {
        assert!(!validator.is_valid(&as_json(text)), "{text}");
    }
}
