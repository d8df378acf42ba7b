//! Which entries belong to a session, and which ones only mention its id.

use data_encoding::BASE64;
use memchr::memmem;
use siem_protocol::json::{self, Member};

/// Relation of an entry to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// It does not contain the id.
    None,
    /// It contains the id, and is of another session or of none: the id of that session, otherwise the name
    /// of the event or of the source.
    Mention(String),
    /// It is an entry of the session.
    Part,
}

/// What an entry says about its session.
#[derive(Default)]
struct Owner {
    is_part: bool,
    /// Session according to the record, and to the name of the file.
    session: Option<String>,
    file: Option<String>,
    name: Option<String>,
    source: Option<String>,
}

/// Returns the relation of an entry to the session `id`.
///
/// An entry is of the session if
/// - its file is `ID.jsonl` or another file with this name, or is in a directory `ID`, in which the files of
///   subagents and of large tool results are;
/// - its record has the id as `sessionId` or `session_id`; or
/// - it is an event about the session, which has the id as `session_id`, or about such a file.
///
/// A text that is no JSON object, such as a part of a line, does not say its session: it counts as one of it.
pub(super) fn relation(line: &[u8], id: &str) -> Relation {
    if !contains(line, id) {
        return Relation::None;
    }
    let Ok(text) = std::str::from_utf8(line) else { return Relation::Part };
    let mut owner = Owner::default();
    let shape = json::members(text.trim_ascii_end(), |member| owner.inspect(&member, id));
    if owner.is_part || shape.is_none() {
        return Relation::Part;
    }
    let Owner { session, file, name, source, .. } = owner;
    Relation::Mention(session.or(file).or(name).or(source).unwrap_or_default())
}

/// Reports whether a line contains a text, as it is or in the bytes that it has as `raw_base64`.
pub(super) fn contains(line: &[u8], text: &str) -> bool {
    memmem::find(line, text.as_bytes()).is_some()
        || bytes_of(line).is_some_and(|bytes| memmem::find(&bytes, text.as_bytes()).is_some())
}

/// Returns the bytes that an entry has as `raw_base64`.
fn bytes_of(line: &[u8]) -> Option<Vec<u8>> {
    memmem::find(line, b"\"raw_base64\"")?;
    let mut bytes = None;
    json::members(std::str::from_utf8(line).ok()?.trim_ascii_end(), |member| {
        if member.is("raw_base64") {
            bytes = json::string(member.value).and_then(|it| BASE64.decode(it.as_bytes()).ok());
        }
    });
    bytes
}

impl Owner {
    fn inspect(&mut self, member: &Member<'_>, id: &str) {
        if member.is("path") {
            self.path(member.value, id);
        } else if member.is("record") {
            json::members(member.value, |member| self.session(&member, id));
        } else if member.is("data") {
            json::members(member.value, |member| {
                self.session(&member, id);
                if ["path", "other_path", "transcript_path"].iter().any(|name| member.is(name)) {
                    self.path(member.value, id);
                }
            });
        } else if member.is("raw") {
            let text = json::string(member.value).unwrap_or_default();
            self.is_part |= names_session(text.as_bytes(), id);
        } else if member.is("raw_base64") {
            let text = json::string(member.value).unwrap_or_default();
            let bytes = BASE64.decode(text.as_bytes()).unwrap_or_default();
            self.is_part |= names_session(&bytes, id);
        } else if member.is("event") {
            self.name = json::string(member.value).map(Into::into);
        } else if member.is("source") {
            self.source = json::string(member.value).map(Into::into);
        }
    }

    fn session(&mut self, member: &Member<'_>, id: &str) {
        if (member.is("sessionId") || member.is("session_id"))
            && let Some(session) = json::string(member.value)
        {
            self.is_part |= session == id;
            self.session.get_or_insert_with(|| session.into_owned());
        }
    }

    fn path(&mut self, value: &str, id: &str) {
        let Some(path) = json::string(value) else { return };
        let mut parts = path.split(['/', '\\']);
        self.is_part |= parts.any(|part| stem(part) == id || part == id);
        let name = path.rsplit(['/', '\\']).next().unwrap_or_default();
        self.file.get_or_insert_with(|| stem(name).to_owned());
    }
}

/// Reports whether a line that is no JSON, such as one in which two records follow each other, or a part of a
/// long one, has the id as that of its session.
fn names_session(line: &[u8], id: &str) -> bool {
    let value = format!("\"{id}\"");
    let has_value = |rest: &[u8]| {
        let rest = rest.trim_ascii_start().strip_prefix(b":");
        rest.is_some_and(|rest| rest.trim_ascii_start().starts_with(value.as_bytes()))
    };
    [r#""sessionId""#, r#""session_id""#].iter().any(|name| {
        memmem::find_iter(line, name.as_bytes()).any(|at| has_value(&line[at + name.len()..]))
    })
}

