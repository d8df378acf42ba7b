//! Secrets: values that are never printed.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::Visitor};
use zeroize::Zeroizing;

use crate::platform::secure_file::{self, SecretFileError};

/// Text printed in place of a secret.
pub(super) const MASK: &str = "***";

/// Secrets shorter than this number of bytes are accepted with a warning.
const SHORT: usize = 16;

/// Token or key. Prints as `***`, is never written anywhere, and is overwritten in memory at its end.
///
/// ```
/// use ai_agent::internals::config::Secret;
/// let secret = Secret::new(" t0k3n\n").unwrap();
/// assert_eq!(secret.expose(), "t0k3n");
/// assert_eq!(format!("{secret} {secret:?}"), "*** ***");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Trims `text`; returns `None` if nothing is left.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned().into()))
    }

    /// Reads a secret from a file that other users cannot read.
    ///
    /// # Errors
    /// `SecretError` if the file cannot be read, is accessible to others, or is empty.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        Self::new(&secure_file::read(path)?)
            .ok_or_else(|| SecretError::Empty { path: path.to_owned() })
    }

    /// Returns the plain text, for signatures and the `Authorization` header only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns whether the secret has less than 16 bytes and can be guessed.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.0.len() < SHORT
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Serde's default error for a value of another type would print the value.
        struct Text;
        const NOT_A_STRING: &str = "a secret must be a string in quotes";

        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret as a string in quotes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Secret, E> {
                Secret::new(text).ok_or_else(|| E::custom("a secret must not be empty"))
            }

            fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Secret, E> {
                Err(E::custom(NOT_A_STRING))
            }

            fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Secret, E> {
                Err(E::custom(NOT_A_STRING))
            }

            fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Secret, E> {
                Err(E::custom(NOT_A_STRING))
            }

            fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Secret, E> {
                Err(E::custom(NOT_A_STRING))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "writeOnly": true })
    }
}

/// Reason why no secret can be read from a file.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read, or is accessible to others.
    #[error(transparent)]
    Private(#[from] SecretFileError),
    /// The file is empty.
    #[error("the secret file `{}` is empty", path.display())]
    Empty {
        /// Path of the file.
        path: PathBuf,
    },
}

/// Returns whether the name of `key` says that its value is a secret. Names of files with a secret
/// (`token_file`) are not secret.
#[must_use]
pub(super) fn is_secret_key(key: &str) -> bool {
    const ENDINGS: [&str; 13] = [
        "token",
        "secret",
        "password",
        "passphrase",
        "credential",
        "authorization",
        "cookie",
        "header",
        "api_key",
        "access_key",
        "client_key",
        "private_key",
        "secret_key",
    ];
    let key = key.to_ascii_lowercase().replace('-', "_");
    let key = key.strip_suffix('s').unwrap_or(&key);
    ENDINGS.iter().any(|ending| key.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: impl Into<figment::value::Value>) -> Result<Secret, String> {
        Secret::deserialize(&value.into()).map_err(|error| format!("{error} {error:?}"))
    }

    #[test]
    fn secret_trims_text_and_refuses_blanks() {
        assert_eq!(parse(" x\n").unwrap().expose(), "x");
        assert!(parse(" \n").unwrap_err().contains("a secret must not be empty"));
    }

    #[test]
    fn errors_never_print_the_refused_value() {
        for error in [parse(271_828), parse(271_828_i64), parse(271_828.0), parse(true)] {
            let error = error.unwrap_err();
            assert!(error.contains("must be a string in quotes"), "{error}");
            assert!(!error.contains("271828") && !error.contains("true"), "{error}");
        }
    }

    #[test]
    fn secret_under_16_bytes_is_short() {
        assert!(Secret::new("123456789012345").unwrap().is_short());
        assert!(!Secret::new("1234567890123456").unwrap().is_short());
    }

    #[test]
    fn is_secret_key_recognizes_names_of_secrets() {
        for key in
            ["token", "hmac_secret", "api-key", "Authorization", "tokens", "DB_PASSWORD", "headers"]
        {
            assert!(is_secret_key(key), "{key}");
        }
        for key in ["token_file", "headers_file", "endpoint", "key", "types", "token_count"] {
            assert!(!is_secret_key(key), "{key}");
        }
    }

    #[test]
    fn secret_is_read_from_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let write = |text: &str| secure_file::replace(&path, text.as_bytes()).unwrap();
        write("t0k3n\n");
        assert_eq!(Secret::from_file(&path).unwrap().expose(), "t0k3n");
        write("\n");
        let error = Secret::from_file(&path).unwrap_err().to_string();
        assert_eq!(error, format!("the secret file `{}` is empty", path.display()));
    }
}
