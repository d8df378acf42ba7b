//! Which entries an erasure or a hold is about.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::session::{Relation, contains, relation};

/// Minimum length of a session id: a shorter text would be in many unrelated lines.
const SESSION: usize = 8;

/// A set of entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// For an erasure, all entries of a session. For a hold, all entries that contain its id.
    Session(String),
    /// All entries that contain the id of a session: those of the session, and those of others that mention it.
    Mentions(String),
    /// All entries that agents of this user sent.
    User(String),
    /// All entries of a machine. For holds only.
    Machine(String),
}

/// Reason why a text selects nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not the id of a session: expected {SESSION} or more letters, digits, `-` and `_`"
)]
pub struct SelectorError(String);

impl Selector {
    /// Selects a session.
    ///
    /// # Errors
    /// [`SelectorError`] for a text that cannot be searched for.
    pub fn session(id: &str) -> Result<Self, SelectorError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        match id.len() >= SESSION && id.bytes().all(is_plain) {
            true => Ok(Self::Session(id.to_owned())),
            false => Err(SelectorError(id.to_owned())),
        }
    }

    /// Reports whether a hold of this selection covers a line of an epoch. `user` sent it.
    #[must_use]
    pub fn covers(&self, machine: &str, user: &str, line: &[u8]) -> bool {
        match self {
            Self::Session(id) | Self::Mentions(id) => contains(line, id),
            Self::User(name) => name == user,
            Self::Machine(id) => id == machine,
        }
    }

    /// Returns the relation of a line of an epoch to an erasure of this selection. `user` sent it.
    pub(super) fn relation(&self, machine: &str, user: &str, line: &[u8]) -> Relation {
        let is_part = match self {
            Self::Session(id) => return relation(line, id),
            selector => selector.covers(machine, user, line),
        };
        if is_part { Relation::Part } else { Relation::None }
    }

    /// Returns the id or the name.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Session(text) | Self::Mentions(text) | Self::User(text) | Self::Machine(text) => {
                text
            }
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(id) => write!(f, "session {id}"),
            Self::Mentions(id) => write!(f, "session {id} with mentions"),
            Self::User(name) => write!(f, "user {name}"),
            Self::Machine(id) => write!(f, "machine {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_texts_of_some_length_are_sessions() {
        for id in ["6d1ae0eb-09ca-446a-a362-7b167b280f7a", "agent_a1"] {
            assert!(Selector::session(id).is_ok(), "{id}");
        }
        for id in ["", "a", "seven77", "with space", "quote\"quote"] {
            assert!(Selector::session(id).is_err(), "{id}");
        }
    }
}
