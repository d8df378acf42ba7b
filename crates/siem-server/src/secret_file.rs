//! Tokens and secrets in files and variables: one, or two during a rotation.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    regular_file::read_regular_file,
    secrets::{EmptySecret, Secret},
};

/// Largest file with a secret, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Error of a token or secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// It is given nowhere.
    #[error("no {name}: {hint}")]
    Missing {
        /// Kind of secret.
        name: &'static str,
        /// All ways to give it.
        hint: &'static str,
    },
    /// A value is empty.
    #[error("a {name} is empty")]
    Empty {
        /// Kind of secret.
        name: &'static str,
        /// Reason.
        #[source]
        source: EmptySecret,
    },
    /// More than two values are given.
    #[error("more than two values of the {name} are given")]
    TooMany {
        /// Kind of secret.
        name: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read the {name} from `{}`", .path.display())]
    File {
        /// Kind of secret.
        name: &'static str,
        /// The file.
        path: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// All users can read a file.
    #[error("`{}` with the {name} is readable by everyone; chmod it to 600", .path.display())]
    Open {
        /// Kind of secret.
        name: &'static str,
        /// The file.
        path: PathBuf,
    },
}

/// Kind of secret.
#[derive(Clone, Copy, Debug)]
pub struct SecretKind {
    /// Name in messages.
    pub name: &'static str,
    /// All ways to give it, in messages.
    pub hint: &'static str,
}

impl SecretKind {
    /// Reads one or two values from the lines of a file, or takes `values` without a file.
    ///
    /// # Errors
    /// [`SecretError`] if there is no value or an invalid one, or if others can read the file.
    pub fn pair(
        &self,
        file: Option<&Path>,
        values: &[String],
    ) -> Result<(Secret, Option<Secret>), SecretError> {
        let name = self.name;
        let values = match file {
            Some(path) => self.lines(path)?,
            // As in the agent: a trailing newline is accidental.
            None => values.iter().map(|value| value.trim().to_owned()).collect(),
        };
        let mut secrets = values.into_iter().map(|value| {
            let secret = Secret::new(value);
            secret.map_err(|source| SecretError::Empty { name, source })
        });
        let Some(first) = secrets.next().transpose()? else {
            return Err(SecretError::Missing { name, hint: self.hint });
        };
        let second = secrets.next().transpose()?;
        if secrets.next().is_some() {
            return Err(SecretError::TooMany { name });
        }
        for secret in [Some(&first), second.as_ref()].into_iter().flatten() {
            if secret.is_short() {
                tracing::warn!(
                    code = "secret_short",
                    least = Secret::SHORT,
                    "the {name} is shorter than recommended"
                );
            }
        }
        Ok((first, second))
    }

    fn lines(&self, path: &Path) -> Result<Vec<String>, SecretError> {
        let name = self.name;
        let failed = |source| SecretError::File { name, path: path.to_owned(), source };
        if is_open_to_others(&fs::metadata(path).map_err(failed)?) {
            return Err(SecretError::Open { name, path: path.to_owned() });
        }
        let bytes = read_regular_file(path, MAX_FILE_BYTES).map_err(failed)?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| failed(io::Error::other("not UTF-8")))?;
        let lines = text.lines().map(|line| line.trim().to_owned());
        Ok(lines.filter(|line| !line.is_empty()).collect())
    }
}

/// Returns whether users other than the owner and its group have access to a file.
#[cfg(unix)]
pub(crate) fn is_open_to_others(file: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.permissions().mode() & 0o007 != 0
}

#[cfg(not(unix))]
pub(crate) fn is_open_to_others(_: &fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_two_values_are_accepted() {
        let kind = SecretKind { name: "token", hint: "give it" };
        let pair = |values: &[&str]| {
            let values: Vec<_> = values.iter().map(ToString::to_string).collect();
            kind.pair(None, &values)
        };
        assert_eq!(pair(&["a"]).unwrap(), (Secret::new("a").unwrap(), None));
        assert!(pair(&["a", "b"]).unwrap().1.is_some());
        assert!(matches!(pair(&["a", "b", "c"]), Err(SecretError::TooMany { .. })));
        assert!(matches!(pair(&["a", ""]), Err(SecretError::Empty { .. })));
        assert_eq!(pair(&[]).unwrap_err().to_string(), "no token: give it");
    }
}
