//! Input that Claude Code writes to a hook's standard input.

use std::{fmt, path::PathBuf};

use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

use super::account::text;

/// Input of a hook, as far as it could be parsed. The prompt may be megabytes long and comes last,
/// so the part before it is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookInput {
    /// Session id.
    pub session_id: Option<String>,
    /// Path of the session file, which may not exist yet.
    pub transcript_path: Option<PathBuf>,
    /// Working directory of the session.
    pub cwd: Option<String>,
    /// Trigger of the session start: `startup`, `resume`, `clear`, `compact`, `fork`.
    pub source: Option<String>,
}

impl HookInput {
    /// Parses as much of the input as possible; invalid members are omitted.
    #[must_use]
    pub fn read(line: &[u8]) -> Self {
        let mut call = Self::default();
        // The position at which the input ends or becomes invalid does not matter.
        drop(Members(&mut call).deserialize(&mut serde_json::Deserializer::from_slice(line)));
        call
    }
}

struct Members<'a>(&'a mut HookInput);

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(name) = members.next_key::<String>()? {
            let member = match name.as_str() {
                "session_id" => &mut self.0.session_id,
                "transcript_path" => {
                    self.0.transcript_path = text(&members.next_value()?).map(PathBuf::from);
                    continue;
                }
                "cwd" => &mut self.0.cwd,
                "source" => &mut self.0.source,
                _ => {
                    members.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *member = text(&members.next_value()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(line: &[u8]) -> Option<String> {
        HookInput::read(line).session_id
    }

    #[test]
    fn read_parses_the_input_of_a_session_start() {
        let line =
            br#"{"session_id":"s","transcript_path":"/h/.claude/projects/p/s.jsonl","cwd":"/w",
            "hook_event_name":"SessionStart","source":"startup","model":"m"}"#;
        let call = HookInput {
            session_id: Some("s".into()),
            transcript_path: Some("/h/.claude/projects/p/s.jsonl".into()),
            cwd: Some("/w".into()),
            source: Some("startup".into()),
        };
        assert_eq!(HookInput::read(line), call);
    }

    #[test]
    fn read_keeps_members_before_truncated_or_invalid_input() {
        let cut = br#"{"session_id":"s","cwd":"/w","prompt":"aaaaaaaaaaaaaaa"#;
        assert_eq!(session(cut), Some("s".into()));
        assert_eq!(session(b"{\"session_id\":\"s\",\"cwd\":\"\xff\xfe\"}"), Some("s".into()));
        for odd in
            ["", "null", "[]", "{", "7", "\u{0}", r#"{"session_id":7}"#, r#"{"session_id":null}"#]
        {
            assert_eq!(session(odd.as_bytes()), None, "{odd}");
        }
        let deep = [b"{\"a\":".as_slice(), &b"[".repeat(100_000)].concat();
        assert_eq!(session(&deep), None);
        let long = format!(r#"{{"session_id":"{}","cwd":"/w"}}"#, "s".repeat(10_000));
        assert_eq!(HookInput::read(long.as_bytes()).cwd, Some("/w".into()));
        assert_eq!(session(long.as_bytes()), None);
    }
}
