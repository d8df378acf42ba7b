//! Options of a stage, before the stage has deserialized them, and their errors.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, Expected, Unexpected},
};

use self::value::Value;

mod value;

/// Options of a stage: its table without `type`, `enabled` and what the pipeline reads itself.
/// `Debug` prints the names of the options only, because values may be secrets.
#[derive(Clone, PartialEq)]
pub struct StageOptions(BTreeMap<String, Value>);

impl StageOptions {
    /// Deserializes the options as `T`.
    ///
    /// # Errors
    /// [`OptionError`] for the first option that is unknown, missing or of the wrong type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, OptionError> {
        T::deserialize(value::Table(&self.0))
    }
}

/// Parses options from the TOML of a stage's table.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use ai_agent_stage::StageOptions;
///
/// let options: StageOptions = r#"types = ["progress"]"#.parse()?;
/// let options: BTreeMap<String, Vec<String>> = options.parse()?;
/// assert_eq!(options["types"], ["progress"]);
/// # Ok::<(), ai_agent_stage::OptionError>(())
/// ```
impl FromStr for StageOptions {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let table: toml::Table = text.parse().map_err(|error| syntax_error(text, &error))?;
        Self::deserialize(table).map_err(|error| OptionError::from(error.to_string()))
    }
}

/// Deserializes a table of a configuration. `type` and `enabled` are left out.
impl<'de> Deserialize<'de> for StageOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut options = BTreeMap::<String, Value>::deserialize(deserializer)?;
        options.retain(|option, _| !["type", "enabled"].contains(&option.as_str()));
        Ok(Self(options))
    }
}

impl fmt::Debug for StageOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn syntax_error(text: &str, error: &toml::de::Error) -> OptionError {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.as_bytes().get(..at).unwrap_or_default();
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    OptionError::from(format!("line {line}, column {column}: {}", error.message()))
}

/// Error returned when an option is unknown, missing or of the wrong type.
///
/// `Display` and `Debug` name the option and the types, never the value, which may be a secret.
#[derive(Clone, PartialEq)]
pub struct OptionError {
    /// Keys and list indices that lead to the option, the outermost first.
    pub path: Vec<String>,
    problem: Problem,
}

/// Reason why an option is invalid.
#[derive(Clone, PartialEq)]
enum Problem {
    Type { found: Found, expected: String },
    Value { found: Found, expected: String },
    Length { found: usize, expected: String },
    Variant { found: String, known: &'static [&'static str] },
    Unknown { name: String, known: &'static [&'static str] },
    Missing(&'static str),
    Duplicate(&'static str),
    Other(String),
}

/// A value of the wrong type or range.
#[derive(Clone, PartialEq)]
enum Found {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List,
    Table,
    Other(String),
}

impl Found {
    fn of(found: Unexpected<'_>) -> Self {
        match found {
            Unexpected::Bool(value) => Self::Bool(value),
            Unexpected::Unsigned(value) => Self::Unsigned(value),
            Unexpected::Signed(value) => Self::Signed(value),
            Unexpected::Float(value) => Self::Float(value),
            Unexpected::Char(value) => Self::Text(value.to_string()),
            Unexpected::Str(value) => Self::Text(value.to_owned()),
            Unexpected::Seq => Self::List,
            Unexpected::Map => Self::Table,
            other => Self::Other(other.to_string()),
        }
    }

    fn as_unexpected(&self) -> Unexpected<'_> {
        match self {
            Self::Bool(value) => Unexpected::Bool(*value),
            Self::Unsigned(value) => Unexpected::Unsigned(*value),
            Self::Signed(value) => Unexpected::Signed(*value),
            Self::Float(value) => Unexpected::Float(*value),
            Self::Text(value) => Unexpected::Str(value),
            Self::List => Unexpected::Seq,
            Self::Table => Unexpected::Map,
            Self::Other(text) => Unexpected::Other(text),
        }
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a string",
            Self::List => "an array",
            Self::Table => "a table",
            Self::Other(_) => "another value",
        }
    }
}

impl OptionError {
    /// Recreates the error as an error of another deserializer, so that a configuration can explain
    /// it like its own. The result may contain the value.
    pub fn to_serde<E: de::Error>(&self) -> E {
        match &self.problem {
            Problem::Type { found, expected } => {
                E::invalid_type(found.as_unexpected(), &expected.as_str())
            }
            Problem::Value { found, expected } => {
                E::invalid_value(found.as_unexpected(), &expected.as_str())
            }
            Problem::Length { found, expected } => E::invalid_length(*found, &expected.as_str()),
            Problem::Variant { found, known } => E::unknown_variant(found, known),
            Problem::Unknown { name, known } => E::unknown_field(name, known),
            Problem::Missing(name) => E::missing_field(name),
            Problem::Duplicate(name) => E::duplicate_field(name),
            Problem::Other(text) => E::custom(text),
        }
    }

    /// Adds the key or index of the value that contains the option.
    fn within(mut self, key: &str) -> Self {
        self.path.insert(0, key.to_owned());
        self
    }

    /// The option as it is written in a configuration: `types[1]`.
    fn key(&self) -> Option<String> {
        let mut key = self.path.first()?.clone();
        for part in &self.path[1..] {
            match part.bytes().all(|byte| byte.is_ascii_digit()) {
                true => key += &format!("[{part}]"),
                false => key += &format!(".{part}"),
            }
        }
        Some(key)
    }

