//! JSON Schema of a configuration file: of any layer, so nothing is required in it.

use schemars::Schema;
use serde_json::{Map, Value, json};

use super::{KINDS, layer, read_layers, settings::Tables, sink, toml_text};

/// A stage's options.
pub struct StageSchema {
    /// `source`, `filter`, `enricher` or `sink`.
    pub kind: &'static str,
    /// Its type.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// JSON Schema of its own options: what the table of every stage or sink may say comes on top.
    pub options: Schema,
}

/// JSON Schema of a configuration file whose pipeline may have any of `stages`.
///
/// The table of a stage is held against the options of its type: that of its `type`, of the built-in
/// table of that name, or of its name. A table that says none may be completed by another layer, and
/// may hold anything.
#[must_use]
pub fn schema(stages: &[StageSchema]) -> Value {
    let mut schema = schemars::schema_for!(Tables).to_value();
    let mut definitions = match schema["$defs"].take() {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    };
    for (name, definition) in &mut definitions {
        // A test is whole in itself; a table is merged with those of other layers.
        if !name.starts_with("InlineTest") {
            forget_required(definition);
        }
    }
    forget_required(&mut schema);
    for kind in KINDS {
        let of_kind: Vec<&StageSchema> = stages.iter().filter(|it| it.kind == kind).collect();
        for stage in &of_kind {
            definitions.insert(reference(kind, stage.name), table(stage));
        }
        definitions.insert(kind.to_owned(), any_table(kind, &of_kind));
        let description = schema["properties"][kind]["description"].take();
        schema["properties"][kind] = json!({
            "description": description,
            "type": "object",
            "properties": named_tables(kind, &of_kind),
            "additionalProperties": { "$ref": format!("#/$defs/{kind}") },
        });
    }
    schema["title"] = "Configuration of ai-agent".into();
    schema["$defs"] = definitions.into();
    schema
}

fn reference(kind: &str, stage: &str) -> String {
    format!("{kind}.{stage}")
}

fn forget_required(schema: &mut Value) {
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("required");
    }
}

/// The table of a stage of one type.
fn table(stage: &StageSchema) -> Value {
    let own = format!("#/$defs/{}/$defs/", reference(stage.kind, stage.name));
    let mut schema = stage.options.clone().to_value();
    point_to(&mut schema, &own);
    forget_required(&mut schema);
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
        schema.insert("description".to_owned(), stage.summary.into());
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        properties["type"] = json!({ "const": stage.name, "description": "What the stage is." });
        properties["enabled"] = json!({ "type": "boolean", "description": "Whether it runs." });
        if let ("sink", Value::Object(common)) = (stage.kind, sink::properties()) {
            for (option, about) in common {
                properties[option] = about;
            }
        }
    }
    schema
}

/// Lets references within a stage's own schema point to where it stands now.
fn point_to(schema: &mut Value, own: &str) {
    match schema {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(text) if name == "$ref" => {
                        *text = text.replace("#/$defs/", own);
                    }
                    member => point_to(member, own),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| point_to(item, own)),
        _ => {}
    }
}

/// A table of any name: its `type` decides.
fn any_table(kind: &str, stages: &[&StageSchema]) -> Value {
    let names: Vec<&str> = stages.iter().map(|stage| stage.name).collect();
    let by_type = stages.iter().map(|stage| {
        json!({
            "if": { "properties": { "type": { "const": stage.name } }, "required": ["type"] },
            "then": { "$ref": format!("#/$defs/{}", reference(kind, stage.name)) },
        })
    });
    json!({
        "type": "object",
        "properties": { "type": { "enum": names, "description": "What the stage is." } },
        "allOf": by_type.collect::<Vec<_>>(),
    })
}

/// Tables whose name says their type, where they do not say it themselves.
fn named_tables(kind: &str, stages: &[&StageSchema]) -> Map<String, Value> {
    let own = stages.iter().map(|stage| (stage.name.to_owned(), stage.name.to_owned()));
    let all = own.chain(types_of_defaults(kind));
    let is_known = |name: &str| stages.iter().any(|stage| stage.name == name);
    all.filter(|(_, stage)| is_known(stage))
        .map(|(name, stage)| {
            let table = json!({
                "if": { "required": ["type"] },
                "then": { "$ref": format!("#/$defs/{kind}") },
                "else": { "$ref": format!("#/$defs/{}", reference(kind, &stage)) },
            });
            (name, table)
        })
        .collect()
}

/// Tables of the built-in configuration that say their type: `siem` is an `http-siem`.
fn types_of_defaults(kind: &str) -> Vec<(String, String)> {
    let Ok(defaults) = toml_text::parse(read_layers::DEFAULTS) else { return Vec::new() };
    let types = layer::tables(&defaults.values, kind).filter_map(|(name, table)| {
        Some((name.to_owned(), table.get("type")?.as_str()?.to_owned()))
    });
    types.collect()
}
