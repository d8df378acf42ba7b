//! Data stream or index that documents are created in.

/// Data stream of sessions, named as Elastic's naming scheme requires.
pub const DEFAULT_DATA_STREAM: &str = "logs-claude_code.session-default";

/// Maximum length of a name in bytes.
const MAX_NAME: usize = 255;

/// Data stream or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Data stream with a name of three parts, which are fields of its documents too.
    DataStream {
        /// The name.
        name: String,
        /// `data_stream.type`, `data_stream.dataset` and `data_stream.namespace`.
        parts: [String; 3],
    },
    /// Index, alias or data stream with any name.
    Index(String),
}

/// Reason why a name cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidTarget(pub &'static str);

impl Target {
    /// Creates a data stream.
    ///
    /// # Errors
    /// [`InvalidTarget`] if `name` is not `<type>-<dataset>-<namespace>`.
    pub fn data_stream(name: &str) -> Result<Self, InvalidTarget> {
        check(name)?;
        let parts: Vec<&str> = name.split('-').collect();
        let Ok([kind, dataset, namespace]) = <[&str; 3]>::try_from(parts) else {
            return Err(InvalidTarget(
                "is not `<type>-<dataset>-<namespace>`, three parts without further hyphens; for \
                 another name set `index`",
            ));
        };
        if [kind, dataset, namespace].iter().any(|part| part.is_empty() || part.len() > 100) {
            return Err(InvalidTarget("has a part that is empty or longer than 100 bytes"));
        }
        let parts = [kind.to_owned(), dataset.to_owned(), namespace.to_owned()];
        Ok(Self::DataStream { name: name.to_owned(), parts })
    }

    /// Creates an index, alias or data stream.
    ///
    /// # Errors
    /// [`InvalidTarget`] if no index can have this name.
    pub fn index(name: &str) -> Result<Self, InvalidTarget> {
        check(name)?;
        Ok(Self::Index(name.to_owned()))
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::DataStream { name, .. } | Self::Index(name) => name,
        }
    }
}

/// Checks the rules for names of indices.
fn check(name: &str) -> Result<(), InvalidTarget> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(InvalidTarget("is empty or longer than 255 bytes"));
    }
    if name.starts_with(['-', '_', '+', '.']) {
        return Err(InvalidTarget("starts with `-`, `_`, `+` or `.`"));
    }
    let is_forbidden =
        |c: char| c.is_control() || c.is_whitespace() || r#"\/*?"<>|,#:"#.contains(c);
    if name.chars().any(|c| is_forbidden(c) || c.is_uppercase()) {
        return Err(InvalidTarget(
            "has an upper-case letter, a space or one of \\ / * ? \" < > | , # :",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_data_stream_has_three_parts() {
        let Target::DataStream { parts, .. } = Target::data_stream(DEFAULT_DATA_STREAM).unwrap()
        else {
            panic!()
        };
        assert_eq!(parts, ["logs", "claude_code.session", "default"]);
        for name in ["logs", "logs-a", "logs-a-b-c", "logs--b", "Logs-a-b", "", "logs-a b-c"] {
            assert!(Target::data_stream(name).is_err(), "{name}");
        }
    }

    #[test]
    fn index_has_any_valid_name() {
        assert_eq!(Target::index("claude-code-2026").unwrap().name(), "claude-code-2026");
        for name in ["", "_all", ".ds", "a/b", "a,b", "*", &"x".repeat(256)] {
            assert!(Target::index(name).is_err(), "{name}");
        }
    }
}
