//! Adds a fixed text to the entry of each record.
//!
//! TODO: describe what the enricher adds, and why.

use ai_agent_stage::{BuildError, Context, Enricher, EnricherOptions, Plugin, Record};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

inventory::submit! {
    Plugin::enricher::<Options>(
        "example-enricher",
        "Adds a fixed text to the entry of each record.",
        r#"
## Text to add.
text = "Berlin"
"#,
    )
}

/// Text to add.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Text to add.
    text: String,
}

/// Adds the same object to every entry.
struct ExampleEnricher {
    object: Box<RawValue>,
}

impl EnricherOptions for Options {
    type Enricher = ExampleEnricher;

    // Facts that do not depend on the record are formatted here, once.
    fn build(self, _context: &Context) -> Result<ExampleEnricher, BuildError> {
        let object = to_raw_value(&serde_json::json!({ "text": self.text }))
            .expect("an object of texts can be written as JSON");
        Ok(ExampleEnricher { object })
    }
}

impl Enricher for ExampleEnricher {
    // The object is added under the name of the stage's instance; the record stays unchanged.
    fn enrich(&mut self, _record: &Record<'_>) -> Option<&RawValue> {
        Some(&self.object)
    }
}

#[cfg(test)]
mod tests {
    use ai_agent_stage::testing::{EnricherTest, context};

    #[test]
    fn text_is_added_to_each_entry() {
        let options = r#"text = "Oslo""#;
        let mut enricher = EnricherTest::new("example-enricher", options, context()).unwrap();
        assert_eq!(enricher.line("{}").as_deref(), Some(r#"{"text":"Oslo"}"#));
        assert_eq!(enricher.line("no JSON").as_deref(), Some(r#"{"text":"Oslo"}"#));
    }

    #[test]
    fn missing_or_unknown_option_is_an_error() {
        for options in ["", "text = \"a\"\nmore = 1"] {
            let built = EnricherTest::new("example-enricher", options, context());
            assert!(built.is_err(), "{options}");
        }
    }
}
