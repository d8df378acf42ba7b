//! Stored lines, each with the members that say where it comes from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use siem_protocol::json::{self, Member};

use crate::{clock, store::StoredLines, trust::DeviceKey};

/// Members that [`with_origin`] adds. A sender could give an entry one with the same name.
const ADDED: [&str; 8] =
    ["machine_id", "hostname", "user", "epoch", "device", "received_at", "time", "claimed"];

/// Members before those of the entry.
#[derive(Serialize)]
struct Origin<'a> {
    machine_id: &'a str,
    hostname: &'a str,
    user: &'a str,
    epoch: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<DeviceKey>,
    received_at: &'a str,
}

/// Returns `lines` with the members `machine_id`, `hostname`, `user`, `epoch`, `device`,
/// `received_at` and `time` at the start of each. All other bytes stay as they are. `device` is
/// absent without a device key. `time` is the `timestamp` of a record, otherwise the time at which
/// the entry was read or created, and absent if the line has none of them.
///
/// Members of the entry with one of these names are moved into an object `claimed`: most parsers use
/// the last one of two members with one name, which would be that of the sender.
#[must_use]
pub fn with_origin(lines: &StoredLines<'_>) -> Vec<u8> {
    let origin = Origin {
        machine_id: &lines.sender.machine_id,
        hostname: &lines.sender.hostname,
        user: &lines.sender.user,
        epoch: lines.epoch,
        device: lines.device,
        received_at: lines.received_at,
    };
    let mut start = serde_json::to_vec(&origin).expect("names can be written as JSON");
    start.pop();
    let mut out = Vec::with_capacity(lines.lines.len() * 2);
    for line in lines.lines.split_inclusive(|byte| *byte == b'\n') {
        let Some(members) = line.trim_ascii_start().strip_prefix(b"{") else {
            out.extend_from_slice(line);
            continue;
        };
        out.extend_from_slice(&start);
        let text = std::str::from_utf8(line).unwrap_or_default();
        if let Some(time) = time_of(text) {
            out.extend_from_slice(format!(r#","time":"{}""#, clock::text(time)).as_bytes());
        }
        let apart = claims_apart(text.trim_ascii_end());
        let members = apart.as_ref().map_or(members, |text| text.as_bytes());
        if !members.trim_ascii_start().starts_with(b"}") {
            out.push(b',');
        }
        out.extend_from_slice(members);
    }
    out
}

/// Returns the members of an entry and the end of its line, with those that imitate added ones in
/// `claimed`; `None` if there are no such members.
fn claims_apart(entry: &str) -> Option<String> {
    let (mut claimed, mut others) = (Vec::new(), Vec::new());
    json::members(entry, |member| {
        let is_claim = ADDED.iter().any(|name| member.is(name));
        let to = if is_claim { &mut claimed } else { &mut others };
        to.push(member);
    });
    let text = |members: Vec<Member<'_>>| {
        let texts = members.iter().map(|member| format!("\"{}\":{}", member.key, member.value));
        texts.collect::<Vec<_>>().join(",")
    };
    (!claimed.is_empty()).then(|| {
        let comma = if others.is_empty() { "" } else { "," };
        format!("\"claimed\":{{{}}}{comma}{}}}\n", text(claimed), text(others))
    })
}

/// Returns the `timestamp` of a record, otherwise `read_at` or `at` of the entry.
pub(crate) fn time_of(line: &str) -> Option<SystemTime> {
    let (mut read, mut record) = (None, None);
    let look = |member: Member<'_>| {
        if read.is_none() && (member.is("read_at") || member.is("at")) {
            read = json::string(member.value).and_then(|text| since_1970(&text));
        }
        if member.is("record") {
            record = timestamp(member.value);
        }
    };
    json::members(line.trim_ascii_end(), look);
    record.or(read)
}

fn timestamp(record: &str) -> Option<SystemTime> {
    let mut found = None;
    json::members(record, |member| {
        if found.is_none() && member.is("timestamp") {
            found = json::string(member.value).and_then(|text| since_1970(&text));
        }
    });
    found
}

