//! Durations and sizes as written in a configuration, with their unit.

use std::{fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Duration, written with its unit as `"300s"`, `"5m"` or `"500ms"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

impl Time {
    /// Creates a duration from seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl FromStr for Time {
    type Err = WrongUnit;

    fn from_str(text: &str) -> Result<Self, WrongUnit> {
        let text = text.trim();
        let wrong = |_| WrongUnit { text: text.to_owned(), example: "a duration such as \"300s\"" };
        humantime::parse_duration(text).map(Self).map_err(wrong)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// Size in bytes, written as `"4 MiB"`, `"256 KiB"` or `"10 MB"`; a number without unit is in
/// bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Creates a size from mebibytes.
    #[must_use]
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// Returns the size for memory; the largest possible one if it does not fit.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = WrongUnit;

    fn from_str(text: &str) -> Result<Self, WrongUnit> {
        let wrong = |_| WrongUnit { text: text.to_owned(), example: "a size such as \"4 MiB\"" };
        text.trim().parse::<bytesize::ByteSize>().map(|size| Self(size.as_u64())).map_err(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bytesize::ByteSize(self.0).display().iec().fmt(f)
    }
}

/// String that is not a duration or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {example}")]
pub struct WrongUnit {
    text: String,
    example: &'static str,
}

/// Writes a type as a string, and reads it from a string; with a third argument, which makes a value
/// of a number, also from a number.
macro_rules! as_text {
    ($unit:ident, $example:literal $(, $from_number:expr)?) => {
        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $unit;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($example)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$unit, E> {
                        text.parse().map_err(E::custom)
                    }

                    $(
                        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$unit, E> {
                            Ok($from_number(number))
                        }

                        fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$unit, E> {
                            let number = u64::try_from(number)
                                .map_err(|_| E::custom("must not be negative"))?;
                            self.visit_u64(number)
                        }
                    )?
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

as_text!(Time, "a duration with its unit, such as \"300s\"");
as_text!(Size, "a size such as \"4 MiB\"", Size);

impl JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^\\s*[0-9]+\\s*[A-Za-z]",
            "description": "a duration with its unit, such as \"300s\"",
        })
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "description": "a size such as \"4 MiB\"" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_without_a_unit_is_refused() {
        assert_eq!("300s".parse(), Ok(Time::seconds(300)));
        assert_eq!(" 5m ".parse(), Ok(Time::seconds(300)));
        assert_eq!("0s".parse(), Ok(Time::seconds(0)));
        assert!("300".parse::<Time>().is_err());
        assert!(serde_json::from_str::<Time>("300").is_err());
        let error = "soon".parse::<Time>().unwrap_err();
        assert_eq!(error.to_string(), "`soon` is not a duration such as \"300s\"");
    }

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        assert_eq!("4 MiB".parse(), Ok(Size::mebibytes(4)));
        assert_eq!("1024".parse(), Ok(Size(1024)));
        assert_eq!("10 MB".parse(), Ok(Size(10_000_000)));
        assert!("much".parse::<Size>().is_err());
    }

    #[test]
    fn printed_value_is_read_back() {
        assert_eq!(Size::mebibytes(8).to_string().parse(), Ok(Size::mebibytes(8)));
        assert_eq!(Time::seconds(90).to_string().parse(), Ok(Time::seconds(90)));
    }
}
