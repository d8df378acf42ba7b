//! Formats an event for output.

use std::{collections::BTreeMap, fs, sync::OnceLock};

use super::parents::Parent;
use ai_agent_auditd::facts::Facts;

use crate::platform::Timestamp;

/// Format of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A line for people.
    Line,
    /// A JSON object.
    Json,
    /// The lines of the log.
    Raw,
}

/// Formats an event as one line.
pub(super) fn line(facts: &Facts, parents: &[Parent], offset: i64) -> String {
    let mut text = time(facts.at, offset);
    let mut add = |name: &str, value: String| text += &format!(" {name}={value}");
    let number = |number: Option<u32>| number.map_or_else(|| "?".to_owned(), |it| it.to_string());
    let word = |word: &Option<String>| word.as_deref().map_or_else(|| "?".to_owned(), quoted);
    add("pid", number(facts.pid));
    add("ppid", number(facts.ppid));
    let chain: Vec<String> = parents
        .iter()
        .map(|parent| match (&parent.comm, &parent.exe) {
            (Some(name), _) | (None, Some(name)) => format!("{}({})", parent.pid, escaped(name)),
            (None, None) => parent.pid.to_string(),
        })
        .collect();
    add("parents", if chain.is_empty() { "?".to_owned() } else { chain.join("<") });
    add("user", user(facts.uid, facts.user.as_deref()));
    add(
        "login",
        match facts.login_uid {
            None => "unset".to_owned(),
            uid => user(uid, facts.login_user.as_deref()),
        },
    );
    add("exe", word(&facts.exe));
    add("cwd", word(&facts.cwd));
    if facts.success == Some(false) {
        add("success", "no".to_owned());
    }
    let argv = facts.argv.as_ref().map(|argv| argv.iter().map(|it| quoted(it)).collect::<Vec<_>>());
    let lost = if facts.argv_incomplete { " …" } else { "" };
    add("argv", argv.map_or_else(|| "?".to_owned(), |argv| argv.join(" ")) + lost);
    text
}

/// Formats all facts and the parents as JSON.
pub(super) fn json(facts: &Facts, parents: &[Parent]) -> String {
    let parents = serde_json::to_string(parents).expect("parents have only strings as keys");
    let mut object = facts.to_json();
    object.truncate(object.len() - 1);
    object + &format!(",\"parents\":{parents}}}")
}

/// Formats the lines of the log as ausearch does.
pub(super) fn raw(lines: &[u8]) -> String {
    let text = String::from_utf8_lossy(lines).replace('\u{1d}', " ");
    let lines: Vec<String> = text.split('\n').map(escaped).collect();
    format!("----\n{}", lines.join("\n"))
}

/// Formats a time as local time, which is `offset` seconds ahead of UTC.
fn time(at: Timestamp, offset: i64) -> String {
    if offset == 0 {
        return at.to_string();
    }
    let local = Timestamp(at.0.saturating_add_signed(offset * 1000)).to_string();
    let (sign, distance) = (if offset < 0 { '-' } else { '+' }, offset.unsigned_abs());
    let local = local.trim_end_matches('Z');
    format!("{local}{sign}{:02}:{:02}", distance / 3600, distance % 3600 / 60)
}

/// Formats a user by name and number.
fn user(uid: Option<u32>, name: Option<&str>) -> String {
    static NAMES: OnceLock<BTreeMap<u32, String>> = OnceLock::new();
    let Some(uid) = uid else { return "?".to_owned() };
    let known = || {
        let names =
            NAMES.get_or_init(|| names(&fs::read_to_string("/etc/passwd").unwrap_or_default()));
        names.get(&uid).map(String::as_str)
    };
    match name.or_else(known) {
        Some(name) => format!("{}({uid})", escaped(name)),
        None => uid.to_string(),
    }
}

/// Users by number: `name:x:1000:…`.
fn names(passwd: &str) -> BTreeMap<u32, String> {
    let entry = |line: &str| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?);
        Some((uid.parse().ok()?, name.to_owned()))
    };
    passwd.lines().rev().filter_map(entry).collect()
}

/// Quotes a word for a shell: in single quotes if needed, or in `$'…'` if it contains characters that
/// affect a terminal.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%^".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else if word.chars().any(is_dangerous) {
        format!("$'{}'", escaped(&word.replace('\\', "\\\\").replace('\'', "\\'")))
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Escapes characters that affect a terminal.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => safe.push_str("\\n"),
            '\t' => safe.push_str("\\t"),
            c if is_dangerous(c) && u32::from(c) < 0x100 => {
                safe += &format!("\\x{:02x}", u32::from(c));
            }
            c if is_dangerous(c) => safe += &format!("\\u{:04x}", u32::from(c)),
            c => safe.push(c),
        }
    }
    safe
}

/// Returns true if a character moves the cursor or changes the direction of text.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            at: Timestamp(1_795_291_200_120),
            pid: Some(31),
            ppid: Some(20),
            uid: Some(0),
            user: Some("root".into()),
            login_uid: Some(1000),
            login_user: Some("u".into()),
            exe: Some("/usr/bin/docker".into()),
            cwd: Some("/srv/my app".into()),
            argv: Some(["docker", "rm", "-f", "claude-hooks-1", "it's", ""].map(Into::into).into()),
            ..Facts::default()
        }
    }

    #[test]
    fn a_line_has_user_parents_and_arguments() {
        let parent =
            |pid, comm: Option<&str>| Parent { pid, comm: comm.map(Into::into), exe: None };
        let parents = [parent(20, Some("bash")), parent(10, None)];
        assert_eq!(
            line(&facts(), &parents, 3600),
            r"2026-11-21T21:00:00.120+01:00 pid=31 ppid=20 parents=20(bash)<10 user=root(0) login=u(1000) exe=/usr/bin/docker cwd='/srv/my app' argv=docker rm -f claude-hooks-1 'it'\''s' ''"
        );
        let unknown = Facts { argv_incomplete: true, at: Timestamp(0), ..Facts::default() };
        assert_eq!(
            line(&unknown, &[], 0),
            "1970-01-01T00:00:00.000Z pid=? ppid=? parents=? user=? login=unset exe=? cwd=? argv=? …"
        );
    }

    /// Regression: arguments of docker could contain terminal sequences.
    #[test]
    fn characters_that_affect_a_terminal_are_escaped() {
        let words = ["a\x1b[2Jb", "two\nlines", "\u{202e}txt", "it's\\\r"];
        let expected = [r"$'a\x1b[2Jb'", r"$'two\nlines'", r"$'\u202etxt'", r"$'it\'s\\\x0d'"];
        assert_eq!(words.map(quoted), expected);
        assert_eq!(quoted("Grüße"), "Grüße");
        assert_eq!(raw(b"a=\"b\"\x1dC=\x1b\nd"), "----\na=\"b\" C=\\x1b\nd");
    }

    #[test]
    fn users_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nu:x:1000:1000::/home/u:/bin/sh\ntoor:x:0:0::/:/bin/sh\n";
        let names = names(passwd);
        assert_eq!((names[&0].as_str(), names[&1000].as_str(), names.len()), ("root", "u", 2));
    }

    #[test]
    fn json_has_the_parents_too() {
        let text = json(&facts(), &[Parent { pid: 20, comm: None, exe: None }]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["pid"], &value["parents"][0]["pid"]), (&31.into(), &20.into()));
        assert_eq!(value["argv"][1], "rm");
    }
}
