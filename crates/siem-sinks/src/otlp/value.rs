//! Encodes the values of fields as values of attributes.

use std::mem;

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, any_value::Value};
use serde_json::Value as Json;

use crate::event;

/// Encodes a value; `None` for null. A JSON value that is a string, a boolean, a number or an array of
/// values of one of these types keeps its type. Receivers need not accept other values in attributes:
/// those are strings with the JSON text, and so are numbers that do not fit.
pub(super) fn encode(value: event::Value<'_>) -> Option<Value> {
    match value {
        event::Value::Text(text) => Some(Value::StringValue(text.to_owned())),
        event::Value::Number(number) => Some(integer(number)),
        event::Value::Bool(value) => Some(Value::BoolValue(value)),
        event::Value::Json(text) => match text.trim_ascii_start().as_bytes().first() {
            Some(b'{') => Some(Value::StringValue(text.to_owned())),
            Some(b'[') => Some(array(text).unwrap_or_else(|| Value::StringValue(text.to_owned()))),
            _ => scalar(text),
        },
    }
}

fn integer(number: u64) -> Value {
    match i64::try_from(number) {
        Ok(number) => Value::IntValue(number),
        Err(_) => Value::StringValue(number.to_string()),
    }
}

fn scalar(text: &str) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(Json::Null) => None,
        Ok(json) => Some(of_scalar(json).unwrap_or_else(|| Value::StringValue(text.to_owned()))),
        Err(_) => Some(Value::StringValue(text.to_owned())),
    }
}

/// Encodes an array if its values are scalars of one type.
fn array(text: &str) -> Option<Value> {
    let json: Vec<Json> = serde_json::from_str(text).ok()?;
    let values: Vec<Value> = json.into_iter().map(of_scalar).collect::<Option<_>>()?;
    let is_uniform = |pair: &[Value]| mem::discriminant(&pair[0]) == mem::discriminant(&pair[1]);
    if !values.windows(2).all(is_uniform) {
        return None;
    }
    let values = values.into_iter().map(|value| AnyValue { value: Some(value) }).collect();
    Some(Value::ArrayValue(ArrayValue { values }))
}

fn of_scalar(json: Json) -> Option<Value> {
    match json {
        Json::String(text) => Some(Value::StringValue(text)),
        Json::Bool(value) => Some(Value::BoolValue(value)),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Some(Value::IntValue(number)),
            // A larger integer would lose digits.
            None if number.is_u64() => None,
            None => number.as_f64().map(Value::DoubleValue),
        },
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Option<Value> {
        encode(event::Value::Json(text))
    }

    fn text(text: &str) -> Option<Value> {
        Some(Value::StringValue(text.to_owned()))
    }

    #[test]
    fn json_scalars_keep_their_type() {
        assert_eq!(json(r#""a\nb""#), text("a\nb"));
        assert_eq!(json("true"), Some(Value::BoolValue(true)));
        assert_eq!(json("-7"), Some(Value::IntValue(-7)));
        assert_eq!(json("1.5"), Some(Value::DoubleValue(1.5)));
        assert_eq!(json("null"), None);
        assert_eq!(encode(event::Value::Number(7)), Some(Value::IntValue(7)));
        assert_eq!(encode(event::Value::Bool(false)), Some(Value::BoolValue(false)));
    }

    #[test]
    fn array_of_one_type_is_an_array() {
        let values = ["a", "b"].map(|it| AnyValue { value: text(it) }).to_vec();
        assert_eq!(json(r#"["a", "b"]"#), Some(Value::ArrayValue(ArrayValue { values })));
        assert_eq!(json("[]"), Some(Value::ArrayValue(ArrayValue { values: Vec::new() })));
    }

    #[test]
    fn other_json_values_are_strings() {
        for value in [
            r#"{"a":1}"#,
            r#"["a",1]"#,
            r#"[{"a":1}]"#,
            "[null]",
            "18446744073709551615",
            r#""\ud800""#,
            "1e999",
        ] {
            assert_eq!(json(value), text(value));
        }
        assert_eq!(encode(event::Value::Number(u64::MAX)), text("18446744073709551615"));
    }
}
