//! Lines of entries for files and pipes, which have no header: each line names its sender and its
//! time.

use std::time::Duration;

use siem_protocol::BatchHeader;

use crate::{
    event::{TimeOf, rfc3339, time_of},
    json::write_text,
};

/// Members that [`SenderMembers`] puts before those of the entry.
pub const MEMBERS: [&str; 5] = ["machine_id", "hostname", "user", "epoch", "time"];

/// Members that name the sender of a batch, as the start of a JSON object.
#[derive(Clone, Debug)]
pub struct SenderMembers(Vec<u8>);

impl SenderMembers {
    /// Encodes the sender that `header` names.
    #[must_use]
    pub fn of(header: &BatchHeader) -> Self {
        let values = [&header.machine_id, &header.hostname, &header.user, &header.epoch];
        let mut start = vec![b'{'];
        for (name, value) in MEMBERS.into_iter().zip(values) {
            write_text(&mut start, name);
            start.push(b':');
            write_text(&mut start, value);
            start.push(b',');
        }
        Self(start)
    }

    /// Returns `lines`, NDJSON, with the members of the sender and `time` at the start of each line:
    /// the `timestamp` of a record, otherwise the time at which the entry was read or created. All
    /// other bytes stay as they are. A line that is not a JSON object is not changed.
    #[must_use]
    pub fn add_to(&self, lines: &[u8]) -> Vec<u8> {
        const TIME: usize = r#""time":"2026-11-21T20:00:00.000Z","#.len();

        let count = memchr::memchr_iter(b'\n', lines).count() + 1;
        let mut out = Vec::with_capacity(lines.len() + count * (self.0.len() + TIME));
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            match line {
                [b'{', rest @ ..] if !rest.starts_with(b"}") => {
                    out.extend_from_slice(&self.0);
                    write_time(&mut out, line);
                    out.extend_from_slice(rest);
                }
                other => out.extend_from_slice(other),
            }
        }
        out
    }
}

/// Appends the member `time` with a comma after it, if the line has a time.
fn write_time(out: &mut Vec<u8>, line: &[u8]) {
    let time: Option<Duration> = std::str::from_utf8(line)
        .ok()
        .and_then(|line| time_of(line.trim_ascii_end(), TimeOf::Record));
    if let Some(time) = time {
        write_text(out, MEMBERS[4]);
        out.push(b':');
        write_text(out, &rfc3339(time));
        out.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use siem_protocol::{Digest, Entry, Identity};

    use super::*;

    fn sender() -> SenderMembers {
        let identity = Identity {
            machine_id: "m-1".into(),
            hostname: "lap\"top".into(),
            user: "dev".into(),
            os: "linux".into(),
            arch: "x86_64".into(),
            agent_version: "0".into(),
        };
        SenderMembers::of(&BatchHeader::new(&identity, "e-1".into(), Digest::ZERO, String::new()))
    }

    fn added(line: &str) -> (String, Value) {
        let line = String::from_utf8(sender().add_to(line.as_bytes())).unwrap();
        let value = serde_json::from_str(&line).unwrap();
        (line, value)
    }

    const READ: &str = r#""read_at":"2026-11-21T20:00:01.000Z""#;

    #[test]
    fn line_names_its_sender_and_keeps_its_bytes() {
        let entry = format!(
            r#""seq":1,"kind":"record","source":"s",{READ},"record":{{"a" : 1,"time":"x"}}}}"#
        );
        let (line, value) = added(&format!("{{{entry}\n"));
        let sender = [&value["machine_id"], &value["hostname"], &value["user"], &value["epoch"]];
        assert_eq!(json!(sender), json!(["m-1", "lap\"top", "dev", "e-1"]));
        assert_eq!(value["time"], "2026-11-21T20:00:01.000Z");
        assert!(line.ends_with(&format!(",{entry}\n")), "{line}");
        let entry = Entry::parse(line.as_bytes()).unwrap();
        assert_eq!(entry.content().unwrap().unwrap(), br#"{"a" : 1,"time":"x"}"#.as_slice());
        assert_eq!(line.matches(r#""time":"2026"#).count(), 1);
    }

    #[test]
    fn time_is_that_of_record_or_event_or_reading() {
        for (members, time) in [
            (format!(r#"{READ},"record":{{"timestamp":"2026-11-20T10:00:00.5+01:00"}}"#), "2026-11-20T09:00:00.500Z"),
            (format!(r#"{READ},"record":{{"timestamp":7}}"#), "2026-11-21T20:00:01.000Z"),
            (format!(r#"{READ},"raw":"torn""#), "2026-11-21T20:00:01.000Z"),
            (format!(r#""part":2,{READ},"raw_base64":"AP8=""#), "2026-11-21T20:00:01.000Z"),
            (
                r#""event":"x","at":"2026-11-22T00:00:00.000Z","data":{"at":"2020-01-01T00:00:00Z"}"#.into(),
                "2026-11-22T00:00:00.000Z",
            ),
            // Members of an enricher's object do not count.
            (format!(r#"{READ},"activity":{{"read_at":"2020-01-01T00:00:00Z"}},"record":1"#), "2026-11-21T20:00:01.000Z"),
        ] {
            assert_eq!(added(&format!("{{\"seq\":1,{members}}}")).1["time"], time, "{members}");
        }
    }

    #[test]
    fn members_are_documented() {
        let page = include_str!("../../../docs/siem/fields.md");
        let section = page.split("## Lines of").nth(1).unwrap();
        for member in MEMBERS {
            assert!(section.contains(&format!("`{member}`")), "{member}");
        }
    }

    #[test]
    fn every_line_of_a_batch_is_changed_alone() {
        let lines = format!("{{\"seq\":1,{READ}}}\n{{\"seq\":2,{READ}}}\n");
        let out = String::from_utf8(sender().add_to(lines.as_bytes())).unwrap();
        assert_eq!(out.lines().count(), 2);
        assert!(out.lines().all(|line| line.starts_with(r#"{"machine_id":"m-1","#)), "{out}");
        assert_eq!(sender().add_to(b"no entry\n{}\n"), b"no entry\n{}\n");
        assert_eq!(sender().add_to(b""), b"");
    }
}
