//! JSON Schema of a configuration file. It describes any layer, so nothing is required.

use schemars::Schema;
use serde_json::{Map, Value, json};

use super::{layer, pipeline::KINDS, read_layers, settings::Tables, sink};
use config_text::toml_text;

/// JSON Schema of one stage type.
pub struct StageSchema {
    /// Kind of stage: `source`, `filter`, `enricher` or `sink`.
    pub kind: String,
    /// Type.
    pub name: &'static str,
    /// Summary.
    pub summary: &'static str,
    /// JSON Schema of the type's own options; options common to all stages or sinks are added.
    pub options: Schema,
}

/// Returns the JSON Schema of a configuration file whose pipeline may contain `stages`.
///
/// The table of a stage is checked against the options of its `type`, or of the type of the
/// built-in table with that name, or of the type called like the table. A table without any of
/// these may be completed by another layer and may contain anything.
#[must_use]
pub fn schema(stages: &[StageSchema]) -> Value {
    let mut schema = schemars::schema_for!(Tables).to_value();
    let mut definitions = match schema["$defs"].take() {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    };
    for (name, definition) in &mut definitions {
        // A test is complete in itself; tables are merged with those of other layers.
        if !name.starts_with("Test") {
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

/// Returns the schema of the table of one stage type.
fn table(stage: &StageSchema) -> Value {
    let own = format!("#/$defs/{}/$defs/", reference(&stage.kind, stage.name));
    let mut schema = stage.options.clone().to_value();
    point_to(&mut schema, &own);
    forget_required(&mut schema);
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
        schema.insert("description".to_owned(), stage.summary.into());
        let properties = schema.entry("properties").or_insert_with(|| json!({}));
        properties["type"] = json!({ "const": stage.name, "description": "Type of the stage." });
        properties["enabled"] =
            json!({ "type": "boolean", "description": "Runs the stage if true." });
        if let ("sink", Value::Object(common)) = (&*stage.kind, sink::properties()) {
            for (option, about) in common {
                properties[option] = about;
            }
        }
    }
    schema
}

/// Adjusts references within a stage's own schema to its position in the whole schema.
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

/// Returns the schema of a table with any name, which depends on its `type`.
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
        "properties": { "type": { "enum": names, "description": "Type of the stage." } },
        "allOf": by_type.collect::<Vec<_>>(),
    })
}

/// Returns the schemas of tables whose name implies their type unless they set one.
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

/// Returns the types that tables of the built-in configuration set: `siem` is an `http-siem`.
fn types_of_defaults(kind: &str) -> Vec<(String, String)> {
    let Ok(defaults) = toml_text::parse(read_layers::DEFAULTS) else { return Vec::new() };
    let types = layer::tables(&defaults.values, kind).filter_map(|(name, table)| {
        Some((name.to_owned(), table.get("type")?.as_str()?.to_owned()))
    });
    types.collect()
}
