//! The enricher `activity`: it adds only fields that its page documents, and the same again after a
//! rollback.

use std::{collections::BTreeMap, sync::OnceLock};

use ai_agent::internals::{
    protocol::json,
    stages::{Record, StageOptions, enricher::Enricher},
};
use serde_json::Value;

/// Adds to the lines of the input, each whole and as the first part of a longer one.
pub fn run(input: &[u8]) {
    let options = "".parse::<StageOptions>().unwrap();
    let context = ai_agent_stage::testing::context().into();
    let build = || ai_agent_stage::build_enricher("activity", &options, &context).unwrap();
    let mut enricher = build();
    let first = add_all(&mut *enricher, input);
    for added in first.iter().flatten() {
        assert_documented(added);
    }
    enricher.rollback();
    assert_eq!(add_all(&mut *enricher, input), first, "other objects after a rollback");
}

fn add_all(enricher: &mut dyn Enricher, input: &[u8]) -> Vec<Option<String>> {
    let origin = Record::from_line(b"").origin();
    let (mut added, mut offset) = (Vec::new(), 0);
    for line in input.split(|byte| *byte == b'\n') {
        for record in [Record::new(origin, offset, line), Record::first_part(origin, offset, line)]
        {
            added.push(enricher.enrich(&record).map(|object| object.get().to_owned()));
        }
        offset += line.len() as u64 + 1;
    }
    added
}

/// Fails unless `added` is a flat object of documented fields with documented types.
pub fn assert_documented(added: &str) {
    static FIELDS: OnceLock<BTreeMap<&str, &str>> = OnceLock::new();
    let fields = FIELDS.get_or_init(|| documented().collect());
    assert!(json::check(added).is_some_and(|shape| shape.object && !shape.padded), "{added}");
    let Value::Object(members) = serde_json::from_str(added).unwrap() else {
        panic!("not an object: {added}");
    };
    let mut count = 0;
    json::members(added, |_| count += 1);
    assert_eq!(count, members.len(), "a field occurs twice: {added}");
    for (name, value) in &members {
        let kind = fields.get(&**name).unwrap_or_else(|| panic!("`{name}` is not documented"));
        let is_one = |value: &Value| match kind.split([' ', ',']).next() {
            Some("text") => value.is_string(),
            Some("integer") => value.is_u64(),
            Some("boolean") => value.is_boolean(),
            other => panic!("unknown type {other:?} of `{name}`"),
        };
        let several = |value: &Value| {
            let values = value.as_array().filter(|_| kind.contains("[]"));
            values.is_some_and(|values| values.len() > 1 && values.iter().all(is_one))
        };
        assert!(is_one(value) || several(value), "`{name}` is not {kind}: {added}");
    }
}

/// Returns name and type of each field in the tables of the page.
pub fn documented() -> impl Iterator<Item = (&'static str, &'static str)> {
    let page = include_str!("../../docs/activity.md");
    page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        let kind = cells.next()?;
        let is_field = ["text", "integer", "boolean"].iter().any(|word| kind.starts_with(word));
        (name.contains('.') && is_field).then_some((name, kind))
    })
}