    fn is_about_a_secret(&self) -> bool {
        const WORDS: [&str; 6] = ["token", "secret", "password", "passphrase", "key", "credential"];
        let is_secret = |part: &String| {
            let part = part.to_ascii_lowercase();
            WORDS.iter().any(|word| part.contains(word))
        };
        self.path.iter().any(is_secret)
    }

    fn describe(&self) -> Cow<'_, str> {
        let one_of = |known: &[&str]| match known {
            [] => "nothing".to_owned(),
            known => format!("`{}`", known.join("`, `")),
        };
        match &self.problem {
            Problem::Type { found, expected } => {
                format!("is {}, expected {expected}", found.type_name()).into()
            }
            Problem::Value { expected, .. } => {
                format!("has a wrong value, expected {expected}").into()
            }
            Problem::Length { found, expected } => {
                format!("has {found} items, expected {expected}").into()
            }
            Problem::Variant { known, .. } => {
                format!("has an unknown value, expected {}", one_of(known)).into()
            }
            Problem::Unknown { known, .. } => {
                format!("is not an option, expected {}", one_of(known)).into()
            }
            Problem::Missing(name) => format!("`{name}` is missing").into(),
            Problem::Duplicate(name) => format!("`{name}` is given twice").into(),
            Problem::Other(_) if self.is_about_a_secret() => "has a wrong value".into(),
            Problem::Other(text) => text.into(),
        }
    }
}

impl From<String> for OptionError {
    fn from(text: String) -> Self {
        Problem::Other(text).into()
    }
}

impl From<Problem> for OptionError {
    fn from(problem: Problem) -> Self {
        Self { path: Vec::new(), problem }
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let description = self.describe();
        match (self.key(), &self.problem) {
            (None, _) => f.write_str(&description),
            (Some(key), Problem::Missing(_) | Problem::Duplicate(_) | Problem::Other(_)) => {
                write!(f, "`{key}`: {description}")
            }
            (Some(key), _) => write!(f, "`{key}` {description}"),
        }
    }
}

impl fmt::Debug for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OptionError({self})")
    }
}

impl std::error::Error for OptionError {}

impl de::Error for OptionError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        text.to_string().into()
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Problem::Type { found: Found::of(found), expected: expected.to_string() }.into()
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Problem::Value { found: Found::of(found), expected: expected.to_string() }.into()
    }

    fn invalid_length(found: usize, expected: &dyn Expected) -> Self {
        Problem::Length { found, expected: expected.to_string() }.into()
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Problem::Variant { found: found.to_owned(), known }.into()
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        Problem::Unknown { name: name.to_owned(), known }.into()
    }

    fn missing_field(name: &'static str) -> Self {
        Problem::Missing(name).into()
    }

    fn duplicate_field(name: &'static str) -> Self {
        Problem::Duplicate(name).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Options {
        #[serde(default)]
        size: Option<u64>,
        #[serde(default)]
        words: Vec<String>,
        #[serde(default)]
        mode: Mode,
        #[serde(default)]
        token: Option<Refusing>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(rename_all = "kebab-case")]
    enum Mode {
        #[default]
        Keep,
        Drop,
        Only(String),
    }

    /// Refuses every text and repeats it in the error.
    #[derive(Debug, PartialEq)]
    struct Refusing;

    impl<'de> Deserialize<'de> for Refusing {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            Err(de::Error::custom(format!("`{text}` is refused")))
        }
    }

    fn parse(text: &str) -> Result<Options, OptionError> {
        text.parse::<StageOptions>().unwrap().parse()
    }

    #[test]
    fn parse_leaves_out_type_and_enabled() {
        let text =
            "type = \"x\"\nenabled = true\nsize = 3\nwords = [\"a\"]\nmode = { only = \"b\" }";
        let expected = Options {
            size: Some(3),
            words: vec!["a".into()],
            mode: Mode::Only("b".into()),
            token: None,
        };
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("mode = \"drop\"").unwrap().mode, Mode::Drop);
    }

    #[test]
    fn error_names_option_and_expected_type() {
        let cases = [
            ("size = \"a\"", "`size` is a string, expected u64"),
            ("size = -1", "`size` has a wrong value, expected u64"),
            ("words = [\"a\", 1]", "`words[1]` is a number, expected a string"),
            ("words = \"a\"", "`words` is a string, expected a sequence"),
            ("wrds = 1", "`wrds` is not an option, expected `size`, `words`, `mode`, `token`"),
            ("mode = \"kep\"", "`mode` has an unknown value, expected `keep`, `drop`, `only`"),
            ("mode = { only = 3 }", "`mode.only` is a number, expected a string"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn error_prints_no_secret() {
        let error = parse("token = \"s3cr3t\"").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error:?}");
        assert_eq!(error.path, ["token"]);
        let error: serde_json::Error = error.to_serde();
        assert_eq!(error.to_string(), "`s3cr3t` is refused");
    }

    #[test]
    fn debug_of_options_prints_no_values() {
        let options = "tokn = \"s3cr3t\"\nurl = \"u\"".parse::<StageOptions>().unwrap();
        assert_eq!(format!("{options:?}"), r#"{"tokn", "url"}"#);
    }

    #[test]
    fn syntax_error_states_line_and_column() {
        let error = "a = 1\nb = ".parse::<StageOptions>().unwrap_err().to_string();
        assert!(error.starts_with("line 2, column 5: "), "{error}");
    }
}
