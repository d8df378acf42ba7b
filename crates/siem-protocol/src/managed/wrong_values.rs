//! Values of a managed configuration that agents refuse although their types are right.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::{Compliance, ManagedConfig};

/// Kinds of stages whose tables `stages` may have.
pub const STAGE_KINDS: [&str; 2] = ["filter", "enricher"];
/// Range of `compliance.transcript_within_seconds`.
pub const TRANSCRIPT_WITHIN_SECONDS: RangeInclusive<u64> = 1..=7 * 86_400;

/// A value that every agent refuses, and with it the whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {problem}")]
pub struct WrongValue {
    /// Dotted key; items of a list have their index.
    pub key: String,
    /// What is wrong, to be read after the key.
    pub problem: String,
}

impl WrongValue {
    fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into() }
    }
}

impl ManagedConfig {
    /// Returns the values that no agent accepts, whatever the file of its machine permits. Agents check
    /// more, which a receiver cannot: options of stages, `managed.allow` of the machine, and the tests.
    ///
    /// ```
    /// use siem_protocol::ManagedConfig;
    /// let text = br#"{"version":1,"compliance":{"transcript_within_seconds":0}}"#;
    /// let wrong = ManagedConfig::parse(text)?.wrong_values();
    /// assert_eq!(wrong[0].key, "compliance.transcript_within_seconds");
    /// # Ok::<(), siem_protocol::ManagedError>(())
    /// ```
    #[must_use]
    pub fn wrong_values(&self) -> Vec<WrongValue> {
        let mut wrong = self.compliance.as_ref().map(Compliance::wrong_values).unwrap_or_default();
        if let Some(stages) = &self.stages {
            add_stages(stages, &mut wrong);
        }
        match &self.tests {
            Some(tests) if !tests.is_array() => {
                wrong.push(WrongValue::new("tests", "must be a list"))
            }
            Some(tests) => add_nulls(tests, "tests", &mut wrong),
            None => {}
        }
        wrong
    }
}

impl Compliance {
    /// Returns the values that an agent refuses, also in a file. The keys begin with `compliance.`.
    #[must_use]
    pub fn wrong_values(&self) -> Vec<WrongValue> {
        let mut wrong = Vec::new();
        for (index, domain) in self.permitted_email_domains.iter().flatten().enumerate() {
            if !is_email_domain(domain) {
                let problem = format!(
                    "is {domain:?}, must be the part of an address after the `@`, such as \
                     `company.com`, or `*.company.com` for its subdomains"
                );
                let key = format!("compliance.permitted_email_domains.{index}");
                wrong.push(WrongValue::new(key, problem));
            }
        }
        for (index, id) in self.permitted_org_ids.iter().flatten().enumerate() {
            if id.trim().is_empty() {
                let key = format!("compliance.permitted_org_ids.{index}");
                wrong.push(WrongValue::new(key, "is empty, must be an organisation id"));
            }
        }
        let within = self.transcript_within_seconds;
        if let Some(within) = within.filter(|within| !TRANSCRIPT_WITHIN_SECONDS.contains(within)) {
            let (least, most) = TRANSCRIPT_WITHIN_SECONDS.into_inner();
            let problem = format!("is {within}, must be from {least} to {most}");
            wrong.push(WrongValue::new("compliance.transcript_within_seconds", problem));
        }
        wrong
    }
}

/// Reports whether an item of `permitted_email_domains` can match any domain.
fn is_email_domain(permitted: &str) -> bool {
    let name = permitted.trim();
    let name = name.strip_prefix("*.").unwrap_or(name).trim_end_matches('.');
    !name.is_empty() && !name.contains('*') && idna::domain_to_ascii_strict(name).is_ok()
}

/// Adds what is wrong with `{"filter": {"NAME": {…}}, "enricher": {…}}`.
fn add_stages(stages: &Value, wrong: &mut Vec<WrongValue>) {
    const NO_OBJECT: &str = "must be an object";

    let Some(kinds) = stages.as_object() else {
        return wrong.push(WrongValue::new("stages", NO_OBJECT));
    };
    for (kind, named) in kinds {
        let key = format!("stages.{kind}");
        if !STAGE_KINDS.contains(&&**kind) {
            let problem = "cannot be set by the server: only tables of `filter` and `enricher` can";
            wrong.push(WrongValue::new(key, problem));
            continue;
        }
        let Some(named) = named.as_object() else {
            wrong.push(WrongValue::new(key, NO_OBJECT));
            continue;
        };
        for (name, options) in named {
            let key = format!("{key}.{name}");
            match options.is_object() {
                true => add_nulls(options, &key, wrong),
                false => wrong.push(WrongValue::new(key, NO_OBJECT)),
            }
        }
    }
}

/// Adds every null in `value`: files of agents have no such value.
fn add_nulls(value: &Value, key: &str, wrong: &mut Vec<WrongValue>) {
    match value {
        Value::Null => wrong.push(WrongValue::new(key, "is null: omit it instead")),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                add_nulls(item, &format!("{key}.{index}"), wrong);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                add_nulls(member, &format!("{key}.{name}"), wrong);
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(members: &str) -> Vec<String> {
        let text = format!("{{\"version\":1,{members}}}");
        let config = ManagedConfig::parse(text.as_bytes()).unwrap();
        config.wrong_values().into_iter().map(|it| it.key).collect()
    }

    #[test]
    fn wrong_values_are_found_all_at_once() {
        let members = r#"
            "compliance": {
                "permitted_email_domains": ["a.example", "@b", "*.c.example", "*"],
                "permitted_org_ids": ["a", " "],
                "transcript_within_seconds": 604801
            },
            "stages": {
                "sink": {}, "filter": [], "enricher": { "a": 1, "b": { "labels": { "x": [null] } } }
            },
            "tests": [{ "name": null }]"#;
        let expected = [
            "compliance.permitted_email_domains.1",
            "compliance.permitted_email_domains.3",
            "compliance.permitted_org_ids.1",
            "compliance.transcript_within_seconds",
            "stages.enricher.a",
            "stages.enricher.b.labels.x.0",
            "stages.filter",
            "stages.sink",
            "tests.0.name",
        ];
        let mut found = wrong(members);
        found.sort();
        assert_eq!(found, expected);
        assert_eq!(wrong(r#""stages":[],"tests":{}"#), ["stages", "tests"]);
    }

    #[test]
    fn right_values_are_not_wrong() {
        let members = r#"
            "filters": { "ignore_types": [""] },
            "compliance": {
                "permitted_email_domains": [], "permitted_org_ids": [],
                "transcript_within_seconds": 604800
            },
            "stages": { "filter": { "x": {} }, "enricher": {} },
            "tests": []"#;
        assert_eq!(wrong(members), [""; 0]);
    }

    #[test]
    fn email_domain_that_matches_nothing_is_refused() {
        for right in ["company.com", "*.company.com", "bücher.example", "localhost"] {
            assert!(is_email_domain(right), "{right}");
        }
        for wrong in [
            "",
            "*",
            "*.",
            "*.*.com",
            "a b",
            "@company.com",
            "me@company.com",
            "https://company.com",
        ] {
            assert!(!is_email_domain(wrong), "{wrong}");
        }
    }
}
