//! Lines of a statement: `key=value`, in a fixed order, with one encoding for each value.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::StatementError;
use crate::{Digest, note::VerifierKey};

/// Characters that are encoded: all but the unreserved ones of RFC 3986 and those of paths, times
/// and keys.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':')
    .remove(b'/')
    .remove(b'+')
    .remove(b'=')
    .remove(b'@');

/// Value of a line that has none.
const NONE: &str = "-";

/// A statement that can be written to lines and read from them. Not for other crates: the trait is
/// public only because [`Statement`](super::Statement) extends it.
pub trait Lines: Sized {
    /// Writes all lines but the first.
    fn write(&self, lines: &mut LineWriter);

    /// Reads what [`Lines::write`] wrote.
    fn read(lines: &mut LineReader<'_>) -> Result<Self, StatementError>;
}

/// Text of a statement while it is written.
pub struct LineWriter(String);

impl LineWriter {
    pub(super) fn new(first: &str) -> Self {
        Self(format!("{first}\n"))
    }

    pub(super) fn write(&mut self, key: &str, value: &impl Value) {
        self.0.push_str(key);
        self.0.push('=');
        self.0.push_str(&value.to_line());
        self.0.push('\n');
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// Lines of a statement that are not read yet.
pub struct LineReader<'a>(std::str::Split<'a, char>);

impl<'a> LineReader<'a> {
    /// Splits `text`, which must start with the line `first`.
    pub(super) fn new(text: &'a str, first: &'static str) -> Result<Self, StatementError> {
        let lines = text.strip_suffix('\n').ok_or(StatementError::Missing(first))?;
        let mut lines = lines.split('\n');
        if lines.next() == Some(first) {
            Ok(Self(lines))
        } else {
            Err(StatementError::Kind { expected: first })
        }
    }

    pub(super) fn read<T: Value>(&mut self, key: &'static str) -> Result<T, StatementError> {
        let line = self.0.next().ok_or(StatementError::Missing(key))?;
        let value = line.strip_prefix(key).and_then(|rest| rest.strip_prefix('='));
        let value = value.ok_or(StatementError::Missing(key))?;
        // A second spelling of the same value would give one statement two hashes.
        T::from_line(value).filter(|read| read.to_line() == value).ok_or(StatementError::Value(key))
    }

    pub(super) fn finish(mut self) -> Result<(), StatementError> {
        if self.0.next().is_none() { Ok(()) } else { Err(StatementError::Extra) }
    }
}

/// A value of a line.
pub(super) trait Value: Sized {
    /// Encodes the value.
    fn to_line(&self) -> String;

    /// Decodes a value, at least every one that [`Value::to_line`] returns.
    fn from_line(value: &str) -> Option<Self>;
}

impl Value for String {
    fn to_line(&self) -> String {
        if self == NONE { "%2D".to_owned() } else { utf8_percent_encode(self, ENCODED).to_string() }
    }

    fn from_line(value: &str) -> Option<Self> {
        Some(percent_decode_str(value).decode_utf8().ok()?.into_owned())
    }
}

impl<T: Value> Value for Option<T> {
    fn to_line(&self) -> String {
        self.as_ref().map_or_else(|| NONE.to_owned(), Value::to_line)
    }

    fn from_line(value: &str) -> Option<Self> {
        if value == NONE { Some(None) } else { T::from_line(value).map(Some) }
    }
}

impl Value for u64 {
    fn to_line(&self) -> String {
        self.to_string()
    }

    fn from_line(value: &str) -> Option<Self> {
        value.parse().ok()
    }
}

impl Value for u16 {
    fn to_line(&self) -> String {
        self.to_string()
    }

    fn from_line(value: &str) -> Option<Self> {
        value.parse().ok()
    }
}

impl Value for Digest {
    fn to_line(&self) -> String {
        self.to_string()
    }

    fn from_line(value: &str) -> Option<Self> {
        Self::from_hex(value)
    }
}

impl Value for VerifierKey {
    fn to_line(&self) -> String {
        self.to_string().to_line()
    }

    fn from_line(value: &str) -> Option<Self> {
        String::from_line(value)?.parse().ok()
    }
}

/// Implements [`Lines`] for a struct: its members with the keys of their lines, in their order.
macro_rules! lines {
    ($statement:ident: $kind:literal { $($member:ident = $key:literal),+ $(,)? }) => {
        impl $crate::statement::line::Lines for $statement {
            fn write(&self, lines: &mut $crate::statement::line::LineWriter) {
                $(lines.write($key, &self.$member);)+
            }

            fn read(
                lines: &mut $crate::statement::line::LineReader<'_>,
            ) -> Result<Self, $crate::statement::StatementError> {
                Ok(Self { $($member: lines.read($key)?),+ })
            }
        }

        impl $crate::statement::Statement for $statement {
            const FIRST_LINE: &'static str = concat!("ai-agent ", $kind, " v1");
        }
    };
}

/// Defines an enum of words that is the value of a line.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[derive(serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the word in statements, configuration and output.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::statement::line::Value for $name {
            fn to_line(&self) -> String {
                self.as_str().to_owned()
            }

            fn from_line(value: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|it| it.as_str() == value)
            }
        }
    };
}

pub(super) use {lines, words};