/// Returns the name of a file up to the first dot.
fn stem(name: &str) -> &str {
    name.split_once('.').map_or(name, |(stem, _)| stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6d1ae0eb-09ca-446a-a362-7b167b280f7a";
    const OTHER: &str = "11111111-09ca-446a-a362-7b167b280f7a";

    fn of(line: &str) -> Relation {
        relation(line.replace("ID", ID).replace("OTHER", OTHER).as_bytes(), ID)
    }

    #[test]
    fn entry_of_the_session_is_known_by_its_path_or_its_own_id() {
        for line in [
            r#"{"seq":1,"path":"/h/.claude/projects/p/ID.jsonl","record":{"type":"summary"}}"#,
            r#"{"seq":1,"path":"/h/.claude/projects/p/ID/subagents/agent-a1.jsonl","raw_base64":"e30="}"#,
            r#"{"seq":1,"path":"C:\\u\\.claude\\projects\\p\\ID\\subagents\\workflows\\w\\journal.jsonl","record":{}}"#,
            r#"{"seq":1,"path":"/p/ID.jsonl","record":{"sessionId":"OTHER"}}"#,
            r#"{"seq":1,"path":"/p/agent-a1.jsonl","record":{"isSidechain":true,"sessionId":"ID"}}"#,
            r#"{"seq":1,"path":"/p/OTHER.jsonl","record":{"sessionId":"ID"}}"#,
            r#"{"seq":1,"path":"/p/agent-a1.jsonl","raw":"{\"sessionId\":\"ID\",\"te{\"x\":1}"}"#,
            r#"{"seq":1,"kind":"event","event":"session_unlogged","data":{"session_id":"ID"}}"#,
            r#"{"seq":1,"kind":"event","event":"file_trimmed","data":{"path":"/p/ID.jsonl"}}"#,
            r#"{"seq":1,"path":"/p/OTHER.jsonl","record":{"text":"ID"#,
        ] {
            assert_eq!(of(line), Relation::Part, "{line}");
        }
    }

    #[test]
    fn entry_that_mentions_the_session_is_of_another_one() {
        for (line, expected) in [
            (
                r#"{"seq":1,"path":"/p/OTHER.jsonl","record":{"sessionId":"OTHER","text":"see ID"}}"#,
                OTHER,
            ),
            (r#"{"seq":1,"path":"/p/OTHER.jsonl","record":{"text":"rm ID.jsonl"}}"#, OTHER),
            (r#"{"seq":1,"path":"/p/OTHER.jsonl","record":{"message":{"sessionId":"ID"}}}"#, OTHER),
            (
                r#"{"seq":1,"path":"/p/OTHER.jsonl","record":{"forkedFrom":{"sessionId":"ID"}}}"#,
                OTHER,
            ),
            (r#"{"seq":1,"path":"/p/x-ID-y/OTHER.jsonl","raw":"ID"}"#, OTHER),
            (
                r#"{"seq":1,"kind":"event","event":"file_linked","data":{"path":"/p/a","x":"ID"}}"#,
                "a",
            ),
            (
                r#"{"seq":1,"kind":"event","event":"stage_failed","data":{"problem":"ID"}}"#,
                "stage_failed",
            ),
            (r#"{"seq":1,"kind":"record","source":"auditd","raw_lines":["kill ID"]}"#, "auditd"),
        ] {
            assert_eq!(of(line), Relation::Mention(expected.to_owned()), "{line}");
        }
        assert_eq!(of(r#"{"seq":1,"path":"/p/OTHER.jsonl"}"#), Relation::None);
    }

    #[test]
    fn session_is_known_in_bytes_that_are_encoded() {
        let line = |path: &str, text: &str| {
            let bytes = [text.replace("ID", ID).as_bytes(), b"\xff"].concat();
            let encoded = BASE64.encode(&bytes);
            of(&format!(
                r#"{{"seq":1,"kind":"record_part","path":"{path}","part":1,"raw_base64":"{encoded}"}}"#
            ))
        };
        let own = r#"{"parentUuid":null,"sessionId":"ID","text":""#;
        assert_eq!(line("/p/agent-a1.jsonl", own), Relation::Part);
        assert_eq!(line("/p/agent-a1.jsonl", r#"{"session_id" : "ID""#), Relation::Part);
        assert_eq!(line("/p/OTHER.jsonl", r#"{"text":"see ID"#), Relation::Mention(OTHER.into()));
        assert_eq!(line("/p/OTHER.jsonl", r#"{"text":"see I"#), Relation::None);
    }
}
