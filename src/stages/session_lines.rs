//! Session ids in the lines of session files.

use std::{
    borrow::Cow,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    sync::LazyLock,
};

use ai_agent_stage::Piece;
use memchr::memmem::Finder;
use siem_protocol::json;

use crate::platform::file;

/// Member of a line that contains the session id.
const MEMBER: &str = "sessionId";
/// Number of bytes at each end of a file that are searched for a session id.
const SEARCHED: u64 = 256 << 10;

static QUOTED_MEMBER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"sessionId\""));

/// Session ids in a file, as far as it was searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileEvidence {
    /// A line has the id.
    Lines,
    /// There are lines, and none has any id.
    NoIds,
    /// All ids are those of other sessions.
    OtherSessions,
    /// The file is empty.
    Empty,
}

/// Passes the session ids in `pieces` to `show`, each at most once in a row.
pub(super) fn session_ids<'a>(pieces: &[Piece<'a>], mut show: impl FnMut(&str)) {
    let mut last: Option<Cow<'a, str>> = None;
    for piece in pieces {
        let line = match piece {
            Piece::Line { bytes, .. } | Piece::Part { part: 1, bytes, .. } => *bytes,
            Piece::Part { .. } | Piece::Lines { .. } | Piece::Skipped { .. } => continue,
        };
        if last.as_ref().is_some_and(|last| has_first(line, last)) {
            continue;
        }
        if let Some(id) = session_id(line) {
            show(&id);
            last = Some(id);
        }
    }
}

/// Returns true if the first text that looks like a session id in `line` is `id`. That is much faster
/// than [`session_id`], and no proof: the text may be inside another member.
fn has_first(line: &[u8], id: &str) -> bool {
    let Some(at) = QUOTED_MEMBER.find(line) else { return false };
    let rest = &line[at + MEMBER.len() + 2..];
    rest.strip_prefix(b":\"")
        .and_then(|rest| rest.strip_prefix(id.as_bytes()))
        .is_some_and(|rest| rest.first() == Some(&b'"'))
}

/// Returns the session id of a line: the member of the outermost object, and no text inside another
/// one. The line may be incomplete behind it, and have byte order marks before it.
pub(super) fn session_id(line: &[u8]) -> Option<Cow<'_, str>> {
    QUOTED_MEMBER.find(line)?;
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        // The id of a part that ends inside a character is in front of that.
        Err(error) => std::str::from_utf8(&line[..error.valid_up_to()]).ok()?,
    };
    let text = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r']);
    let rest = json::members_before(text, MEMBER, |_| ())?;
    let inner = rest.strip_prefix('"')?;
    let end = inner.find(['"', '\\'])?;
    // Ids have no escapes; another text is not that of a session.
    inner[end..].starts_with('"').then(|| Cow::Borrowed(&inner[..end]))
}

/// Searches the start and the end of the file at `path` for lines of the session `id`.
///
/// # Errors
/// The error of the system; `NotFound` also if it is not a regular file.
pub(super) fn search_file(path: &Path, id: &str) -> io::Result<FileEvidence> {
    let path = path.canonicalize()?;
    let (mut file, stamp) = file::open_regular(&path)?.ok_or(io::ErrorKind::NotFound)?;
    if stamp.size == 0 {
        return Ok(FileEvidence::Empty);
    }
    let mut evidence = FileEvidence::NoIds;
    for start in [0, stamp.size.saturating_sub(SEARCHED).max(SEARCHED)] {
        if start >= stamp.size {
            break;
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        (&mut file).take(SEARCHED).read_to_end(&mut bytes)?;
        for line in bytes.split(|byte| *byte == b'\n') {
            match session_id(line) {
                Some(found) if found == id => return Ok(FileEvidence::Lines),
                Some(_) => evidence = FileEvidence::OtherSessions,
                None => {}
            }
        }
    }
    Ok(evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_id_is_a_member_of_the_outermost_object() {
        let id = |line: &str| session_id(line.as_bytes()).map(Cow::into_owned);
        assert_eq!(
            id(r#"{"a":{"sessionId":"inner"},"sessionId":"s-1","z":1}"#),
            Some("s-1".into())
        );
        assert_eq!(id(r#"{ "sessionId" : "s-1" , "cut off"#), Some("s-1".into()));
        for none in [
            r#"{"message":"\"sessionId\":\"s\""}"#,
            r#"{"toolUseResult":{"sessionId":"inner"}}"#,
            r#"{"sessionId":7}"#,
            r#"{"sessionId":"cut"#,
            r#"["sessionId","s"]"#,
            "",
        ] {
            assert_eq!(id(none), None, "{none}");
        }
        assert_eq!(session_id(b"{\"sessionId\":\"s\",\"a\":\"\xff\"}").as_deref(), Some("s"));
        // A session whose file begins with a mark counted as one without lines.
        assert_eq!(id("\u{feff} \u{feff}{\"sessionId\":\"s-1\"}"), Some("s-1".into()));
    }

    #[test]
    fn ids_of_lines_are_shown_once_in_a_row() {
        let lines = [
            r#"{"sessionId":"a"}"#,
            r#"{"sessionId":"a","x":1}"#,
            r#"{"type":"summary"}"#,
            r#"{"x":{"sessionId":"c"},"sessionId":"a"}"#,
            r#"{"sessionId":"b"}"#,
        ];
        let piece = |line: &'static str| Piece::line(0, line.as_bytes(), 0);
        let mut shown = Vec::new();
        session_ids(&lines.map(piece), |id| shown.push(id.to_owned()));
        assert_eq!(shown, ["a", "a", "b"], "the fourth line is parsed to be sure");
    }

    #[test]
    fn file_is_searched_at_both_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let filler = "{\"type\":\"summary\"}\n".repeat(40_000);
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        let of = |id: &str| format!("{{\"sessionId\":\"{id}\"}}\n");
        write("");
        assert_eq!(search_file(&path, "s").unwrap(), FileEvidence::Empty);
        write(&filler);
        assert_eq!(search_file(&path, "s").unwrap(), FileEvidence::NoIds);
        write(&format!("{}{filler}", of("other")));
        assert_eq!(search_file(&path, "s").unwrap(), FileEvidence::OtherSessions);
        for text in [format!("{}{filler}", of("s")), format!("{filler}{}", of("s")), of("s")] {
            write(&text);
            assert_eq!(search_file(&path, "s").unwrap(), FileEvidence::Lines);
        }
        assert!(search_file(dir.path(), "s").is_err());
    }
}