/// Parses an RFC 3339 time after 1970, with `Z`, an offset, or without both, which is UTC.
fn since_1970(text: &str) -> Option<SystemTime> {
    const DATE: usize = "2026-11-29".len();

    let offset = text.rfind(['+', '-']).filter(|at| *at > DATE);
    let (time, offset) = text.split_at(offset.unwrap_or(text.len()));
    let time = humantime::parse_rfc3339_weak(time).ok()?;
    let Some((sign, offset)) = offset.split_at_checked(1) else { return Some(time) };
    let (hours, minutes) = offset.split_once(':')?;
    let minutes =
        u64::from(hours.parse::<u8>().ok()?) * 60 + u64::from(minutes.parse::<u8>().ok()?);
    let shift = Duration::from_secs(minutes * 60);
    let time = if sign == "+" { time.checked_sub(shift)? } else { time.checked_add(shift)? };
    (time >= UNIX_EPOCH).then_some(time)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use siem_protocol::Identity;

    use super::*;

    fn added(lines: &str, device: Option<DeviceKey>) -> String {
        let sender = Identity {
            machine_id: "m-1".into(),
            hostname: "lap\"top".into(),
            user: "dev".into(),
            os: String::new(),
            arch: String::new(),
            agent_version: String::new(),
        };
        let lines = StoredLines {
            sender: &sender,
            epoch: "e-1",
            device,
            received_at: "2026-11-21T20:00:02.000Z",
            lines: lines.as_bytes(),
        };
        String::from_utf8(with_origin(&lines)).unwrap()
    }

    const START: &str = r#"{"machine_id":"m-1","hostname":"lap\"top","user":"dev","epoch":"e-1","received_at":"2026-11-21T20:00:02.000Z","#;

    #[test]
    fn line_names_its_origin_and_keeps_its_bytes() {
        let rest =
            r#""seq":1,"kind":"record","read_at":"2026-11-21T20:00:01.000Z","record":{"a" : 1}}"#;
        let lines = format!("{{{rest}\n {{ {rest}\n{{}}\n");
        let time = r#""time":"2026-11-21T20:00:01.000Z","#;
        let end = format!("{}}}\n", START.trim_end_matches(','));
        let expected = format!("{START}{time}{rest}\n{START}{time} {rest}\n{end}");
        assert_eq!(added(&lines, None), expected);
        assert!(
            added(&lines, None).lines().all(|line| serde_json::from_str::<Value>(line).is_ok())
        );
        let device = added("{\"seq\":1}", Some(DeviceKey::from_bytes([1; 32])));
        assert!(device.contains(&format!(r#""device":"{}""#, "01".repeat(32))), "{device}");
    }

    #[test]
    fn member_of_a_sender_does_not_pass_for_that_of_the_receiver() {
        // Most parsers use the last one of two members with one name.
        let lines = r#"{"seq":1,"user":"boss" , "k\u0069nd":"event","\u0075ser":{"a":"}"},"received_at":1}"#;
        let line = added(lines, None);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["user"], &value["kind"]), (&"dev".into(), &"event".into()), "{line}");
        assert_eq!(value["received_at"], "2026-11-21T20:00:02.000Z");
        assert_eq!(value["claimed"], serde_json::json!({"user": {"a": "}"}, "received_at": 1}));
        let line = added("{\"claimed\":1,\"user\":2}\n", None);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["claimed"], serde_json::json!({"claimed": 1, "user": 2}));
        assert!(line.ends_with("}\n"));
    }

    #[test]
    fn time_is_that_of_record_or_event_or_reading() {
        let read = r#""read_at":"2026-11-21T20:00:01.000Z""#;
        for (members, time) in [
            (
                format!(r#"{read},"record":{{"timestamp":"2026-11-20T10:00:00.5+01:00"}}"#),
                Some("2026-11-20T09:00:00.500Z"),
            ),
            (format!(r#"{read},"record":{{"timestamp":7}}"#), Some("2026-11-21T20:00:01.000Z")),
            (format!(r#"{read},"record":{{"timestamp":"9-9"}}"#), Some("2026-11-21T20:00:01.000Z")),
            (format!(r#"{read},"raw":"torn""#), Some("2026-11-21T20:00:01.000Z")),
            (
                format!(r#"{read},"record":{{"timestamp":"9999-12-31T23:59:59-10:00"}}"#),
                Some("9999-12-31T23:59:59.999Z"),
            ),
            (
                r#""at":"2026-11-22T00:00:00.000Z","data":{"at":"2020-01-01T00:00:00Z"}"#.into(),
                Some("2026-11-22T00:00:00.000Z"),
            ),
            (r#""kind":"event""#.into(), None),
        ] {
            let line: Value =
                serde_json::from_str(&added(&format!("{{\"seq\":1,{members}}}"), None)).unwrap();
            assert_eq!(line["time"].as_str(), time, "{members}");
        }
    }
}
